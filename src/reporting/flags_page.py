"""Generate docs/flags.md and default_config.yaml from the scripts and the table of keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

from src.files import write_whole
from src.model_utils.config import DEFAULT_CONFIG, PROJECT_DIR, SECTIONS, Key

# The process behind the launchers, and what MindSpore Hub imports: no user calls them.
NOT_COMMANDS = ("test_fl_fasterrcnn.py", "mindspore_hub_conf.py")
HEAD = """# All flags

Written by `python tools/write_flags.py` from the scripts; a test compares. Keys are explained where
they are set: those of detector, data and training in `default_config.yaml`, those of the federation
in `default_yaml_config.yaml`. Every scalar key of the former is also a flag of the launchers and of
the tools that read it, `--base_lr=0.002`, which wins over the file; `--help` lists them.
"""
CONFIG_HEAD = """\
# Detector, data and training. Edit this file, or give one of your own as --config_path: a key that
# is left out has the value that stands here. Every scalar key is also a flag (--img_width=640),
# which wins over the file. tools/write_flags.py wrote this from src/model_utils/config_keys.py.
"""
WIDTH, COMMENT_COLUMNS = 100, (28, 36, 48, 64)


def commands() -> list[str]:
    """Return the scripts that a user calls, by path from the project's folder."""
    found = [*sorted(PROJECT_DIR.glob("*.py")), *sorted((PROJECT_DIR / "tools").glob("*.py"))]
    names = [str(path.relative_to(PROJECT_DIR)) for path in found]
    return [name for name in names if name not in NOT_COMMANDS]


def flags_page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for script in commands():
        # The keys come last, in a group for each section.
        own = re.split(rf"(?m)^(?:{'|'.join(map(re.escape, SECTIONS))}):$", help_of(script))[0]
        rows = options(own)
        parts.append(f"## {script}\n\n| flag | |\n|---|---|")
        parts.append("\n".join(f"| `{flag}` | {text} |" for flag, text in rows) + "\n")
    return "\n".join(parts)


def help_of(script: str) -> str:
    """Return what `script --help` prints, wide enough that no flag is broken."""
    env = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(PROJECT_DIR / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return done.stdout.replace(f"{PROJECT_DIR}/", "")


def options(help_text: str) -> list[tuple[str, str]]:
    """Return each flag (or argument) of a help text with its words, except --help itself."""
    rows: list[tuple[str, str]] = []
    _, _, text = re.split(r"(?m)^(positional|optional) arguments:\n", help_text, maxsplit=1)
    for line in text.splitlines():
        entry = re.match(r"  (\S.*?)(?:\s{2,}(\S.*))?$", line)
        if entry and not line.startswith("   "):
            rows.append((entry[1], entry[2] or ""))
        elif line.strip() and line.startswith(" ") and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
    return [(flag, words.replace("|", "\\|")) for flag, words in rows if not flag.startswith("-h")]


def config_file() -> str:
    """Return default_config.yaml: every key that does something, its default and its meaning."""
    parts = [CONFIG_HEAD]
    for title, keys in SECTIONS.items():
        parts.append(f"# ---- {title} ".ljust(WIDTH, "-"))
        parts += [_line(name, key) for name, key in keys.items()]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _line(name: str, key: Key) -> str:
    """Return a key with its comment, which continues on the next lines where it is long."""
    setting = f"{'# ' if key.follows else ''}{name}: {_as_yaml(key.default)}"
    words = f"{key.help} ({', '.join(key.choices)})" if key.choices else key.help
    if len(setting) > WIDTH:
        # No line is broken within a name.
        unbroken = re.sub(r'"[^"]*"', lambda name: name[0].replace(" ", "\0"), setting)
        listed = textwrap.fill(unbroken, WIDTH, subsequent_indent="  ").replace("\0", " ")
        return f"# {words}\n{listed}"
    column = next((c for c in COMMENT_COLUMNS if len(setting) + 2 <= c), 0)
    if not column:
        return "\n".join([*(f"# {line}" for line in textwrap.wrap(words, WIDTH - 2)), setting])
    first, *more = textwrap.wrap(words, WIDTH - column - 2)
    lines = [f"{setting.ljust(column)}# {first}", *(" " * column + f"# {line}" for line in more)]
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    """Return a value as a line of YAML: without the exponents, which YAML 1.1 reads as text."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return json.dumps(value) if isinstance(value, str) else str(value)


def write_all() -> list[Path]:
    """Write the page and the file; return their paths."""
    page, file = PROJECT_DIR / "docs" / "flags.md", PROJECT_DIR / DEFAULT_CONFIG
    write_whole(file, config_file())
    write_whole(page, flags_page())
    return [file, page]
