"""Reads a large json entry by entry: its text and objects are never in memory all at once.

Python's own decoder parses the values, so that results are the same as with `json.load`: NaN,
integers of any length, and the line and column of errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Protocol, TextIO

from src.printing import print
from src.progress import progress

CHUNK = 1_000_000  # characters
LARGE = 50_000_000  # bytes, whose parsing takes seconds
WHITESPACE = " \t\n\r"


class Sink(Protocol):
    """Receives the entries of a list one by one."""

    def add(self, entry: Any) -> None:
        """Take the next entry."""


def read_json(path: Path, sinks: Mapping[str, Callable[[], Sink]]) -> Any:
    """Read a json file, with sinks in place of some lists.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        sinks: key of the outermost object -> factory of the sink for the entries of the list there.
            A value that is not a list is kept.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is not json; names the line and the column.
        RecursionError: it is nested too deeply.
    """
    size = path.stat().st_size
    if size >= LARGE:
        print(f"reading {path}, {size / 1e6:.0f} MB", file=sys.stderr, flush=True)
    ticks = progress(range(-(-size // CHUNK)), "reading", "megabyte")
    with path.open(encoding="utf-8-sig") as file:
        values = _Values(file, ticks)
        content = _object(values, sinks) if values.peek() == "{" else values.next()
        if values.peek():
            raise values.error("Extra data")
    for _ in ticks:  # fewer characters than bytes: complete the progress display
        pass
    return content


def _object(values: _Values, sinks: Mapping[str, Callable[[], Sink]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in values.separated("{", "}"):
        if values.peek() != '"':
            raise values.error("Expecting property name enclosed in double quotes")
        key = values.next()
        values.expect(":", "Expecting ':' delimiter")
        if key in sinks and values.peek() == "[":
            sink = sinks[key]()
            for _ in values.separated("[", "]"):
                sink.add(values.next())
            content[key] = sink
        else:
            content[key] = values.next()
    return content


class _Values:
    """Iterates over the values of a json text, read in chunks.

    Args:
        file: the text file.
        ticks: an iterator that is advanced with each chunk.
    """

    def __init__(self, file: TextIO, ticks: Iterator[Any]):
        self._file = file
        self._ticks = ticks
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._place = 0  # position in _text of what comes next
        # Counts for the text before _text: characters, lines, and characters of the last line.
        self._chars = self._lines = self._column = 0

    def next(self) -> Any:
        """Return the next value.

        Raises:
            ValueError: there is none, or it is invalid.
        """
        self.peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # The value may only be cut off by the end of the chunk.
                if not self._read(wanted):
                    raise self.error(error.msg, error.pos) from error
            else:
                # A number at the end of the chunk may continue in the next one.
                if end < len(self._text) or not self._read(wanted):
                    self._place = end
                    return value
            wanted *= 2

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end of the file."""
        while True:
            while self._place < len(self._text):
                found = self._text[self._place]
                if found not in WHITESPACE:
                    return found
                self._place += 1
            if not self._read(CHUNK):
                return ""

    def expect(self, character: str, message: str) -> None:
        """Skip `character`.

        Raises:
            ValueError: something else is next; the error has `message`.
        """
        if self.peek() != character:
            raise self.error(message)
        self._place += 1

    def separated(self, begin: str, end: str) -> Iterator[None]:
        """Skip `begin`, the commas and `end`; yield where an element has to be read.

        Raises:
            ValueError: a comma or `end` is missing.
        """
        self.expect(begin, "Expecting value")
        if self.peek() != end:
            yield
            while self.peek() != end:
                self.expect(",", "Expecting ',' delimiter")
                self.peek()
                yield
        self._place += 1

    def error(self, message: str, place: int | None = None) -> ValueError:
        """Return an error of `message` with the place in the file, formatted as json's own."""
        place = self._place if place is None else place
        lines, column = self._position(place)
        return ValueError(
            f"{message}: line {lines + 1} column {column + 1} (char {self._chars + place})"
        )

    def _position(self, place: int) -> tuple[int, int]:
        """Return the line breaks before `place`, and the characters between the last one and it."""
        newlines = self._text.count("\n", 0, place)
        if newlines:
            return self._lines + newlines, place - self._text.rfind("\n", 0, place) - 1
        return self._lines, self._column + place

    def _read(self, wanted: int) -> bool:
        """Drop the text already read, append `wanted` characters; return whether there were any."""
        more = self._file.read(wanted)
        if not more:
            return False
        for _ in range(-(-len(more) // CHUNK)):
            next(self._ticks, None)
        self._lines, self._column = self._position(self._place)
        self._chars += self._place
        self._text = self._text[self._place :] + more
        self._place = 0
        return True
