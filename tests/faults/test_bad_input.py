"""What a user can get wrong on a command line or in a file: one line, exit code 2, nothing left."""

import socket
import subprocess
import sys

import pytest
from commands import (
    DISTRIBUTED,
    FINISH,
    SCHED,
    SERVER,
    TINY,
    WORKER,
    make_shards,
    processes_of,
    refused,
    run,
    running_redis,
    succeed,
    write_job,
)
from models import save_model
from ports import free_port_range

from src.model_utils.config import PROJECT_DIR

ROLE = "test_fl_fasterrcnn.py"

# As /usr/bin/python3 would: without site-packages.
CALL_WITHOUT_PACKAGES = """
import pathlib, runpy, sys
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to call from; nothing may run or lie in it afterwards but what was there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "called from here"
    folder.mkdir()
    yield folder
    assert not processes_of(folder)
    assert not list(folder.glob("worker_*")) + list(folder.glob("server_*"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """Port of a Redis."""
    with running_redis(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.mark.parametrize("script", [SCHED, SERVER, WORKER, DISTRIBUTED])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--yaml_config=nowhere.yaml"], "--yaml_config nowhere.yaml: no such file"),
        (["--yaml_confg=x"], "unknown flag --yaml_confg (did you mean --yaml_config?)"),
        (["--fl_iteration_num=0"], "command line: fl_iteration_num is 0, expected 1 to"),
        (["--fl_name=a:b"], "fl_name is 'a:b', expected letters"),
    ],
)
def test_flags_that_every_launcher_has(folder, script, flags, message):
    if script == DISTRIBUTED:
        flags = [*flags, "--device_num=1"]
    assert message in refused(folder, script, *flags)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (SERVER, ["--config_path=nowhere.yaml"], "--config_path nowhere.yaml: no such file"),
        (SERVER, ["--http_server_address=localhost:6668"], "'localhost' is refused by the engine"),
        (SERVER, ["--http_server_address=0.0.0.0:6668"], "0.0.0.0 is refused by the engine"),
        (SERVER, ["--http_server_address=127.0.0.1"], "not an address with a port"),
        (SERVER, ["--tcp_server_ip=localhost"], "--tcp_server_ip: 'localhost'"),
        (SERVER, ["--local_server_num=0"], "--local_server_num is 0, expected 1 or more"),
        (SCHED, ["--scheduler_manage_address=host:1"], "--scheduler_manage_address: 'host'"),
        (WORKER, ["--http_server_address=localhost:6668"], "'localhost' is refused by the engine"),
        (WORKER, ["--http_server_address=http://1.2.3.4:5"], "'http://1.2.3.4' is refused"),
        (WORKER, ["--local_worker_num=0"], "--local_worker_num is 0, expected 1 or more"),
        (WORKER, ["--client_batch_size=0"], "batch_size is 0, expected more than 0"),
        (WORKER, ["--img_widht=64"], "(did you mean --img_width?)"),
        (WORKER, ["--dataset_path=nowhere"], "in mindrecord_0, mindrecord_1 (found: no shard)"),
        (WORKER, [f"--config_path={TINY}", "--sync_type=often"], "expected one of fixed, adaptive"),
        (DISTRIBUTED, ["--device_num=2"], "--device_num 2 without --run_distribute=True"),
        (DISTRIBUTED, ["--run_distribute", "--first_rank=2"], "expected ranks within 0 to 1"),
        (DISTRIBUTED, ["--run_distribute", "--rank_host=node"], "'node' is refused by the engine"),
        (DISTRIBUTED, ["--run_distribute", "--sync_type=adaptive"], "FedAvg with sync_type fixed"),
        (ROLE, ["--user_id=alice"], "'alice' is not a number: 3 is the worker of mindrecord_3"),
        (ROLE, ["--img_size=768"], "--img_size: upstream's code never read it; leave it out"),
        (FINISH, ["--redisport=1"], "(did you mean --redis_port?)"),
    ],
)
def test_flags_of_one_script(folder, script, flags, message):
    assert message in refused(folder, script, *flags)


def test_a_python_without_the_packages(folder):
    script = PROJECT_DIR / SCHED
    command = [sys.executable, "-I", "-S", "-c", CALL_WITHOUT_PACKAGES, str(script)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "has no mindspore: run make install" in result.stderr


def test_flag_of_the_wrong_type(folder):
    result = run(folder, WORKER, "--local_worker_num=two")
    assert result.returncode == 2
    assert "--local_worker_num: invalid int value: 'two'" in result.stderr


def test_the_tutorials_line_without_a_space(folder):
    (folder / "mine.yaml").write_text('seed: 1\nmindrecord_dir:"./mindrecord_0"\n')
    line = refused(folder, "generate_mindrecord.py", "--config_path=mine.yaml")
    assert "line 2: a space is missing after 'mindrecord_dir:'" in line


def test_redis_is_not_there(folder):
    port = free_port_range(1)
    write_job(folder, port, 3)
    for script in (SCHED, SERVER):
        line = refused(folder, script)
        assert f"Redis does not answer at 127.0.0.1:{port}" in line
        assert f"configs/redis.conf --port {port}" in line


def test_a_port_in_use_is_named(folder, redis):
    write_job(folder, redis, 3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        address = f"127.0.0.1:{port}"
        line = refused(folder, SCHED, f"--scheduler_manage_address={address}")
        assert f"cannot listen on {address}" in line
        line = refused(folder, SERVER, f"--http_server_address={address}")
        assert f"cannot listen on {address}" in line


def test_the_checkpoint_folder_holds_the_last_iteration_already(folder, redis):
    write_job(folder, redis, 3)
    (folder / "fl_ckpt").mkdir()
    name = "FasterRCNN_recovery_iteration_3_20260101_000000.ckpt"
    save_model(folder / "fl_ckpt" / name)
    address = f"--http_server_address=127.0.0.1:{redis + 1}"
    line = refused(folder, SERVER, "--local_server_num=1", address)
    assert "is of iteration 3, and fl_iteration_num is 3: nothing is left to do" in line
    assert (folder / "fl_ckpt" / name).exists()


def test_the_checkpoint_folder_holds_a_model_of_another_configuration(folder, redis):
    write_job(folder, redis, 3)
    succeed(folder, "tools/create_initial_checkpoint.py", f"--config_path={TINY}")
    before = sorted((folder / "fl_ckpt").iterdir())
    flags = ["--local_server_num=1", f"--http_server_address=127.0.0.1:{redis + 1}"]
    for more, named in (
        ([], "coco_classes, img_width, img_height, anchor_scales, roi_layer"),
        ([f"--config_path={TINY}", "--img_width=96"], "img_width"),
        ([f"--config_path={TINY}", "--img_width=96", "--resume"], "img_width"),
    ):
        line = refused(folder, SERVER, *flags, *more)
        assert f"made with other values of: {named}; give" in line
        assert "iteration_0_" in line and "--config_path=" in line and "--checkpoint_dir" in line
        assert sorted((folder / "fl_ckpt").iterdir()) == before
        assert not (folder / "server_0").exists()
    # With the configuration of the model the next thing to see is that no Redis key is in the way.
    said = run(folder, "tools/preflight.py", "--role=server", f"--config_path={TINY}", *flags)
    assert f"begins iteration 1 of 3 from {before[-1].name}" in said.stdout


@pytest.mark.parametrize("kind", ["missing", "not a checkpoint", "another model"])
def test_pre_trained_of_the_wrong_kind(folder, redis, kind):
    write_job(folder, redis, 3)
    path = folder / "model.ckpt"
    if kind == "not a checkpoint":
        path.write_bytes(b"neither this nor that" * 10)
    elif kind == "another model":
        import numpy as np
        from mindspore import Tensor, save_checkpoint

        save_checkpoint([{"name": "w", "data": Tensor(np.ones(3, np.float32))}], str(path))
    result = run(
        folder,
        SERVER,
        f"--config_path={TINY}",
        f"--pre_trained={path}",
        "--local_server_num=1",
        f"--http_server_address=127.0.0.1:{redis + 1}",
    )
    assert result.returncode == 2, result.stderr
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((folder / "fl_ckpt").glob("*.ckpt"))


@pytest.mark.slow
def test_a_shard_that_is_not_one_and_a_device_that_is_not_there(folder):
    shards = make_shards(folder, images=4)
    (folder / "half").mkdir()
    for source in (shards / "mindrecord_0").iterdir():
        target = folder / "half" / "mindrecord_0" / source.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes()[:100])
    flags = [f"--config_path={TINY}", "--local_worker_num=1"]
    line = refused(folder, WORKER, *flags, f"--dataset_path={folder / 'half'}")
    assert "mindrecord_0" in line
    line = refused(folder, WORKER, *flags, f"--dataset_path={shards}", "--batch_size=50")
    assert "50" in line
    line = refused(folder, WORKER, *flags, f"--dataset_path={shards}", "--device_target=GPU")
    assert "GPU is not available here" in line
    (folder / "worker_0" / "worker.log").unlink()
    (folder / "worker_0").rmdir()
