"""Signs of life: lines in a file, a line that is redrawn on a terminal."""

import io
import sys

import pytest

from src import progress
from src.data import coco
from src.errors import UserError
from src.progress import Waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(progress, "SELDOM_S", 0.0)
    assert list(progress.progress([1, 2, 3], "mindrecord_0", "image")) == [1, 2, 3]
    said = capsys.readouterr().err.splitlines()
    assert said == ["mindrecord_0: 1 of 3 images", "mindrecord_0: 2 of 3 images"]


def test_lines_of_what_is_slow_become_rarer(monkeypatch, capsys):
    clock = iter(range(0, 6000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.progress(range(600), "evaluated", "image"))
    said = [int(line.split()[1]) for line in capsys.readouterr().err.splitlines()]
    gaps = [6 * (later - earlier) for earlier, later in zip(said, said[1:])]
    assert gaps == sorted(gaps) and gaps[0] == 12 and gaps[-1] == 60


def test_nothing_is_said_of_what_is_quick(capsys):
    assert list(progress.progress([1, 2], "mindrecord_0", "image")) == [1, 2]
    assert not Waiting().due()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.progress(range(3), "writing", "shard")) == [0, 1, 2]
    assert "of 3" not in terminal.getvalue()


def test_a_wait_in_a_file(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    waiting = Waiting()
    assert waiting.due()
    waiting.tell("waiting for worker_0: compiling")
    assert not waiting.due()
    waiting.close()
    assert capsys.readouterr().out == "waiting for worker_0: compiling, 0 s\n"


def test_a_wait_on_a_terminal_leaves_nothing_behind(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    waiting = Waiting()
    waiting.tell("waiting for worker_0: compiling")
    assert "waiting for worker_0: compiling, 0 s" in terminal.getvalue()
    waiting.close()
    assert terminal.getvalue().endswith("\r")
    assert capsys.readouterr().out == ""


def test_a_large_json_is_announced(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(coco, "LARGE", 2)
    path = tmp_path / "instances.json"
    path.write_text("{}")
    with pytest.raises(UserError):
        coco.read_coco(path)
    assert capsys.readouterr().err == f"reading {path}, 0 MB\n"
