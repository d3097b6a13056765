"""Which process a pid means, and the lock that tells that one lives."""

import os
import subprocess
import sys

import psutil

from src.job.process_identity import folder_id, held_lock, is_locked, start_ticks, this_place


def test_a_process_keeps_its_start_in_ticks_and_an_ended_one_has_none(sleeper):
    ticks = start_ticks(sleeper.pid)
    seconds = ticks / os.sysconf("SC_CLK_TCK")
    since_boot = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
    assert abs(seconds - since_boot) < 0.1
    assert start_ticks(sleeper.pid) == ticks > start_ticks(os.getpid())
    sleeper.kill()
    sleeper.wait()
    assert start_ticks(sleeper.pid) is None


def test_a_name_with_spaces_and_brackets_does_not_shift_the_fields(tmp_path):
    odd = tmp_path / "a ) 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "60"])
    try:
        assert start_ticks(process.pid) >= start_ticks(os.getpid())
    finally:
        process.kill()
        process.wait()


def test_the_place_of_this_process_is_known():
    place = this_place()
    assert place.host and len(place.boot_id) == 36
    assert place.pid_namespace.startswith("pid:[")
    assert place == this_place()


def test_a_renamed_folder_is_the_same_and_a_copied_one_is_not(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    before = folder_id(first)
    moved = first.rename(tmp_path / "moved")
    copy = tmp_path / "first"
    copy.mkdir()
    assert folder_id(moved) == before != folder_id(copy)


def test_a_lock_lives_as_long_as_the_child_that_inherits_it(tmp_path):
    path = tmp_path / "locks" / "worker_0"
    assert is_locked(path) is None
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with held_lock(path) as handles:
        child = subprocess.Popen(command, pass_fds=handles)
    try:
        assert is_locked(path) is True
        with held_lock(path) as handles:
            assert handles == ()
    finally:
        child.kill()
        child.wait()
    assert is_locked(path) is False
