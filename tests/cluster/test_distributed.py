"""One silo of two ranks next to an ordinary one, through the launchers; the tiny detector."""

import json
import os
import signal
import subprocess
import sys

import pytest
from commands import DISTRIBUTED, end, make_shards, processes_of, refused, run, succeed, wait_for
from launched_job import PATIENCE_S, Job
from models import assert_same_model
from ports import free_ports

from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.slow  # each starts a whole federation, 40 to 120 s

SILO = "worker_distributed"


class RanksJob(Job):
    """A job with one server, a silo of two ranks and an ordinary one."""

    def __init__(self, folder, shards):
        super().__init__(folder, shards)
        (self.rank_port,) = free_ports(1)

    def rank_flags(self, *more: str) -> list[str]:
        port = f"--rank_port={self.rank_port}"
        return [*self.worker_flags, "--device_num=2", "--run_distribute=True", port, *more]

    def ranks(self, *more: str) -> str:
        """Start the silo of ranks; what its launcher said."""
        return succeed(self.folder, DISTRIBUTED, *self.rank_flags(*more), timeout=PATIENCE_S)

    def silos(self) -> str:
        """Start both; what the launcher of the ranks said."""
        self.workers("--local_worker_num=1", "--first_worker_id=1")
        return self.ranks()

    def rank(self, number: int):
        """The process of one rank, below the supervisor and the runner."""
        ranks = self.process(SILO).children()
        (process,) = (p for p in ranks if f"--rank={number}" in p.cmdline())
        return process


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=24)


@pytest.fixture
def job(tmp_path, shards):
    with RanksJob(tmp_path / "job", shards) as job:
        yield job


def test_two_ranks_and_another_silo_train_to_the_end(job):
    job.write(iterations=3)
    job.servers()
    said = job.silos()
    assert "worker_0, rank(s) 0 to 1 of 2, has joined FasterRCNN" in said
    assert 'cd worker_distributed/log_output && grep -rn "epoch" *' in said
    job.wait_for_end()
    assert job.exit_codes() == {"server_0": 0, SILO: 0, "worker_1": 0}
    assert "joined iteration 1 of 3 as silo 0 with 12 images" in job.log(SILO)
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
    for iteration in range(1, 4):
        assert_same_model(job.model(SILO, iteration), job.model("worker_1", iteration))
    assert [result for _, result in job.results(SILO)] == ["aggregated"] * 3
    status = run(job.folder, "tools/status.py", "--json")
    silos = json.loads(status.stdout)["silos"]
    assert [(s["label"], s["phase"]) for s in silos] == [
        (SILO, "finished"),
        ("worker_1", "finished"),
    ]


def test_finish_stops_every_rank(job):
    job.write(iterations=500)
    job.servers()
    job.silos()
    line = refused(job.folder, DISTRIBUTED, *job.rank_flags())
    assert "worker_distributed of this folder is running already (pid" in line
    job.at_iteration(2, SILO)
    assert "stopped worker_1, worker_distributed, server_0" in job.finish()
    assert not processes_of(job.folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_ends_its_silo_and_the_other_silo_goes_on(job, number):
    job.write(iterations=500, update_model_time_window=10000, start_fl_job_time_window=20000)
    job.servers()
    job.silos()
    # A silo that is late joins a later iteration than the first; it has compiled at the next one.
    job.at_iteration(job.status(SILO)["iteration"] + 1, SILO)
    os.kill(job.rank(number).pid, signal.SIGKILL)
    wait_for(lambda: SILO in job.exit_codes(), 60, "the silo's end")
    assert job.exit_codes() == {SILO: 1}
    log = job.log(SILO)
    assert f"error: rank {number} was killed by SIGKILL" in log
    other = job.folder / SILO / "log_output" / "1" / f"rank.{1 - number}" / "stdout"
    assert f"after that, rank {1 - number} failed: " in log
    assert f"rank {number} of this silo has ended" in log, other.read_text()
    # It comes back with the same number, and the other silo has waited for it.
    job.ranks(*["--resume"] * number)
    assert ("resume.safetensors: continues from iteration" in job.log(SILO)) == bool(number)
    assert (job.folder / f"{SILO}.1").exists() != bool(number)
    job.at_iteration(job.status(SILO)["iteration"] + 2, SILO)
    assert "worker_1" not in job.exit_codes()


def test_a_silo_on_two_machines(job, tmp_path):
    """Two folders, and two addresses of the loopback, stand for the machines."""
    job.write(2, start_fl_job_threshold=1)
    job.servers()
    flags = job.rank_flags("--rank_host=127.0.0.2")
    script = [sys.executable, str(PROJECT_DIR / DISTRIBUTED)]
    with job.elsewhere(tmp_path / "second machine") as second:
        second.write(2, start_fl_job_threshold=1)
        first = subprocess.Popen([*script, *flags, "--local_rank_num=1"], cwd=job.folder)
        try:
            said = succeed(second.folder, DISTRIBUTED, *flags, "--first_rank=1", timeout=PATIENCE_S)
            assert first.wait(60) == 0
        finally:
            end(first)
        assert "rank(s) 1 to 1 of 2, has joined" in said
        second.wait_for_end()
        job.wait_for_end()
    assert job.exit_codes() == {"server_0": 0, SILO: 0}
    assert not list((second.folder / SILO).rglob("*.ckpt"))
    stdout = second.folder / SILO / "log_output" / "1" / "rank.1" / "stdout"
    assert stdout.read_text().count("]epoch") == 6
