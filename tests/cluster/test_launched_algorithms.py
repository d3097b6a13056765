"""Every aggregation algorithm with the tiny detector, through the launchers, to the job's end."""

from __future__ import annotations

import re

import pytest
from commands import SERVER, WORKER, refused, write_job
from launched_job import CONFIG, Job
from models import assert_same_model, read_model

from src.job.recovery_files import ORIGIN_NAME

ITERATIONS, SILOS = 3, 2
ADAPTIVE = ["--sync_type=adaptive", "--min_consistent_rate=0", "--observation_window_size=1"]

# What replaces the federation file's "FedAvg" line, the flags of all, a worker's log line.
CASES = {
    "FedProx": ("FedProx\n  iid_rate: 0.1", [], "FedProx with iid_rate 0.1"),
    "Scaffold": ("Scaffold\n  total_client_num: 2", [], "Scaffold"),
    "FedNova": ("FedNova", [], "FedNova"),
    "adaptive": ("FedAvg", ADAPTIVE, "synchronising every 2 instead of 3 from here on"),
}


@pytest.fixture
def job(tmp_path, shards):
    with Job(tmp_path / "job", shards) as job:
        yield job


def launch(job: Job, name: str, iterations: int) -> str:
    """Train to the end; what each worker has to say then."""
    algorithm, flags, line = CASES[name]
    job.write(iterations, aggregation_type=algorithm)
    resumed = ["--resume"] * (job.folder / "fl_ckpt").exists()
    job.servers(2, *flags, *resumed)
    job.workers(*flags)
    job.wait_for_end()
    return line


def assert_one_model(job: Job, iterations: int) -> None:
    """Both silos end with the same weights, in checkpoints of the detector alone."""
    first, second = (job.model(f"worker_{number}", iterations) for number in range(SILOS))
    assert set(first) == set(read_model(job.initial)) - {ORIGIN_NAME}
    assert_same_model(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_job_with_another_algorithm_ends_by_itself(name, job):
    iterations = 5 if name == "adaptive" else ITERATIONS
    line = launch(job, name, iterations)
    for number in range(SILOS):
        log = job.log(f"worker_{number}")
        assert line in log
        assert log.count("aggregated: received") == iterations
        losses = [float(x) for x in re.findall(r"total_loss: (\S+)", log)]
        assert len(losses) == (3 * 3 + 2 * 2 if name == "adaptive" else 3 * ITERATIONS)
    assert_one_model(job, iterations)


@pytest.mark.slow
def test_a_resumed_job_of_scaffold_keeps_the_servers_control_variates(job):
    launch(job, "Scaffold", 2)
    job.finish()
    control = "control.rcnn.cls_scores.bias"
    before = read_model(job.recovery(2))[control]
    assert before.any()
    job.start_redis()
    launch(job, "Scaffold", 3)
    model = read_model(job.recovery(3))
    assert not any(name.startswith("control.control.") for name in model)
    assert not (model[control] == before).all()
    assert_one_model(job, 3)


def test_what_cannot_work_together_is_refused_before_anything_starts(tmp_path):
    write_job(tmp_path, 1, 2, aggregation_type="FedNova")
    for script in (SERVER, WORKER):
        line = refused(tmp_path, script, CONFIG, "--sync_type=adaptive")
        assert "average the sizes of changes with FedAvg and FedProx only" in line
    assert not (tmp_path / ".federation").exists()
