"""Writes files so that a full disk or a power cut leaves existing ones intact; reads JSON."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

# What the system refuses a write with, and what a user can do about it.
FIXES = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "free some of your quota there, or choose another place",
    errno.EROFS: "mount that file system for writing, or choose another place",
    errno.EFBIG: "raise ulimit -f, or choose another place",
    errno.EACCES: "give this user the right to it, or choose another place",
    errno.EPERM: "give this user the right to it, or choose another place",
    errno.ELOOP: "links are not followed where a file of our own is written: remove it",
}


def reason(error: OSError) -> str:
    """Return briefly why a file could not be written and how to fix it."""
    words = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ELOOP:
        words = "is a symbolic link"
    return f"{words}; {FIXES.get(error.errno or 0, 'choose another place')}"


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the name of `path` to an OSError without a file name, as writes raise it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def no_link(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as an `opener` of `open`, without following a link that somebody has put there.

    Raises:
        OSError: with ELOOP for a link; `reason` says how to fix it.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


@contextlib.contextmanager
def whole_file(
    path: Path, durable: bool = False, partial: Path | None = None, private: bool = False
) -> Iterator[Path]:
    """Yield a name next to `path` to write to; it replaces `path` if the block succeeds.

    Otherwise the written file is removed and `path` is unchanged.

    Args:
        durable: make it survive a power cut, which takes some milliseconds.
        partial: the name, which the next writer reuses, so that it overwrites what a killed one has
            left: for large files. None uses a name of this process only. An existing file or link
            of that name is removed first.
        private: make it readable by this user only.

    Raises:
        OSError: it has a file name.
    """
    partial = partial or path.with_name(f".partial.{os.getpid()}.{path.name}")
    try:
        with named(path):
            partial.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            os.close(no_link(partial, flags, 0o600 if private else 0o666))
            yield partial
            if durable:
                _replace_durably(partial, path)
            else:
                partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _replace_durably(partial: Path, target: Path) -> None:
    """Rename `partial` to `target` once its content is on the disk.

    Without that, a power cut can leave the new name with an empty file. When this returns, the name
    is on the disk too.

    Raises:
        OSError: the disk is full or broken; `target` is unchanged.
    """
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parsed_json(text: str | bytes) -> Any:
    """Parse like json.loads; too deep nesting is invalid too.

    Raises:
        ValueError: it is not readable JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_whole(path: Path, content: str | bytes, private: bool = False) -> None:
    """Write a file completely or not at all; text as UTF-8.

    Args:
        private: make it accessible to its owner only.

    Raises:
        OSError: it has a file name.
    """
    with whole_file(path, private=private) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append_line(path: Path, line: str, durable: bool = False, private: bool = False) -> None:
    """Add a line to a file, completely or not at all: the next one must not begin within it.

    Args:
        line: the text without a line end.
        durable: return only when the line is on the disk.
        private: make a new file readable by this user only.

    Raises:
        OSError: it has a file name; the file is unchanged.
    """
    data = f"{line}\n".encode()
    opener = functools.partial(no_link, mode=0o600 if private else 0o666)
    with named(path), open(path, "ab", buffering=0, opener=opener) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            write_all(file.fileno(), data)
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def write_all(handle: int, data: bytes) -> None:
    """Call os.write until everything is written; a nearly full disk takes only a part at first."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def drop_unfinished_line(path: Path) -> None:
    """Cut off an incomplete last line, which a process left that was killed while writing."""
    with open(path, "rb+", opener=no_link) as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def finish_last_line(path: Path) -> None:
    """Terminate the last line, so that the next one begins on its own line."""
    with open(path, "rb+", opener=no_link) as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":
            file.write(b"\n")


def numbered(path: Path) -> list[Path]:
    """Return the existing files among path.1, path.2, ..., the lowest number first."""
    found = []
    for other in path.parent.glob(f"{path.name}.*"):
        suffix = other.name[len(path.name) + 1 :]
        if suffix.isdigit():
            found.append((int(suffix), other))
    return [other for _, other in sorted(found)]


class Lossy:
    """Writes that may fail without ending the process: the first loss is reported, then counted.

    Args:
        what: what is written, for the message.
        warn: called with the message.
    """

    def __init__(self, what: str, warn: Callable[[str], None]):
        self._what = what
        self._warn = warn
        self._lost = 0

    def do(self, write: Callable[[], object]) -> None:
        """Call `write`; turn its OSError into a warning if the write before succeeded."""
        try:
            write()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                file = error.filename or self._what
                self._warn(f"WARNING: {file}: {self._what} not written: {reason(error)}")
            return
        if self._lost:
            self._warn(f"{self._what} is written again; {self._lost} not written in between")
            self._lost = 0


def digest_of(path: Path) -> str:
    """Return a hexadecimal digest of a file's content.

    Raises:
        OSError: it has a file name.
    """
    state = hashlib.blake2b(digest_size=16)
    with named(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
