"""The tables by class of an evaluation, from its line of metrics.jsonl: for a terminal or a page.

Lines of earlier versions lack some of it, and a file may hold anything: what is missing or odd is
left out.
"""

from __future__ import annotations

import math
from typing import Any

from src.evaluation.matching import Confusion, counts_by_class

HEADERS = [
    "class", "AP", "AP50", "objects", "found", "missed", "false", "recall", "precision",
]  # fmt: skip
MOST_CLASSES = 15  # in a square table; of more, pairs are listed
MOST_PAIRS = 20
NOTHING = "nothing"

Table = list[list[str]]


def confusion_record(confusion: Confusion, score: float, iou: float) -> dict[str, Any]:
    """Return a confusion table as JSON has it."""
    return {"score": score, "iou": iou, "counts": [list(entry) for entry in confusion]}


def confusion_in(record: dict[str, Any]) -> Confusion:
    """Return the confusion table in a record; [] where it has none."""
    given = record.get("confusion")
    counts = given.get("counts") if isinstance(given, dict) else None
    entries = counts if isinstance(counts, list) else []
    return [(entry[0], entry[1], entry[2]) for entry in entries if _is_count(entry)]


def class_table(record: dict[str, Any]) -> Table:
    """Return the header and a row for each class: AP, AP50, objects, what was found of them.

    Columns that the record says nothing about are left out; without any class it is [].
    """
    ap, ap50 = (_numbers(record.get(key)) for key in ("per_class", "per_class_AP50"))
    counts = counts_by_class(confusion_in(record))
    rows = [HEADERS]
    for name in dict.fromkeys([*ap, *ap50, *counts]):
        row = [name, _number(ap.get(name)), _number(ap50.get(name))]
        if name in counts:
            one = counts[name]
            whole = (one.found + one.missed, one.found, one.missed, one.false)
            row += [*map(str, whole), _number(one.recall, 2), _number(one.precision, 2)]
        rows.append(row + ["-"] * (len(HEADERS) - len(row)))
    kept = [0] + [n for n in range(1, len(HEADERS)) if any(row[n] != "-" for row in rows[1:])]
    return [[row[n] for n in kept] for row in rows] if len(rows) > 1 else []


def confusion_table(record: dict[str, Any]) -> Table:
    """Return header and rows: for each class of objects, how often each class was detected there.

    The last column counts the objects where nothing was detected, the last row the detections where
    no object is. Of many classes only the most frequent errors are listed.
    """
    confusion = confusion_in(record)
    names = list(dict.fromkeys(name for entry in confusion for name in entry[:2] if name))
    if len(names) > MOST_CLASSES:
        return _most_frequent(confusion)
    counts = {(truth, found): count for truth, found, count in confusion}
    keys = [*names, None]
    rows = [["labelled", *(f"as {name}" for name in names), "not detected"]] if names else []
    for truth in keys if names else []:
        values = [str(counts.get((truth, found), 0)) for found in keys]
        rows.append([truth or NOTHING, *values[:-1], values[-1] if truth else ""])
    return rows


def _most_frequent(confusion: Confusion) -> Table:
    errors = sorted((e for e in confusion if e[0] != e[1]), key=lambda entry: -entry[2])
    rows = [[truth or NOTHING, found or NOTHING, str(n)] for truth, found, n in errors[:MOST_PAIRS]]
    return [["labelled", "detected", "times"], *rows]


def text_lines(table: Table) -> list[str]:
    """Return a table as lines of text, its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _numbers(value: Any) -> dict[str, float | None]:
    """Return the numbers of an object in a file by name; None for what is none."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: float(n) if _is_number(n) else None for name, n in pairs}


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -1e6 < value < 1e6


def _is_count(entry: Any) -> bool:
    if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] != [None, None]):
        return False
    *names, count = entry
    is_whole = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 10**12
    return is_whole and all(name is None or isinstance(name, str) for name in names)
