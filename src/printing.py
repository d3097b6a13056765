"""Prints text with external content to a terminal or log: it cannot break its line.

A name in a file, a server's answer or a silo's own name may hold line breaks, which would forge a
line, or escape sequences that a terminal executes. Every module that prints imports `print` from
here.
"""

from __future__ import annotations

import builtins
import json
from typing import Any, TextIO


def printable(text: str, keep: str = "") -> str:
    """Return `text` with line breaks, control characters and invisible ones escaped.

    Letters of all scripts are unchanged. `str.isprintable` decides what is escaped, by the Unicode
    standard: controls (C0, C1, ESC), formats (U+202E reverses the line), separators other than the
    space, and lone surrogates, such as bytes of a name that is not UTF-8.

    Args:
        keep: characters that are not escaped.
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
    """Print like the builtin, with values made printable; only `sep` and `end` can break lines."""
    builtins.print(*(printable(str(v)) for v in values), sep=sep, end=end, file=file, flush=flush)


def print_json(value: Any, indent: int | None = 1) -> None:
    """Print `value` as JSON, with everything but printable ASCII escaped."""
    text = json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
    print(*text.split("\n"), sep="\n")
