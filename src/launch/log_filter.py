"""Which of the engine's and MindSpore's own log lines a person gets to read.

The engine logs hundreds of INFO lines a second at the level that the tutorial's lines need. Those
that the tutorial shows pass, once from each of the engine's source files; warnings and errors pass,
except the harmless ones below.
"""

from __future__ import annotations

import re

_NATIVE = re.compile(
    r"^\[(?P<level>INFO|WARNING|ERROR|CRITICAL)\] (?P<module>[A-Z_]+)\("
    r"(?:.*?\[(?P<source>[^\]]*):\d+\] )?"
)

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


class LogFilter:
    """Decides line by line; remembers what it has shown, so that 16 threads say a thing once."""

    def __init__(self) -> None:
        self._seen: set[tuple[str | None, str | None]] = set()

    def passes(self, line: str) -> bool:
        """Whether `line` goes to the log."""
        native = _NATIVE.match(line)
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
