"""Rewrite docs/flags.md and default_config.yaml from the scripts and the table of keys.

  python tools/write_flags.py

It asks each script for its --help (a minute). Run it after a flag or a key of
src/model_utils/config_keys.py has changed; tests compare the files. It overwrites an edited
default_config.yaml: it is for developers of the suite. Success: a line for each of the two files.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.flags_page import write_all


def main() -> int:
    """Ask the scripts, and write the files."""
    parser = script_parser(__doc__)
    parse_known(parser)
    for path in write_all():
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
