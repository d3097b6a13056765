"""The tutorial's commands, one after the other, on the real engine with the tiny detector."""

import json
import re
import subprocess

import pytest
from commands import (
    TINY,
    make_shards,
    processes_of,
    refused,
    start_redis,
    succeed,
    wait_for_end,
    write_job,
)
from ports import free_port_range

ITERATIONS, SERVERS, SILOS = 3, 4, 2


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished run: folder, Redis' port and process, what each command printed."""
    folder = tmp_path_factory.mktemp("a silo's folder")
    shards = make_shards(folder)
    port = free_port_range(8)
    write_job(folder, port, ITERATIONS)
    redis = start_redis(folder, port)
    said = {}
    sched = f"--scheduler_manage_address=127.0.0.1:{port + 1}"
    yaml = "--yaml_config=default_yaml_config.yaml"
    address = f"--http_server_address=127.0.0.1:{port + 2}"
    said["sched"] = succeed(folder, "run_cross_silo_fasterrcnn_sched.py", yaml, sched)
    said["server"] = succeed(
        folder,
        "run_cross_silo_fasterrcnn_server.py",
        yaml,
        f"--config_path={TINY}",
        "--tcp_server_ip=127.0.0.1",
        "--checkpoint_dir=fl_ckpt",
        f"--local_server_num={SERVERS}",
        address,
    )
    initial = next((folder / "fl_ckpt").glob("*_initial.ckpt"))
    said["worker"] = succeed(
        folder,
        "run_cross_silo_fasterrcnn_worker.py",
        f"--local_worker_num={SILOS}",
        yaml,
        f"--config_path={TINY}",
        f"--pre_trained={initial.relative_to(folder)}",
        f"--dataset_path={shards}",
        address,
    )
    wait_for_end(folder)
    yield folder, port, redis, said
    succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    redis.kill()
    redis.wait()
    assert not processes_of(folder)


def test_each_command_says_what_it_started_and_what_comes_next(job):
    _, _, _, said = job
    assert "started scheduler (pid" in said["sched"]
    assert "next: run_cross_silo_fasterrcnn_server.py" in said["sched"]
    assert "started server_3 (pid" in said["server"]
    assert "next: run_cross_silo_fasterrcnn_worker.py" in said["server"]
    assert "worker_0, worker_1 have joined FasterRCNN: 3 iterations" in said["worker"]


def test_logs_and_checkpoints_lie_where_the_tutorial_says(job):
    folder, *_ = job
    expected = ["scheduler/scheduler.log"]
    expected += [f"server_{i}/server.log" for i in range(SERVERS)]
    for i in range(SILOS):
        expected += [f"worker_{i}/worker.log", f"worker_{i}/loss_0.log"]
        user = f"mindrecord_{i}"
        expected += [
            f"worker_{i}/ckpt/{user}/{user}-fast-rcnn-{k}epoch.ckpt" for k in range(ITERATIONS)
        ]
    missing = [name for name in expected if not (folder / name).is_file()]
    assert not missing


def test_engine_lines_that_the_tutorial_shows_are_in_the_logs(job):
    folder, *_ = job
    scheduler = (folder / "scheduler" / "scheduler.log").read_text()
    assert "Scheduler started successfully." in scheduler
    assert "Start http server!" in scheduler
    server = (folder / "server_0" / "server.log").read_text()
    assert "Ev http register handle of:" in server
    assert "Start http server!" in server
    assert len(server.splitlines()) < 60


@pytest.mark.parametrize("pattern", [r"\epoch:", r"\]epoch:"])
def test_the_tutorials_grep_finds_every_step(job, pattern):
    folder, *_ = job
    found = subprocess.run(
        f"grep -rn '{pattern}' *",
        shell=True,
        cwd=folder / "worker_0",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in found.splitlines() if line.startswith("worker.log")]
    matches = [re.search(r"\]epoch: (\d+) step: (\d+) total_loss: \d+\.\d+$", x) for x in lines]
    assert all(matches)
    steps = [(int(m[1]), int(m[2])) for m in matches]
    assert steps == [(e, s) for e in range(1, ITERATIONS + 1) for s in (1, 2, 3)]


def test_the_silos_end_each_iteration_with_the_same_weights(job):
    from mindspore import load_checkpoint

    folder, *_ = job
    for k in range(ITERATIONS):
        models = [
            load_checkpoint(
                str(
                    folder
                    / f"worker_{i}/ckpt/mindrecord_{i}/mindrecord_{i}-fast-rcnn-{k}epoch.ckpt"
                )
            )
            for i in range(SILOS)
        ]
        assert models[0].keys() == models[1].keys()
        for name, value in models[0].items():
            assert (value.asnumpy() == models[1][name].asnumpy()).all(), name
    initial = load_checkpoint(str(next((folder / "fl_ckpt").glob("*_initial.ckpt"))))
    moved = [n for n in initial if (initial[n].asnumpy() != models[0][n].asnumpy()).any()]
    assert "rcnn.cls_scores.weight" in moved
    assert "backbone.conv1.weight" not in moved


def test_everything_ended_by_itself_with_code_0(job):
    folder, *_ = job
    codes = {
        path.name: json.loads(path.read_text())["code"]
        for path in (folder / ".federation" / "status").glob("*.exit.json")
    }
    assert len(codes) == 1 + SERVERS + SILOS
    assert set(codes.values()) == {0}


def test_recovery_files_and_the_initial_one_are_there(job):
    folder, *_ = job
    names = sorted(path.name for path in (folder / "fl_ckpt").glob("*recovery*"))
    iterations = [int(name.split("_")[3]) for name in names]
    assert iterations == [0, 1, 2, 3]


def test_finish_removes_the_keys_and_the_redis_that_nobody_uses(job):
    folder, port, redis, _ = job
    said = succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    assert "no process of this job is running any more" in said
    assert f"stopped Redis at 127.0.0.1:{port}" in said
    assert redis.wait(timeout=10) == 0
    said = succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    assert said.startswith("nothing to stop")
    line = refused(folder, "run_cross_silo_fasterrcnn_sched.py")
    assert f"redis-server --port {port}" in line
