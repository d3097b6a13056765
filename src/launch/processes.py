"""Start roles under supervision, wait until they serve, and stop them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable

import psutil

from src.errors import StartError, UserError
from src.files import drop_unfinished_line, finish_last_line, no_link
from src.job.job_record import (
    FOLDER,
    WORKER_ROLES,
    JobRecord,
    ProcessRecord,
    exit_path,
    life_lock,
    process_entry,
    read_record,
    role_folder,
    status_path,
    update_record,
    write_json,
)
from src.job.log_files import read_log
from src.launch.supervise import GRACE_S, SuperviseSpec, as_exit_code
from src.model_utils.config import PROJECT_DIR
from src.printing import print
from src.progress import Waiting


def fresh_folder(path: Path) -> Path:
    """Make `path` a new, empty folder; rename an existing one to path.1, path.2, ..."""
    if path.exists():
        set_aside(path)
    path.mkdir(parents=True)
    return path


def continued_folder(path: Path) -> Path:
    """Prepare `path` for a process that continues in it: what it appends begins a new line."""
    path.mkdir(parents=True, exist_ok=True)
    for log in path.glob("*.log"):
        finish_last_line(log)
    for lines in path.glob("*.jsonl"):
        drop_unfinished_line(lines)
    return path


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free path.1, path.2, ... and return the new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)


# By its path, not with -m: a folder `src` in the user's current folder would be found first.
SUPERVISOR = PROJECT_DIR / "src" / "launch" / "supervise.py"
STOP_GRACE_S = 25.0
LAST_LINES = 12


@dataclass
class Role:
    """Describe one role to start.

    Attributes:
        role: scheduler, server, worker or worker_distributed.
        number: number of the server or worker.
        argv: its command.
        address, silo, servers: written to the record, see `ProcessRecord`.
        job_end: see `SuperviseSpec`.
        env: see `SuperviseSpec`.
        rotation: of its log, `max_bytes` and `kept` of `RotatingLog`.
        grace_s: see `SuperviseSpec`.
        goes_on: continue in the folder of an earlier process; otherwise that folder is renamed.
    """

    role: str
    number: int
    argv: list[str]
    address: str = ""
    silo: str = ""
    servers: list[str] = field(default_factory=list)
    job_end: dict | None = None
    env: dict | None = None
    rotation: tuple[int, int] = (0, 0)
    grace_s: float = GRACE_S
    goes_on: bool = False

    @property
    def label(self) -> str:
        """Return the name of the role, which is also the name of its folder."""
        return role_folder(self.role, self.number)

    def folder(self, base: Path) -> Path:
        """Return the folder of its log."""
        return base / self.label

    def log(self, base: Path) -> Path:
        """Return its log: server_0/server.log, worker_1/worker.log, scheduler/scheduler.log."""
        return self.folder(base) / f"{self.role.split('_')[0]}.log"


@dataclass
class Started:
    """Describe a role that was started: its supervisor, its files, and its entry in the record."""

    role: Role
    supervisor: subprocess.Popen
    log: Path
    exit_file: Path
    entry: ProcessRecord | None = None


def require_not_running(base: Path, labels: Iterable[str]) -> None:
    """Raise a UserError when one of `labels` of this folder's job is alive, or may be elsewhere."""
    record = read_record(base)
    running = {p.label: p for p in record.running()} if record else {}
    elsewhere = {p.label: p for p in record.elsewhere()} if record else {}
    for label in labels:
        if label in elsewhere:
            raise UserError(
                f"{label} of this folder was started {elsewhere[label].where()} and may run there "
                f"still: {how_to_end(base)}, or start in another folder"
            )
        if label in running:
            raise UserError(
                f"{label} of this folder is running already (pid {running[label].pid}, "
                f"{base / label}); stop it with finish_cross_silo_fasterrcnn.py, or start in "
                "another folder"
            )


