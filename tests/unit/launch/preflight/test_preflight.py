"""The checks before a start: verdicts, what they look at, and the tool that lists them."""

import json
import re
import socket
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from commands import TINY, make_shards, run, write_job
from ports import free_port_range

from src.errors import UserError
from src.federated.aggregation import Aggregation
from src.federated.fingerprint import (
    FEATURE_NAME,
    FROZEN_ASPECT,
    LOCAL_ASPECT,
    fingerprint,
    key_aspects,
)
from src.job.checks import WARN, Check, Finding, require, run_checks
from src.job.disk_room import disk_room, worker_files
from src.job.job_config import load_job
from src.job.recovery_files import recovery_name
from src.launch.checkpoint_content import checkpoint_shapes, matching_names
from src.launch.preflight import machine
from src.launch.preflight.machine import (
    device,
    memory,
    package_versions,
    pinned_versions,
    python_version,
    server_bytes,
    worker_bytes,
)
from src.launch.preflight.network import servers_answer
from src.launch.preflight.roles import keys_of_job, models_there, redis_answers, value_checks
from src.model_utils.config import load_config
from src.weights.parameter_shapes import federated_share, model_bytes, parameter_shapes
from src.weights.resnet_names import map_name

TOOL = "tools/preflight.py"


pytestmark = pytest.mark.usefixtures("own_index")


@pytest.fixture(scope="module")
def tiny():
    return load_config(TINY)


@pytest.fixture(scope="module")
def network(tiny):
    from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet

    return Faster_Rcnn_Resnet(tiny)


def job_in(folder, port):
    return load_job(write_job(folder, port, 3))


def fail():
    raise UserError("this is wrong: fix it")


def test_findings_and_the_launchers_verdict(capsys):
    checks = [
        Check("fine", lambda: "as it should be"),
        Check("odd", lambda: Finding("WARN", "odd", "look here")),
        Check("bad", fail),
        Check("worse", fail, after="bad"),
        Check("last", lambda: "reached"),
    ]
    levels = [(f.level, f.subject) for f in run_checks(checks)]
    assert levels == [("PASS", "fine"), ("WARN", "odd"), ("FAIL", "bad"), ("PASS", "last")]
    with pytest.raises(UserError, match="^this is wrong: fix it$"):
        require(checks)
    assert capsys.readouterr().out == "WARN  odd            look here\n"


def test_python_and_packages(monkeypatch):
    assert python_version().startswith("3.9.")
    assert "packages as in requirements.txt" in package_versions()
    monkeypatch.setattr(machine, "_installed", lambda name: "9.9")
    found = package_versions()
    assert found.level == "WARN" and "numpy 9.9 (tested with 1.23.5)" in found.text
    monkeypatch.setattr(machine, "_installed", lambda name: "" if name == "redis" else "1")
    with pytest.raises(UserError, match="has no redis: run make install"):
        package_versions()
    monkeypatch.setattr(machine, "PYTHON", (3, 4))
    with pytest.raises(UserError, match=r"expected 3\.4"):
        python_version()


