"""The commands in README.md exist as written, and the Chinese page has the same ones."""

import functools
import re

import pytest
from readme_page import (
    BLOCK,
    command_lines,
    commands_of,
    flags_of,
    words_of,
)

from src.model_utils.config import PROJECT_DIR

PAGE, CHINESE = "README.md", "README_CN.md"
# What a command may call next to the suite's scripts and make targets.
OTHER_PROGRAMS = {
    "redis-server": "comes with the installation; step 2",
    "curl": "the scheduler's management API",
    "grep": "the tutorial's look into the logs",
    "cd": "the shell's own",
    "source": "the shell's own; the installation's environment",
}


@pytest.fixture(scope="module")
def page():
    return text_of(PAGE)


def text_of(name):
    path = PROJECT_DIR / name
    assert path.is_file(), f"{name} is missing"
    return path.read_text(encoding="utf-8")


def all_commands(text):
    return [command for line in command_lines(text) for command in commands_of(line)]


known = functools.cache(flags_of)


def what_is_wrong(command):
    """A line for each thing that a command names and that is not there."""
    program, *words = command
    if program == "make":
        targets = re.findall(r"(?m)^([\w-]+):(?!=)", text_of("Makefile"))
        return [f"make {word}" for word in words if word not in targets and "=" not in word]
    if program != "python":
        return [] if program in OTHER_PROGRAMS else [f"{program}: not one of OTHER_PROGRAMS"]
    script, *words = words
    if not (PROJECT_DIR / script).is_file():
        return [f"{script}: no such script"]
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    return [f"{script} {flag}" for flag in flags if flag not in known(script)]


def test_the_commands_are_found_at_all(page):
    assert len(all_commands(page)) > 10


def test_every_command_is_known(page):
    wrong = [line for command in all_commands(page) for line in what_is_wrong(command)]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make demo && make dmeo", ["make dmeo"]),
        ("python tools/gone.py", ["tools/gone.py: no such script"]),
        ("python tools/status.py --watch --wach  # a word", ["tools/status.py --wach"]),
        ("python tools/split_coco.py --image_dir=x --base_lr=1", ["tools/split_coco.py --base_lr"]),
        ("wget x", ["wget: not one of OTHER_PROGRAMS"]),
    ],
)
def test_a_wrong_command_is_noticed(line, wrong):
    assert [found for command in commands_of(line) for found in what_is_wrong(command)] == wrong


def test_the_chinese_page_has_the_same_commands():
    here, there = ([words_of(line) for line in command_lines(text_of(p))] for p in (PAGE, CHINESE))
    assert there == here
    assert len(BLOCK.findall(text_of(CHINESE))) == len(BLOCK.findall(text_of(PAGE)))