def how_to_end(base: Path) -> str:
    """Return what to do about processes of another machine or container."""
    return (
        "end it there with finish_cross_silo_fasterrcnn.py; where it runs no more, remove "
        f"{base / FOLDER / 'job.json'}"
    )


def start(base: Path, role: Role, started: list[Started]) -> None:
    """Start one role of the job of folder `base` under a supervisor, and record it.

    It is added to `started` before it is recorded, so that an interrupted caller can stop it by
    `stop_started`.

    Raises:
        UserError: it runs already; another launcher may have started it a moment ago.
    """
    with update_record(base) as record:
        require_not_running(base, [role.label])
        _require_other_silo(record, role)
        one = _start_supervisor(base, role)
        started.append(one)
        one.entry = _entry(base, one)
        _enter(record, one.entry)


def stop_started(base: Path, started: list[Started]) -> None:
    """Stop those of `started` that still run, recorded or not, and print what that was."""
    running = [one for one in started if one.supervisor.poll() is None]
    for line in stop([one.entry or _entry(base, one) for one in running]):
        print(f"WARNING: {line}", flush=True)
    if running:
        print(f"stopped {', '.join(one.role.label for one in running)}", flush=True)


def _entry(base: Path, one: Started) -> ProcessRecord:
    role, pid = one.role, one.supervisor.pid
    entry = process_entry(base, role.role, role.number, pid, role.folder(base), role.address)
    entry.silo, entry.servers = role.silo, role.servers
    return entry


def _require_other_silo(record: JobRecord, role: Role) -> None:
    for entry in (p for kind in WORKER_ROLES for p in record.running(kind)):
        if role.silo and entry.silo == role.silo:
            raise UserError(same_silo(entry, role.label))


def same_silo(
    entry: ProcessRecord, label: str, folder: Path | None = None, free: int | None = None
) -> str:
    """Return why `label` may not start when `entry` is the same silo already, and how to fix it.

    Args:
        folder: folder of the job of `entry`, where it is another one.
        free: a --first_worker_id that is not used on this machine.
    """
    where = f"{entry.label} of {folder or 'this folder'} (pid {entry.pid})"
    flag = "--first_worker_id" + ("" if free is None else f"={free}")
    other, there = (" or another --silo_name", " there") if folder else ("", "")
    return (
        f"{where} is silo {entry.number} already, and {label} would be the same silo "
        f"({entry.silo}) a second time; give {flag}{other} for another silo, or stop it{there} "
        "with finish_cross_silo_fasterrcnn.py"
    )


def _start_supervisor(base: Path, role: Role) -> Started:
    (continued_folder if role.goes_on else fresh_folder)(role.folder(base))
    state = base / FOLDER
    exit_file = exit_path(base, role.label)
    exit_file.unlink(missing_ok=True)
    status_file = status_path(base, role.label)
    status_file.unlink(missing_ok=True)
    spec = SuperviseSpec(
        label=role.label,
        argv=role.argv,
        log=str(role.log(base)),
        exit_file=str(exit_file),
        env=role.env or {},
        job_end=role.job_end or {},
        status_file=str(status_file),
        grace_s=role.grace_s,
        log_max_bytes=role.rotation[0],
        log_files_kept=role.rotation[1],
    )
    spec_file = state / "specs" / f"{role.label}.json"
    write_json(spec_file, asdict(spec))
    log = open(role.log(base), "a", opener=no_link)  # noqa: SIM115
    with log, life_lock(base, role.label) as handles:
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(spec_file)],
            cwd=base,
            env={**os.environ, "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=handles,
        )
    return Started(role, supervisor, role.log(base), exit_file)


def _python_path() -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(PROJECT_DIR), *([given] if given else [])])


def record_process(
    base: Path, role: str, number: int, pid: int, folder: Path, address: str
) -> None:
    """Add a process to the record of `base`, replacing an ended one of the same role."""
    with update_record(base) as record:
        _enter(record, process_entry(base, role, number, pid, folder, address))


