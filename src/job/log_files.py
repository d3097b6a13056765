"""Log files that rotate: worker.log is the newest, then worker.log.1, then worker.log.2.

A line is never split between files, and none is lost at a rotation. `log_parts` and `read_log`
return the files in the order in which they were written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
import time
from pathlib import Path
from typing import Any

from src.files import named, no_link, numbered, write_all
from src.model_utils.config import Config, default_values
from src.printing import print

MB = 10**6


class RotatingLog:
    """A log that one process writes, line by line.

    Args:
        path: the newest file; an existing one is appended to.
        max_bytes: a line that would make the file larger goes into a new one; 0 disables rotation.
        kept: number of earlier files to keep, path.1 to path.<kept>; older ones are deleted.
        follow: handles of this process that also write into the log, such as its standard output;
            they are redirected to each new file.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int = 0, kept: int = 0, follow: tuple[int, ...] = ()):
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._follow = follow
        self._handle = self._open(path)

    def write(self, text: str) -> None:
        """Append complete lines: all of them or, with an OSError, none."""
        data = text.encode(errors="replace")
        size = os.fstat(self._handle).st_size
        if self._max_bytes and size and size + len(data) > self._max_bytes:
            self._rotate()
        # Read again: it is another file now, or others have written to it.
        size = os.fstat(self._handle).st_size
        with named(self._path):
            try:
                write_all(self._handle, data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _rotate(self) -> None:
        """Begin a new file; if none can be created, keep writing to the present one."""
        fresh = self._path.with_name(f".{self._path.name}.new")
        try:
            handle = self._open(fresh)
        except OSError:
            return
        try:
            self._shift()
            fresh.replace(self._path)
        except OSError:
            os.close(handle)
            return
        os.close(self._handle)
        self._handle = handle
        for number in self._follow:
            os.dup2(handle, number)

    def _shift(self) -> None:
        """Rename worker.log.1 to .2 and so on, then worker.log to .1."""
        if not self._kept:
            return
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                _part(self._path, number).replace(_part(self._path, number + 1))
        with contextlib.suppress(FileNotFoundError):
            self._path.replace(_part(self._path, 1))

    @staticmethod
    def _open(path: Path) -> int:
        return no_link(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def rotation(config: Any) -> tuple[int, int]:
    """Return `max_bytes` and `kept` from the keys log_max_mb and log_files_kept."""
    return round(config.log_max_mb * MB), config.log_files_kept


def log_parts(path: Path) -> list[Path]:
    """Return the existing files of the log `path`, oldest first."""
    parts = [part for part in reversed(numbered(path)) if part.is_file()]
    return [*parts, path] if path.is_file() else parts


_TAIL_BYTES = 4096


def last_lines(log: Path) -> list[str]:
    """Return the lines at the end of a log, without empty ones; [] where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_log(path: Path) -> str:
    """Return the text of all files of the log, in the order of writing; "" if there are none."""
    texts = []
    for part in log_parts(path):
        # A file that is being rotated may be gone.
        with contextlib.suppress(FileNotFoundError):
            texts.append(part.read_text(encoding="utf-8", errors="replace"))
    return "".join(texts)


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


MOST_ENTRIES = 20  # of a list that is printed in full


class _ConsoleHandler(logging.Handler):
    """Prints the suite's log records as lines of one role."""

    def __init__(self, label: str):
        super().__init__(logging.INFO)
        self._label = label

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        say(self._label, f"{level}{record.getMessage()}")


def log_to_console(label: str) -> None:
    """Print the log records of the suite's modules among the lines of the role `label`."""
    logger = logging.getLogger("src")
    logger.setLevel(logging.INFO)
    logger.handlers = [_ConsoleHandler(label)]
    logger.propagate = False


def say(label: str, text: str, *more: str) -> None:
    """Print "[2026-11-22 08:00:00][worker_0] text", and each of `more` on a line below it."""
    print(f"{stamp(label)} {text}", *(f"  {line}" for line in more), sep="\n", flush=True)


def say_settings(label: str, config: Any) -> None:
    """Print the configuration's keys, first those that differ from the defaults.

    Args:
        config: keys of default_config.yaml; anything else in it is not printed.
    """
    defaults = default_values()
    values = {key: _plain(getattr(config, key)) for key in defaults if hasattr(config, key)}
    changed = [key for key, value in values.items() if value != defaults[key]]
    same = [f"{key}: {_shown(values[key])}" for key in values if key not in changed]
    lines = [f"{key}: {_shown(values[key])} (default {_shown(defaults[key])})" for key in changed]
    lines += ["at their defaults:"]
    # Keep a key and its value on one line, for grep.
    whole = ", ".join(entry.replace(" ", "\0") for entry in same)
    wrapped = textwrap.wrap(whole, 98, break_long_words=False, break_on_hyphens=False)
    lines += [line.replace("\0", " ") for line in wrapped]
    say(label, f"configuration, {len(changed)} keys not at their defaults:", *lines)


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Config) else value


def _shown(value: Any) -> str:
    """Return a value as one line; a long list as its beginning and length."""
    if isinstance(value, list) and len(value) > MOST_ENTRIES:
        return f"{str(value[:4])[:-1]}, ...] ({len(value)} entries)"
    return "''" if value == "" else str(value)


def stamp(label: str) -> str:
    """Return the beginning of a role's lines: "[2026-11-22 08:00:00][worker_0]"."""
    return f"[{time.strftime('%Y-%m-%d %H:%M:%S')}][{label}]"
