"""A worker that is killed and started again with --resume goes on where it was.

That the numbers are those of a training in one go is tested with a network that draws nothing
(test_manager_resume.py): the detector draws the anchors that its losses are computed on.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import WORKER, make_shards, refused, wait_for
from launched_job import Job
from models import read_model

from src.federated.fingerprint import FEATURE_NAME
from src.federated.resume_state import BrokenStateError, head_of
from src.federated.rounds import Deadlines
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client
from src.launch.checkpoint_content import mark_of

pytestmark = pytest.mark.slow  # a federation that is started twice, and a worker four times

ITERATIONS = 4
KILLED_IN = 3
STEPS = 10  # of an iteration, where an epoch has 7
LOCAL = "--local_params=rcnn.reg_scores.*"
FLAGS = [LOCAL, "--local_worker_num=1", f"--sync_frequency={STEPS}", "--threads=1"]


class Second(threading.Thread):
    """The job's other silo: sends the model that it got, in an iteration once it is allowed to."""

    def __init__(self, address: str, initial: Path, allowed: int):
        super().__init__(daemon=True)
        sizes = {name: value.size for name, value in read_model(initial).items()}
        # The worker's fingerprint; that of an initial model without a checkpoint is negative.
        self._mark = np.abs(mark_of(initial))
        self.may_go_on = threading.Event()
        self._allowed = allowed
        self._model: dict[str, np.ndarray] = {}
        self._silo = Silo(
            Client([address], "FasterRCNN", "second"),
            self._take,
            sizes,
            SiloSettings(
                14,
                ITERATIONS,
                2,
                deadlines=Deadlines(join=120, request=30, wait=300),
                log=lambda line: None,
            ),
        )
        self.start()

    def _take(self, features: dict[str, np.ndarray]) -> None:
        self._model = {name: array.copy() for name, array in features.items()}

    def run(self) -> None:
        self._silo.join()
        while not self._silo.finished:
            if self._silo.iteration > self._allowed:
                self.may_go_on.wait(300)
            self._silo.exchange({**self._model, FEATURE_NAME: self._mark})
            self._silo.join()
        self._silo.client.close()


class ResumedJob(Job):
    """One server, one worker of 14 images, and a second silo of arrays."""

    def begin(self, allowed: int) -> Second:
        self.write(ITERATIONS)
        self.servers(1, LOCAL)
        second = Second(self.address, self.recovery(0), allowed)
        self.workers(*FLAGS)
        return second

    @property
    def state(self) -> Path:
        return self.folder / "worker_0" / "ckpt" / "mindrecord_0" / "resume.safetensors"

    def await_state_before(self, iteration: int) -> None:
        def there() -> bool:
            try:
                return self.state.is_file() and head_of(self.state)["iteration"] == iteration
            except BrokenStateError:
                return False

        wait_for(there, 120, f"the state before iteration {iteration}")

    def losses(self) -> list[str]:
        """Epoch, step, loss and learning rate of each step, as logged."""
        text = (self.folder / "worker_0" / "loss_0.log").read_text()
        return re.findall(r"epoch: .*", text)


def places(losses: list[str]) -> list[str]:
    """Epoch, step and learning rate of lines of a loss file."""
    return [re.sub(r"total_loss: \S+", "", line) for line in losses]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=14, silos=1)


def test_a_resumed_worker_takes_the_steps_of_one_that_was_never_killed(tmp_path, shards):
    with ResumedJob(tmp_path / "whole", shards) as whole:
        whole.begin(allowed=ITERATIONS)
        whole.wait_for_end()

    with ResumedJob(tmp_path / "killed", shards) as job:
        second = job.begin(allowed=KILLED_IN - 1)
        job.await_state_before(KILLED_IN)
        job.kill_supervisors("worker")
        before = len(job.losses())

        flags = [*job.worker_flags, *FLAGS, "--resume"]
        line = refused(job.folder, WORKER, *flags, "--momentum=0.5")
        assert "momentum is '0.91' there and '0.5' here" in line
        assert "worker_0 has joined" in job.workers(*FLAGS, "--resume")
        second.may_go_on.set()
        job.wait_for_end()

    done = (KILLED_IN - 1) * STEPS
    assert f"continues from iteration {KILLED_IN}, after {done} steps" in job.log("worker_0")
    expected = whole.losses()
    assert len(expected) == ITERATIONS * STEPS
    assert job.losses()[:before] == expected[:before]
    # What it had trained of the third iteration stands in the log twice.
    steps = places(expected)
    assert places(job.losses()) == steps[:before] + steps[done:]
    mine, other = (one.model("worker_0", ITERATIONS) for one in (job, whole))
    own = {name for name in mine if name.startswith("rcnn.reg_scores")}
    assert len(own) == 2
    assert all(np.abs(mine[name] - other[name]).max() < 0.1 for name in own)

    assert not (job.folder / "worker_0.1").exists()
    names = {path.name for path in job.state.parent.iterdir()}
    checkpoints = {f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in range(ITERATIONS)}
    assert names == {*checkpoints, job.state.name}
    assert [one["iteration"] for one in job.rounds("worker_0")] == [1, 2, 3, 4]


def test_a_broken_state_costs_the_momentum_and_a_line(tmp_path, shards):
    with ResumedJob(tmp_path / "broken", shards) as job:
        second = job.begin(allowed=1)
        job.await_state_before(2)
        job.kill_supervisors("worker")
        job.state.write_bytes(job.state.read_bytes()[:-100])
        said = job.workers(*FLAGS, "--resume")
        assert "WARN  resume" in said and "goes on without momentum" in said
        second.may_go_on.set()
        job.wait_for_end()
    log = job.log("worker_0")
    assert "WARNING: resume:" in log and "going on without momentum" in log
    assert "the job is finished: all 4 iterations are done" in log
