"""The suite's own lines in a role's log."""

from __future__ import annotations

import logging
import time


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
    """Let what the suite's modules log appear among the lines of the role `label`."""
    logger = logging.getLogger("src")
    logger.setLevel(logging.INFO)
    logger.handlers = [_ConsoleHandler(label)]
    logger.propagate = False


def say(label: str, text: str) -> None:
    """Print "[2026-11-22 08:00:00][worker_0] text"."""
    print(f"{stamp(label)} {text}", flush=True)


def stamp(label: str) -> str:
    """What every line of a role begins with: "[2026-11-22 08:00:00][worker_0]"."""
    return f"[{time.strftime('%Y-%m-%d %H:%M:%S')}][{label}]"
