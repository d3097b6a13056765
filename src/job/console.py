"""The suite's own lines in a role's log."""

from __future__ import annotations

import logging
import textwrap
import time
from typing import Any

from src.model_utils.config import Config, default_values
from src.printing import print

MOST_ENTRIES = 20  # of a list that is said whole


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


def say(label: str, text: str, *more: str) -> None:
    """Print "[2026-11-22 08:00:00][worker_0] text", and below it `more`, a line each."""
    print(f"{stamp(label)} {text}", *(f"  {line}" for line in more), sep="\n", flush=True)


def say_settings(label: str, config: Any) -> None:
    """Print the keys of the configuration, first those that differ from the defaults.

    Args:
        config: keys of default_config.yaml; what else it holds is not printed.
    """
    defaults = default_values()
    values = {key: _plain(getattr(config, key)) for key in defaults if hasattr(config, key)}
    changed = [key for key, value in values.items() if value != defaults[key]]
    same = [f"{key}: {_shown(values[key])}" for key in values if key not in changed]
    lines = [f"{key}: {_shown(values[key])} (default {_shown(defaults[key])})" for key in changed]
    lines += ["at their defaults:"]
    # A key and its value stay in one line, for grep.
    whole = ", ".join(entry.replace(" ", "\0") for entry in same)
    wrapped = textwrap.wrap(whole, 98, break_long_words=False, break_on_hyphens=False)
    lines += [line.replace("\0", " ") for line in wrapped]
    say(label, f"configuration, {len(changed)} keys not at their defaults:", *lines)


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Config) else value


def _shown(value: Any) -> str:
    """A value in one line; of a long list its beginning and length."""
    if isinstance(value, list) and len(value) > MOST_ENTRIES:
        return f"{str(value[:4])[:-1]}, ...] ({len(value)} entries)"
    return "''" if value == "" else str(value)


def stamp(label: str) -> str:
    """What every line of a role begins with: "[2026-11-22 08:00:00][worker_0]"."""
    return f"[{time.strftime('%Y-%m-%d %H:%M:%S')}][{label}]"
