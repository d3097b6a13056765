"""From which initial model a new job of servers begins, and what it puts aside for that."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from commands import TINY, write_job
from mindspore import Tensor
from models import save_model, save_resnet

from src.errors import UserError
from src.federated.aggregation import FEDAVG, FEDNOVA, Aggregation
from src.federated.fingerprint import FEATURE_NAME, is_open
from src.job.checks import WARN, Finding
from src.job.job_config import load_job
from src.job.recovery_files import initial_origin, recovery_name, whole_detector
from src.launch.checkpoint_content import frozen_aspect, mark_of
from src.launch.preflight.roles import models_there
from src.launch.redis_store import JobStore
from src.launch.server_start import (
    ensure_initial_model,
    prepare_job,
    start_words,
    unfit_initial,
)
from src.model_utils.config import load_config
from src.training import build_detector, save_models, shared_aspects

NAME = "FasterRCNN"


def launched(**keys):
    """The server launcher's configuration; `keys` are its flags."""
    config = load_config(TINY, **keys)
    config.resume, config.given_flags = False, sorted(keys)
    return config


@pytest.fixture
def folder(tmp_path):
    (made := tmp_path / "fl_ckpt").mkdir()
    return made


@pytest.fixture
def job(tmp_path):
    return load_job(write_job(tmp_path, 2345, 3))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A ResNet as ModelZoo names it, of the tiny detector's backbone."""
    return save_resnet(tmp_path_factory.mktemp("weights") / "resnet50.ckpt")


def initial(folder: Path, launcher: bool = True, kind: str = FEDAVG, **keys) -> list[Path]:
    """Make the two files of an initial model, as the launcher or the tool does."""
    config = launched(**keys)
    files = [folder / recovery_name(NAME, 0), whole_detector(folder, NAME)]
    net, _ = build_detector(config)
    save_models(net, config, *files, Aggregation(kind), initial_origin(config, files[0], launcher))
    return files


def test_a_model_of_the_seed_goes_for_one_of_a_checkpoint(folder, job, classifier):
    files = initial(folder)
    assert unfit_initial(job, folder, launched()) == ([], "")
    now = launched(pre_trained=str(classifier))
    assert unfit_initial(job, folder, now) == (files, "--seed=1")
    said = models_there(job, folder, now)
    assert said == f"{folder}: its initial model, made from --seed=1, goes aside for another one"
    now.resume = True
    assert unfit_initial(job, folder, now) == ([], "")


@pytest.mark.slow
def test_the_second_try_begins_from_the_checkpoint_that_the_first_lacked(
    folder, tmp_path, redis_port, redis, classifier
):
    """As the launcher does it, the tool that makes the model included."""
    job = load_job(write_job(tmp_path, redis_port, 3))
    store = JobStore(job.redis_address, job.name)
    first = launched()
    first.config_path = str(TINY)
    ensure_initial_model(job, folder, first)
    made = sorted(path.name for path in folder.iterdir())
    second = launched(pre_trained=str(classifier))
    second.config_path = str(TINY)
    prepare_job(job, store, folder, False, unfit_initial(job, folder, second)[0])
    assert sorted(path.name for path in (folder / "earlier_1").iterdir()) == made
    ensure_initial_model(job, folder, second)
    assert start_words(job, folder).endswith(f"--pre_trained={classifier}")
    weights = ms.load_checkpoint(str(classifier))
    whole = ms.load_checkpoint(str(whole_detector(folder, NAME)))
    np.testing.assert_array_equal(
        whole["backbone.conv1.weight"].asnumpy(), weights["conv1.weight"].asnumpy()
    )
    assert unfit_initial(job, folder, second) == ([], "")


def test_a_job_is_not_taken_up_again_from_a_folder_without_its_model(
    folder, tmp_path, redis_port, redis
):
    job = load_job(write_job(tmp_path, redis_port, 3))
    store = JobStore(job.redis_address, job.name)
    prepare_job(job, store, folder, resume=True)
    redis.set(f"ms_fl:{NAME}:InstanceName:String", "i_1")
    redis.hset(f"ms_fl:{NAME}:i_1:status:Hash", "iterationNum", 2)
    with pytest.raises(
        UserError, match=f"Redis knows iteration 2 of {NAME}, and .* no model of it"
    ):
        prepare_job(job, store, folder, resume=True)


def test_what_the_launcher_made_has_to_be_of_what_is_given_now(folder, job, classifier, tmp_path):
    files = initial(folder, pre_trained=str(classifier))
    copy = tmp_path / "the same elsewhere.ckpt"
    copy.write_bytes(classifier.read_bytes())
    assert unfit_initial(job, folder, launched(pre_trained=str(copy))) == ([], "")
    other = save_resnet(tmp_path / "other.ckpt", 8)
    for keys in (
        {},
        {"pre_trained": str(other)},
        {"pre_trained": str(classifier), "seed": 2},
        {"pre_trained": str(classifier), "img_width": 96},
        {"pre_trained": str(classifier), "sync_type": "adaptive"},
        {"pre_trained": str(classifier), "data_size_unit": 2},
    ):
        assert unfit_initial(job, folder, launched(**keys))[0] == files, keys


def test_a_launchers_model_of_another_version_goes(folder, job):
    """Its workers would be refused, whatever they are given."""
    files = initial(folder)
    for path in files:
        content = ms.load_checkpoint(str(path))
        content[FEATURE_NAME] = ms.Parameter(content[FEATURE_NAME].asnumpy()[:-1])
        path.unlink()
        ms.save_checkpoint([{"name": n, "data": v} for n, v in content.items()], str(path))
    assert unfit_initial(job, folder, launched())[0] == files