def test_pins_are_read(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("-r other.txt\nnumpy==1.23.5\n# words\nopencv-python-headless==4.8.1.78\n")
    expected = {"numpy": "1.23.5", "opencv-python-headless": "4.8.1.78"}
    assert pinned_versions(path) == expected


def test_names_and_shapes_are_the_networks(network, tiny):
    expected = {p.name: tuple(p.shape) for p in network.get_parameters()}
    assert parameter_shapes(tiny) == expected


@pytest.mark.parametrize(("backbone", "blocks"), [("resnet_v1_101", 33), ("resnet_v1_152", 50)])
def test_names_and_shapes_of_deeper_backbones(backbone, blocks):
    from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet

    deep = load_config(backbone=backbone).resnet_block
    config = load_config(TINY, backbone=backbone, resnet_block=deep)
    found = parameter_shapes(config)
    assert found == {p.name: p.shape for p in Faster_Rcnn_Resnet(config).get_parameters()}
    assert len([name for name in found if name.endswith("conv2.weight")]) == blocks


def test_names_and_shapes_of_the_full_detector():
    shapes = parameter_shapes(load_config())
    assert len(shapes) == 295
    assert shapes["rcnn.shared_fc_0.weight"] == (12544, 1024)
    assert shapes["backbone.layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert model_bytes(load_config()) == 167_224_704


def save(path, arrays):
    from mindspore import Tensor, save_checkpoint

    values = [{"name": name, "data": Tensor(array)} for name, array in arrays.items()]
    save_checkpoint(values, str(path))
    return path


def test_a_checkpoint_is_read_without_mindspore(tmp_path):
    path = save(tmp_path / "a.ckpt", {"w": np.ones((2, 3), np.float32), "b": np.ones(4, np.int32)})
    assert checkpoint_shapes(path) == {"w": (2, 3), "b": (4,)}


def test_how_many_names_of_a_classifier_match(tmp_path, tiny):
    shapes = parameter_shapes(tiny)
    old = {"layer2.0.down_sample_layer.0.weight": "backbone.layer2.0.conv_down_sample.weight"}
    arrays = {name: np.ones(shapes[map_name(name)], np.float32) for name in [*old, "conv1.weight"]}
    assert [map_name(name) for name in old] == list(old.values())
    arrays["end_point.weight"] = np.ones((3, 3), np.float32)
    path = save(tmp_path / "resnet.ckpt", arrays)
    assert matching_names(path, tiny) == (2, 115)


@pytest.mark.parametrize("kind", ["missing", "named otherwise", "garbage", "cut", "other", "shape"])
def test_pre_trained_that_does_not_serve(tmp_path, tiny, kind):
    arrays = {"backbone.conv1.weight": np.ones((8, 3, 7, 7), np.float32)}
    if kind in ("other", "shape"):
        arrays = {
            "other": {"w": np.ones(3, np.float32)},
            "shape": {"conv1.weight": np.ones((64, 3, 7, 7), np.float32)},
        }[kind]
    path = save(tmp_path / "a.ckpt", arrays)
    if kind == "missing":
        path = tmp_path / "b.ckpt"
    elif kind == "named otherwise":
        path = path.rename(tmp_path / "a.bin")
    elif kind in ("garbage", "cut"):
        content = b"neither this nor that" if kind == "garbage" else path.read_bytes()[:200]
        path = tmp_path / "b.ckpt"
        path.write_bytes(content)
    words = {
        "missing": "is not there",
        "named otherwise": "ends in .ckpt",
        "garbage": "not a MindSpore checkpoint",
        "cut": "not a MindSpore checkpoint",
        "other": "no parameter of this detector in it",
        "shape": r"has shape \[64, 3, 7, 7\], this detector's has \[8, 3, 7, 7\]",
    }[kind]
    with pytest.raises(UserError, match=words) as caught:
        matching_names(path, tiny)
    assert str(path) in str(caught.value)


def test_memory_is_estimated_as_measured(tiny):
    demo = load_config("configs/demo/default_config.yaml")
    large = load_config(None, batch_size=1)
    for config, measured in ((tiny, 0.6), (demo, 2.6), (large, 7.0)):
        assert worker_bytes(config) / 1e9 == pytest.approx(measured, rel=0.15)
    assert server_bytes(large) / 1e9 == pytest.approx(3.0, rel=0.1)


def test_the_estimate_has_each_copy_of_the_model_that_a_silo_keeps():
    plain = load_config(None)
    model = model_bytes(plain)
    for keys in ({"pre_trained": "a.ckpt"}, {"dp_clip_norm": 1.0}):
        added = worker_bytes(load_config(None, **keys)) - worker_bytes(plain)
        assert added == pytest.approx(model), keys
    # The last good model is among what a silo with local weights keeps of the federated ones alone.
    local = load_config(None, local_params="rcnn.*")
    saved = worker_bytes(plain) - worker_bytes(local)
    assert saved == pytest.approx(model * (1 - federated_share(local)))


def test_too_little_memory_is_a_warning(monkeypatch):
    free = SimpleNamespace(available=4e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert memory("2 worker(s)", 3e9) == "2 worker(s) need about 3.0 GB, 4.0 GB are free"
    found = memory("2 worker(s)", 5e9)
    assert (found.level, found.subject) == ("WARN", "memory")
    assert "smaller batch_size" in found.text


def test_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    assert device("CPU", 2, 0) == "CPU, 2 cores, 1 for each of 2"
    assert device("CPU", 3, 0).level == "WARN"


def test_checkpoints_to_be_written(tmp_path):
    config = load_config(None)
    assert worker_files(config, 30, 2) == 60
    config.checkpoints_kept = 4
    assert worker_files(config, 30, 2) == 8
    config.save_checkpoint = False
    assert worker_files(config, 30, 2) == 0
    assert f"are free in {tmp_path}" in disk_room(tmp_path / "not" / "made", 10**6, "3 checkpoints")
    with pytest.raises(UserError, match=r"3 checkpoints need 1000000000.0 GB"):
        disk_room(tmp_path / "not" / "made", 10**18, "3 checkpoints")


def test_whose_keys_are_in_redis(tmp_path, redis, redis_port):
    job = job_in(tmp_path, redis_port)
    assert redis_answers(job) == f"127.0.0.1:{redis_port} answers, 0 keys of FasterRCNN"
    redis.set("ms_fl:FasterRCNN:InstanceName:String", "i_1")
    redis.set("ms_fl:Other:InstanceName:String", "i_1")
    redis.set("ms_fl:Other:ModelInfo:String", "{}")
    redis.set("session:1", "of a shop")
    text = redis_answers(job)
    assert "1 keys of FasterRCNN; also of Other (2); 1 keys that are of no federation" in text
    assert keys_of_job(job, resume=False) == "1 keys of an ended job FasterRCNN will be removed"
    assert redis.exists("ms_fl:FasterRCNN:InstanceName:String")


def test_what_upstreams_flags_and_values_mean_here():
    config = load_config(base_lr=0.04, batch_size=32)
    config.client_batch_size, config.client_learning_rate = 32, 0.04
    rate, batch, flag = (check.run() for check in value_checks(config))
    assert {rate.level, batch.level, flag.level} == {WARN}
    assert "0.04 acted as 0.00015625" in rate.text
    assert (
        "--client_batch_size=32 takes effect" in batch.text and "about 5 GB of memory" in batch.text
    )
    assert f"{worker_bytes(config) / 1e9:.1f} GB for a worker" in batch.text
    assert "--client_learning_rate=0.04 takes effect" in flag.text
    assert value_checks(load_config(TINY)) == []


def test_a_redis_that_is_not_there(tmp_path):
    job = job_in(tmp_path, free_port_range(1))
    with pytest.raises(UserError, match="Redis does not answer"):
        redis_answers(job)


def launched(resume, **keys):
    config = load_config(TINY, **keys)
    config.resume = resume
    return config


def test_what_the_servers_begin_with(tmp_path, redis_port):
    job, new, resumed = job_in(tmp_path, redis_port), launched(False), launched(True)
    folder = tmp_path / "fl_ckpt"
    assert "an initial one will be made" in models_there(job, folder, new)
    assert not folder.exists()
    folder.mkdir()
    weights = {"w": np.ones((2, 3), np.float32)}
    save(folder / recovery_name("FasterRCNN", 2), weights)
    assert "begins iteration 3 of 3 from" in models_there(job, folder, new)
    save(folder / recovery_name("FasterRCNN", 0), weights)
    text = models_there(job, folder, new)
    assert "begins iteration 1 of 3" in text and "1 of an earlier run go aside" in text
    assert "begins iteration 3 of 3" in models_there(job, folder, resumed)
    newest = folder / recovery_name("FasterRCNN", 3)
    newest.touch()
    found = models_there(job, folder, resumed)
    assert found.level == WARN and "begins iteration 3 of 3" in found.text
    assert f"{newest} is left out: it is empty" in found.text
    newest.unlink()
    save(newest, weights)
    assert "all 3 iterations are done" in models_there(job, folder, resumed)
    with pytest.raises(UserError, match="is no folder that can be written"):
        models_there(job, folder / recovery_name("FasterRCNN", 3) / "below", new)


def mark_for(tiny):
    """The fingerprint of a job; frozen weights are not the launcher's to know."""
    local = {LOCAL_ASPECT: [], FROZEN_ASPECT: "digest"}
    return fingerprint({**key_aspects(tiny), **local, **Aggregation().aspects()})


def test_servers_do_not_begin_with_a_model_of_another_configuration(tmp_path, redis_port, tiny):
    job, folder = job_in(tmp_path, redis_port), tmp_path / "fl_ckpt"
    folder.mkdir()
    weights = {"w": np.ones((2, 3), np.float32)}
    initial = save(
        folder / recovery_name("FasterRCNN", 0), {**weights, FEATURE_NAME: mark_for(tiny)}
    )
    assert "begins iteration 1 of 3" in models_there(job, folder, launched(False))
    others = {
        "coco_classes": {"coco_classes": ["background", "a", "b", "c", "d"]},
        "img_width, anchor_scales": {"img_width": 96, "anchor_scales": [8]},
        "local_params": {"local_params": "rcnn.*"},
    }
    for named, keys in others.items():
        for resume in (False, True):
            with pytest.raises(UserError, match=f"other values of: {named}; give .*--config_path"):
                models_there(job, folder, launched(resume, **keys))
    # What does not make another detector.
    same = launched(False, seed=9, batch_size=4, sync_type="adaptive", pre_trained="x.ckpt")
    models_there(job, folder, same)
    # A later file decides with --resume alone, unless its fingerprint is not the initial one's.
    other = launched(True, img_width=96)
    save(folder / recovery_name("FasterRCNN", 1), {**weights, FEATURE_NAME: mark_for(other)})
    left = models_there(job, folder, launched(True))
    assert left.level == WARN and "begins iteration 1 of 3" in left.text, left
    initial.unlink()
    assert "begins iteration 2 of 3" in models_there(job, folder, other)
    with pytest.raises(UserError, match="iteration_1_.*: the servers would begin with this model"):
        models_there(job, folder, launched(True))
    save(initial, {**weights, FEATURE_NAME: mark_for(tiny)})
    assert "begins iteration 1 of 3" in models_there(job, folder, launched(False))
    # A model of one's own says nothing of its configuration.
    save(initial, weights)
    models_there(job, folder, launched(False, img_width=96))


def test_servers_that_do_not_listen_are_a_warning(tmp_path):
    job = job_in(tmp_path, 2345)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        flags = SimpleNamespace(
            http_server_address=f"127.0.0.1:{port}",
            server_num=1,
            join_timeout=600.0,
            start_timeout=300.0,
        )
        assert servers_answer(job, flags) == f"127.0.0.1:{port} take connections"
    found = servers_answer(job, flags)
    assert (found.level, found.subject) == ("WARN", "servers")
    assert f"127.0.0.1:{port}: connection refused" in found.text


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=4)


def test_the_tool_when_all_is_well(tmp_path, redis, redis_port, shards):
    write_job(tmp_path, redis_port, 3)
    flags = [
        f"--config_path={TINY}",
        f"--dataset_path={shards}",
        "--local_server_num=2",
        f"--http_server_address=127.0.0.1:{redis_port + 2}",
        f"--scheduler_manage_address=127.0.0.1:{redis_port + 1}",
    ]
    before = sorted(tmp_path.iterdir())
    result = run(tmp_path, TOOL, *flags)
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert f"PASS  redis          127.0.0.1:{redis_port} answers, 0 keys of FasterRCNN" in lines
    assert any("mindrecord_0 2 images, mindrecord_1 2 images" in line for line in lines)
    most = re.search(
        r"PASS  objects        up to (\d+) in an image, num_gts \d+ holds all", result.stdout
    )
    room = f"--num_gts={int(most[1]) - 1}"
    crowded = run(tmp_path, TOOL, *flags, "--role=worker", room).stdout
    assert re.search(
        r"WARN  objects        mindrecord_\d: \d images have more than num_gts", crowded
    )
    assert lines[-1].endswith(" 0 FAIL")
    assert sorted(tmp_path.iterdir()) == before


def test_the_tool_lists_all_that_is_wrong_with_the_mend(tmp_path, shards):
    port = free_port_range(2)
    write_job(tmp_path, port, 3)
    flags = [f"--config_path={TINY}", "--dataset_path=nowhere", "--pre_trained=nowhere.ckpt"]
    flags += [f"--scheduler_manage_address=127.0.0.1:{port + 1}", "--json"]
    result = run(tmp_path, TOOL, *flags)
    assert result.returncode == 2
    values = json.loads(result.stdout)
    assert values["exit_code"] == 2
    failed = {f["subject"]: f["text"] for f in values["findings"] if f["level"] == "FAIL"}
    assert f"configs/redis.conf --port {port}" in failed["redis"]
    assert "generate_mindrecord.py" in failed["mindrecord"]
    assert "give the path of a .ckpt file" in failed["pre_trained"]
    assert "keys" not in failed


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--yaml_config=nowhere.yaml", "FAIL  yaml_config    --yaml_config nowhere.yaml: no such"),
        ("--config_path=nowhere.yaml", "FAIL  configuration  --config_path nowhere.yaml: no such"),
        ("--rol=worker", "FAIL  configuration  unknown flag --rol (did you mean --role?)"),
    ],
)
def test_the_tool_without_its_files(tmp_path, flag, line):
    result = run(tmp_path, TOOL, flag)
    assert result.returncode == 2
    assert line in result.stdout
    assert "PASS  python" in result.stdout
