"""How a command ends when something is wrong."""

import subprocess
import sys

import pytest

from src.errors import run_command
from src.model_utils.config import PROJECT_DIR

TALKATIVE = """
from src.errors import run_command

def main():
    for number in range(100_000):
        print("line", number)

run_command(main)
"""


def test_a_reader_that_leaves_early_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-c", TALKATIVE],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=30) == 141
    assert errors == ""


def test_a_broken_connection_elsewhere_is_not_hidden():
    def main():
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        run_command(main)
