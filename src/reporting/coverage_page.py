"""Make a table of how much of each package the tests run, from coverage.py's JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from src.errors import UserError

HEAD = "| package | statements | run by the tests |\n|---|---|---|"


def read_coverage(path: Path) -> dict[str, tuple[int, int]]:
    """Read the number of statements, and of those that ran, of each file, by its path.

    Raises:
        UserError: no such file, or not a file that `coverage json` writes.
    """
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        summaries = {name: entry["summary"] for name, entry in files.items()}
        return {
            n: (int(s["num_statements"]), int(s["covered_lines"])) for n, s in summaries.items()
        }
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; see make coverage") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a json report of coverage.py; see make coverage") from error


def coverage_table(files: dict[str, tuple[int, int]]) -> str:
    """Return a table: a row for each package, one for the modules of `src` itself, and a total."""
    packages: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, counts in files.items():
        packages[Path(name).parent.as_posix()].append(counts)
    rows = [_row(f"`{package}`", packages[package]) for package in sorted(packages)]
    return "\n".join([HEAD, *rows, _row("all", list(files.values()))])


def _row(name: str, counts: list[tuple[int, int]]) -> str:
    statements, ran = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    share = f"{100 * ran / statements:.0f} %" if statements else "-"
    return f"| {name} | {statements} | {share} |"
