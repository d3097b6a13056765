"""What launched processes do when one of them is killed or cannot go on; the tiny detector."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from commands import WORKER, run, wait_for
from launched_job import Job
from models import read_model

pytestmark = pytest.mark.slow  # each starts a whole federation, 30 to 90 s


@pytest.fixture
def job(tmp_path, shards):
    """Its Redis keeps its data when it is killed."""
    with Job(tmp_path / "federation", shards, redis_flags=["--appendonly", "yes"]) as job:
        yield job


def kill_within_training(job: Job, label: str) -> int:
    """kill -9 of a worker between its join and its upload; the iteration that it was in."""
    process = job.process(label)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if job.status(label).get("phase") == "train":
            os.kill(process.pid, signal.SIGSTOP)
            status = job.status(label)
            if status["phase"] == "train":
                job.kill(label)
                return status["iteration"]
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError(f"{label} does not train")


def two_iterations_later(job: Job) -> None:
    job.at_iteration(job.status()["iteration"] + 2)


def assert_ended_well(job: Job, *labels: str) -> None:
    codes = job.exit_codes()
    for label in labels:
        assert codes[label] == 0, job.log(label)[-2000:]


def test_a_worker_started_again_within_an_iteration_keeps_its_place(job):
    job.write(iterations=12)
    job.servers()
    job.workers()
    job.at_iteration(2)
    iteration = kill_within_training(job, "worker_1")
    assert job.exit_codes()["worker_1"] == 137
    job.workers("--local_worker_num=1", "--first_worker_id=1")
    assert f"kept the place in iteration {iteration} of 12" in job.log("worker_1")
    job.wait_for_end()
    assert_ended_well(job, "worker_0", "worker_1", "server_0")
    assert job.results("worker_0") == [(n, "aggregated") for n in range(1, 13)]
    assert job.results("worker_1") == [(n, "aggregated") for n in range(iteration, 13)]
    assert job.results("worker_1.1") == [(n, "aggregated") for n in range(1, iteration)]


def test_every_role_killed_once_and_started_again(job):
    iterations = 24
    job.write(iterations, update_model_time_window=30000)
    job.scheduler()
    job.servers(2)
    job.workers("--server_num=2")
    job.at_iteration(2)
    job.kill("scheduler")
    job.scheduler()
    job.kill_redis()
    time.sleep(2)
    job.start_redis()
    two_iterations_later(job)
    job.kill("server_0")
    job.servers(1, "--resume")
    two_iterations_later(job)
    kill_within_training(job, "worker_0")
    job.workers("--server_num=2", "--local_worker_num=1")
    job.wait_for_end()
    assert_ended_well(job, "scheduler", "server_0", "server_1", "worker_0", "worker_1")
    numbers = [number for number, _ in job.results("worker_1")]
    assert numbers == sorted(set(numbers)) and numbers[-1] == iterations
    results = [result for _, result in job.results("worker_1")]
    assert results.count("aggregated") > iterations // 2
    for number in range(2):
        (last,) = (job.folder / f"worker_{number}").rglob(f"*-{iterations - 1}epoch.ckpt")
        assert last.stat().st_size > 1000
        assert "another process uses this silo's identity" not in job.log(f"worker_{number}")


def test_a_worker_whose_servers_are_gone_ends_with_a_reason(job):
    job.write(iterations=200)
    job.servers()
    job.workers("--join_timeout=4", "--wait_timeout=60")
    job.at_iteration(2)
    folders = [job.folder / f"worker_{number}" for number in range(2)]
    # The other one may be a moment later.
    wait_for(lambda: all([*f.rglob("*-0epoch.ckpt")] for f in folders), 60, "both models")
    job.kill("server_0")
    job.wait_for_end(timeout=30)
    for number in range(2):
        label = f"worker_{number}"
        assert job.exit_codes()[label] == 1
        assert "error: gave up after 4 s of waiting for the servers" in job.log(label)
        assert list((job.folder / label).rglob("*-0epoch.ckpt"))


def test_a_silo_whose_weights_are_no_longer_finite_stops_and_keeps_its_last_model(job):
    job.write(iterations=50)
    # Without a bound, so that the servers keep a model that is absurd but finite.
    anything = "--max_model_change=0"
    job.servers(1, "--start_fl_job_threshold=1", anything)
    flags = ["--local_worker_num=1", "--start_fl_job_threshold=1", "--sync_frequency=1", anything]
    # The first step is trained at a rate of next to nothing, later ones at an absurd one.
    flags += ["--base_lr=1e30", "--warmup_ratio=1e-38", "--lr_type=dynamic"]
    other = run(job.folder, WORKER, *job.worker_flags, *flags, "--img_width=96")
    assert other.returncode == 2
    assert "do not agree on: img_width" in other.stderr
    assert "in the servers' --checkpoint_dir before" in other.stderr
    job.workers(*flags)
    job.wait_for_end("worker")
    assert job.exit_codes()["worker_0"] == 1
    log = job.log("worker_0")
    assert "nan" in log.lower() or "infinite" in log, log[-2000:]
    assert log.splitlines()[-2].startswith("error: "), log[-2000:]
    kept = list((job.folder / "worker_0").rglob("*epoch.ckpt"))
    assert len(kept) == len(job.rounds("worker_0")) >= 1
    for path in kept:
        for name, value in read_model(path).items():
            assert np.isfinite(value).all(), (path, name)
