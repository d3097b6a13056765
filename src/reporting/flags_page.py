"""The reference of all flags and keys, docs/flags.md, from what the scripts and files say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from src.files import write_whole
from src.model_utils.config import DEFAULT_CONFIG, PROJECT_DIR

FEDERATION = "default_yaml_config.yaml"
# The process behind the launchers, and what MindSpore Hub imports: nobody calls them.
NOT_COMMANDS = ("test_fl_fasterrcnn.py", "mindspore_hub_conf.py")
HEAD = """# All flags and keys

Written by `python tools/write_flags.py` from the scripts and files themselves; a test compares.
Every scalar key of `default_config.yaml` is also a flag of the launchers and of the tools that read
it: `--base_lr=0.002`. A flag wins over the file.
"""


def commands() -> list[str]:
    """The scripts that a user calls, by path from the project's folder."""
    found = [*sorted(PROJECT_DIR.glob("*.py")), *sorted((PROJECT_DIR / "tools").glob("*.py"))]
    names = [str(path.relative_to(PROJECT_DIR)) for path in found]
    return [name for name in names if name not in NOT_COMMANDS]


def flags_page() -> str:
    """The whole page as Markdown."""
    keys = set(yaml.safe_load((PROJECT_DIR / DEFAULT_CONFIG).read_text(encoding="utf-8")))
    parts = [HEAD]
    for script in commands():
        rows = [row for row in options(help_of(script)) if row[0].split()[0][2:] not in keys]
        parts.append(f"## {script}\n\n| flag | |\n|---|---|")
        parts.append("\n".join(f"| `{flag}` | {text} |" for flag, text in rows) + "\n")
    for name in (DEFAULT_CONFIG, FEDERATION):
        text = (PROJECT_DIR / name).read_text(encoding="utf-8")
        parts.append(f"## {name}\n\n```yaml\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def help_of(script: str) -> str:
    """What `script --help` prints, wide enough that no flag is broken."""
    env = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(PROJECT_DIR / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return done.stdout.replace(f"{PROJECT_DIR}/", "")


def options(help_text: str) -> list[tuple[str, str]]:
    """Each flag (or argument) of a help text with its words, but for --help itself."""
    rows: list[tuple[str, str]] = []
    _, _, text = re.split(r"(?m)^(positional|optional) arguments:\n", help_text, maxsplit=1)
    for line in text.splitlines():
        entry = re.match(r"  (\S.*?)(?:\s{2,}(\S.*))?$", line)
        if entry and not line.startswith("   "):
            rows.append((entry[1], entry[2] or ""))
        elif line.strip() and line.startswith(" ") and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
    return [(flag, words.replace("|", "\\|")) for flag, words in rows if not flag.startswith("-h")]


def write_flags_page(path: Path) -> None:
    """Write the page anew, whole."""
    write_whole(path, flags_page())
