"""Recovery files: which ones a start takes, also where a power cut has broken some of them."""

import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from mindspore_federated.startup.feature_map import FeatureMap
from models import WEIGHTS, save_model

from src.errors import UserError
from src.federated.fingerprint import opened
from src.federated.server import ServerJob
from src.job.recovery_files import (
    begin_from_newest,
    list_recovery_files,
    put_aside_earlier_run,
    recovery_name,
    require_iterations_left,
    usable_files,
)
from src.model_utils.config import PROJECT_DIR
from src.weights.ckpt_file import MARK, fault_of, look_into, mark_fault

# A server that saves the models of iterations 1 and 2 and is killed half-way through the second.
KILLED_SERVER = """
import os, signal, sys
from tests.unit.job.test_recovery_files import features, server_in
from src.federated import server

whole = server.save_ms_checkpoint
job = server_in(sys.argv[1])
job._save_feature_map(features(), 1)

def half(path, feature_map):
    whole(path, feature_map)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

server.save_ms_checkpoint = half
job._save_feature_map(features(), 2)
"""


MARKED = {**WEIGHTS, MARK: np.float32([7, 8, 9])}


def server_in(folder):
    yaml = str(PROJECT_DIR / "default_yaml_config.yaml")
    return ServerJob("server_0", yaml, "127.0.0.1:1", "127.0.0.1", str(folder))


def features():
    found = FeatureMap()
    for name, value in WEIGHTS.items():
        found.add_feature(name, value, require_aggr=True)
    return found


def file(folder, iteration, second=0):
    return folder / f"job_recovery_iteration_{iteration}_20260101_0000{second:02}.ckpt"


def test_recovery_files_of_this_job_newest_first(tmp_path):
    for name in (
        "job_recovery_iteration_2_20260101_000000.ckpt",
        "job_recovery_iteration_10_20260101_000000.ckpt",
        "job_recovery_iteration_10_20260101_000001.ckpt",
        "job_recovery_iteration_x_20260101_000000.ckpt",
        "another_job_recovery_iteration_3_20260101_000000.ckpt",
        recovery_name("job", 0),
    ):
        (tmp_path / name).touch()
    found = list_recovery_files(tmp_path, "job")
    assert [f.iteration for f in found] == [10, 10, 2, 0]
    assert found[0].stamp == "20260101_000001"


def test_an_earlier_runs_files_go_aside_and_the_initial_one_stays(tmp_path):
    file(tmp_path, 0).touch()
    assert put_aside_earlier_run(tmp_path, "job") is None
    file(tmp_path, 3).touch()
    aside = put_aside_earlier_run(tmp_path, "job")
    assert [f.iteration for f in list_recovery_files(tmp_path, "job")] == [0]
    assert [f.iteration for f in list_recovery_files(aside, "job")] == [3]


def test_the_users_own_later_file_is_what_a_start_goes_on_from(tmp_path):
    save_model(file(tmp_path, 3))
    assert put_aside_earlier_run(tmp_path, "job") is None
    assert require_iterations_left(tmp_path, "job", 5) == 4
    with pytest.raises(UserError, match="nothing is left to do"):
        require_iterations_left(tmp_path, "job", 3)


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path):
    path.write_bytes(bytes(range(256)) * 4)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut_between_two_weights(path):
    save_model(path, {"conv.weight": WEIGHTS["conv.weight"]})


def all_zero(path):
    save_model(path, {name: np.zeros_like(value) for name, value in MARKED.items()})


def one_not_finite(path):
    bias = WEIGHTS["fc.bias"].copy()
    bias[4] = np.inf
    save_model(path, {**MARKED, "fc.bias": bias})


def another_fingerprint(path):
    save_model(path, {**MARKED, MARK: MARKED[MARK] + np.float32([0, 4, 0])})


BREAKS = {
    "it is empty": lambda path: path.write_bytes(b""),
    "no MindSpore checkpoint, or cut short": cut_short,
    "no MindSpore checkpoint, or": garbage,
    "no MindSpore checkpoint": zeros,
    "2 weights are not in it, first fc.bias": cut_between_two_weights,
    "all its weights are zero": all_zero,
    "1 of the 7 values of fc.bias are NaN or infinite": one_not_finite,
    "1 of the 3 numbers of its fingerprint are not those of this job": another_fingerprint,
}


@pytest.mark.parametrize(("words", "ruin"), BREAKS.items())
def test_a_broken_newest_file_is_named_and_the_one_before_taken(tmp_path, words, ruin):
    for iteration in range(4):
        save_model(file(tmp_path, iteration), MARKED)
    ruin(file(tmp_path, 3))
    files, (warning,) = usable_files(tmp_path, "job")
    assert [f.iteration for f in files] == [2, 1, 0]
    assert str(file(tmp_path, 3)) in warning and words in warning
    assert require_iterations_left(tmp_path, "job", 5) == 3


def test_a_start_from_other_frozen_weights_leaves_another_number_in_the_fingerprint():
    initial = opened(MARKED[MARK])
    for found, words in (
        ([7, 8, 10], ""),
        ([7, 3, 10], "2 of the 3 numbers"),
        ([6, 8, 9], "1 of the 3 numbers"),  # the first one is of the version
        ([7, np.nan, np.nan], "2 of the 3 numbers"),
        ([7, 8], "has 2 numbers where 3 are due"),
    ):
        fault = mark_fault(initial, np.float32(found))
        assert words in fault and bool(words) == bool(fault)
    assert mark_fault(-initial, np.float32([7, 8, 10]))


def test_the_commands_of_the_page_go_back_to_an_earlier_iteration(tmp_path, monkeypatch):
    page = (PROJECT_DIR / "docs" / "recovery.md").read_text(encoding="utf-8")
    section = page.split("To go back by hand")[1].split("```")[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fl_ckpt").mkdir()
    for iteration in (0, 5, 6, 7):
        save_model(tmp_path / "fl_ckpt" / recovery_name("FasterRCNN", iteration))
    for command in section.strip().splitlines()[1:]:
        words = [
            [str(path) for path in tmp_path.glob(word)] or [word] for word in shlex.split(command)
        ]
        subprocess.run(sum(words, []), check=True, timeout=10)
    files, warnings = usable_files(tmp_path / "fl_ckpt", "FasterRCNN")
    assert [f.iteration for f in files] == [5, 0] and not warnings
    assert require_iterations_left(tmp_path / "fl_ckpt", "FasterRCNN", 10, resume=True) == 6


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


def test_a_server_that_is_killed_while_it_writes_leaves_the_file_before(tmp_path):
    command = [sys.executable, "-c", KILLED_SERVER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_DIR), *sys.path])}
    assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "the first file, and half of the second"
    files, warnings = usable_files(tmp_path, "FasterRCNN")
    assert [f.iteration for f in files] == [1] and not warnings
    server_in(tmp_path)._save_feature_map(features(), 2)
    assert [f.iteration for f in usable_files(tmp_path, "FasterRCNN")[0]] == [2, 1]
    assert len(list(tmp_path.iterdir())) == 2, "the half is gone"
