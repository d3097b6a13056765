"""One silo of two ranks beside an ordinary one, through the launchers; the tiny detector."""

import json
import os
import signal
import subprocess
import sys

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
from ports import free_port_range, free_ports

from src.job.job_record import FOLDER, read_record
from src.job.status_file import read_status, status_path

pytestmark = pytest.mark.slow  # each starts a whole federation, 40 to 120 s

DISTRIBUTED = "run_cross_silo_fasterrcnn_worker_distributed.py"
SILO = "worker_distributed"


class Job:
    """A folder with Redis, one server, and the launchers' flags."""

    def __init__(self, folder, shards):
        self.folder, self.shards = folder, shards
        self.port = free_port_range(4)
        self.redis = start_redis(folder, self.port)
        (self.rank_port,) = free_ports(1)

    def begin(self, iterations: int, **values) -> None:
        write_job(self.folder, self.port, iterations, **values)
        script = "run_cross_silo_fasterrcnn_server.py"
        succeed(self.folder, script, *self.flags()[:2], "--local_server_num=1")

    def flags(self) -> list[str]:
        address = f"--http_server_address=127.0.0.1:{self.port + 2}"
        return [f"--config_path={TINY}", address, f"--dataset_path={self.shards}"]

    def rank_flags(self, *more: str) -> list[str]:
        port = f"--rank_port={self.rank_port}"
        return [*self.flags(), "--device_num=2", "--run_distribute=True", port, *more]

    def silos(self, *more: str) -> str:
        """The distributed silo and an ordinary one; what the former's launcher said."""
        script = "run_cross_silo_fasterrcnn_worker.py"
        words = [*self.flags(), "--local_worker_num=1", "--first_worker_id=1"]
        succeed(self.folder, script, *words)
        return succeed(self.folder, DISTRIBUTED, *self.rank_flags(*more), timeout=240)

    def rank(self, number: int):
        """The process of one rank, below the supervisor and the runner."""
        (record,) = read_record(self.folder).running(SILO)
        ranks = record.process().children()[0].children()
        (process,) = (p for p in ranks if f"--rank={number}" in p.cmdline())
        return process

    def at_iteration(self, iteration: int) -> None:
        path = status_path(self.folder, SILO)
        wait_for(lambda: read_status(path).get("iteration", 0) >= iteration, 200, "the iteration")

    def exit_codes(self) -> dict[str, int]:
        files = (self.folder / FOLDER / "status").glob("*.exit.json")
        return {f.name[: -len(".exit.json")]: json.loads(f.read_text())["code"] for f in files}

    def log(self) -> str:
        return (self.folder / SILO / "worker.log").read_text()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=24)


@pytest.fixture
def job(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "job"
    folder.mkdir()
    job = Job(folder, shards)
    yield job
    run(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={job.port}")
    job.redis.kill()
    job.redis.wait()
    assert not processes_of(folder)


def test_two_ranks_and_another_silo_train_to_the_end(job):
    job.begin(iterations=3)
    said = job.silos()
    assert "worker_0, rank(s) 0 to 1 of 2, has joined FasterRCNN" in said
    assert 'cd worker_distributed/log_output && grep -rn "epoch" *' in said
    wait_for_end(job.folder, 200)
    assert job.exit_codes() == {"server_0": 0, SILO: 0, "worker_1": 0}
    assert "joined iteration 1 of 3 as silo 0 with 12 images" in job.log()
    found = subprocess.run(
        'grep -rn "]epoch" *',
        shell=True,
        cwd=job.folder / SILO / "log_output",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    # Three epochs of three steps of two images, on each of two ranks.
    for rank in range(2):
        lines = [line for line in found if line.startswith(f"1/rank.{rank}/stdout:")]
        assert len(lines) == 9, found
        assert f"[worker_0 rank {rank}]epoch: 1 step: 1 total_loss: " in lines[0]
        assert (job.folder / SILO / f"loss_{rank}.log").read_text().count("epoch") == 9
    from mindspore import load_checkpoint

    for k in range(3):
        mine = job.folder / SILO / "ckpt/mindrecord_0" / f"mindrecord_0-fast-rcnn-{k}epoch.ckpt"
        other = job.folder / "worker_1/ckpt/mindrecord_1" / f"mindrecord_1-fast-rcnn-{k}epoch.ckpt"
        first, second = load_checkpoint(str(mine)), load_checkpoint(str(other))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert (value.asnumpy() == second[name].asnumpy()).all(), name
    rounds = (job.folder / SILO / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["result"] for line in rounds] == ["aggregated"] * 3
    status = run(job.folder, "tools/status.py", "--json")
    silos = json.loads(status.stdout)["silos"]
    assert [(s["label"], s["phase"]) for s in silos] == [
        (SILO, "finished"),
        ("worker_1", "finished"),
    ]


def test_finish_stops_every_rank(job):
    job.begin(iterations=500)
    job.silos()
    line = refused(job.folder, DISTRIBUTED, *job.rank_flags())
    assert "worker_distributed of this folder is running already (pid" in line
    job.at_iteration(2)
    said = succeed(
        job.folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={job.port}", timeout=60
    )
    assert "stopped worker_1, worker_distributed, server_0" in said
    assert not processes_of(job.folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_ends_its_silo_and_the_other_silo_goes_on(job, number):
    job.begin(iterations=500, update_model_time_window=10000, start_fl_job_time_window=20000)
    job.silos()
    job.at_iteration(2)
    os.kill(job.rank(number).pid, signal.SIGKILL)
    wait_for(lambda: SILO in job.exit_codes(), 60, "the silo's end")
    assert job.exit_codes() == {SILO: 1}
    assert f"error: rank {number} was killed by SIGKILL" in job.log()
    other = job.folder / SILO / "log_output" / "1" / f"rank.{1 - number}" / "stdout"
    assert f"after that, rank {1 - number} failed: " in job.log()
    assert f"rank {number} of this silo has ended" in job.log(), other.read_text()
    # It comes back with the same number, and the other silo has waited for it.
    resume = ["--resume"] * number
    succeed(job.folder, DISTRIBUTED, *job.rank_flags(*resume), timeout=240)
    assert ("resume.safetensors: goes on from iteration" in job.log()) == bool(number)
    assert (job.folder / f"{SILO}.1").exists() != bool(number)
    reached = read_status(status_path(job.folder, SILO))["iteration"]
    job.at_iteration(reached + 2)
    assert "worker_1" not in job.exit_codes()


def test_a_silo_on_two_machines(job, tmp_path):
    """Two folders, and two addresses of the loopback, stand for the machines."""
    job.begin(iterations=2, start_fl_job_threshold=1)
    second = tmp_path / "second machine"
    second.mkdir()
    write_job(second, job.port, 2, start_fl_job_threshold=1)
    flags = job.rank_flags("--rank_host=127.0.0.2")
    script = [sys.executable, str(TINY.parents[2] / DISTRIBUTED)]
    first = subprocess.Popen([*script, *flags, "--local_rank_num=1"], cwd=job.folder)
    said = succeed(second, DISTRIBUTED, *flags, "--first_rank=1", timeout=240)
    assert first.wait(60) == 0
    assert "rank(s) 1 to 1 of 2, has joined" in said
    wait_for_end(second, 120)
    wait_for_end(job.folder, 120)
    assert job.exit_codes() == {"server_0": 0, SILO: 0}
    assert not list((second / SILO).rglob("*.ckpt"))
    assert (second / SILO / "log_output/1/rank.1/stdout").read_text().count("]epoch") == 6
    succeed(second, "finish_cross_silo_fasterrcnn.py")
