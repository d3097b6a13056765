"""A disk that fills up under a running job, and one on which nothing can be started."""

from __future__ import annotations

import json

import pytest
from commands import (
    TINY,
    make_shards,
    processes_of,
    refused,
    run,
    start_redis,
    succeed,
    wait_for,
    wait_for_end,
    write_job,
)
from ports import free_port_range
from small_disk import cannot_mount, small_disk

from src.job.job_record import FOLDER, read_record
from src.job.status_file import read_status, status_path

pytestmark = pytest.mark.slow  # each starts a whole federation

SCHED = "run_cross_silo_fasterrcnn_sched.py"
SERVER = "run_cross_silo_fasterrcnn_server.py"
WORKER = "run_cross_silo_fasterrcnn_worker.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    if reason := cannot_mount(tmp_path_factory.mktemp("mount") / "disk"):
        pytest.skip(reason)
    return make_shards(tmp_path_factory.mktemp("data"), images=4)


class Job:
    """A job whose folder is a small disk; Redis keeps its own elsewhere."""

    def __init__(self, disk, port, shards):
        self.disk, self.folder, self.port, self.shards = disk, disk.folder, port, shards

    def start(self, iterations: int, *worker_flags: str) -> None:
        write_job(self.folder, self.port, iterations)
        flags = [f"--config_path={TINY}", f"--http_server_address=127.0.0.1:{self.port + 1}"]
        succeed(self.folder, SERVER, *flags, "--local_server_num=1")
        self.workers(*worker_flags)

    def workers(self, *more: str) -> None:
        flags = [f"--config_path={TINY}", f"--http_server_address=127.0.0.1:{self.port + 1}"]
        flags += [f"--dataset_path={self.shards}", "--batch_size=1", "--sync_frequency=1"]
        succeed(self.folder, WORKER, *flags, *more, timeout=300)

    def iteration(self) -> int:
        return read_status(status_path(self.folder, "worker_0")).get("iteration", 0)

    def log(self, label: str) -> str:
        return (self.folder / label / f"{label.split('_')[0]}.log").read_text()

    def exit_code(self, label: str) -> int:
        path = self.folder / FOLDER / "status" / f"{label}.exit.json"
        return json.loads(path.read_text())["code"]


@pytest.fixture
def job(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    port = free_port_range(3)
    redis = start_redis(tmp_path, port)
    with small_disk(tmp_path / "job", megabytes=24) as disk:
        yield Job(disk, port, shards)
        run(disk.folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
        assert not processes_of(disk.folder)
    redis.kill()
    redis.wait()


def whole_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_workers_without_room_for_a_checkpoint_end_and_go_on_later(job):
    job.start(40, "--keep_checkpoint_max=2")
    wait_for(lambda: job.iteration() >= 3, 90, "the third iteration")
    # Room for lines and status files, none for a model.
    job.disk.fill(leave=40_000)
    wait_for(lambda: not read_record(job.folder).running("worker"), 90, "the workers' end")
    labels = ("worker_0", "worker_1")
    for label in labels:
        assert job.exit_code(label) == 1
        errors = [line for line in job.log(label).splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, job.log(label)[-1500:]
        assert "could not be written: No space left on device; free some space" in errors[0]
    for label in labels:
        assert list((job.folder / label).rglob("*epoch.ckpt"))
        assert not list((job.folder / label).rglob(".partial*"))
    assert read_record(job.folder).running("server")
    job.disk.empty()
    reached = max(entry["iteration"] for entry in whole_lines(job.folder / "worker_0/rounds.jsonl"))
    job.workers("--keep_checkpoint_max=2")
    wait_for_end(job.folder, 240)
    rounds = whole_lines(job.folder / "worker_0" / "rounds.jsonl")
    assert rounds[0]["iteration"] >= reached and rounds[-1]["iteration"] == 40
    assert [job.exit_code(label) for label in (*labels, "server_0")] == [0, 0, 0]


def test_a_full_disk_costs_lines_and_the_job_ends_well(job):
    job.start(25, "--save_checkpoint=False")
    wait_for(lambda: job.iteration() >= 3, 90, "the third iteration")
    first = job.iteration()
    job.disk.fill()
    # The status file is of before; the server's keys in Redis tell where the job is.
    wait_for(lambda: redis_iteration(job) >= first + 6, 90, "six more iterations")
    job.disk.empty()
    wait_for_end(job.folder, 240)
    for label in ("worker_0", "worker_1", "server_0"):
        assert job.exit_code(label) == 0
    for label in ("worker_0", "worker_1"):
        log = job.log(label)
        assert "finished: 25 iterations in this process" in log
        assert "No space left on device" in log
        assert "is written again; " in log
        assert all(line.startswith("[") for line in log.splitlines()), log
        rounds = [entry["iteration"] for entry in whole_lines(job.folder / label / "rounds.jsonl")]
        assert rounds[0] == 1 and rounds[-1] == 25
        assert not list((job.folder / label).rglob(".partial*"))
    server = job.log("server_0")
    assert "was not written: No space left on device" in server or "line(s) found no room" in server
    assert list((job.folder / "fl_ckpt").glob("*_recovery_iteration_25_*.ckpt"))


def redis_iteration(job) -> int:
    from src.launch.redis_store import JobStore

    store = JobStore(("127.0.0.1", job.port), "FasterRCNN")
    try:
        return int(store.status().get("iterationNum", 0))
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_nothing_is_started_where_nothing_can_be_written(job, kind):
    write_job(job.folder, job.port, 5)
    words = {"full": "No space left on device", "read-only": "Read-only file system"}[kind]
    job.disk.fill() if kind == "full" else job.disk.read_only()
    flags = [f"--config_path={TINY}", f"--http_server_address=127.0.0.1:{job.port + 1}"]
    manage = f"--scheduler_manage_address=127.0.0.1:{job.port + 2}"
    for script, more in (
        (SCHED, [manage]),
        (SERVER, [*flags, "--local_server_num=1"]),
        (WORKER, [*flags, f"--dataset_path={job.shards}", "--save_checkpoint=False"]),
    ):
        line = refused(job.folder, script, *more)
        # The look at the disk before the start has words of its own.
        assert words in line or "are free" in line or "can be written" in line, line
        assert str(job.folder) in line
        assert not processes_of(job.folder)
    if kind == "read-only":
        job.disk.read_only(False)


def test_a_redis_whose_disk_is_full_is_named(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    port = free_port_range(2)
    folder = tmp_path / "job"
    folder.mkdir()
    with small_disk(tmp_path / "redis") as disk:
        redis = start_redis(disk.folder, port, "--appendonly", "yes")
        try:
            write_job(folder, port, 5)
            disk.fill()
            line = fill_append_only_file(folder, port)
            assert f"127.0.0.1:{port}" in line and "No space left on device" in line
            assert line.endswith("free some space on its disk")
            assert not processes_of(folder)
        finally:
            redis.kill()
            redis.wait()


def fill_append_only_file(folder, port) -> str:
    """Write to Redis until it refuses, with a key of the job; what the server launcher says."""
    import redis

    client = redis.Redis(port=port)
    with pytest.raises(redis.ResponseError, match="No space left on device"):
        for number in range(10_000):
            client.set("ms_fl:FasterRCNN:InstanceName:String", f"{number}" * 100)
    client.close()
    address = f"--http_server_address=127.0.0.1:{port + 1}"
    return refused(folder, SERVER, f"--config_path={TINY}", address, "--local_server_num=1")
