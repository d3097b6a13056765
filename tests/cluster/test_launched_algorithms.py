"""Every aggregation algorithm with the tiny detector, through the launchers, to the job's end."""

from __future__ import annotations

import re

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

ITERATIONS, SILOS = 3, 2
SERVER, WORKER = "run_cross_silo_fasterrcnn_server.py", "run_cross_silo_fasterrcnn_worker.py"
ADAPTIVE = ["--sync_type=adaptive", "--min_consistent_rate=0", "--observation_window_size=1"]

# What replaces the federation file's "FedAvg" line, the flags of all, a worker's log line.
CASES = {
    "FedProx": ("FedProx\n  iid_rate: 0.1", [], "FedProx with iid_rate 0.1"),
    "Scaffold": ("Scaffold\n  total_client_num: 2", [], "Scaffold"),
    "FedNova": ("FedNova", [], "FedNova"),
    "adaptive": ("FedAvg", ADAPTIVE, "synchronising every 2 instead of 3 from here on"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def place(tmp_path):
    """A folder for a job, and the first of its ports, Redis' own."""
    port = free_port_range(4)
    redis = start_redis(tmp_path, port)
    yield tmp_path, port
    succeed(tmp_path, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    redis.kill()
    redis.wait()
    assert not processes_of(tmp_path)


def launch(folder, port: int, algorithm: str, flags: list[str], shards, iterations=ITERATIONS):
    write_job(folder, port, iterations, aggregation_type=algorithm)
    common = ["--yaml_config=default_yaml_config.yaml", f"--config_path={TINY}", *flags]
    common.append(f"--http_server_address=127.0.0.1:{port + 1}")
    resumed = ["--resume"] * (folder / "fl_ckpt").exists()
    succeed(folder, SERVER, "--local_server_num=2", *common, *resumed)
    succeed(folder, WORKER, f"--local_worker_num={SILOS}", f"--dataset_path={shards}", *common)
    wait_for_end(folder)


def last_checkpoints(folder, iterations: int) -> list[dict]:
    from mindspore import load_checkpoint

    return [
        load_checkpoint(str(path))
        for path in sorted(folder.glob(f"worker_?/ckpt/*/*-{iterations - 1}epoch.ckpt"))
    ]


def assert_one_model(folder, iterations: int) -> None:
    """Both silos end with the same weights, in checkpoints of the detector alone."""
    from mindspore import load_checkpoint

    models = last_checkpoints(folder, iterations)
    whole = set(load_checkpoint(str(next((folder / "fl_ckpt").glob("*_initial.ckpt")))))
    assert len(models) == SILOS
    for model in models:
        assert set(model) == whole
        assert all((model[name].asnumpy() == models[0][name].asnumpy()).all() for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_job_with_another_algorithm_ends_by_itself(name, place, shards):
    folder, port = place
    algorithm, flags, line = CASES[name]
    iterations = 5 if name == "adaptive" else ITERATIONS
    launch(folder, port, algorithm, flags, shards, iterations)
    for number in range(SILOS):
        log = (folder / f"worker_{number}" / "worker.log").read_text()
        assert line in log
        assert log.count("aggregated: received") == iterations
        losses = [float(x) for x in re.findall(r"total_loss: (\S+)", log)]
        assert len(losses) == (3 * 3 + 2 * 2 if name == "adaptive" else 3 * ITERATIONS)
    assert_one_model(folder, iterations)


@pytest.mark.slow
def test_a_resumed_job_of_scaffold_keeps_the_servers_control_variates(place, shards):
    from mindspore import load_checkpoint

    folder, port = place
    algorithm, flags, _ = CASES["Scaffold"]
    launch(folder, port, algorithm, flags, shards, 2)
    succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    control = "control.rcnn.cls_scores.bias"
    (second,) = (folder / "fl_ckpt").glob("*_iteration_2_*.ckpt")
    before = load_checkpoint(str(second))[control].asnumpy()
    assert before.any()
    redis = start_redis(folder, port)
    try:
        launch(folder, port, algorithm, flags, shards, 3)
    finally:
        redis.kill()
        redis.wait()
    (third,) = (folder / "fl_ckpt").glob("*_iteration_3_*.ckpt")
    model = load_checkpoint(str(third))
    assert not any(name.startswith("control.control.") for name in model)
    assert not (model[control].asnumpy() == before).all()
    assert_one_model(folder, 3)


def test_what_cannot_work_together_is_refused_before_anything_starts(tmp_path):
    write_job(tmp_path, 1, 2, aggregation_type="FedNova")
    flags = [f"--config_path={TINY}", "--sync_type=adaptive"]
    for script in (SERVER, WORKER):
        assert "average the sizes of changes with FedAvg and FedProx only" in refused(
            tmp_path, script, *flags
        )
    assert not (tmp_path / ".federation").exists()
