"""The process beside each role: signals, the end of its folder, a log that cannot be written."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import processes_of, wait_for

from src.launch.processes import SUPERVISOR
from src.launch.supervise import SuperviseSpec
from src.model_utils.config import PROJECT_DIR

OBEYS = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {OBEYS}"
LIMIT_S = 30


def supervise(folder, program, **values):
    """A supervisor in `folder` of a role that runs `program`; its own files lie above."""
    above = folder.parent
    values = {"log": str(above / "worker.log"), "exit_file": str(above / "exit.json"), **values}
    spec = SuperviseSpec(label="worker_0", argv=[sys.executable, "-c", program], **values)
    (above / "spec.json").write_text(json.dumps(asdict(spec)))
    command = [sys.executable, str(SUPERVISOR), str(above / "spec.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    return subprocess.Popen(command, env=environment, cwd=folder)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    yield folder
    for process in processes_of(tmp_path):
        process.kill()


def log(folder):
    path = folder.parent / "worker.log"
    return path.read_text() if path.exists() else ""


def end_of(folder, process):
    """Exit code of the supervisor, and what its exit file says."""
    code = process.wait(LIMIT_S)
    return code, json.loads((folder.parent / "exit.json").read_text())


def when_up(folder):
    wait_for(lambda: "up" in log(folder), LIMIT_S, "the role")


def test_a_full_disk_does_not_stop_a_role_that_talks(folder):
    process = supervise(folder, "print('line\\n' * 100_000)", log="/dev/full")
    assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_role_and_is_its_reason(folder, number):
    process = supervise(folder, OBEYS)
    when_up(folder)
    process.send_signal(number)
    reason = f"stopped by {number.name}"
    assert end_of(folder, process) == (0, {"code": 0, "reason": reason})
    assert f"{reason}; exit code 0" in log(folder)


def test_a_role_that_does_not_obey_is_killed_after_the_grace_of_a_stop(folder):
    process = supervise(folder, STUBBORN, grace_s=600, stop_grace_s=1)
    when_up(folder)
    process.terminate()
    assert end_of(folder, process) == (137, {"code": 137, "reason": "stopped by SIGTERM"})
    assert "did not end within 1 s of SIGTERM, killing it" in log(folder)


@pytest.mark.parametrize(
    ("program", "code"), [(OBEYS, 0), (STUBBORN, 137)], ids=["obeys", "stubborn"]
)
def test_a_signal_while_redis_is_asked_is_not_forgotten(folder, program, code):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(LIMIT_S)
        values = {"redis": silent.getsockname(), "fl_name": "job", "http_port": 0, "tls": {}}
        process = supervise(
            folder, program, job_end={**values, "fetch_timeout_s": 1}, grace_s=600, stop_grace_s=1
        )
        when_up(folder)
        asked, _ = silent.accept()
        asked.recv(1000)
        process.terminate()
        # Only an answer, or its absence, ends the question.
        wait_for(lambda: _signal_was_seen(process), LIMIT_S, "the signal")
    asked.close()
    assert end_of(folder, process) == (code, {"code": code, "reason": "stopped by SIGTERM"})


def _signal_was_seen(process):
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    pending = [line.split()[1] for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return not any(int(value, 16) >> (signal.SIGTERM - 1) & 1 for value in pending)


def test_a_role_whose_folder_was_removed_ends_and_does_not_make_it_again(folder):
    process = supervise(folder, OBEYS)
    when_up(folder)
    moved = folder.rename(folder.parent / "moved")
    folder.symlink_to(moved)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    shutil.rmtree(moved)
    assert process.wait(LIMIT_S) == 0
    assert "the job's folder was removed; exit code 0" in log(folder)
    assert not (folder.parent / "exit.json").exists()


@pytest.mark.parametrize(("program", "code", "reason"), [
    ("raise SystemExit(0)", 0, "ended"),
    ("raise SystemExit(3)", 3, "ended"),
    ("import os; os.kill(os.getpid(), 9)", 137, "killed by SIGKILL"),
])  # fmt: skip
def test_a_role_that_ends_by_itself_gives_its_code(folder, program, code, reason):
    assert end_of(folder, supervise(folder, program)) == (code, {"code": code, "reason": reason})
