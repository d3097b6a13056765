"""Text for a terminal or a log that may hold words from outside: each stays within its line.

A name in a file, a server's answer or a silo's own name may hold line breaks, which would forge a
line, or sequences that a terminal obeys. Every module that prints imports `print` from here.
"""

from __future__ import annotations

import builtins
import json
from typing import Any, TextIO


def printable(text: str, keep: str = "") -> str:
    """`text` with escapes in place of line breaks, control characters and invisible ones.

    Letters of all scripts stay as they are. What is escaped is what `str.isprintable` says of the
    Unicode standard: controls (C0, C1, ESC), formats (U+202E turns the line round), separators
    other than the space, and halves of surrogate pairs, as bytes of a name that is not UTF-8.

    Args:
        keep: characters that stay all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def print(
    *values: object,
    sep: str = " ",
    end: str = "\n",
    file: TextIO | None = None,
    flush: bool = False,
) -> None:
    """As the builtin, with each value made printable; only `sep` and `end` may break the line."""
    builtins.print(*(printable(str(v)) for v in values), sep=sep, end=end, file=file, flush=flush)


def print_json(value: Any, indent: int | None = 1) -> None:
    """Print `value` as JSON, in which everything but printable ASCII is escaped."""
    text = json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
    print(*text.split("\n"), sep="\n")
