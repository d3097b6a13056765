"""Progress of what takes more than two seconds: a bar on a terminal, lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from src.printing import print, printable

FIRST_S, EVERY_S, SELDOM_S, REDRAW_S = 2.0, 10.0, 60.0, 0.5

Item = TypeVar("Item")


def progress(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """Yield `items`, with a progress bar on a terminal and occasional lines elsewhere.

    The lines become less frequent with time: every 10 s at first, every minute in the end.

    Args:
        what: the text before the count.
        unit: the unit of the items, in the singular.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=printable(what), unit=unit, leave=False, delay=1.0)
        return
    begin = time.monotonic()
    next_word = begin + FIRST_S
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= next_word and number < len(items):
            next_word = now + max(EVERY_S, min(SELDOM_S, (now - begin) / 5))
            print(f"{what}: {number} of {len(items)} {unit}s", file=sys.stderr, flush=True)


class Waiting:
    """Progress of a wait of unknown length; `close` removes the text on the terminal."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._next = self._begin + FIRST_S
        self._line = tqdm(bar_format="{desc}", leave=False) if sys.stderr.isatty() else None

    def due(self) -> bool:
        """Return whether it is time to report what is waited for."""
        return time.monotonic() >= self._next

    def tell(self, what: str) -> None:
        """Report what is waited for, and the seconds so far."""
        now = time.monotonic()
        text = f"{what}, {now - self._begin:.0f} s"
        if self._line is not None:
            self._next = now + REDRAW_S
            self._line.set_description_str(printable(text))
        else:
            self._next = now + EVERY_S
            print(text, flush=True)

    def close(self) -> None:
        """End the wait."""
        if self._line is not None:
            self._line.close()
