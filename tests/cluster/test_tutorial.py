"""The tutorial's commands, one after the other, on the real engine with the tiny detector."""

import re
import subprocess

import numpy as np
import pytest
from commands import SCHED, make_shards, refused
from launched_job import Job
from models import assert_same_model, read_model, save_resnet

ITERATIONS, SERVERS, SILOS = 3, 4, 2
YAML = "--yaml_config=default_yaml_config.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished job, and what each command printed."""
    folder = tmp_path_factory.mktemp("a silo's folder")
    with Job(folder, make_shards(folder)) as job:
        job.write(ITERATIONS)
        sched = job.scheduler(YAML)
        server = job.servers(SERVERS, YAML, "--tcp_server_ip=127.0.0.1", "--checkpoint_dir=fl_ckpt")
        model = save_resnet(folder / "resnet50.ckpt")
        more = [YAML, f"--pre_trained={model.name}"]
        worker = job.workers(f"--local_worker_num={SILOS}", *more)
        job.wait_for_end()
        yield job, {"sched": sched, "server": server, "worker": worker}


@pytest.fixture(scope="module")
def job(finished):
    return finished[0]


def test_each_command_says_what_it_started_and_what_comes_next(finished):
    _, said = finished
    assert "started scheduler (pid" in said["sched"]
    assert "next: run_cross_silo_fasterrcnn_server.py" in said["sched"]
    assert "started server_3 (pid" in said["server"]
    assert "next: run_cross_silo_fasterrcnn_worker.py" in said["server"]
    assert "silos with --pre_trained start from theirs" in said["server"]
    assert "worker_0, worker_1 have joined FasterRCNN: 3 iterations" in said["worker"]


def test_logs_and_checkpoints_lie_where_the_tutorial_says(job):
    expected = ["scheduler/scheduler.log"]
    expected += [f"server_{i}/server.log" for i in range(SERVERS)]
    for i in range(SILOS):
        expected += [f"worker_{i}/worker.log", f"worker_{i}/loss_0.log"]
        user = f"mindrecord_{i}"
        expected += [
            f"worker_{i}/ckpt/{user}/{user}-fast-rcnn-{k}epoch.ckpt" for k in range(ITERATIONS)
        ]
    missing = [name for name in expected if not (job.folder / name).is_file()]
    assert not missing


def test_engine_lines_that_the_tutorial_shows_are_in_the_logs(job):
    scheduler = job.log("scheduler")
    assert "Scheduler started successfully." in scheduler
    assert "Start http server!" in scheduler
    server = job.log("server_0")
    assert "Ev http register handle of:" in server
    assert "Start http server!" in server
    assert len(server.splitlines()) < 60


STEPS = [(epoch, step) for epoch in range(1, ITERATIONS + 1) for step in (1, 2, 3)]


def grep_in_worker_0(job, pattern):
    return subprocess.run(
        f"grep -rn '{pattern}' *",
        shell=True,
        cwd=job.folder / "worker_0",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def steps_of(lines, form):
    matches = [re.search(form, line) for line in lines]
    assert all(matches), lines
    return [(int(match[1]), int(match[2])) for match in matches]


def test_the_tutorials_grep_finds_every_step_once(job):
    lines = grep_in_worker_0(job, r"\]epoch:")
    form = r"^worker\.log:\d+:.*\]epoch: (\d+) step: (\d+) total_loss: \d+\.\d+$"
    assert steps_of(lines, form) == STEPS


def test_the_tutorials_first_grep_finds_the_loss_file_too(job):
    lines = grep_in_worker_0(job, r"\epoch:")
    in_log = [line for line in lines if line.startswith("worker.log")]
    assert steps_of(in_log, r"\]epoch: (\d+) step: (\d+) total_loss: \d+\.\d+$") == STEPS
    in_file = [line for line in lines if not line.startswith("worker.log")]
    form = r"^loss_0\.log:\d+:\d+ s \| epoch: (\d+) step: (\d+) "
    assert steps_of(in_file, form + r"total_loss: \d+\.\d{5}  lr: \d\.\d{6}$") == STEPS


def test_the_worker_log_tells_the_configuration_and_the_seconds_of_each_epoch(job):
    log = job.log("worker_0")
    assert log.count("] configuration, ") == 1 and "\n  img_width: 64 (default 1280)\n" in log
    epochs = re.findall(r"\] epoch (\d+): 3 steps in \d+\.\d s, \S+ s per step", log)
    assert epochs == ["1", "2", "3"]


def test_the_silos_end_each_iteration_with_the_same_weights(job):
    for iteration in range(1, ITERATIONS + 1):
        first, *others = (job.model(f"worker_{number}", iteration) for number in range(SILOS))
        for other in others:
            assert_same_model(first, other)


def test_the_silos_have_started_from_the_resnet_that_they_alone_have(job):
    words = "the servers' initial model was made without a checkpoint"
    for number in range(SILOS):
        log = job.log(f"worker_{number}")
        assert log.count(words) == 1 and "starting from resnet50.ckpt, as every silo must" in log
    resnet, first = read_model(job.folder / "resnet50.ckpt"), job.model("worker_0", 1)
    trained, initial = job.model("worker_0", ITERATIONS), read_model(job.initial)
    np.testing.assert_array_equal(trained["backbone.conv1.weight"], resnet["conv1.weight"])
    assert (initial["backbone.conv1.weight"] != resnet["conv1.weight"]).any()
    # What is trained has moved a little from the ResNet's values, far from the servers'.
    name = "layer4.0.conv1.weight"
    moved, apart = (
        np.linalg.norm(weights[f"backbone.{name}"] - resnet[name]) for weights in (first, initial)
    )
    assert 0 < moved < 0.2 * apart
    assert (trained["rcnn.cls_scores.weight"] != first["rcnn.cls_scores.weight"]).any()


def test_everything_ended_by_itself_with_code_0(job):
    codes = job.exit_codes()
    assert len(codes) == 1 + SERVERS + SILOS
    assert set(codes.values()) == {0}


def test_recovery_files_and_the_initial_one_are_there(job):
    names = sorted(path.name for path in (job.folder / "fl_ckpt").glob("*recovery*"))
    iterations = [int(name.split("_")[3]) for name in names]
    assert iterations == [0, 1, 2, 3]


def test_finish_removes_the_keys_and_the_redis_that_nobody_uses(job):
    said = job.finish()
    assert "no process of this job is running here any more" in said
    assert f"stopped Redis at 127.0.0.1:{job.redis_port}" in said
    assert job.redis.wait(timeout=10) == 0
    assert job.finish().startswith("nothing to stop")
    line = refused(job.folder, SCHED)
    assert f"configs/redis.conf --port {job.redis_port}" in line
