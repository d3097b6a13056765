"""A disk that fills up under a running job, and one on which nothing can be started."""

from __future__ import annotations

import pytest
import redis
from commands import (
    SCHED,
    SERVER,
    WORKER,
    make_shards,
    processes_of,
    refused,
    running_redis,
    wait_for,
)
from launched_job import Job
from small_disk import cannot_mount, small_disk

from src.launch.redis_store import JobStore

pytestmark = pytest.mark.slow  # each starts a whole federation

EACH_STEP = ("--batch_size=1", "--sync_frequency=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    if reason := cannot_mount(tmp_path_factory.mktemp("mount") / "disk"):
        pytest.skip(reason)
    return make_shards(tmp_path_factory.mktemp("data"), images=4)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "job", megabytes=24) as disk:
        yield disk


@pytest.fixture
def job(tmp_path, shards, disk):
    """Its folder is the small disk; Redis keeps its own elsewhere."""
    with running_redis(tmp_path) as port, Job(disk.folder, shards, redis_port=port) as job:
        yield job


def start(job: Job, iterations: int, *worker_flags: str) -> None:
    """A server and workers that synchronise after each step; until they have done so twice."""
    job.write(iterations)
    job.servers()
    job.workers(*EACH_STEP, *worker_flags)
    job.at_iteration(3)


def test_workers_without_room_for_a_checkpoint_end_and_go_on_later(job, disk):
    start(job, 40, "--checkpoints_kept=2")
    # Room for lines and status files, none for a model.
    disk.fill(leave=40_000)
    job.wait_for_end("worker")
    labels = ("worker_0", "worker_1")
    for label in labels:
        assert job.exit_codes()[label] == 1
        errors = [line for line in job.log(label).splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, job.log(label)[-1500:]
        assert "could not be written: No space left on device; free some space" in errors[0]
    for label in labels:
        assert list((job.folder / label).rglob("*epoch.ckpt"))
        assert not list((job.folder / label).rglob(".partial*"))
    assert job.running("server")
    disk.empty()
    reached = max(one["iteration"] for one in job.rounds("worker_0"))
    job.workers(*EACH_STEP, "--checkpoints_kept=2")
    job.wait_for_end()
    rounds = job.rounds("worker_0")
    assert rounds[0]["iteration"] >= reached and rounds[-1]["iteration"] == 40
    assert job.exit_codes() == {"worker_0": 0, "worker_1": 0, "server_0": 0}


def test_a_full_disk_costs_lines_and_the_job_ends_well(job, disk):
    start(job, 25, "--save_checkpoint=False")
    first = job.status()["iteration"]
    disk.fill()
    # The status file is of before; the server's keys in Redis tell where the job is.
    wait_for(lambda: redis_iteration(job) >= first + 6, 90, "six more iterations")
    disk.empty()
    job.wait_for_end()
    assert job.exit_codes() == {"worker_0": 0, "worker_1": 0, "server_0": 0}
    for label in ("worker_0", "worker_1"):
        log = job.log(label)
        assert "finished: 25 iterations in this process" in log
        assert "No space left on device" in log
        assert "is written again; " in log
        # Lines of the configuration begin with two spaces; no line of the log is cut.
        assert all(line.startswith(("[", "  ")) for line in log.splitlines()), log
        rounds = [one["iteration"] for one in job.rounds(label)]
        assert rounds[0] == 1 and rounds[-1] == 25
        assert not list((job.folder / label).rglob(".partial*"))
    server = job.log("server_0")
    assert "was not written: No space left on device" in server or "line(s) found no room" in server
    assert job.recovery(25).is_file()


def redis_iteration(job: Job) -> int:
    store = JobStore(("127.0.0.1", job.redis_port), "FasterRCNN")
    try:
        return int(store.status().get("iterationNum", 0))
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_nothing_is_started_where_nothing_can_be_written(job, disk, kind):
    job.write(5)
    words = {"full": "No space left on device", "read-only": "Read-only file system"}[kind]
    disk.fill() if kind == "full" else disk.read_only()
    for script, flags in (
        (SCHED, job.scheduler_flags),
        (SERVER, job.server_flags()),
        (WORKER, [*job.worker_flags, "--save_checkpoint=False"]),
    ):
        line = refused(job.folder, script, *flags)
        # The look at the disk before the start has words of its own.
        assert words in line or "are free" in line or "can be written" in line, line
        assert str(job.folder) in line
        assert not processes_of(job.folder)
    if kind == "read-only":
        disk.read_only(False)


def test_a_redis_whose_disk_is_full_is_named(tmp_path, shards):
    with (
        small_disk(tmp_path / "redis") as disk,
        running_redis(disk.folder, "--appendonly", "yes") as port,
        Job(tmp_path / "job", shards, redis_port=port) as job,
    ):
        job.write(5)
        disk.fill()
        fill_append_only_file(port)
        line = refused(job.folder, SERVER, *job.server_flags())
        assert f"127.0.0.1:{port}" in line and "No space left on device" in line
        assert line.endswith("free some space on its disk")
        assert not processes_of(job.folder)


def fill_append_only_file(port: int) -> None:
    """Write to Redis until it refuses, with a key of the job."""
    client = redis.Redis(port=port)
    with pytest.raises(redis.ResponseError, match="No space left on device"):
        for number in range(10_000):
            client.set("ms_fl:FasterRCNN:InstanceName:String", f"{number}" * 100)
    client.close()