def test_what_a_user_made_goes_only_where_another_is_asked_for(folder, job, classifier, tmp_path):
    files = initial(folder, launcher=False, pre_trained=str(classifier))
    for keys in ({}, {"img_width": 96}):
        assert unfit_initial(job, folder, launched(**keys)) == ([], "")
    with pytest.raises(UserError, match="made with other values of: img_width"):
        models_there(job, folder, launched(img_width=96))
    other = save_resnet(tmp_path / "other.ckpt", 8)
    for keys in ({"pre_trained": str(other)}, {"seed": 2}):
        assert unfit_initial(job, folder, launched(**keys))[0] == files, keys


def test_a_users_own_file_stays_and_has_to_fit_the_checkpoint(folder, job, classifier, tmp_path):
    """Its frozen weights can be told: every worker with the checkpoint would be refused."""
    theirs, whole = initial(folder, pre_trained=str(classifier))
    other = save_resnet(tmp_path / "other.ckpt", 8)
    mine = theirs.rename(folder / "FasterRCNN_recovery_iteration_0_20260101_000000.ckpt")
    now = launched(pre_trained=str(other))
    assert unfit_initial(job, folder, now) == ([], "")
    with pytest.raises(UserError, match=f"{mine.name}: .* frozen weights .pre_trained, seed."):
        models_there(job, folder, now)
    models_there(job, folder, launched(pre_trained=str(classifier)))
    save_model(mine)
    whole.unlink()
    models_there(job, folder, now)


def test_later_files_keep_a_model_of_another_configuration_from_going(folder, job, classifier):
    initial(folder)
    save_model(folder / recovery_name(NAME, 2))
    assert unfit_initial(job, folder, launched(img_width=96)) == ([], "")
    assert len(unfit_initial(job, folder, launched(pre_trained=str(classifier)))[0]) == 2
    said = models_there(job, folder, launched(pre_trained=str(classifier)))
    assert "goes aside" in said


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_the_frozen_weights_are_told_as_a_worker_tells_them(classifier, tmp_path, kind):
    values = {n: p.asnumpy().astype(kind) for n, p in ms.load_checkpoint(str(classifier)).items()}
    path = tmp_path / "resnet.ckpt"
    ms.save_checkpoint([{"name": n, "data": Tensor(v)} for n, v in values.items()], str(path))
    config = launched(pre_trained=str(path))
    net, _ = build_detector(config)
    told = shared_aspects(config, net)["frozen weights (pre_trained, seed)"]
    assert frozen_aspect(path, config) == told
    some = [{"name": n, "data": Tensor(v)} for n, v in values.items() if n != "conv1.weight"]
    ms.save_checkpoint(some, str(path))
    assert frozen_aspect(path, config) is None


def test_the_launcher_says_what_silos_start_from(folder, job, classifier):
    servers, whole = initial(folder)
    assert is_open(mark_of(servers)) and not is_open(mark_of(whole))
    assert "silos with --pre_trained start from theirs" in start_words(job, folder)
    for file in folder.iterdir():
        file.unlink()
    servers, _ = initial(folder, pre_trained=str(classifier))
    assert not is_open(mark_of(servers))
    assert start_words(job, folder).endswith(f"--pre_trained={classifier}")
    for file in folder.iterdir():
        file.unlink()
    servers, _ = initial(folder, kind=FEDNOVA)
    assert not is_open(mark_of(servers)), "servers that add cannot leave the start to silos"
    assert start_words(job, folder).endswith("of --seed=1: silos start without --pre_trained")
    save_model(servers)
    assert start_words(job, folder) == ""


@pytest.mark.parametrize(
    "name",
    [
        "FasterRCNN_recovery_iteration_0.ckpt",
        "FasterRCNN_recovery_iteration_0_2026-01-01_00:00:00.ckpt",
        "FasterRCNN_recovery_iteration_0_20260101_000000.CKPT",
        "fasterrcnn_recovery_iteration_0_20260101_000000.ckpt",
        "FasterRCNN_recovery_iteration_0_20260101_000000.ckpt.old",
    ],
)
def test_a_recovery_file_of_a_wrong_form_is_named_with_the_form(folder, job, classifier, name):
    form = r"is named FasterRCNN_recovery_iteration_<number>_<YYYYmmdd>_<HHMMSS>.ckpt; rename it, "
    wrong = save_model(folder / "x.ckpt").rename(folder / name)
    with pytest.raises(UserError, match=f"{form}for example to FasterRCNN_recovery_iteration_0_20"):
        models_there(job, folder, launched())
    for found in (
        models_there(job, folder, launched(pre_trained=str(classifier))),
        (initial(folder), models_there(job, folder, launched()))[1],
    ):
        assert isinstance(found, Finding) and found.level == WARN
        assert f"{wrong} is not taken: a recovery file" in found.text


def test_a_link_to_nothing_and_other_checkpoints_are_named_too(folder, job):
    link = folder / "FasterRCNN_recovery_iteration_3_20260101_000000.ckpt"
    link.symlink_to(folder / "gone.ckpt")
    with pytest.raises(UserError, match="it is no file, or a link to none"):
        models_there(job, folder, launched())
    link.unlink()
    for name in ("resnet50.ckpt", "Other_recovery_iteration_3_20260101_000000.ckpt"):
        save_model(folder / name)
    found = models_there(job, folder, launched())
    assert found.level == WARN and "and 1 more in" in found.text
    assert "give it as --pre_trained" in found.text


def test_the_fingerprint_of_the_initial_model_is_in_both_files(folder):
    servers, whole = initial(folder)
    np.testing.assert_array_equal(-mark_of(servers), mark_of(whole))
    assert FEATURE_NAME in ms.load_checkpoint(str(whole))
