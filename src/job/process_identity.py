"""Identifies recorded processes: a pid is unique only within one boot and PID namespace.

The kernel counts a process's start in clock ticks since the boot, so that setting the clock while a
job runs changes nothing. A lock that a process holds on a file in the job's folder shows that it is
alive to others who cannot see its pid, for example in another container.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.files import no_link

# A process that tests a lock holds it for an instant.
LOCK_S = 1.0
# Fields of /proc/PID/stat, counted from 1; the second one is a name that may hold spaces.
STATE_FIELD, START_FIELD = 3, 22


@dataclass(frozen=True)
class Place:
    """The scope in which a pid is valid.

    Attributes:
        host: name of the machine or container.
        boot_id: id of the running kernel's boot, the same in all containers of one machine; "" if
            unknown.
        pid_namespace: for example pid:[4026531836]; a container has its own.
    """

    host: str
    boot_id: str
    pid_namespace: str


def this_place() -> Place:
    """Return the place of this process."""
    boot_id = namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return Place(socket.gethostname(), boot_id, namespace)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The text after the name begins with the state.
    return int(text[text.rindex(")") + 2 :].split()[START_FIELD - STATE_FIELD])


def folder_id(folder: Path) -> str:
    """Return device and inode of a folder: a rename keeps them, a copy has its own."""
    state = folder.stat()
    return f"{state.st_dev}:{state.st_ino}"


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[tuple[int, ...]]:
    """Lock a file; yield the handle for a child to inherit, which keeps the lock until it ends.

    If the file system has no locks, there is no handle.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", opener=no_link) as file:
        yield (file.fileno(),) if _lock(file.fileno()) else ()


def _lock(handle: int) -> bool:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:
            return False


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds the lock of `path`; None if that is unknown."""
    try:
        with path.open() as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None
