"""200 iterations of the real engine: nothing grows beyond what docs/long_runs.md states."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest
from commands import make_shards
from launched_job import Job
from process_growth import Sample, growth, limits, row_of, sample

pytestmark = pytest.mark.slow  # four minutes

ITERATIONS = 200
# Redis keeps an iteration's keys for a minute, allocators fill their pools.
WARM_UP = 100
# The workers' readers end before the last iterations do.
LAST = 185
KEPT = 3
END_TIMEOUT_S = 1800


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=4)


def test_nothing_grows_beyond_what_the_page_states(tmp_path, shards):
    with Job(tmp_path / "job", shards) as job:
        start(job)
        samples = follow(job)
    for label in ("worker_0", "worker_1"):
        assert job.exit_codes()[label] == 0, job.log(label)[-2000:]
        checkpoints = list((job.folder / label).rglob("*epoch.ckpt"))
        assert sorted(path.name.split("-")[-1] for path in checkpoints) == [
            f"{k}epoch.ckpt" for k in range(ITERATIONS - KEPT, ITERATIONS)
        ]
    steady = [one for one in samples if WARM_UP <= one.iteration <= LAST]
    assert len(steady) > 40
    stated, measured = limits(), defaultdict(list)
    for name, amount in growth(steady).items():
        measured[row_of(name)].append(amount)
    print("\n".join(f"{row}: {max(amounts):.1f}" for row, amounts in sorted(measured.items())))
    assert measured.keys() == stated.keys()
    beyond = {
        row: (max(amounts), stated[row])
        for row, amounts in measured.items()
        if max(amounts) > stated[row]
    }
    assert not beyond, f"growth per iteration, and what the page states: {beyond}"


def start(job: Job) -> None:
    """A scheduler, a server and two workers that synchronise after each step."""
    job.write(ITERATIONS)
    job.scheduler()
    job.servers()
    job.workers("--batch_size=1", "--sync_frequency=1", f"--checkpoints_kept={KEPT}")


def follow(job: Job) -> list[Sample]:
    """A sample of each iteration, until the workers have ended."""
    samples, deadline = [], time.monotonic() + END_TIMEOUT_S
    while job.running("worker"):
        reached = samples[-1].iteration if samples else 0
        assert time.monotonic() < deadline, f"the workers are still in iteration {reached}"
        iteration = job.status().get("iteration", 0)
        if iteration > reached:
            taken = sample(job.folder, job.redis_port, job.redis.pid, iteration)
            samples += [taken] if taken else []
        time.sleep(0.1)
    return samples
