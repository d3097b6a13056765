"""The record of what this suite started from a folder: the only processes that it ever stops.

`.federation/job.json` in the folder that a launcher was called from holds the job's name, its
Redis and one entry a process. A per-user index of such folders lets `finish --all` find every job.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from src.errors import UserError
from src.files import whole_file
from src.security.tls import TlsFiles, from_record

FOLDER = ".federation"
# A silo of one process, and one of several.
RANKS = "worker_distributed"
WORKER_ROLES = ("worker", RANKS)


@dataclass
class ProcessRecord:
    """One process that a launcher started.

    Attributes:
        role: scheduler, server, worker, worker_distributed or redis.
        number: server or worker number; 0 otherwise.
        pid: of the process to stop (for the roles: of their supervisor).
        created: its start time in seconds since the epoch, which tells it from a later process
            with the same pid.
        folder: where its log lies.
        address: "ip:port" it listens on, or "" for a worker.
    """

    role: str
    number: int
    pid: int
    created: float
    folder: str
    address: str = ""

    @property
    def label(self) -> str:
        """server_0, worker_3, scheduler, redis."""
        return role_folder(self.role, self.number)

    def process(self) -> psutil.Process | None:
        """The running process, or None when it has ended (or another one has its pid)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, OSError):  # OSError: the kernel's own, of one that is just ending
            return None


@dataclass
class JobRecord:
    """What runs for the job of one folder.

    Attributes:
        redis: "ip:port".
        tls: the fields of `TlsFiles`; {} where the job's connections are not encrypted.
    """

    fl_name: str = ""
    redis: str = ""
    processes: list[ProcessRecord] = field(default_factory=list)
    tls: dict[str, str] = field(default_factory=dict)

    @property
    def tls_files(self) -> TlsFiles | None:
        """What the job's connections are encrypted with, or None."""
        return from_record(self.tls)

    def running(self, role: str | None = None) -> list[ProcessRecord]:
        """The recorded processes that are alive, of one role or of all."""
        return [p for p in self.processes if role in (None, p.role) and p.process()]


def role_folder(role: str, number: int) -> str:
    """The name of a role's log folder, as in the tutorial's tree."""
    return f"{role}_{number}" if role in ("server", "worker") else role


def read_record(folder: Path) -> JobRecord | None:
    """The record of `folder`, or None when nothing was started from it.

    Raises:
        UserError: the file is broken.
    """
    path = folder / FOLDER / "job.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        processes = [ProcessRecord(**entry) for entry in values.pop("processes")]
        return JobRecord(**values, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no record of a job ({error}); where nothing of the job runs, remove it"
        ) from error


@contextlib.contextmanager
def update_record(folder: Path) -> Iterator[JobRecord]:
    """The record of `folder`, written back at the end; launchers that run at once take turns."""
    state = folder / FOLDER
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read_record(folder) or JobRecord()
        yield record
        write_json(state / "job.json", asdict(record), durable=True)
    _index(folder)


def remove_record(folder: Path) -> None:
    """Forget the job of `folder`: what it started has ended."""
    with contextlib.suppress(FileNotFoundError):
        (folder / FOLDER / "job.json").unlink()
    with contextlib.suppress(OSError):
        _index_entry(folder).unlink()


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write `value` so that a reader sees the old or the new file, never a part.

    Args:
        durable: after a power cut too; takes some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable) as partial:
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")


def indexed_folders() -> list[Path]:
    """Every folder of this user from which a job was started and not finished."""
    index = _index_folder()
    if not index.is_dir():
        return []
    folders = (Path(entry.read_text(encoding="utf-8")) for entry in sorted(index.iterdir()))
    return [folder for folder in folders if (folder / FOLDER / "job.json").is_file()]


def _index_folder() -> Path:
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "cross_silo_faster_rcnn"


def _index_entry(folder: Path) -> Path:
    return _index_folder() / str(folder.resolve()).replace("/", "%")[-200:]


def _index(folder: Path) -> None:
    """Best effort: without a writable home only `finish --all` loses this folder."""
    try:
        _index_folder().mkdir(parents=True, exist_ok=True)
        _index_entry(folder).write_text(str(folder.resolve()), encoding="utf-8")
    except OSError as error:
        print(f"note: finish --all will not find this job: {error}")
