"""Everything is killed at once, ten times, and started again with --resume; the tiny detector."""

from __future__ import annotations

import json
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
from commands import TINY, make_shards, processes_of, run, wait_for, wait_for_end, write_job
from mindspore import load_checkpoint
from ports import free_port_range

from src.federated.transport import Client, Outcome
from src.job.addresses import listens
from src.job.recovery_files import list_recovery_files, usable_files
from src.job.status_file import read_status, status_path
from src.launch.redis_store import redis_binary
from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.slow  # a federation that is started eleven times, 5 to 8 minutes

SEED = int(os.environ.get("POWER_CUT_SEED", "7"))
CUTS = 10
ITERATIONS = 60
# What becomes of Redis' data at a cut, in turn.
KEPT, LOST, HALF = "kept", "lost", "half of it lost"


class Machine:
    """Redis with an append-only file, scheduler, one server and two workers, all in one folder."""

    def __init__(self, folder: Path, shards: Path):
        self.folder, self.shards, self.port = folder, shards, free_port_range(4)
        self.launched: list[subprocess.Popen] = []
        write_job(folder, self.port, ITERATIONS)

    def switch_on(self, resume: bool, until: float = float("inf")) -> bool:
        """Start everything; False where `until`, of time.monotonic(), came first."""
        self._start_redis()
        port = self.port
        address = f"--http_server_address=127.0.0.1:{port + 2}"
        common = [address, f"--config_path={TINY}", *["--resume"] * resume]
        workers = [f"--dataset_path={self.shards}", "--sync_frequency=2", "--threads=1"]
        for script, flags in (
            ("sched", [f"--scheduler_manage_address=127.0.0.1:{port + 1}"]),
            ("server", ["--local_server_num=1", *common]),
            ("worker", [*workers, *common]),
        ):
            if not self._launch(f"run_cross_silo_fasterrcnn_{script}.py", flags, until):
                return False
            if script == "server" and resume:
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
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if process.poll() is None:
            return False
        assert process.returncode == 0, (self.folder / "launchers.log").read_text()[-3000:]
        return True

    def _start_redis(self) -> None:
        command = [redis_binary(), "--port", str(self.port), "--appendonly", "yes", "--save", ""]
        with (self.folder / "redis.log").open("a") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self.launched.append(process)
        wait_for(lambda: listens("127.0.0.1", self.port), 20, "Redis")

    def cut(self) -> None:
        """Stop every process at the same moment, then kill them all."""
        for process in processes_of(self.folder):
            _signal(process, signal.SIGSTOP)
        while found := processes_of(self.folder):
            for process in found:
                _signal(process, signal.SIGKILL)
            for process in self.launched:
                process.poll()
            time.sleep(0.05)
        for process in self.launched:
            process.wait(20)
        self.launched.clear()
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
        return files[0].iteration, weights_of(files[0].path)

    def require_nothing_lost(self) -> None:
        """The servers go on at the iteration after the last complete one, with its weights."""
        number, weights = self.before
        reply = Client([f"127.0.0.1:{self.port + 2}"], "FasterRCNN", "observer").get_model(-1, 20)
        assert reply.outcome is Outcome.ACCEPTED
        assert reply.iteration >= number + 1
        for name, array in weights.items():
            np.testing.assert_array_equal(reply.features[name], array.reshape(-1))
        for rounds in map(self.rounds, range(2)):
            assert all(one <= number for one in rounds), (rounds, number)

    def await_iteration(self, number: int) -> None:
        """Until an iteration that is `number` or later is complete; workers compile before it."""
        folder = self.folder / "fl_ckpt"

        def complete() -> bool:
            return list_recovery_files(folder, "FasterRCNN")[0].iteration >= number

        wait_for(complete, 180, f"iteration {number}")

    def rounds(self, worker: int) -> list[int]:
        """The iterations in a worker's rounds.jsonl; a line that was being written is none."""
        path = self.folder / f"worker_{worker}" / "rounds.jsonl"
        *lines, _ = path.read_text().split("\n") if path.exists() else [""]
        return [json.loads(line)["iteration"] for line in lines]

    def status(self, worker: int) -> dict:
        return read_status(status_path(self.folder, f"worker_{worker}"))


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {name: value.asnumpy() for name, value in load_checkpoint(str(path)).items()}


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "data").mkdir()
    machine = Machine(folder, make_shards(tmp_path / "data"))
    yield machine
    machine.cut()
    assert not processes_of(folder)


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
    wait_for_end(machine.folder, 300)
    files = list_recovery_files(machine.folder / "fl_ckpt", "FasterRCNN")
    assert files[0].iteration == ITERATIONS
    for worker in range(2):
        assert machine.status(worker)["phase"] == "finished"
        rounds = machine.rounds(worker)
        assert rounds == sorted(set(rounds)) and rounds[-1] == ITERATIONS
        assert not (machine.folder / f"worker_{worker}.1").exists()
    said = run(machine.folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={machine.port}")
    assert said.returncode == 0, said.stderr
