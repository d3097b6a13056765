"""Run a job for tests with the project's own launchers from a folder, as a user does.

    with Job(folder, shards) as job:
        job.write(iterations=3)
        job.scheduler()
        job.servers(2)
        job.workers("--server_num=2")
        job.at_iteration(2)
        job.kill("server_1")
        job.wait_for_end()

Redis and the ports are the job's own. At the end of the block the job is finished, Redis is killed,
and nothing of it may be left. The detector is the tiny one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from commands import (
    FINISH,
    SCHED,
    SERVER,
    TINY,
    WORKER,
    end,
    processes_of,
    start_redis,
    succeed,
    wait_for,
    write_job,
)
from models import read_model
from ports import free_port_range

from src.job.job_record import FOLDER, ProcessRecord, read_record, read_status, status_path

CONFIG = f"--config_path={TINY}"
EXIT_FILE = ".exit.json"
# For a start and a few iterations on a machine that is busy with other things too.
PATIENCE_S = 300


class JobFolder:
    """Inspect what the processes started from a folder are doing, and what they leave there.

    A role is named as its log folder: scheduler, server_0, worker_1, worker_distributed.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def records(self, role: str | None = None) -> list[ProcessRecord]:
        """Return the running supervisors: all, or those of scheduler, server or worker."""
        record = read_record(self.folder)
        return record.running(role) if record else []

    def running(self, role: str | None = None) -> list[str]:
        return [record.label for record in self.records(role)]

    def process(self, label: str) -> psutil.Process:
        """Return the role's own process, below its supervisor."""
        (record,) = (record for record in self.records() if record.label == label)
        return record.process().children()[0]

    def status(self, label: str = "worker_0") -> dict:
        return read_status(status_path(self.folder, label))

    def exit_codes(self) -> dict[str, int]:
        """Return the exit code of each role that has ended."""
        files = (self.folder / FOLDER / "status").glob(f"*{EXIT_FILE}")
        return {f.name[: -len(EXIT_FILE)]: json.loads(f.read_text())["code"] for f in files}

    def log(self, label: str) -> str:
        """Read worker_1's worker.log; with "worker_1.1" that of the run before."""
        return (self.folder / label / f"{label.split('_')[0]}.log").read_text()

    def rounds(self, label: str) -> list[dict]:
        """Return a worker's rounds.jsonl; a line that is being written is skipped."""
        path = self.folder / label / "rounds.jsonl"
        *lines, _ = path.read_text().split("\n") if path.exists() else [""]
        return [json.loads(line) for line in lines]

    def results(self, label: str) -> list[tuple[int, str]]:
        """Return iteration and result of a worker's rounds."""
        return [(one["iteration"], one["result"]) for one in self.rounds(label)]

    def model(self, label: str, iteration: int) -> dict[str, np.ndarray]:
        """Return the weights that a silo has after an iteration, counted from 1."""
        (path,) = (self.folder / label).glob(f"ckpt/*/*-{iteration - 1}epoch.ckpt")
        return read_model(path)

    @property
    def initial(self) -> Path:
        """Return the checkpoint of the whole detector that the server launcher made."""
        (path,) = (self.folder / "fl_ckpt").glob("*_initial.ckpt")
        return path

    def recovery(self, iteration: int) -> Path:
        """Return the servers' file of an iteration."""
        (path,) = (self.folder / "fl_ckpt").glob(f"*_recovery_iteration_{iteration}_*.ckpt")
        return path

    def at_iteration(self, iteration: int, label: str = "worker_0") -> None:
        """Wait until a worker is that far; raise an error at once where it has ended before."""

        def there() -> bool:
            running = label in self.running()
            reached = self.status(label).get("iteration", 0) >= iteration
            assert reached or running, f"{label} has ended: {self.log(label)[-2000:]}"
            return reached

        missing = f"{label} in iteration {iteration}"
        wait_for(there, PATIENCE_S, lambda: f"{missing}; {self._who_is_where()}")

    def wait_for_end(self, role: str | None = None, timeout: float = PATIENCE_S) -> None:
        """Wait until every process, or every one of a role, has ended by itself."""
        wait_for(lambda: not self.running(role), timeout, self._who_is_where)

    def _who_is_where(self) -> str:
        places = {label: self.status(label).get("iteration") for label in self.running()}
        said = [label if n is None else f"{label} in iteration {n}" for label, n in places.items()]
        return f"running: {', '.join(said) or 'nobody'}; ended: {self.exit_codes()}"

    def kill(self, label: str) -> None:
        """Send kill -9 to a role; its supervisor then ends too."""
        self.process(label).kill()
        wait_for(lambda: label not in self.running(), 20, f"the end of {label}")

    def kill_supervisors(self, role: str | None = None) -> None:
        """Send kill -9 to all supervisors, or a role's; what they supervise ends with them."""
        supervisors = [record.process() for record in self.records(role)]
        roles = [child for one in supervisors for child in one.children(recursive=True)]
        for one in supervisors:
            one.kill()
        wait_for(lambda: not any(map(_lives, roles)), 20, lambda: f"the end of {roles}")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Job(JobFolder):
    """Run a folder with a Redis, ports and shards, and call the launchers from it.

    Args:
        folder: created where it is missing.
        shards: folder of the workers' data.
        redis_flags: further flags of redis-server.
        redis_port: port of a Redis that runs already; none is started then.
    """

    def __init__(
        self,
        folder: Path,
        shards: Path,
        redis_flags: Sequence[str] = (),
        redis_port: int | None = None,
    ):
        super().__init__(folder)
        folder.mkdir(exist_ok=True)
        self.shards = shards
        first = free_port_range(8)
        self.redis_port = redis_port or first
        self.manage_port, self.server_port = first + 1, first + 2
        self.redis: subprocess.Popen | None = None
        self._has_redis, self._redis_flags = redis_port is None, redis_flags

    def __enter__(self) -> Job:
        if self._has_redis:
            self.start_redis()
        return self

    def __exit__(self, *_) -> None:
        try:
            self.finish()
        finally:
            self.kill_redis()
        assert not processes_of(self.folder)

    def elsewhere(self, folder: Path) -> Job:
        """Return a job with the same Redis and ports in another folder, as on another machine."""
        other = Job(folder, self.shards, redis_port=self.redis_port)
        other.manage_port, other.server_port = self.manage_port, self.server_port
        return other

    def start_redis(self) -> None:
        """Start Redis, also again after its end, or after `finish` has stopped it."""
        self.kill_redis()
        self.redis = start_redis(self.folder, self.redis_port, *self._redis_flags)

    def kill_redis(self) -> None:
        if self.redis:
            end(self.redis)

    def write(self, iterations: int, **values: object) -> Path:
        """Write the federation file; `values` are other keys of it."""
        return write_job(self.folder, self.redis_port, iterations, **values)

    @property
    def scheduler_flags(self) -> list[str]:
        return [f"--scheduler_manage_address=127.0.0.1:{self.manage_port}"]

    @property
    def address(self) -> str:
        """Return the first server's address."""
        return f"127.0.0.1:{self.server_port}"

    def server_flags(self, count: int = 1) -> list[str]:
        return [CONFIG, f"--http_server_address={self.address}", f"--local_server_num={count}"]

    @property
    def worker_flags(self) -> list[str]:
        return [CONFIG, f"--http_server_address={self.address}", f"--dataset_path={self.shards}"]

    def scheduler(self, *more: str) -> str:
        """Start the scheduler; return its launcher's output, like the next three methods."""
        return succeed(self.folder, SCHED, *self.scheduler_flags, *more)

    def servers(self, count: int = 1, *more: str) -> str:
        return succeed(self.folder, SERVER, *self.server_flags(count), *more)

    def workers(self, *more: str) -> str:
        """Start two workers, or as a flag says; return once servers have admitted them."""
        return succeed(self.folder, WORKER, *self.worker_flags, *more, timeout=PATIENCE_S)

    def finish(self) -> str:
        return succeed(self.folder, FINISH, f"--redis_port={self.redis_port}")
