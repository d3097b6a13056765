"""Rewrite default_config.yaml from the table of keys, src/model_utils/config_keys.py.

  python tools/write_default_config.py

Run it after a key has changed; a test compares the two. It overwrites an edited file: it is for
developers of the suite. Success: a line with the file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages("yaml")

from src.files import write_whole
from src.model_utils.config import DEFAULT_CONFIG, PROJECT_DIR, parse_known, script_parser
from src.model_utils.config_file import default_config_text
from src.printing import print


def main() -> int:
    """Write the file."""
    parse_known(script_parser(__doc__))
    path = PROJECT_DIR / DEFAULT_CONFIG
    write_whole(path, default_config_text())
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
