"""Roles under supervision: their start, the wait until they serve, their end."""

import subprocess
import sys

import psutil
import pytest

from src.errors import StartError, UserError
from src.job.job_record import read_record
from src.launch import processes
from src.launch.launchers import start_all
from src.launch.processes import Role, record_process, start, stop, stop_started, wait_until_ready

pytestmark = pytest.mark.usefixtures("own_index")


def test_stop_ends_only_what_is_recorded(tmp_path, sleeper):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record_process(tmp_path, "worker", 0, sleeper.pid, tmp_path, "")
        assert stop(read_record(tmp_path).running(), grace_s=5) == []
        assert not psutil.pid_exists(sleeper.pid)
        assert psutil.pid_exists(other.pid)
    finally:
        other.kill()
        other.wait()


def test_stop_kills_what_does_not_end(tmp_path):
    stubborn = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    stubborn.stdout.readline()
    record_process(tmp_path, "server", 0, stubborn.pid, tmp_path, "")
    lines = stop(read_record(tmp_path).running(), grace_s=0.5)
    assert lines == [f"server_0 (pid {stubborn.pid}) had to be killed"]
    assert not psutil.pid_exists(stubborn.pid)


def test_one_that_has_ended_and_that_nobody_waits_for_is_no_longer_waited_for(tmp_path):
    careless = (
        "import subprocess, sys, time; "
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']; "
        "print(subprocess.Popen(sleep).pid); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-uc", careless], stdout=subprocess.PIPE)
    try:
        pid = int(parent.stdout.readline())
        record_process(tmp_path, "worker", 0, pid, tmp_path, "")
        assert stop(read_record(tmp_path).running(), grace_s=20) == []
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    finally:
        parent.kill()
        parent.wait()


def started(base, one):
    found = []
    start(base, one, found)
    return found[0]


def role(*lines):
    return Role("worker", 0, [sys.executable, "-uc", "; ".join(["import time", *lines])])


def test_the_second_start_of_a_role_is_refused_and_the_first_goes_on(tmp_path):
    first = started(tmp_path, role("time.sleep(60)"))
    try:
        with pytest.raises(UserError, match="worker_0 of this folder is running already"):
            started(tmp_path, role("time.sleep(60)"))
        assert [p.pid for p in read_record(tmp_path).running()] == [first.supervisor.pid]
        assert not (tmp_path / "worker_0.1").exists()
    finally:
        first.supervisor.terminate()
        first.supervisor.wait(timeout=20)


def test_a_signal_before_a_role_is_recorded_stops_it_too(tmp_path, monkeypatch, capsys):
    pids = []

    def interrupted(record, entry):
        pids.append(entry.pid)
        raise SystemExit(143)

    monkeypatch.setattr(processes, "_enter", interrupted)
    with pytest.raises(SystemExit):
        start_all(tmp_path, [role("time.sleep(60)")], 20, lambda _: False)
    assert "stopped worker_0\n" in capsys.readouterr().out
    assert not read_record(tmp_path)
    assert not psutil.pid_exists(pids[0])


def test_roles_are_stopped_after_their_jobs_folder_was_renamed(tmp_path, capsys):
    base, found = tmp_path / "job", []
    base.mkdir()
    start(base, role("time.sleep(60)"), found)
    base.rename(tmp_path / "renamed")
    stop_started(base, found)
    assert "stopped worker_0\n" in capsys.readouterr().out
    assert not psutil.pid_exists(found[0].entry.pid)


@pytest.mark.parametrize(("code", "ready"), [(0, False), (3, True), (3, False)])
def test_a_role_that_ended_badly_or_before_it_was_ready(tmp_path, code, ready):
    ended = started(tmp_path, role(f"raise SystemExit({code})"))
    ended.supervisor.wait(timeout=20)
    with pytest.raises(StartError, match=f"worker_0 ended with exit code {code}") as caught:
        wait_until_ready([ended], lambda _: ready, 5)
    assert caught.value.code == (code or 1)


def test_a_role_that_was_ready_may_have_ended_well(tmp_path):
    ended = started(tmp_path, role("raise SystemExit(0)"))
    ended.supervisor.wait(timeout=20)
    wait_until_ready([ended], lambda _: True, 5)
