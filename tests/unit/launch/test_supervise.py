"""The process next to each role: signals, the end of its folder, a log that cannot be written."""

import json
import os
import shutil
import signal
import socket

"""The process next to each role: how the role ends, and its log when that cannot be written."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import processes_of, wait_for

from src.job.job_record import StatusFile, exit_states, status_path
from src.launch.processes import SUPERVISOR
from src.launch.supervise import SuperviseSpec
from src.model_utils.config import PROJECT_DIR

OBEYS = "import time; print('up', flush=True); time.sleep(60)"
DISOBEYS = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {OBEYS}"
LIMIT_S = 30
JOB = "FasterRCNN"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Supervised:
    """A role of a few lines of Python under a real supervisor, in a folder of its own."""

    def __init__(self, folder, label, *lines, **spec):
        self.folder, self.label = folder, label
        self.log = folder / f"{label}.log"
        self.status = status_path(folder, label)
        code = "; ".join(["import os, sys, time", *lines, "print('up', flush=True)"])
        code += "; time.sleep(60)"
        values = SuperviseSpec(
            label=label,
            argv=[sys.executable, "-c", code],
            log=str(self.log),
            exit_file=str(self.status.with_name(f"{label}.exit.json")),
            **spec,
        )
        path = folder / "spec.json"
        path.write_text(json.dumps(asdict(values)))
        self.log.touch()
        environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
        self.process = subprocess.Popen([sys.executable, str(SUPERVISOR), path], env=environment)
        wait_for(lambda: "up" in self.log.read_text(), 30, "the role")

    def end(self):
        """Its exit code and reason, which both the supervisor and its file tell."""
        code = self.process.wait(timeout=30)
        state = exit_states(self.folder)[self.label]
        assert state["code"] == code
        assert f"{state['reason']}; exit code {code}" in self.log.read_text()
        return code, state["reason"]


@pytest.fixture
def supervised(tmp_path):
    started = []

    def start(label, *lines, **spec):
        started.append(Supervised(tmp_path, label, *lines, **spec))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def finished_job(redis, redis_port):
    """Redis says that the job is finished and that its servers have gone."""
    redis.set(f"ms_fl:{JOB}:InstanceName:String", "i")
    redis.hset(f"ms_fl:{JOB}:i:status:Hash", "runningState", 2)
    address = ["127.0.0.1", redis_port]
    return {"redis": address, "fl_name": JOB, "http_port": 1, "fetch_timeout_s": 0, "tls": {}}


@pytest.mark.parametrize(
    ("lines", "how"),
    [
        ([], ""),
        ([STUBBORN], " (it had to be killed)"),
        (["import signal", "signal.signal(15, lambda *_: sys.exit(7))"], " (it ended with 7)"),
    ],
)
def test_a_role_whose_job_is_done_is_a_success_however_it_dies(
    supervised, finished_job, lines, how
):
    role = supervised("scheduler", *lines, job_end=finished_job, grace_s=0.5)
    assert role.end() == (0, f"job finished, every silo has left{how}")


@pytest.mark.parametrize(("good", "code"), [(2, 0), (1, 1), (0, 1)])
def test_a_server_of_a_job_that_came_to_too_little_has_failed(
    supervised, finished_job, redis, tmp_path, good, code
):
    redis.hset(f"ms_fl:{JOB}:i:status:Hash", "iterationNum", 5)
    metrics = tmp_path / "metrics.json"
    results = ["success"] * good + ["fail"] * (4 - good)
    lines = [{"currentIteration": n, "iterationResult": r} for n, r in enumerate(results, 1)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job_end = {**finished_job, "metrics": str(metrics)}
    role = supervised("server_0", STUBBORN, job_end=job_end, grace_s=0.5)
    words = f"{good} of 4 iterations aggregated, {4 - good} failed (it had to be killed)"
    assert role.end() == (code, f"job finished, every silo has left; {words}")


def test_a_signal_to_a_role_whose_job_is_done_takes_nothing_of_the_success(
    supervised, finished_job
):
    tells = "import signal; signal.signal(15, lambda *_: print('asked to end', flush=True))"
    role = supervised("scheduler", tells, job_end=finished_job, grace_s=600, stop_grace_s=0.5)
    wait_for(lambda: "asked to end" in role.log.read_text(), 30, "the job's end")
    role.process.terminate()
    assert role.end() == (0, "job finished, every silo has left (it had to be killed)")


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        ([], 0, "stopped by SIGTERM"),
        # As the process above several ranks ends.
        (["import signal", "signal.signal(15, lambda *_: sys.exit(143))"], 0, "stopped by SIGTERM"),
        (["import signal", "signal.signal(15, lambda *_: sys.exit(3))"], 3, "stopped by SIGTERM"),
        ([STUBBORN], 137, "stopped by SIGTERM and killed 1 s later"),
        # As the kernel ends one that runs out of memory meanwhile.
        (
            ["import signal", "signal.signal(15, lambda *_: os.kill(os.getpid(), 9))"],
            137,
            "stopped by SIGTERM, then killed by SIGKILL",
        ),
    ],
)
def test_a_role_that_the_user_stops(supervised, lines, code, reason):
    role = supervised("worker_0", *lines, stop_grace_s=1.0)
    role.process.terminate()
    assert role.end() == (code, reason)


@pytest.mark.parametrize("phase", ["finished", "train"])
@pytest.mark.parametrize("stop", [True, False])
def test_a_worker_that_is_hit_after_it_was_finished_has_not_failed(
    supervised, tmp_path, phase, stop
):
    status = status_path(tmp_path, "worker_0")
    role = supervised("worker_0", "print('pid', os.getpid())", status_file=str(status))
    StatusFile(status).update(phase=phase)
    if stop:
        role.process.terminate()
    else:
        pid = int(role.log.read_text().split("pid ")[1].split()[0])
        os.kill(pid, signal.SIGKILL)
    expected = {
        (True, "finished"): (0, "finished, then stopped by SIGTERM"),
        (True, "train"): (0, "stopped by SIGTERM"),
        (False, "finished"): (0, "finished, then killed by SIGKILL"),
        (False, "train"): (137, "killed by SIGKILL"),
    }
    assert role.end() == expected[stop, phase]


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
    process = supervise(folder, DISOBEYS, grace_s=600, stop_grace_s=1)
    when_up(folder)
    process.terminate()
    assert end_of(folder, process) == (
        137,
        {"code": 137, "reason": "stopped by SIGTERM and killed 1 s later"},
    )
    assert "did not end within 1 s of SIGTERM, killing it" in log(folder)


@pytest.mark.parametrize(
    ("program", "code", "how"),
    [(OBEYS, 0, ""), (DISOBEYS, 137, " and killed 1 s later")],
    ids=["obeys", "stubborn"],
)
def test_a_signal_while_redis_is_asked_is_not_forgotten(folder, program, code, how):
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
    assert end_of(folder, process) == (code, {"code": code, "reason": f"stopped by SIGTERM{how}"})


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


ENGINE_LINE = "[WARNING] FEDERATED(%d,7f,python):2026-01-01-00:00:00.0 [file.cc:1] Run] of a silo "
FORGED = "[2026-01-01 00:00:00][server_0] iteration 30 is done"


def test_words_of_the_engine_forge_no_line_of_the_role(supervised):
    words = f"{ENGINE_LINE}x\r\n{FORGED}\nerror: forged\n"
    role = supervised(
        "server_0",
        "from src.launch.supervise import own_output",
        "own_output()",
        f"os.write(2, ({words!r} % os.getpid()).encode())",
        "time.sleep(0.5)",
        "print('error: its own', file=sys.stderr)",
    )
    role.process.terminate()
    role.process.wait(timeout=30)
    lines = role.log.read_text().splitlines()
    assert lines[0].endswith("of a silo x\\r")
    assert lines[1:4] == [f"  | {FORGED}", "  | error: forged", "error: its own"]
