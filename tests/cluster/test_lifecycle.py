"""What a user does to a job besides letting it finish: stop, start again, kill, start twice."""

import os
import signal

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

from src.federated.replies import Outcome
from src.federated.transport import Client
from src.job.job_record import FOLDER, read_record
from src.job.status_file import read_status, status_path
from src.launch.redis_store import JobStore


class Job:
    """A folder with a Redis, shards, and the three launchers' flags."""

    def __init__(self, folder, shards, port):
        self.folder, self.shards, self.port = folder, shards, port
        self.redis = start_redis(folder, port)
        self.store = JobStore(("127.0.0.1", port), "FasterRCNN")

    def scheduler(self) -> str:
        flag = f"--scheduler_manage_address=127.0.0.1:{self.port + 1}"
        return succeed(self.folder, "run_cross_silo_fasterrcnn_sched.py", flag)

    def server_flags(self) -> list[str]:
        address = f"--http_server_address=127.0.0.1:{self.port + 2}"
        return [f"--config_path={TINY}", "--local_server_num=1", address]

    def servers(self, *more: str) -> str:
        script = "run_cross_silo_fasterrcnn_server.py"
        return succeed(self.folder, script, *self.server_flags(), *more)

    def worker_flags(self) -> list[str]:
        address = f"--http_server_address=127.0.0.1:{self.port + 2}"
        return [f"--config_path={TINY}", f"--dataset_path={self.shards}", address]

    def workers(self, *more: str) -> str:
        script = "run_cross_silo_fasterrcnn_worker.py"
        return succeed(self.folder, script, *self.worker_flags(), *more)

    def finish(self) -> str:
        script = "finish_cross_silo_fasterrcnn.py"
        return succeed(self.folder, script, f"--redis_port={self.port}")

    def status(self, number: int) -> dict:
        return read_status(status_path(self.folder, f"worker_{number}"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def job(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "job"
    folder.mkdir()
    port = free_port_range(4)
    write_job(folder, port, iterations=200)
    job = Job(folder, shards, port)
    yield job
    run(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    job.redis.kill()
    job.redis.wait()
    assert not processes_of(folder)


def test_finish_in_the_middle_then_a_new_start_in_the_same_folder(job):
    job.scheduler()
    job.servers()
    job.workers()
    wait_for(lambda: job.status(0).get("iteration", 0) >= 3, what="iteration 3")

    line = refused(job.folder, "run_cross_silo_fasterrcnn_worker.py", *job.worker_flags())
    assert "worker_0 of this folder is running already (pid" in line

    said = job.finish()
    assert "stopped worker_0, worker_1, server_0, scheduler" in said
    assert not processes_of(job.folder)
    assert job.redis.wait(timeout=5) == 0
    assert job.finish().startswith("nothing to stop")

    job.redis = start_redis(job.folder, job.port)
    write_job(job.folder, job.port, iterations=2)
    said = job.servers()
    assert "moved the recovery files of an earlier run to" in said
    assert "iteration 1 of 2 begins" in said
    job.workers()
    wait_for_end(job.folder)
    assert (job.folder / "worker_0.1" / "worker.log").is_file()
    kept = {path.name for path in (job.folder / "worker_0" / "ckpt" / "mindrecord_0").iterdir()}
    models = {f"mindrecord_0-fast-rcnn-{number}epoch.ckpt" for number in range(2)}
    assert kept == {*models, "resume.safetensors"}


def test_everything_killed_then_a_new_start_without_cleaning(job):
    job.servers()
    job.workers()
    wait_for(lambda: job.status(0).get("iteration", 0) >= 2, what="iteration 2")
    supervisors = read_record(job.folder).running()
    for record in supervisors:
        os.kill(record.pid, signal.SIGKILL)
    # A role does not outlive its supervisor.
    wait_for(lambda: len(processes_of(job.folder)) <= 1, what="the roles' end")
    assert job.store.status()["runningState"] == "0"

    write_job(job.folder, job.port, iterations=1)
    said = job.servers()
    assert "Redis keys of an earlier job" in said
    job.workers()
    wait_for_end(job.folder)
    assert job.status(1)["phase"] == "finished"


def test_servers_of_another_folder_with_the_same_name_are_not_disturbed(job, tmp_path):
    job.servers()
    other = tmp_path / "other"
    other.mkdir()
    write_job(other, job.port, iterations=2)
    flags = [f"--config_path={TINY}", "--local_server_num=1"]
    flags += [f"--http_server_address=127.0.0.1:{job.port + 3}"]
    line = refused(other, "run_cross_silo_fasterrcnn_server.py", *flags)
    assert "servers of a job named FasterRCNN are alive" in line
    said = succeed(other, "run_cross_silo_fasterrcnn_server.py", "--fl_name=other", *flags)
    assert "1 server(s) of other take requests" in said
    said = succeed(other, "finish_cross_silo_fasterrcnn.py", f"--redis_port={job.port}")
    assert "left running: it holds" in said
    assert job.store.status()["runningState"] == "0"
    assert [p.label for p in read_record(job.folder).running()] == ["server_0"]


def test_a_worker_that_is_killed_is_reported_and_the_server_stays(job):
    job.servers()
    job.workers("--local_worker_num=1")
    child = read_record(job.folder).running("worker")[0].process().children()[0]
    child.kill()
    exit_file = job.folder / FOLDER / "status" / "worker_0.exit.json"
    wait_for(exit_file.is_file, what="the exit file")
    assert "killed by SIGKILL; exit code 137" in (job.folder / "worker_0/worker.log").read_text()
    wait_for(lambda: not read_record(job.folder).running("worker"), what="the supervisor's end")
    assert [p.label for p in read_record(job.folder).running()] == ["server_0"]


def test_workers_without_a_server_give_up_in_bounded_time(job):
    flags = [*job.worker_flags(), "--local_worker_num=1", "--join_timeout=3"]
    result = run(job.folder, "run_cross_silo_fasterrcnn_worker.py", *flags)
    assert result.returncode == 1
    assert f"127.0.0.1:{job.port + 2}" in result.stderr
    assert "ended; exit code 1" in (job.folder / "worker_0" / "worker.log").read_text()


def test_finish_of_a_silo_that_joined_from_another_folder_leaves_the_job_alone(job, tmp_path):
    job.servers()
    job.workers("--local_worker_num=1")
    other = tmp_path / "other"
    other.mkdir()
    write_job(other, job.port, iterations=200)
    flags = [*job.worker_flags(), "--local_worker_num=1", "--first_worker_id=1"]
    assert "worker_1 have joined" in succeed(other, "run_cross_silo_fasterrcnn_worker.py", *flags)
    keys = len(job.store.keys())
    said = succeed(other, "finish_cross_silo_fasterrcnn.py", f"--redis_port={job.port}")
    assert "stopped worker_1" in said
    assert "its Redis is untouched" in said
    assert len(job.store.keys()) >= keys > 0
    assert [p.label for p in read_record(job.folder).running()] == ["server_0", "worker_0"]


def test_finish_all_finds_the_job_from_another_folder(job, tmp_path):
    job.servers()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = "finish_cross_silo_fasterrcnn.py"
    assert succeed(elsewhere, script).startswith("nothing to stop")
    assert "stopped server_0" in succeed(elsewhere, script, "--all", f"--redis_port={job.port}")


def test_a_silo_that_never_fetches_the_last_model_is_named_and_the_servers_end(job):
    write_job(job.folder, job.port, 1, start_fl_job_threshold=1)
    job.servers("--fetch_timeout=3")
    path = next((job.folder / "fl_ckpt").glob("*recovery*"))
    from mindspore import load_checkpoint

    weights = {name: value.asnumpy() for name, value in load_checkpoint(str(path)).items()}
    client = Client([f"127.0.0.1:{job.port + 2}"], "FasterRCNN", "slow silo")
    assert client.start(5, 10).outcome is Outcome.ACCEPTED
    assert client.update(1, weights, 5, 10).outcome is Outcome.ACCEPTED
    wait_for_end(job.folder)
    log = (job.folder / "server_0" / "server.log").read_text()
    assert "WARNING: not every silo has fetched the last model within 3 s" in log
    assert "silos of iteration 1: slow silo" in log
    assert "job finished; exit code 0" in log
    client.close()
