"""How a command ends when something is wrong."""

import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.errors import UserError, run_command, user_path
from src.model_utils.config import PROJECT_DIR

TALKATIVE = """
from src.errors import UserError, run_command, user_path

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


def test_a_home_folder_that_nobody_knows_is_one_clear_line(monkeypatch):
    assert user_path("~/ckpt") == Path.home() / "ckpt"
    assert user_path(Path("ckpt/~")) == Path("ckpt/~")
    with pytest.raises(
        UserError, match=r"^~nobody_here/a: the folder of ~nobody_here is not known"
    ):
        user_path("~nobody_here/a")

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r"^~/a: .*HOME is not set.*; write the whole path$"):
        user_path("~/a")
    assert user_path("a") == Path("a")


def test_every_path_of_a_user_goes_that_way():
    paths = [p for part in ("*.py", "src/**/*.py", "tools/*.py") for p in PROJECT_DIR.glob(part)]
    found = [path.name for path in paths if "expanduser(" in path.read_text(encoding="utf-8")]
    assert found == ["errors.py"]


def test_ctrl_c_while_a_command_imports_its_packages_is_no_traceback():
    lines = (
        "from src.errors import require_packages",
        "require_packages()",
        "import signal; signal.raise_signal(signal.SIGINT)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "interrupted\n"