def _enter(record: JobRecord, entry: ProcessRecord) -> None:
    record.processes = [p for p in record.processes if p.label != entry.label] + [entry]


def wait_until_ready(
    started: list[Started],
    is_ready: Callable[[Started], bool],
    timeout_s: float,
    progress: Callable[[list[Started]], str] | None = None,
) -> None:
    """Return when every role is ready; a role that is may have ended already, with exit code 0.

    Args:
        started: the roles.
        is_ready: checks one of them.
        timeout_s: for all of them together.
        progress: called after 2 s and then from time to time with those that are not ready; returns
            the text for it.

    Raises:
        StartError: one ended (with the last lines of its log), or the time is up.
    """
    waiting = Waiting()
    try:
        _until_ready(started, is_ready, timeout_s, progress, waiting)
    finally:
        waiting.close()


def _until_ready(
    started: list[Started],
    is_ready: Callable[[Started], bool],
    timeout_s: float,
    progress: Callable[[list[Started]], str] | None,
    waiting: Waiting,
) -> None:
    deadline = time.monotonic() + timeout_s
    missing = list(started)
    while missing:
        for role in started:
            code = role.supervisor.poll()
            if code is not None and (code != 0 or not is_ready(role)):
                raise StartError(*_failure(role))
        missing = [role for role in missing if not is_ready(role)]
        if missing and time.monotonic() > deadline:
            names = ", ".join(f"{m.role.label} ({m.log})" for m in missing)
            last = f"; it was {progress(missing)}" if progress else ""
            raise StartError(
                f"not ready within {timeout_s:.0f} s (--start_timeout): {names}{last}", 1
            )
        if missing and progress and waiting.due():
            waiting.tell(progress(missing))
        time.sleep(0.1)


def _failure(started: Started) -> tuple[str, int]:
    """Return message and exit code of a role that ended: its own line, or the end of its log."""
    code = as_exit_code(started.supervisor.returncode)
    if started.exit_file.exists():
        code = json.loads(started.exit_file.read_text(encoding="utf-8"))["code"]
    lines = read_log(started.log).splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2 and errors:
        return f"{started.role.label}: {errors[-1][len('error: ') :]}", 2
    last = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
    return f"{started.role.label} ended with exit code {code}; {started.log} ends:\n{last}", (
        code or 1
    )


def stop(records: list[ProcessRecord], grace_s: float = STOP_GRACE_S) -> list[str]:
    """Send SIGTERM to the recorded processes, and SIGKILL to those left after `grace_s`.

    Returns:
        A line for each process that had to be killed.
    """
    processes = {p: r for r in records if (p := r.process())}
    for process in processes:
        _quietly(process.terminate)
    alive = _wait_for_ends(processes, grace_s)
    lines = []
    for process in alive:
        lines.append(f"{processes[process].label} (pid {process.pid}) had to be killed")
        for member in [process, *_children(process)]:
            _quietly(member.kill)
    psutil.wait_procs(alive, timeout=5)
    return lines


def _wait_for_ends(
    processes: dict[psutil.Process, ProcessRecord], timeout_s: float
) -> list[psutil.Process]:
    """Return those of `processes` that have not ended within `timeout_s`."""
    deadline, waiting = time.monotonic() + timeout_s, Waiting()
    try:
        alive = list(processes)
        while alive and (left := deadline - time.monotonic()) > 0:
            _, waited = psutil.wait_procs(alive, timeout=min(left, 0.5))
            # A process that has ended stays as a zombie where nobody waits for it, such as below a
            # container's first process.
            alive = [process for process in waited if processes[process].process()]
            if alive and waiting.due():
                labels = ", ".join(processes[process].label for process in alive)
                waiting.tell(f"waiting for the end of {labels}")
        return alive
    finally:
        waiting.close()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except (psutil.Error, OSError):
        return []


def _quietly(action: Callable[[], None]) -> None:
    """Signal a process, which may have ended since it was looked up."""
    try:
        action()
    except psutil.NoSuchProcess:
        return
