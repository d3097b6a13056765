"""What README.md holds for a machine: the commands of its `sh` blocks, the files of its tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath

from src.model_utils.config import PROJECT_DIR

HEADING = re.compile(r"(?m)^(?=## )")
BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```$")
NAME = re.compile(r"`([^`]+)`")
# A file, several (`data*.py`), the end of a name (`..._server.py`), or a folder (`src/launch/`).
PATH = re.compile(
    r"(?:\.\.\.)?[\w./*-]+(?:\.(?:py|sh|md|yaml|yml|conf|lock|txt|j2|js|toml|dockerignore)|/)|Dockerfile"
)
BETWEEN = {"&&", "||", "|", ";", "&"}
# A package's mark names nothing that a reader looks for; caches are nobody's.
NOT_NAMED = ("__init__.py", ".pyc", ".nbi", ".nbc")


def section(text: str, heading: str) -> str:
    """A second-level section of a page, without what follows it."""
    found = [part for part in HEADING.split(text) if part.startswith(f"## {heading}\n")]
    assert len(found) == 1, f"{len(found)} sections '## {heading}'"
    return found[0]


def command_lines(text: str) -> list[str]:
    """The lines of the `sh` blocks, continued ones joined, without empty ones and comments."""
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def words_of(line: str) -> list[str]:
    """A line's words as the shell takes them, without the comment behind it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    return list(lexer)


def commands_of(line: str) -> list[list[str]]:
    """The commands of a line: `cd a && grep b *` is two."""
    commands: list[list[str]] = [[]]
    for word in words_of(line):
        if word in BETWEEN:
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def file_rows(text: str) -> list[tuple[list[str], list[str]]]:
    """(names in the first cell, names of files in the second) of each row that is about files."""
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = line.strip("|").split("|")
            names = NAME.findall(first)
            if any(is_path(name) for name in names):
                rows.append(
                    (names, [n for n in NAME.findall("".join(others)) if PATH.fullmatch(n)])
                )
    return rows


def is_path(name: str) -> bool:
    """Whether it looks like a file's or folder's name; `configs/demo` does, being there."""
    return bool(PATH.fullmatch(name)) or ("/" in name and (PROJECT_DIR / name).is_dir())


def named_files(text: str) -> tuple[set[str], set[str]]:
    """(files that the tables name, names in the tables that nothing has).

    A folder with a `/` at its end is described in the row's second cell, whose names are those of
    files in it, or else counted from the project's folder. One without the `/` is named as a whole.
    """
    files: set[str] = set()
    unknown: set[str] = set()
    for names, inside in file_rows(text):
        folders = [name for name in names if name.endswith("/")]
        unknown |= {name for name in names if not matching("", name)}
        for name in set(names) - set(folders):
            files |= matching("", name) | files_in(name)
        for name in inside:
            here = set().union(*(matching(folder, name) for folder in folders))
            if not here and not matching("", name):
                unknown.add("".join(folders) + name)
            files |= here
    return {name for name in files if (PROJECT_DIR / name).is_file()}, unknown


def matching(folder: str, name: str) -> set[str]:
    """Files and folders of a pattern that is counted from `folder`, by path in the project."""
    pattern = re.sub(r"^\.\.\.", "*", name.rstrip("/"))
    return {relative(path) for path in (PROJECT_DIR / folder).glob(pattern)}


def files_in(folder: str) -> set[str]:
    """Everything in a folder and below it that somebody wrote."""
    found = (PROJECT_DIR / folder).rglob("*") if (PROJECT_DIR / folder).is_dir() else ()
    return {relative(path) for path in found if path.is_file() and is_written(path)}


def is_written(path: Path) -> bool:
    """Neither a package's mark, nor a cache, nor hidden."""
    parts = PurePosixPath(relative(path)).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not hidden and not path.name.endswith(NOT_NAMED)


def relative(path: Path) -> str:
    """A path as the pages write it."""
    return path.relative_to(PROJECT_DIR).as_posix()
