"""Which of the engine's and MindSpore's own log lines a person gets to read.

The engine logs hundreds of INFO lines a second at the level that the tutorial's lines need. Those
that the tutorial shows pass, once from each of the engine's source files; warnings and errors pass,
except the harmless ones below.

The engine writes a peer's words into its lines as they are. So what a terminal obeys is escaped,
and what follows one of its lines without a beginning of its own is marked as a part of it: a silo's
name with a line break in it forges no line. The suite's own lines come by another pipe, see
`own_output`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from typing import IO

from src.printing import printable

_NATIVE = re.compile(
    r"^\[(?P<level>INFO|WARNING|ERROR|CRITICAL)\] (?P<module>[A-Z_]+)\((?P<pid>\d+)?"
    r"(?:.*?\[(?P<source>[^\]]*):\d+\] )?"
)
# Stands before what is a part of the engine's line above it.
PART = "  | "
# Set for a process whose Python writes to standard output alone.
SUPERVISED = "CROSS_SILO_SUPERVISED"

_SHOWN = (
    "Server started successfully.",
    "Scheduler started successfully.",
    "Start http server!",
    "Ev http register handle of:",
    "Receive signal message",
)

# Said on every healthy run, or said better by this suite's own lines.
_HARMLESS = (
    "LoadDynamicLib]",
    "Running status in distributed cache is empty",
    "instance name is empty",
    "IntToSize] The int value(-1)",
    "The cluster is still in safemode",
    "Send node is not in collective received data",
    "Not find operator information for Custom operator",
    "methods may not be supported in later version",
    "Client connected end of file",
    "moving_mean",
    "moving_variance",
    "is not in the parameter_dict",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
    # Of an epoch that --resume leaves out; a data set that is empty is refused at the start.
    "] No records available.",
)


_PATHS = "Ev http register handle of:"
# A path begins with the job's secret prefix, where it has one.
_PREFIX = re.compile(r"/[\w-]+(?=/)")


class LogFilter:
    """Decides line by line; remembers what it has shown, so that 16 threads say a thing once.

    Args:
        engine: the process whose engine alone writes these lines, after the first that it begins;
            0 where others write among them.
    """

    def __init__(self, engine: int = 0) -> None:
        self._engine = engine
        self._begun = False  # the engine has written a line
        self._seen: set[tuple[str | None, str | None]] = set()

    def shown(self, line: str) -> str:
        """What goes to the log of a line, without its end and a secret path; "" for nothing."""
        native = _NATIVE.match(line)
        # A peer that forges a whole line of the engine's does not know its process.
        genuine = not self._engine or (native and native["pid"] == str(self._engine))
        before = PART if self._begun and not genuine else ""
        self._begun = self._begun or bool(self._engine and genuine)
        if not self._passes(line, native):
            return ""
        head, words, paths = line.partition(_PATHS)
        line = head + words + _PREFIX.sub("", paths)
        return before + printable(line.rstrip("\n"), keep="\t")

    def _passes(self, line: str, native: re.Match[str] | None) -> bool:
        if not native:
            return bool(line.strip())
        if any(text in line for text in _HARMLESS):
            return False
        if native["level"] != "INFO":
            return True
        text = next((text for text in _SHOWN if text in line), None)
        shown = (native["source"], text)
        if native["module"] != "FEDERATED" or text is None or shown in self._seen:
            return False
        self._seen.add(shown)
        return True


def filtered(output: IO[bytes], engine: int = 0) -> Iterator[str]:
    """The lines of a process's output that go to the log, each with its end; see `LogFilter`."""
    log_filter = LogFilter(engine)
    # Only a line feed ends a line: a carriage return may be a peer's.
    for line in io.TextIOWrapper(output, "utf-8", errors="replace", newline="\n"):
        if shown := log_filter.shown(line):
            yield f"{shown}\n"


def own_output() -> None:
    """In a process that a supervisor has started: let what Python writes go to standard output.

    Standard error is then the engine's alone, which writes words of others into its lines.
    """
    if os.environ.get(SUPERVISED) and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        sys.stderr = sys.stdout
