"""The worker's own parts: the length of an iteration, and the checkpoints it keeps."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor, load_checkpoint, nn

from src.errors import UserError
from src.federated import worker
from src.federated.checkpoints import CheckpointKeeper
from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.rounds import Round, SyncError
from src.federated.worker import (
    FollowIterations,
    KeepAfterRound,
    epoch_words,
    make_manager,
    place_in_run,
    steps_per_iteration,
)
from src.job.job_config import load_job
from src.job.job_record import StatusFile
from src.job.log_files import say_settings
from src.model_utils.config import PROJECT_DIR, load_config


@pytest.mark.parametrize(
    ("sync_frequency", "epochs", "sinks", "steps"),
    [(0, 1, False, 25), (0, 2, True, 50), (1, 1, False, 1), (3, 1, True, 75), (40, 2, False, 40)],
)
def test_steps_between_two_synchronisations(sync_frequency, epochs, sinks, steps):
    config = SimpleNamespace(
        sync_frequency=sync_frequency, client_epoch_num=epochs, dataset_sink_mode=sinks
    )
    assert steps_per_iteration(config, 25) == steps


@pytest.mark.parametrize(
    ("converted", "images", "words"),
    [
        (14, 14, "14 images, 7 steps an epoch"),
        (15, 14, "15 images, 14 of them in an epoch's whole batches, 7 steps an epoch"),
        (27, 28, "27 images, 1 of them twice in an epoch: ranks have as many, 7 steps an epoch"),
    ],
)
def test_the_log_tells_the_images_that_an_epoch_leaves_out(converted, images, words):
    task = SimpleNamespace(converted=converted, images=images, steps_per_epoch=7)
    assert epoch_words(task) == words


def manager_arguments(monkeypatch, tmp_path, **values):
    """What `make_manager` makes a manager of: the arguments that it is called with."""
    monkeypatch.setattr(worker, "SiloManager", lambda *words, **named: (words, named))
    flags = {
        "user_id": 1, "http_server_address": "127.0.0.1:7000", "server_num": 3, "silo_name": "bank",
        "join_timeout": 60.0, "request_timeout": 20.0, "wait_timeout": 0.0, "output_dir": tmp_path,
    }  # fmt: skip
    config = load_config()
    for name, value in {**flags, **values}.items():
        setattr(config, name, value)
    job = load_job(PROJECT_DIR / "default_yaml_config.yaml", {})
    task = SimpleNamespace(network=nn.Dense(2, 3), images=14, steps_per_epoch=7, aspects={})
    return job, *make_manager(job, config, task, 7, StatusFile(None))


def test_the_servers_decide_on_an_iteration_before_a_silo_gives_up(monkeypatch, tmp_path):
    job, words, _ = manager_arguments(monkeypatch, tmp_path)
    window_s = job["round.global_iteration_time_window"] / 1000
    deadlines = words[4].deadlines
    assert deadlines.wait == window_s + 600
    assert (deadlines.join, deadlines.request) == (60, 20)
    _, words, _ = manager_arguments(monkeypatch, tmp_path, wait_timeout=5.0)
    assert words[4].deadlines.wait == 5


def test_workers_begin_with_servers_of_their_own(monkeypatch, tmp_path):
    for number, ports in ((0, [0, 1, 2]), (1, [1, 2, 0]), (5, [2, 0, 1])):
        _, words, _ = manager_arguments(monkeypatch, tmp_path, user_id=number)
        assert words[3].addresses == [f"127.0.0.1:700{port}" for port in ports]
        assert words[3].fl_id == f"bank_{number} (14)"


@pytest.mark.parametrize(
    ("resume", "sinks", "device", "resumed", "place"),
    [
        (False, False, "CPU", None, (14, 0)),
        (True, False, "CPU", None, (14, 14)),
        (True, True, "CPU", None, (14, 14)),
        (True, True, "GPU", None, (14, 0)),
        (True, False, "CPU", 20, (20, 20)),
    ],
)
def test_a_late_silo_has_the_rate_of_its_iteration(resume, sinks, device, resumed, place):
    config = SimpleNamespace(resume=resume, dataset_sink_mode=sinks, device_target=device)
    state = resumed and SimpleNamespace(steps_at=lambda iteration, steps: resumed)
    assert place_in_run(config, SimpleNamespace(iteration=3), 7, state) == place


def test_the_log_begins_with_the_configuration_and_nothing_else_that_a_worker_knows(capsys):
    config = load_config(base_lr=0.02, pre_trained="a b.ckpt", batch_size=2)
    config.redis_password = "secret"
    say_settings("worker_0", config)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("[worker_0] configuration, 3 keys not at their defaults:")
    assert lines[:4] == [
        "  pre_trained: a b.ckpt (default '')",
        "  batch_size: 2 (default 4)",
        "  base_lr: 0.02 (default 0.001)",
        "  at their defaults:",
    ]
    assert all(re.match(r"  \w+: ", line) for line in lines[4:])
    rest = " ".join(line.strip() for line in lines[4:])
    assert "momentum: 0.91, weight_decay: 1e-05, loss_scale: 256" in rest
    assert "['background', 'person', 'bicycle', 'car', ...] (81 entries)" in rest
    assert "roi_layer: {'type': 'RoIAlign', 'out_size': 7, 'sample_num': 2}" in rest
    assert "base_lr" not in rest and "secret" not in rest
    assert all(line.startswith("  ") and len(line) <= 100 for line in lines)


def keeper(folder, kept=0, on=True, mark=None):
    config = SimpleNamespace(checkpoints_kept=kept, save_checkpoint=on, run_eval=False)
    return CheckpointKeeper(
        "worker_0", nn.Dense(2, 3), folder / "ckpt" / "mindrecord_0", "mindrecord_0", config, mark
    )


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_checkpoint_k_belongs_to_iteration_k_plus_1(tmp_path):
    one = keeper(tmp_path)
    one.require_room(iterations=2, workers=1)
    one.save(1)
    one.save(2)
    expected = [f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in range(2)]
    assert names(tmp_path) == expected
    assert load_checkpoint(str(next(tmp_path.rglob(expected[0]))))["weight"].shape == (3, 2)


def test_every_checkpoint_holds_the_fingerprint_of_its_job(tmp_path):
    mark = fingerprint({"image size": (64, 64), "class list": ["cat"]})
    one = keeper(tmp_path, mark=mark)
    one.require_room(iterations=1, workers=1)
    one.save(1)
    one.save_best()
    paths = sorted(tmp_path.rglob("*.ckpt"))
    assert [path.name for path in paths] == ["best.ckpt", "mindrecord_0-fast-rcnn-0epoch.ckpt"]
    for path in paths:
        content = load_checkpoint(str(path))
        assert set(content) == {"weight", "bias", FEATURE_NAME}
        np.testing.assert_array_equal(content[FEATURE_NAME].asnumpy(), mark)


def test_only_the_newest_are_kept(tmp_path):
    one = keeper(tmp_path, kept=2)
    one.require_room(iterations=5, workers=1)
    for iteration in range(1, 6):
        one.save(iteration)
    assert names(tmp_path) == [f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in (3, 4)]


def test_the_newest_are_kept_over_a_restart_in_the_same_folder(tmp_path):
    for first, last in ((1, 11), (12, 13)):
        one = keeper(tmp_path, kept=3)
        one.require_room(iterations=13, workers=1)
        for iteration in range(first, last + 1):
            one.save(iteration)
        kept = [f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in range(last - 3, last)]
        assert names(tmp_path) == sorted(kept)


def test_an_iteration_that_is_saved_again_counts_once(tmp_path):
    for _ in range(2):
        one = keeper(tmp_path, kept=2)
        one.require_room(iterations=2, workers=1)
        one.save(1)
        one.save(2)
        one.save(2)
    assert names(tmp_path) == [f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in (0, 1)]


def test_what_is_not_a_checkpoint_of_an_iteration_stays(tmp_path):
    folder = tmp_path / "ckpt" / "mindrecord_0"
    folder.mkdir(parents=True)
    others = ["best.ckpt", "mine.ckpt", "mindrecord_1-fast-rcnn-0epoch.ckpt"]
    for name in others:
        (folder / name).write_bytes(b"")
    one = keeper(tmp_path, kept=1)
    for iteration in (1, 2):
        one.save(iteration)
    assert names(tmp_path) == sorted([*others, "mindrecord_0-fast-rcnn-1epoch.ckpt"])


def test_a_folder_that_somebody_removed_is_made_again_while_the_job_is_there(tmp_path):
    one = keeper(tmp_path)
    one.save(1)
    shutil.rmtree(tmp_path / "ckpt")
    one.save(2)
    assert names(tmp_path) == ["mindrecord_0-fast-rcnn-1epoch.ckpt"]
    shutil.rmtree(tmp_path)
    with pytest.raises(SyncError, match="could not be written"):
        one.save(3)
    assert not tmp_path.exists()


def test_none_is_written_when_switched_off(tmp_path):
    one = keeper(tmp_path, on=False)
    one.require_room(iterations=5, workers=1)
    one.save(1)
    assert names(tmp_path) == []


def test_no_room_is_said_before_training(tmp_path):
    with pytest.raises(UserError, match="--checkpoints_kept"):
        keeper(tmp_path).require_room(iterations=10**15, workers=2)


def test_a_write_that_fails_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    one = keeper(tmp_path)
    one.require_room(iterations=2, workers=1)
    one.save(1)
    before = next(tmp_path.rglob("*-0epoch.ckpt")).read_bytes()

    def full_disk(net, path, **_):
        with Path(path).open("wb") as file:
            file.write(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("src.federated.checkpoints.ms.save_checkpoint", full_disk)
    with pytest.raises(SyncError, match="No space left on device"):
        one.save(1)
    assert next(tmp_path.rglob("*-0epoch.ckpt")).read_bytes() == before
    assert len(names(tmp_path)) == 1
    assert np.isfinite(load_checkpoint(str(next(tmp_path.rglob("*.ckpt"))))["bias"].asnumpy()).all()


def test_the_schedule_follows_the_iterations_that_a_silo_sits_out():
    weight = Parameter(Tensor(np.ones(1, np.float32)), "w")
    optimizer = nn.SGD([weight], learning_rate=0.1)
    manager = SimpleNamespace(iteration=2, frequency=5, finished=False)
    counter, stranger = SimpleNamespace(steps_done=10), object()
    place = FollowIterations(manager, optimizer, [counter, stranger], unit=3)
    seen = []
    for iteration, finished in [(2, False), (3, False), (6, False), (6, False), (9, True)]:
        manager.iteration, manager.finished = iteration, finished
        place.on_train_step_begin(None)
        seen.append((int(optimizer.global_step.asnumpy()[0]), counter.steps_done))
    two_missed = 2 * 5 * 3
    assert seen == [(0, 10)] * 2 + [(two_missed, 10 + two_missed)] * 3


def test_the_jobs_last_model_is_written_once(tmp_path):
    one = keeper(tmp_path)
    one.require_room(iterations=3, workers=1)
    one.save_last(3)
    (written,) = tmp_path.rglob("*-2epoch.ckpt")
    before = written.stat().st_mtime_ns
    one.save_last(3)
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("results", "fails"),
    [
        ([], False),
        (["aggregated", "missed"], False),
        (["aggregated", "lost"], False),
        (["aggregated", "lost", "lost"], True),
        (["lost"], True),
    ],
)
def test_a_worker_of_which_most_iterations_failed_has_failed(results, fails, capsys):
    rounds = [Round(number, result=result) for number, result in enumerate(results, 1)]
    manager = SimpleNamespace(rounds=rounds)
    failed = results.count("lost")
    words = f"{len(results) - failed} of {len(results)} iterations aggregated, {failed} failed"
    if fails:
        with pytest.raises(SyncError, match=words):
            worker._judge("worker_0", manager)
    else:
        worker._judge("worker_0", manager)
    assert (words in capsys.readouterr().out) == (failed > 0)


def test_a_failed_iteration_leaves_no_checkpoint():
    saved = []
    manager = SimpleNamespace(rounds=[], iteration=1, finished=False)
    keep = KeepAfterRound(manager, SimpleNamespace(save=saved.append), None, None)
    for iteration, result, now in [
        (1, "aggregated", 2),
        (2, "lost", 3),
        (3, "aggregated", 4),
        (4, "lost", 7),  # two iterations late: the latest model is that of the sixth
    ]:
        manager.rounds.append(Round(iteration, result=result))
        manager.iteration = now
        keep.on_train_step_end(None)
    assert saved == [1, 3, 6]
