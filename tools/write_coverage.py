"""Rewrite the table of docs/coverage.md: how much of each package the tests run.

  make coverage                              runs the gate's tests, then calls this
  python tools/write_coverage.py coverage.json --write=docs/coverage.md

coverage.json is what `coverage json` or pytest's --cov-report=json writes. Success: the table; with
--write it is also written to the page, between its marks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import require_packages, run_command

require_packages("yaml")

from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.coverage_page import coverage_table, read_coverage
from src.reporting.marked_page import write_table


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("coverage_json", type=Path, help="the report of coverage.py")
    parser.add_argument("--write", type=Path, help="page whose table is written again")
    return parser


def main() -> None:
    args = parse_known(build_parser())
    table = coverage_table(read_coverage(args.coverage_json))
    if args.write:
        write_table(args.write, table)
    print(*table.split("\n"), sep="\n")


if __name__ == "__main__":
    run_command(main)
