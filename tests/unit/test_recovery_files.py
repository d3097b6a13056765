"""Recovery files that a power cut has broken: which one a start takes instead."""

import pytest
from models import WEIGHTS, save_model

from src.errors import UserError
from src.job.recovery_check import fault_of, look_into
from src.job.recovery_files import begin_from_newest, require_iterations_left, usable_files


def file(folder, iteration, second=0):
    return folder / f"job_recovery_iteration_{iteration}_20260101_0000{second:02}.ckpt"


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path):
    path.write_bytes(bytes(range(256)) * 4)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut_between_two_weights(path):
    save_model(path, {"conv.weight": WEIGHTS["conv.weight"]})


BREAKS = {
    "it is empty": lambda path: path.write_bytes(b""),
    "no MindSpore checkpoint, or cut short": cut_short,
    "no MindSpore checkpoint, or": garbage,
    "no MindSpore checkpoint": zeros,
    "1 weights are not in it, first fc.bias": cut_between_two_weights,
}


@pytest.mark.parametrize(("words", "spoil"), BREAKS.items())
def test_a_broken_newest_file_is_named_and_the_one_before_taken(tmp_path, words, spoil):
    for iteration in range(4):
        save_model(file(tmp_path, iteration))
    spoil(file(tmp_path, 3))
    files, (warning,) = usable_files(tmp_path, "job")
    assert [f.iteration for f in files] == [2, 1, 0]
    assert str(file(tmp_path, 3)) in warning and words in warning
    assert require_iterations_left(tmp_path, "job", 5) == 3


def test_every_length_that_a_file_can_be_cut_to_is_noticed(tmp_path):
    initial, cut = save_model(file(tmp_path, 0)), file(tmp_path, 1)
    content = save_model(cut).read_bytes()
    needed, _ = look_into(initial)
    assert needed and fault_of(cut, needed) == ""
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert fault_of(cut, needed), length


def test_what_was_written_anew_under_the_same_number_is_taken(tmp_path):
    for iteration in (0, 1):
        save_model(file(tmp_path, iteration))
    file(tmp_path, 2).write_bytes(b"")
    save_model(file(tmp_path, 2, second=30))
    files, warnings = usable_files(tmp_path, "job")
    assert [f.path for f in files][0] == file(tmp_path, 2, second=30) and not warnings


def test_none_that_is_whole_is_one_line(tmp_path):
    for iteration in range(2):
        file(tmp_path, iteration).write_bytes(b"x" * 50)
    with pytest.raises(UserError, match="none of the 2 recovery files of job is whole"):
        usable_files(tmp_path, "job")
    assert usable_files(tmp_path, "other") == ([], [])


def test_a_new_instance_begins_from_the_newest_whole_file(tmp_path):
    newer = {name: array * 3 for name, array in WEIGHTS.items()}
    save_model(file(tmp_path, 0))
    save_model(file(tmp_path, 1), newer)
    garbage(save_model(file(tmp_path, 2)))
    warning, _ = begin_from_newest(tmp_path, "job")
    assert str(file(tmp_path, 2)) in warning
    files, _ = usable_files(tmp_path, "job")
    assert files[0].iteration == 0
    assert files[0].path.read_bytes() == save_model(tmp_path / "newer.ckpt", newer).read_bytes()
