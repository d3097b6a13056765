"""200 iterations of the real engine: nothing grows beyond what docs/long_runs.md states."""

from __future__ import annotations

import json
import time
from collections import defaultdict

import pytest
from commands import TINY, make_shards, processes_of, run, start_redis, succeed, write_job
from ports import free_port_range
from process_growth import growth, limits, row_of, sample

from src.job.job_record import FOLDER, read_record
from src.job.status_file import read_status, status_path

pytestmark = pytest.mark.slow  # four minutes

ITERATIONS = 200
# Redis keeps an iteration's keys for a minute, allocators fill their pools.
WARM_UP = 100
# The workers' readers end before the last iterations do.
LAST = 185
KEPT = 3
END_TIMEOUT_S = 1800


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Folder, port and process of a Redis, and the folder of the shards."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shards = make_shards(tmp_path, images=4)
    folder, port = tmp_path / "job", free_port_range(4)
    folder.mkdir()
    redis = start_redis(folder, port)
    yield folder, port, redis, shards
    run(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    redis.kill()
    redis.wait()
    assert not processes_of(folder)


def test_nothing_grows_beyond_what_the_page_states(job):
    folder, port, redis, shards = job
    start(folder, port, shards)
    samples = follow(folder, port, redis.pid)
    for label in ("worker_0", "worker_1"):
        ended = json.loads((folder / FOLDER / "status" / f"{label}.exit.json").read_text())
        assert ended["code"] == 0, ended
        checkpoints = list((folder / label).rglob("*epoch.ckpt"))
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


def start(folder, port, shards) -> None:
    """A scheduler, a server and two workers that synchronise after each step."""
    write_job(folder, port, ITERATIONS)
    address = f"--http_server_address=127.0.0.1:{port + 2}"
    sched = f"--scheduler_manage_address=127.0.0.1:{port + 1}"
    succeed(folder, "run_cross_silo_fasterrcnn_sched.py", sched)
    flags = [address, f"--config_path={TINY}"]
    succeed(folder, "run_cross_silo_fasterrcnn_server.py", *flags, "--local_server_num=1")
    flags += [f"--dataset_path={shards}", "--batch_size=1", "--sync_frequency=1"]
    succeed(
        folder,
        "run_cross_silo_fasterrcnn_worker.py",
        *flags,
        f"--keep_checkpoint_max={KEPT}",
        timeout=300,
    )


def follow(folder, port, redis_pid) -> list:
    """A sample of each iteration, until the workers have ended."""
    samples, deadline = [], time.monotonic() + END_TIMEOUT_S
    while read_record(folder).running("worker"):
        reached = samples[-1].iteration if samples else 0
        assert time.monotonic() < deadline, f"the workers are still in iteration {reached}"
        iteration = read_status(status_path(folder, "worker_0")).get("iteration", 0)
        if iteration > reached:
            taken = sample(folder, port, redis_pid, iteration)
            samples += [taken] if taken else []
        time.sleep(0.1)
    return samples
