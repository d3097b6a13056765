"""A worker that is killed and started again with --resume goes on where it was.

That the numbers are those of a training in one go is tested with a network that draws nothing
(test_manager_resume.py): the detector draws the anchors that its losses are computed on.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
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
from mindspore import load_checkpoint
from ports import free_port_range

from src.federated.resume_state import BrokenStateError, head_of
from src.federated.rounds import Deadlines
from src.federated.silo import Silo
from src.federated.transport import Client
from src.job.job_record import read_record

pytestmark = pytest.mark.slow  # a federation that is started twice, and a worker four times

SERVER = "run_cross_silo_fasterrcnn_server.py"
WORKER = "run_cross_silo_fasterrcnn_worker.py"
ITERATIONS = 4
KILLED_IN = 3
STEPS = 10  # of an iteration, where an epoch has 7
LOCAL = "--local_params=rcnn.reg_scores.*"


class Second(threading.Thread):
    """The job's other silo: sends the model that it got, in an iteration once it is allowed to."""

    def __init__(self, address: str, sizes: dict[str, int], allowed: int):
        super().__init__(daemon=True)
        self.may_go_on = threading.Event()
        self._allowed = allowed
        self._model: dict[str, np.ndarray] = {}
        self._silo = Silo(
            Client([address], "FasterRCNN", "second"),
            self._take,
            sizes,
            14,
            ITERATIONS,
            2,
            deadlines=Deadlines(join=120, request=30, wait=300),
            log=lambda line: None,
        )
        self.start()

    def _take(self, features: dict[str, np.ndarray]) -> None:
        self._model = {name: array.copy() for name, array in features.items()}

    def run(self) -> None:
        self._silo.join()
        while not self._silo.finished:
            if self._silo.iteration > self._allowed:
                self.may_go_on.wait(300)
            self._silo.exchange(self._model)
            self._silo.join()
        self._silo.client.close()


class Job:
    """A folder with Redis, one server, one worker of 14 images, and a second silo of arrays."""

    def __init__(self, folder: Path, shards: Path):
        folder.mkdir()
        self.folder, self.shards, self.port = folder, shards, free_port_range(4)
        self.redis = start_redis(folder, self.port)
        self.address = f"127.0.0.1:{self.port + 2}"
        write_job(folder, self.port, ITERATIONS)
        flags = [f"--config_path={TINY}", f"--http_server_address={self.address}", LOCAL]
        succeed(folder, SERVER, *flags, "--local_server_num=1")
        self.worker_flags = [
            *flags,
            f"--dataset_path={shards}",
            "--local_worker_num=1",
            f"--sync_frequency={STEPS}",
            "--threads=1",
        ]

    def begin(self, allowed: int) -> Second:
        first = next((self.folder / "fl_ckpt").glob("*_iteration_0_*.ckpt"))
        sizes = {name: value.size for name, value in load_checkpoint(str(first)).items()}
        second = Second(self.address, sizes, allowed)
        succeed(self.folder, WORKER, *self.worker_flags)
        return second

    def await_state_before(self, iteration: int) -> None:
        def there() -> bool:
            try:
                return self.state.is_file() and head_of(self.state)["iteration"] == iteration
            except BrokenStateError:
                return False

        wait_for(there, 120, f"the state before iteration {iteration}")

    @property
    def state(self) -> Path:
        return self.folder / "worker_0" / "ckpt" / "mindrecord_0" / "resume.safetensors"

    def kill_worker(self) -> None:
        for process in read_record(self.folder).running("worker"):
            os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not any("MS_WORKER" in word for word in self.words()), 20, "its end")

    def words(self) -> list[str]:
        return [word for process in processes_of(self.folder) for word in process.cmdline()]

    def losses(self) -> list[str]:
        """Epoch, step, loss and learning rate of each step, as logged."""
        text = (self.folder / "worker_0" / "loss_0.log").read_text()
        return re.findall(r"epoch: .*", text)

    def model(self) -> dict[str, np.ndarray]:
        path = self.state.with_name(f"mindrecord_0-fast-rcnn-{ITERATIONS - 1}epoch.ckpt")
        return {name: value.asnumpy() for name, value in load_checkpoint(str(path)).items()}

    def end(self) -> None:
        run(self.folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={self.port}")
        self.redis.kill()
        self.redis.wait()
        assert not processes_of(self.folder)


def places(losses: list[str]) -> list[str]:
    """Epoch, step and learning rate of lines of a loss file."""
    return [re.sub(r"total_loss: \S+", "", line) for line in losses]


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    data = tmp_path / "data"
    data.mkdir()
    shards = make_shards(data, images=14, silos=1)
    started: list[Job] = []

    def start(name: str) -> Job:
        started.append(Job(tmp_path / name, shards))
        return started[-1]

    yield start
    for job in started:
        job.end()


def test_a_resumed_worker_takes_the_steps_of_one_that_was_never_killed(jobs):
    whole = jobs("whole")
    whole.begin(allowed=ITERATIONS)
    wait_for_end(whole.folder, 120)

    job = jobs("killed")
    second = job.begin(allowed=KILLED_IN - 1)
    job.await_state_before(KILLED_IN)
    job.kill_worker()
    before = len(job.losses())

    line = refused(job.folder, WORKER, *job.worker_flags, "--resume", "--momentum=0.5")
    assert "momentum is '0.91' there and '0.5' here" in line
    said = succeed(job.folder, WORKER, *job.worker_flags, "--resume")
    assert "worker_0 have joined" in said
    second.may_go_on.set()
    wait_for_end(job.folder, 120)

    log = (job.folder / "worker_0" / "worker.log").read_text()
    assert f"goes on from iteration {KILLED_IN}, after {(KILLED_IN - 1) * STEPS} steps" in log
    done = (KILLED_IN - 1) * STEPS
    expected = whole.losses()
    assert len(expected) == ITERATIONS * STEPS
    assert job.losses()[:before] == expected[:before]
    # What it had trained of the third iteration stands in the log twice.
    steps = places(expected)
    assert places(job.losses()) == steps[:before] + steps[done:]
    own = {name for name in job.model() if name.startswith("rcnn.reg_scores")}
    assert len(own) == 2
    assert all(np.abs(job.model()[name] - whole.model()[name]).max() < 0.1 for name in own)

    assert not (job.folder / "worker_0.1").exists()
    names = {path.name for path in job.state.parent.iterdir()}
    checkpoints = {f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in range(ITERATIONS)}
    assert names == {*checkpoints, job.state.name}
    rounds = (job.folder / "worker_0" / "rounds.jsonl").read_text()
    assert re.findall(r'"iteration": (\d+)', rounds) == ["1", "2", "3", "4"]


def test_a_broken_state_costs_the_momentum_and_a_line(jobs):
    job = jobs("broken")
    second = job.begin(allowed=1)
    job.await_state_before(2)
    job.kill_worker()
    job.state.write_bytes(job.state.read_bytes()[:-100])
    said = succeed(job.folder, WORKER, *job.worker_flags, "--resume")
    assert "WARN  resume" in said and "goes on without momentum" in said
    second.may_go_on.set()
    wait_for_end(job.folder, 120)
    log = (job.folder / "worker_0" / "worker.log").read_text()
    assert "WARNING: resume:" in log and "going on without momentum" in log
    assert "the job is finished: all 4 iterations are done" in log
