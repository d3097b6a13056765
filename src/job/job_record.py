"""The record of the processes that this suite started from a folder, and may stop.

`.federation/job.json` in the folder that a launcher was called from holds the job's name, its Redis
and one entry for each process. The suite stops no other processes. A per-user index of such folders
lets `finish --all` find every job.

A folder may be shared by machines and containers, or be a copy of another: see `read_record`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pwd
import shlex
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from src.errors import UserError
from src.files import Lossy, no_link, parsed_json, whole_file
from src.job.process_identity import (
    Place,
    folder_id,
    held_lock,
    is_locked,
    start_ticks,
    this_place,
)
from src.printing import print
from src.security.tls import TlsFiles, from_record

FOLDER = ".federation"
ENDED = "ended.json"
# Types of a record's values, by the annotation of its fields.
KINDS: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "list[str]": list,
    "list[ProcessRecord]": list,
    "dict[str, str]": dict,
}
# Roles of a silo with one process, and with several.
RANKS = "worker_distributed"
WORKER_ROLES = ("worker", RANKS)
# Where an entry's process is, seen from the reader of the record: its pid is valid here; it may run
# on another machine or in another container; it cannot run any more; the entry belongs to another
# folder.
HERE, ELSEWHERE, GONE, COPIED = "here", "elsewhere", "gone", "copied"


@dataclass
class ProcessRecord:
    """One process that a launcher started.

    Attributes:
        role: scheduler, server, worker, worker_distributed or redis.
        number: server or worker number; 0 otherwise.
        pid: the pid of the process to stop (for roles, that of their supervisor).
        created: its start time in seconds since the epoch, by the clock at that time.
        folder: the folder of its log.
        address: "ip:port" that it listens on, or "" for a worker.
        start_ticks: its start in clock ticks since the boot, which distinguishes it from a later
            process with the same pid.
        host, boot_id, pid_namespace: where the pid is valid, see `Place`. "" in a record of version
            0.1, where only `created` identifies the process.
        job_folder, folder_id: the folder that it was started from, and the `folder_id` of its
            .federation.
        place: HERE, ELSEWHERE, GONE or COPIED, relative to the reader; not in the file.
        silo: a worker's silo name at the servers, without the number of images; "" for other roles
            and for ranks that do not talk to servers.
        servers: "host:port" of the servers that the silo talks to.
    """

    role: str
    number: int
    pid: int
    created: float
    folder: str
    address: str = ""
    start_ticks: int = 0
    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    job_folder: str = ""
    folder_id: str = ""
    silo: str = ""
    servers: list[str] = field(default_factory=list)
    place: str = field(default=HERE, compare=False)

    @property
    def label(self) -> str:
        """Return server_0, worker_3, scheduler or redis."""
        return role_folder(self.role, self.number)

    def process(self) -> psutil.Process | None:
        """Return the running process; None if it has ended or its pid is not valid here."""
        if self.place != HERE:
            return None
        try:
            process = psutil.Process(self.pid)
            if self.boot_id:
                same = start_ticks(self.pid) == self.start_ticks
            else:
                same = abs(process.create_time() - self.created) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, OSError):  # OSError: from the kernel, of an ending process
            return None

    def where(self) -> str:
        """Describe where it was started."""
        if self.host != socket.gethostname():
            return f"on {self.host}"
        if self.boot_id == this_place().boot_id:
            return f"in another container of {self.host}"
        return f"on another machine of the name {self.host}"


@dataclass
class JobRecord:
    """The processes of the job of one folder.

    Attributes:
        redis: "ip:port".
        tls: the fields of `TlsFiles`; {} if the job's connections are not encrypted.
        roster: file of the job's members; "" if there is none.
    """

    fl_name: str = ""
    redis: str = ""
    processes: list[ProcessRecord] = field(default_factory=list)
    tls: dict[str, str] = field(default_factory=dict)
    roster: str = ""

    @property
    def tls_files(self) -> TlsFiles | None:
        """Return the files for the job's encrypted connections, or None."""
        return from_record(self.tls)

    def running(self, role: str | None = None) -> list[ProcessRecord]:
        """Return the recorded processes that are alive here, of one role or of all."""
        return [p for p in self.processes if role in (None, p.role) and p.process()]

    def elsewhere(self, role: str | None = None) -> list[ProcessRecord]:
        """Return the processes that may be alive on another machine or in another container."""
        return [p for p in self.processes if role in (None, p.role) and p.place == ELSEWHERE]

    def living(self) -> list[ProcessRecord]:
        """Return the processes that are alive here or may be alive elsewhere."""
        return [p for p in self.processes if p.place == ELSEWHERE or p.process()]

    @property
    def copied(self) -> ProcessRecord | None:
        """Return an entry of the folder that this record was copied from; None if it is no copy."""
        every = bool(self.processes) and all(p.place == COPIED for p in self.processes)
        return self.processes[0] if every else None


def role_folder(role: str, number: int) -> str:
    """Return the name of a role's log folder, as in the tutorial's tree."""
    return f"{role}_{number}" if role in ("server", "worker") else role


