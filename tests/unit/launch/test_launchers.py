"""What launchers have in common: they start roles, wait for them, and say for what."""

from types import SimpleNamespace

import pytest

from src.errors import StartError
from src.job.job_record import StatusFile, status_path
from src.launch.launchers import still_waiting
from src.launch.processes import Role, Started, wait_until_ready

SERVERS = "the servers (unreachable: 10.0.0.2:6668: connection refused)"


def test_a_launcher_that_waits_says_what_its_workers_do_not_reach(tmp_path):
    logs = [tmp_path / f"worker_{number}.log" for number in range(2)]
    stamp = "[2026-11-22 08:00:00][worker_0]"
    logs[0].write_text(f"{stamp} note: x\n{stamp} waiting for {SERVERS}, 5 s, gives up in 595 s\n")
    logs[1].write_text(f"{stamp} waiting for {SERVERS}, 5 s, gives up in 595 s\n{stamp} joined\n")
    StatusFile(status_path(tmp_path, "worker_1")).update(phase="compiling")
    running = SimpleNamespace(poll=lambda: None)
    started = [
        Started(Role("worker", number, []), running, log, tmp_path / "exit.json")
        for number, log in enumerate(logs)
    ]
    with pytest.raises(StartError) as error:
        wait_until_ready(started, lambda _: False, 0.3, still_waiting(tmp_path))
    said = str(error.value)
    assert said.startswith("not ready within 0 s (--start_timeout): worker_0 (")
    assert said.endswith(
        f"; it was waiting for worker_0, which waits for {SERVERS}, worker_1: compiling"
    )
