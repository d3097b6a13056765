"""Everything is killed at once, ten times, and started again with --resume; the tiny detector."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import SCHED, SERVER, WORKER, processes_of, wait_for
from launched_job import PATIENCE_S, Job
from models import read_model

from src.federated.transport import Client, Outcome
from src.job.recovery_files import list_recovery_files, usable_files
from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.slow  # a federation that is started eleven times, 5 to 8 minutes

SEED = int(os.environ.get("POWER_CUT_SEED", "7"))
CUTS = 10
ITERATIONS = 60
WORKERS = ("worker_0", "worker_1")
# What becomes of Redis' data at a cut, in turn.
KEPT, LOST, HALF = "kept", "lost", "half of it lost"


class Machine(Job):
    """Redis with an append-only file, scheduler, one server and two workers, all in one folder."""

    def __init__(self, folder: Path, shards: Path):
        super().__init__(folder, shards, redis_flags=["--appendonly", "yes"])
        self.launched: list[subprocess.Popen] = []
        self.write(ITERATIONS)

    def switch_on(self, resume: bool, until: float = float("inf")) -> bool:
        """Start everything; False where `until`, of time.monotonic(), came first."""
        self.start_redis()
        resumed = ["--resume"] * resume
        for script, flags in (
            (SCHED, self.scheduler_flags),
            (SERVER, [*self.server_flags(), *resumed]),
            (WORKER, [*self.worker_flags, "--sync_frequency=2", "--threads=1", *resumed]),
        ):
            if not self._launch(script, flags, until):
                return False
            if script == SERVER and resume:
                self.require_nothing_lost()
        return True

    def _launch(self, script: str, flags: list[str], until: float) -> bool:
        with (self.folder / "launchers.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROJECT_DIR / script), *flags],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self.launched.append(process)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < until:
            assert time.monotonic() < deadline, f"{script} has not ended in {PATIENCE_S} s"
            time.sleep(0.05)
        if process.poll() is None:
            return False
        assert process.returncode == 0, (self.folder / "launchers.log").read_text()[-3000:]
        return True

    def cut(self) -> None:
        """Stop every process at the same moment, then kill them all."""
        for process in processes_of(self.folder):
            _signal(process, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while found := processes_of(self.folder):
            assert time.monotonic() < deadline, f"not killed: {found}"
            for process in found:
                _signal(process, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.launched:
            process.wait(20)
        self.launched.clear()
        self.kill_redis()
        self.before = self.newest()

    def redis_data(self, becomes: str, dice: random.Random) -> None:
        """What a cut does to the files of Redis."""
        folder = self.folder / "appendonlydir"
        if becomes == LOST:
            shutil.rmtree(folder, ignore_errors=True)
        elif becomes == HALF:
            for path in folder.glob("*.incr.aof"):
                os.truncate(path, int(path.stat().st_size * dice.random()))

    def newest(self) -> tuple[int, dict[str, np.ndarray]]:
        """Number and weights of the last iteration that is complete on the disk."""
        files, _ = usable_files(self.folder / "fl_ckpt", "FasterRCNN")
        if not files:
            return 0, {}
        return files[0].iteration, read_model(files[0].path)

    def require_nothing_lost(self) -> None:
        """The servers go on at the iteration after the last complete one, with its weights."""
        number, weights = self.before
        reply = Client([self.address], "FasterRCNN", "observer").get_model(-1, 20)
        assert reply.outcome is Outcome.ACCEPTED
        assert reply.iteration >= number + 1
        for name, array in weights.items():
            np.testing.assert_array_equal(reply.features[name], array.reshape(-1))
        for label in WORKERS:
            assert all(one <= number for one in self.iterations(label)), (label, number)

    def await_iteration(self, number: int) -> None:
        """Until an iteration that is `number` or later is complete; workers compile before it."""
        folder = self.folder / "fl_ckpt"

        def complete() -> bool:
            return list_recovery_files(folder, "FasterRCNN")[0].iteration >= number

        wait_for(complete, 180, f"iteration {number}")

    def iterations(self, label: str) -> list[int]:
        """Those in a worker's rounds.jsonl."""
        return [one["iteration"] for one in self.rounds(label)]


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def machine(tmp_path, shards):
    machine = Machine(tmp_path / "job", shards)
    yield machine
    machine.cut()
    assert not processes_of(machine.folder)


def test_ten_power_cuts_lose_no_complete_iteration(machine):
    dice = random.Random(SEED)
    print(f"POWER_CUT_SEED={SEED}")
    reached = 0
    for number in range(CUTS):
        begun = time.monotonic()
        in_the_start, in_training = dice.uniform(1, 15), dice.uniform(0, 4)
        # One in two falls into the start itself.
        until = begun + in_the_start if number % 2 else float("inf")
        if machine.switch_on(resume=number > 0, until=until):
            machine.await_iteration(reached + 1)
            time.sleep(in_training)
        machine.cut()
        becomes = (KEPT, LOST, HALF)[number % 3]
        machine.redis_data(becomes, dice)
        complete, _ = machine.before
        print(
            f"cut {number + 1}: after {time.monotonic() - begun:.1f} s, iteration {complete} is "
            f"complete, Redis' data {becomes}"
        )
        assert reached <= complete < ITERATIONS
        reached = complete
    assert machine.switch_on(resume=True)
    machine.wait_for_end()
    files = list_recovery_files(machine.folder / "fl_ckpt", "FasterRCNN")
    assert files[0].iteration == ITERATIONS
    for label in WORKERS:
        assert machine.status(label)["phase"] == "finished"
        iterations = machine.iterations(label)
        assert iterations == sorted(set(iterations)) and iterations[-1] == ITERATIONS
        assert not (machine.folder / f"{label}.1").exists()
    machine.finish()
