"""Files of a job in folders where others may write too: links there lead nowhere."""

import os

import pytest

from src.errors import run_command
from src.files import append_line, drop_unfinished_line, finish_last_line, whole_file, write_whole


@pytest.fixture
def victim(tmp_path):
    """A file of the user's outside of the folder that is written to."""
    path = tmp_path / "victim"
    path.write_text("kept")
    return path


def test_a_link_in_the_place_of_the_partial_file_is_removed(tmp_path, victim):
    target = tmp_path / "model.ckpt"
    partial = tmp_path / f".partial.{os.getpid()}.model.ckpt"
    partial.symlink_to(victim)
    write_whole(target, "new")
    assert (target.read_text(), victim.read_text()) == ("new", "kept")
    assert not target.is_symlink() and not partial.is_symlink()


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path, victim):
    target = tmp_path / "model.ckpt"
    target.symlink_to(victim)
    write_whole(target, "new")
    assert (target.read_text(), victim.read_text()) == ("new", "kept")


@pytest.mark.parametrize("private", [False, True])
def test_private_files_are_this_users_alone_from_the_first_byte(tmp_path, private):
    rest = 0o077 if private else 0
    lines, target = tmp_path / "lines.jsonl", tmp_path / "state"
    before = os.umask(0)
    try:
        append_line(lines, "{}", private=private)
        with whole_file(target, private=private) as partial:
            assert bool(partial.stat().st_mode & 0o077) != private
            partial.write_text("x")
    finally:
        os.umask(before)
    for path in (lines, target):
        assert path.stat().st_mode & 0o777 == 0o666 & ~rest


@pytest.mark.parametrize(
    "write", [lambda path: append_line(path, "{}"), drop_unfinished_line, finish_last_line]
)
def test_a_link_that_would_be_written_through_is_one_line_of_an_error(
    tmp_path, victim, capsys, write
):
    link = tmp_path / "rounds.jsonl"
    link.symlink_to(victim)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: write(link))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {link}: is a symbolic link; links are not followed where a file of our own is "
        "written: remove it\n"
    )
    assert victim.read_text() == "kept"