def state_folder(folder: Path) -> Path:
    """Return .federation of `folder`, created if missing: a real folder for this user alone.

    Its content is executed (specs) and signalled (pids), so nobody else may have written it.

    Raises:
        UserError: it is a link, belongs to another user, or others may write there.
    """
    state = folder / FOLDER
    with contextlib.suppress(FileExistsError):
        state.mkdir(mode=0o700, parents=True)
    require_own(folder)
    return state


def require_own(folder: Path) -> None:
    """Raise a UserError unless .federation of `folder` belongs to this user, see `state_folder`."""
    state = folder / FOLDER
    found = state.lstat()
    rights = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "a file"
        raise UserError(f"{state}: is {kind}, expected a folder of this job's records: remove it")
    if found.st_uid != os.geteuid():
        raise UserError(
            f"{state}: belongs to user {found.st_uid}, and this is user {os.geteuid()}: call this "
            "as that user, or in a folder of your own"
        )
    # A group that holds only this user is not others' access: Debian's users have one, and
    # Kubernetes gives each volume's files to the pod's group.
    alone = found.st_gid == os.getegid() == os.geteuid()
    if rights & (stat.S_IWOTH if alone else stat.S_IWOTH | stat.S_IWGRP):
        raise UserError(
            f"{state}: others may write there (mode {rights:o}), and what it says is executed: see "
            f"that nobody has changed it, then chmod 700 {shlex.quote(str(state))}"
        )
    if rights != stat.S_IRWXU:
        state.chmod(stat.S_IRWXU)


def read_record(folder: Path) -> JobRecord | None:
    """Return the record of `folder`, or None if nothing was started from it.

    Sets each entry's `place`. A process on another machine or in another container that shares the
    folder cannot be seen or stopped from here; its lock and its exit file may show its state. The
    entries of a copied folder belong to the original folder.

    Raises:
        UserError: the file is broken.
    """
    path = folder / FOLDER / "job.json"
    try:
        values = parsed_json(path.read_text(encoding="utf-8"))
        processes = [ProcessRecord(**entry) for entry in values.pop("processes")]
        record = JobRecord(**values, processes=processes)
        _require_kinds(record)
        for entry in processes:
            _require_kinds(entry)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no record of a job ({error}); where nothing of the job runs, remove it"
        ) from error
    here = this_place()
    for entry in record.processes:
        entry.place = _place(entry, folder, here)
    return record


def _require_kinds(part: JobRecord | ProcessRecord) -> None:
    """Raise a ValueError if a value of a record has the wrong type."""
    for one in fields(part):
        value, kind = getattr(part, one.name), KINDS[str(one.type)]
        items = [*value, *value.values()] if isinstance(value, dict) else value
        plain = kind in (list, dict) and one.name != "processes"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{one.name} is {value!r:.40}")
        if plain and not all(isinstance(item, str) for item in items):
            raise ValueError(f"{one.name} has other values than text")
    if isinstance(part, ProcessRecord) and not 0 < part.pid < 2**31:
        raise ValueError(f"pid is {part.pid!s:.40}")


def _place(entry: ProcessRecord, folder: Path, here: Place) -> str:
    if not entry.boot_id:
        return HERE
    if _is_copied(entry, folder, here):
        return COPIED
    same_boot = entry.boot_id == here.boot_id
    if same_boot and entry.pid_namespace == here.pid_namespace:
        return HERE
    if (folder / FOLDER / "status" / f"{entry.label}.exit.json").exists():
        return GONE
    locked = is_locked(_lock_file(folder, entry.label))
    # Locks in a shared folder do not always work across machines.
    unlocked = locked is False and same_boot
    rebooted = not same_boot and entry.host == here.host and not locked
    return GONE if unlocked or rebooted else ELSEWHERE


def _is_copied(entry: ProcessRecord, folder: Path, here: Place) -> bool:
    found = folder_id(folder / FOLDER)
    if entry.boot_id == here.boot_id:
        return found != entry.folder_id and str(folder.resolve()) != entry.job_folder
    # Each machine has its own device number for a shared folder.
    return found.rpartition(":")[2] != entry.folder_id.rpartition(":")[2]


def process_entry(
    base: Path, role: str, number: int, pid: int, folder: Path, address: str
) -> ProcessRecord:
    """Return the record entry for a process that runs here, for the record of `base`."""
    place = this_place()
    return ProcessRecord(
        role=role,
        number=number,
        pid=pid,
        created=psutil.Process(pid).create_time(),
        folder=str(folder),
        address=address,
        start_ticks=start_ticks(pid) or 0,
        host=place.host,
        boot_id=place.boot_id,
        pid_namespace=place.pid_namespace,
        job_folder=str(base.resolve()),
        folder_id=folder_id(base / FOLDER),
    )


def life_lock(base: Path, label: str) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    """Lock the file that shows a role is alive, for its supervisor to inherit; see `held_lock`."""
    return held_lock(_lock_file(base, label))


def _lock_file(base: Path, label: str) -> Path:
    return base / FOLDER / "locks" / label


