"""Write docs/flags.md anew: every flag of every script, every key of the configuration files.

  python tools/write_flags.py

asks each script for its --help (a minute). To be run after a flag or a key has changed; a test of
`make test` compares the page with the scripts. Success: one line with the page's path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.model_utils.config import PROJECT_DIR, parse_known, script_parser
from src.reporting.flags_page import write_flags_page

PAGE = PROJECT_DIR / "docs" / "flags.md"


def main() -> int:
    """Ask, write."""
    parser = script_parser(__doc__)
    parse_known(parser)
    write_flags_page(PAGE)
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    run_command(main)
