"""What launched processes do when one of them is killed or cannot go on; the tiny detector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import (
    TINY,
    make_shards,
    processes_of,
    run,
    succeed,
    wait_for,
    wait_for_end,
    write_job,
)
from ports import free_port_range

from src.job.addresses import listens
from src.job.job_record import FOLDER, read_record
from src.job.status_file import read_status, status_path
from src.launch.redis_store import redis_binary

pytestmark = pytest.mark.slow  # each starts a whole federation, 30 to 90 s

SCHED = "run_cross_silo_fasterrcnn_sched.py"
SERVER = "run_cross_silo_fasterrcnn_server.py"
WORKER = "run_cross_silo_fasterrcnn_worker.py"


class Federation:
    """A folder with a Redis that keeps its data, and the launchers' flags."""

    def __init__(self, folder: Path, shards: Path):
        self.folder, self.shards, self.port = folder, shards, free_port_range(6)
        self.start_redis()

    def start_redis(self) -> None:
        command = [redis_binary(), "--port", str(self.port), "--appendonly", "yes"]
        with (self.folder / "redis.log").open("a") as log:
            self.redis = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_for(lambda: listens("127.0.0.1", self.port), 10, "Redis")

    def scheduler(self) -> None:
        succeed(self.folder, SCHED, f"--scheduler_manage_address=127.0.0.1:{self.port + 1}")

    def servers(self, count: int, *more: str) -> str:
        flags = [f"--config_path={TINY}", f"--local_server_num={count}", *more]
        address = f"--http_server_address=127.0.0.1:{self.port + 2}"
        return succeed(self.folder, SERVER, address, *flags)

    def worker_flags(self, servers: int = 1) -> list[str]:
        address = f"--http_server_address=127.0.0.1:{self.port + 2}"
        flags = [f"--config_path={TINY}", f"--dataset_path={self.shards}", address]
        return [*flags, f"--server_num={servers}"]

    def workers(self, servers: int, *more: str) -> str:
        return succeed(self.folder, WORKER, *self.worker_flags(servers), *more)

    def status(self, number: int) -> dict:
        return read_status(status_path(self.folder, f"worker_{number}"))

    def at_iteration(self, iteration: int) -> None:
        wait_for(lambda: self.status(0).get("iteration", 0) >= iteration, 90, "the iteration")

    def process(self, label: str):
        """The role's own process, below its supervisor."""
        (record,) = (p for p in read_record(self.folder).running() if p.label == label)
        return record.process().children()[0]

    def kill(self, label: str) -> None:
        """kill -9; the supervisor then ends too."""
        self.process(label).kill()
        labels = [p.label for p in read_record(self.folder).running()]
        assert label in labels or not labels
        wait_for(lambda: label not in self.running(), 20, f"the end of {label}")

    def running(self) -> list[str]:
        return [p.label for p in read_record(self.folder).running()]

    def exit_code(self, label: str) -> int:
        path = self.folder / FOLDER / "status" / f"{label}.exit.json"
        return json.loads(path.read_text())["code"]

    def log(self, label: str) -> str:
        return (self.folder / label / f"{label.split('_')[0]}.log").read_text()

    def rounds(self, label: str) -> list[tuple[int, str]]:
        lines = (self.folder / label / "rounds.jsonl").read_text().splitlines()
        return [(r["iteration"], r["result"]) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def federation(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "federation"
    folder.mkdir()
    started = Federation(folder, shards)
    yield started
    run(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={started.port}")
    started.redis.kill()
    started.redis.wait()
    assert not processes_of(folder)


def kill_within_training(federation: Federation, number: int) -> int:
    """kill -9 of a worker between its join and its upload; the iteration that it was in."""
    label = f"worker_{number}"
    process = federation.process(label)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if federation.status(number).get("phase") == "train":
            os.kill(process.pid, signal.SIGSTOP)
            status = federation.status(number)
            if status["phase"] == "train":
                federation.kill(label)
                return status["iteration"]
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("the worker does not train")


def test_a_worker_started_again_within_an_iteration_keeps_its_place(federation):
    write_job(federation.folder, federation.port, iterations=12)
    federation.servers(1)
    federation.workers(1)
    federation.at_iteration(2)
    iteration = kill_within_training(federation, 1)
    assert federation.exit_code("worker_1") == 137
    federation.workers(1, "--local_worker_num=1", "--first_worker_id=1")
    assert f"kept the place in iteration {iteration} of 12" in federation.log("worker_1")
    wait_for_end(federation.folder, 120)
    for label in ("worker_0", "worker_1", "server_0"):
        assert federation.exit_code(label) == 0, federation.log(label)[-2000:]
    assert federation.rounds("worker_0") == [(n, "aggregated") for n in range(1, 13)]
    assert federation.rounds("worker_1") == [(n, "aggregated") for n in range(iteration, 13)]
    assert federation.rounds("worker_1.1") == [(n, "aggregated") for n in range(1, iteration)]


def test_every_role_killed_once_and_started_again(federation):
    iterations = 24
    write_job(federation.folder, federation.port, iterations, update_model_time_window=30000)
    federation.scheduler()
    federation.servers(2)
    federation.workers(2)
    federation.at_iteration(2)
    federation.kill("scheduler")
    federation.scheduler()
    federation.redis.kill()
    federation.redis.wait()
    time.sleep(2)
    federation.start_redis()
    reached = federation.status(0)["iteration"]
    federation.at_iteration(reached + 2)
    federation.kill("server_0")
    federation.servers(1, "--resume")
    reached = federation.status(0)["iteration"]
    federation.at_iteration(reached + 2)
    kill_within_training(federation, 0)
    federation.workers(2, "--local_worker_num=1")
    wait_for_end(federation.folder, 240)
    for label in ("scheduler", "server_0", "server_1", "worker_0", "worker_1"):
        assert federation.exit_code(label) == 0, federation.log(label)[-2000:]
    numbers = [number for number, _ in federation.rounds("worker_1")]
    assert numbers == sorted(set(numbers)) and numbers[-1] == iterations
    results = [result for _, result in federation.rounds("worker_1")]
    assert results.count("aggregated") > iterations // 2
    for number in range(2):
        (last,) = (federation.folder / f"worker_{number}").rglob(f"*-{iterations - 1}epoch.ckpt")
        assert last.stat().st_size > 1000


def test_a_worker_whose_servers_are_gone_ends_with_a_reason(federation):
    write_job(federation.folder, federation.port, iterations=200)
    federation.servers(1)
    federation.workers(1, "--join_timeout=4", "--wait_timeout=60")
    federation.at_iteration(2)
    folders = [federation.folder / f"worker_{number}" for number in range(2)]
    # The other one may be a moment later.
    wait_for(lambda: all([*f.rglob("*-0epoch.ckpt")] for f in folders), 60, "both models")
    federation.kill("server_0")
    begin = time.monotonic()
    wait_for(lambda: not federation.running(), 40, "the workers' end")
    assert time.monotonic() - begin < 30
    for number in range(2):
        assert federation.exit_code(f"worker_{number}") == 1
        assert "error: gave up after 4 s of waiting for the servers" in federation.log(
            f"worker_{number}"
        )
        assert list((federation.folder / f"worker_{number}").rglob("*-0epoch.ckpt"))


def test_a_silo_whose_weights_are_no_longer_finite_stops_and_keeps_its_last_model(federation):
    write_job(federation.folder, federation.port, iterations=50)
    federation.servers(1, "--start_fl_job_threshold=1")
    flags = ["--local_worker_num=1", "--start_fl_job_threshold=1", "--sync_frequency=1"]
    # The first step is trained at a rate of next to nothing, later ones at an absurd one.
    flags += ["--base_lr=1e30", "--warmup_ratio=1e-38", "--lr_type=dynamic"]
    other = run(federation.folder, WORKER, *federation.worker_flags(), *flags, "--img_width=96")
    assert other.returncode == 2
    assert "do not agree on: img_width" in other.stderr
    federation.workers(1, *flags)
    wait_for(lambda: "worker_0" not in federation.running(), 60, "the worker's end")
    assert federation.exit_code("worker_0") == 1
    log = federation.log("worker_0")
    assert "nan" in log.lower() or "infinite" in log, log[-2000:]
    assert log.splitlines()[-2].startswith("error: "), log[-2000:]
    kept = list((federation.folder / "worker_0").rglob("*epoch.ckpt"))
    assert len(kept) == len(federation.rounds("worker_0")) >= 1
    import mindspore
    import numpy as np

    for path in kept:
        for name, value in mindspore.load_checkpoint(str(path)).items():
            assert np.isfinite(value.asnumpy()).all(), (path, name)
