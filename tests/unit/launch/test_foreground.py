"""--foreground: a launcher that stays with what it started."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import processes_of

from src.job.job_record import read_record
from src.launch.foreground import LogTail, launch_and_stay

# The launcher's part with plain processes in place of the engine's.
PROGRAM = """
import sys
from pathlib import Path
from src.launch.foreground import launch_and_stay
from src.launch.launchers import start_all
from src.launch.processes import Role

def launch():
    roles = [Role("worker", n, [sys.executable, "-c", code]) for n, code in enumerate(sys.argv[1:])]
    return start_all(Path.cwd(), roles, 30, lambda started: started.log.stat().st_size > 0)

sys.exit(launch_and_stay(True, launch))
"""
PROJECT_DIR = Path(__file__).resolve().parents[3]


def started(folder, *codes):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *codes],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT_DIR), "XDG_STATE_HOME": str(folder / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_ends_with_the_highest_exit_code_and_prints_the_logs(tmp_path):
    late = (
        "import time; print('one', flush=True); time.sleep({}); print('two'); raise SystemExit({})"
    )
    process = started(tmp_path, late.format(1, 0), late.format(2, 7))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 7, said
    lines = said.splitlines()
    for label in ("worker_0", "worker_1"):
        assert f"{label} | one" in lines and f"{label} | two" in lines
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_what_was_started(tmp_path, name):
    process = started(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    deadline = time.monotonic() + 60
    while "up" not in process.stdout.readline():
        assert time.monotonic() < deadline
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped by SIGTERM" in said
    assert not read_record(tmp_path).running()


def test_a_signal_after_all_was_done_is_still_a_success(tmp_path):
    path = tmp_path / ".federation" / "status" / "worker_0.json"
    done = f'from pathlib import Path; Path({str(path)!r}).write_text(\'{{"phase": "finished"}}\')'
    process = started(tmp_path, f"{done}; import time; print('up', flush=True); time.sleep(600)")
    deadline = time.monotonic() + 60
    while "up" not in process.stdout.readline():
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "finished, then stopped by SIGTERM; exit code 0" in said


def test_a_supervisor_that_is_killed_is_no_success(tmp_path):
    process = started(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    deadline = time.monotonic() + 60
    while "up" not in process.stdout.readline():
        assert time.monotonic() < deadline
    (record,) = read_record(tmp_path).running()
    record.process().kill()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_signal_while_it_still_waits_stops_it_too(tmp_path):
    process = started(tmp_path, "import time; time.sleep(600)")
    deadline = time.monotonic() + 60
    while not (record := read_record(tmp_path)) or not record.running():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "stopped worker_0\n" in said
    assert process.returncode == 128 + signal.SIGTERM
    assert not processes_of(tmp_path)


def test_without_the_flag_the_launcher_returns():
    calls = []
    assert launch_and_stay(False, lambda: calls.append(1)) == 0
    assert calls == [1]


def test_a_log_that_is_begun_anew_is_read_on(tmp_path, capsys):
    path = tmp_path / "worker.log"
    path.write_text("one\ntw")
    tail = LogTail(path, "worker_0")
    tail.show()
    assert capsys.readouterr().out == "worker_0 | one\n"
    with path.open("a") as log:
        log.write("o\nthree\n")
    path.rename(tmp_path / "worker.log.1")
    path.write_text("four\n")
    tail.show()
    out = capsys.readouterr().out
    assert out == "worker_0 | two\nworker_0 | three\nworker_0 | four\n"