@contextlib.contextmanager
def update_record(folder: Path) -> Iterator[JobRecord]:
    """Yield the record of `folder`, write it back at the end; concurrent launchers take turns."""
    state = state_folder(folder)
    with open(state / "lock", "w", opener=no_link) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read_record(folder) or JobRecord()
        yield record
        values = asdict(record)
        for entry in values["processes"]:
            del entry["place"]
        write_json(state / "job.json", values, durable=True)
    _index(folder)


def remove_record(folder: Path) -> None:
    """Remove the job of `folder`, whose processes have ended."""
    with contextlib.suppress(FileNotFoundError):
        (folder / FOLDER / "job.json").unlink()
    with contextlib.suppress(OSError):
        for entry in _index_entries(folder):
            entry.unlink(missing_ok=True)


def note_end(folder: Path, **fields: Any) -> None:
    """Note how the job of `folder` was ended by finish, see `ended_job`."""
    write_json(state_folder(folder) / ENDED, fields)


def ended_job(folder: Path) -> dict[str, Any]:
    """Return what finish noted of the folder's last job; {} if it has ended none.

    Returns:
        fl_name; `word`, the job's state before; `time`, when it was ended, as text; and with
        `redis` the address of a Redis that it left running, `tls` as in `JobRecord`, `boot_id`.
    """
    return read_status(folder / FOLDER / ENDED)


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write `value` so that a reader sees the old or the new file, never a partial one.

    Args:
        durable: also after a power cut; takes some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable, private=True) as partial:
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")


def indexed_folders() -> list[Path]:
    """Return every folder of this user from which a job was started and not finished."""
    index, found = _index_folder(), []
    if index is None:
        return []
    with contextlib.suppress(OSError):
        for entry in sorted(index.iterdir()):
            folder = Path(entry.read_text(encoding="utf-8"))
            if (folder / FOLDER / "job.json").is_file():
                found.append(folder)
    return list(dict.fromkeys(found))


def _index_folder() -> Path | None:
    """Return the index folder; None for a user without a home, such as a container's bare uid."""
    if state_home := os.environ.get("XDG_STATE_HOME"):
        return Path(state_home) / "cross_silo_faster_rcnn"
    home = os.environ.get("HOME")
    if not home:
        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.getuid()).pw_dir
    return Path(home) / ".local" / "state" / "cross_silo_faster_rcnn" if home else None


def _index_entries(folder: Path) -> list[Path]:
    """Return its entry, with the machine's name as homes may be shared, and that of version 0.1."""
    index, name = _index_folder(), str(folder.resolve()).replace("/", "%")
    if index is None:
        return []
    return [index / f"{socket.gethostname()}{name[-150:]}", index / name[-200:]]


def _index(folder: Path) -> None:
    """Add the folder to the index; without a writable home only `finish --all` misses it."""
    entries = _index_entries(folder)
    try:
        if not entries:
            raise OSError("this user has no home; set HOME or XDG_STATE_HOME")
        entries[0].parent.mkdir(parents=True, exist_ok=True)
        entries[0].write_text(str(folder.resolve()), encoding="utf-8")
    except OSError as error:
        _note_once(f"note: finish --all will not find this job: {error}")


@functools.cache
def _note_once(line: str) -> None:
    print(line)


# The phase of a worker whose work is done, and the first word of its last line.
DONE = "finished"
# The beginning of the reason if the user stopped a role.
STOPPED_BY = "stopped by"
EXIT_SUFFIX = ".exit.json"


def status_path(folder: Path, label: str) -> Path:
    """Return the path of the status of role `label` (worker_0, server_1) of the job of `folder`."""
    return folder / FOLDER / "status" / f"{label}.json"


class StatusFile:
    """A file of fields that a role keeps up to date.

    Args:
        path: the file; its folder is created. None keeps the fields in memory only.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._file = Lossy("the status file", _say)
        self.fields: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        """Set `fields` and write all of them, with the time; a full disk is only logged."""
        self.fields.update(fields, time=time.time())
        path = self._path
        if path is not None:
            self._file.do(lambda: write_json(path, self.fields))


def _say(text: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}", flush=True)


def read_status(path: Path) -> dict[str, Any]:
    """Return the fields of a status file; {} if it is missing or a power cut emptied it."""
    try:
        fields = parsed_json(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def is_done(path: Path) -> bool:
    """Return whether the worker of a status file has reported that it is finished."""
    return read_status(path).get("phase") == DONE


def exit_path(folder: Path, label: str) -> Path:
    """Return the file in which a role's supervisor leaves {"code", "reason"} at the role's end."""
    return status_path(folder, label).with_name(f"{label}{EXIT_SUFFIX}")


def exit_states(folder: Path) -> dict[str, dict[str, Any]]:
    """Return how each role ended, by label: `code` and `reason`; a running role has no entry.

    A worker that was killed together with its supervisor, but was finished, has succeeded.
    """
    states: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER / "status").glob("*.json")):
        if path.name.endswith(EXIT_SUFFIX):
            states[path.name[: -len(EXIT_SUFFIX)]] = read_status(path)
        elif is_done(path):
            states.setdefault(path.stem, {"code": 0, "reason": DONE})
    return states
