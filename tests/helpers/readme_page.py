"""Read the commands in the `sh` blocks of README.md, and the flags that scripts take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

from src.model_utils.config import PROJECT_DIR

HEADING = re.compile(r"(?m)^(?=## )")
BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```$")
BETWEEN = {"&&", "||", "|", ";", "&"}


def section(text: str, heading: str) -> str:
    """Return a second-level section of a page, without what follows it."""
    found = [part for part in HEADING.split(text) if part.startswith(f"## {heading}\n")]
    assert len(found) == 1, f"{len(found)} sections '## {heading}'"
    return found[0]


def command_lines(text: str) -> list[str]:
    """Return the lines of the `sh` blocks, continued ones joined, without blanks and comments."""
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def words_of(line: str) -> list[str]:
    """Return a line's words as the shell reads them, without the comment after it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    return list(lexer)


def commands_of(line: str) -> list[list[str]]:
    """Return the commands of a line: `cd a && grep b *` is two."""
    commands: list[list[str]] = [[]]
    for word in words_of(line):
        if word in BETWEEN:
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def flags_of(script: str) -> set[str]:
    """Return the flags in what `script --help` prints."""
    command = [sys.executable, str(PROJECT_DIR / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?m)^  (--[\w-]+)", done.stdout))
