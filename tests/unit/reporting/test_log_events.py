"""Warnings and faults from the logs: which lines count, when, whose, and how often."""

import json

import pytest
from run_folders import engine_line, own_line, stamp, write_worker

from src.job.job_start import note_start
from src.reporting.log_events import most_serious, read_logs
from src.reporting.run_folder import read_run


def events_of(folder):
    return read_logs(read_run(folder)).events


@pytest.fixture
def log_of(tmp_path):
    """Events of a worker whose log ends with the given lines, the last at the run's 5th second."""

    def read(*lines):
        write_worker(tmp_path / "worker_0", [[1.0]], more=lines)
        return [(event.level, event.text) for event in events_of(tmp_path)]

    return read


@pytest.mark.parametrize(
    "line",
    [
        own_line(5, "worker_0", "sent 166.1 MB in 0.9 s"),
        own_line(5, "worker_0", "waiting for the others of 2 silos in iteration 3, 5 s"),
        own_line(5, "worker_0", "ended; exit code 0"),
        own_line(5, "worker_0", "finished, then stopped by SIGTERM; exit code 0"),
        engine_line(5, "INFO", "Run] Server started successfully."),
        engine_line(5, "WARNING", "Stop] Stop the restful scheduler http service, the ip is x"),
        "a line of some library",
    ],
)
def test_a_healthy_line_is_no_event(log_of, line):
    assert log_of(line) == []


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (own_line(5, "w", "WARNING: no fingerprint"), "warning", "no fingerprint"),
        (own_line(5, "w", "ERROR: broken"), "fault", "broken"),
        (own_line(5, "w", "killed by SIGKILL; exit code 137"), "fault", None),
        (own_line(5, "w", "stopped by SIGTERM; exit code 0"), "warning", None),
        (own_line(5, "w", "waiting for the servers (refused), 0 s"), "warning", None),
        (own_line(5, "w", "iteration 3 failed at the servers, this silo's"), "fault", None),
        (own_line(5, "w", "iteration 3 ended without this silo's weights: "), "warning", None),
        ("error: the loss is nan", "fault", "the loss is nan"),
        (engine_line(5, "WARNING", "Get] Reply invalid"), "warning", "Get: Reply invalid"),
        (engine_line(5, "ERROR", "verify] : null"), "fault", "verify: null"),
        ("[CRITICAL] ME(1:2,MainProcess):2026-11-22-08:00:05.1.2 [a/b.cc:7] no", "fault", "no"),
    ],
)
def test_a_line_that_tells_of_trouble_is_an_event(log_of, line, level, text):
    text = text or line.split("] ", 1)[1]
    assert log_of(line) == [(level, text)]


def test_of_a_traceback_the_last_line_counts(log_of):
    lines = [
        "Traceback (most recent call last):",
        '  File "x.py", line 3, in <module>',
        "    raise ValueError(1)",
        "ValueError: 1",
        "ValueError: this one follows no traceback",
    ]
    assert log_of(*lines) == [("fault", "ValueError: 1")]


def test_events_of_all_roles_are_in_time_order_with_a_time_each(tmp_path):
    write_worker(tmp_path / "worker_0", [[1.0, 2.0]], more=["error: lost"])
    for role, name, seconds in (("server_1", "server", 1), ("scheduler", "scheduler", 9)):
        (tmp_path / role).mkdir()
        line = engine_line(seconds, "ERROR", f"Do] {role} failed")
        (tmp_path / role / f"{name}.log").write_text(line + "\n")
    logs = read_logs(read_run(tmp_path))
    assert [event.role for event in logs.events] == ["server_1", "worker_0", "scheduler"]
    assert [str(event.time) for event in logs.events] == [stamp(1), stamp(2), stamp(9)]
    assert logs.events[0].source == "redis.cc:310"
    assert (str(logs.first), str(logs.last)) == (stamp(0), stamp(9))


def test_what_repeats_within_a_minute_is_counted(tmp_path):
    lines = [engine_line(5 + i, "WARNING", f"Get] try {i}") for i in range(30)]
    lines.append(engine_line(500, "WARNING", "Get] try 99"))
    write_worker(tmp_path / "worker_0", [[1.0]], more=lines)
    assert [event.count for event in events_of(tmp_path)] == [30, 1]


def test_logs_of_an_earlier_run_are_left_out_and_those_of_replaced_roles_are_not(tmp_path):
    write_worker(tmp_path / "worker_0", [[1.0]], seconds=100)
    for name, seconds in (("server_0.1", 50), ("server_0.2", 120), ("server_0", 130)):
        (tmp_path / name).mkdir()
        line = own_line(seconds, "server_0", "killed by SIGKILL; exit code 137")
        (tmp_path / name / "server.log").write_text(line + "\n")
    assert [event.role for event in events_of(tmp_path)] == ["server_0.2", "server_0"]


def test_a_server_that_only_the_job_before_had_is_left_out(tmp_path):
    for role, seconds in (("server_1", 50), ("scheduler", 60), ("server_0", 95)):
        if role == "server_0":
            note_start(tmp_path)
        (tmp_path / role).mkdir()
        line = own_line(seconds, role, "killed by SIGKILL; exit code 137")
        (tmp_path / role / f"{role.split('_')[0]}.log").write_text(line + "\n")
    entry = {"currentIteration": 2, "iterationResult": "fail", "endTime": stamp(50)}
    (tmp_path / "server_1" / "metrics.json").write_text(json.dumps(entry) + "\n")
    write_worker(tmp_path / "worker_0", [[1.0]], seconds=100)
    assert [event.role for event in events_of(tmp_path)] == ["scheduler", "server_0"]


def test_the_servers_own_summary_tells_of_failed_iterations(tmp_path):
    write_worker(tmp_path / "worker_0", [[1.0]])
    (tmp_path / "server_0").mkdir()
    entries = [
        {"currentIteration": 1, "iterationResult": "success", "endTime": stamp(1)},
        {"currentIteration": 2, "iterationResult": "fail", "endTime": stamp(7) + ".063"},
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "server_0" / "metrics.json").write_text(text + '{"torn')
    ((level, text),) = ((event.level, event.text) for event in events_of(tmp_path))
    assert level == "fault" and "iteration 2 failed" in text


def test_a_cap_keeps_faults_before_warnings_in_time_order(log_of, tmp_path):
    lines = [own_line(5 + i, "w", f"WARNING: {'x' * i}") for i in range(9)]
    log_of(*lines, own_line(20, "w", "ERROR: late"))
    kept = most_serious(events_of(tmp_path), 3)
    assert [event.text for event in kept] == ["", "x", "late"]


def test_a_start_that_failed_stands_apart_and_one_that_took_part_does_not(tmp_path):
    worker = write_worker(tmp_path / "worker_0", [[1.0]], seconds=100)
    note_start(tmp_path)  # of servers that have started since
    (worker / "worker.log").write_text((worker / "worker.log").read_text() + "more\n")
    ends = {1: "error: val_set x.json: no such file", 2: "error: the loss is nan"}
    for number, line in ends.items():
        folder = tmp_path / f"worker_0.{number}"
        folder.mkdir()
        lines = [line, own_line(10 * number, "worker_0", "ended; exit code 2")]
        if number == 2:
            lines.insert(0, own_line(15, "worker_0", "joined iteration 1 of 9 as silo 0 with 2"))
        (folder / "worker.log").write_text("\n".join(lines) + "\n")
    logs = read_logs(read_run(tmp_path))
    (failed,) = logs.failed_starts
    assert (failed.role, failed.text) == ("worker_0.1", "val_set x.json: no such file")
    assert f"{failed.time:%Y-%m-%d %H:%M:%S}" == stamp(10)
    assert {event.role for event in logs.events} == {"worker_0.2"}
    assert f"{logs.first:%Y-%m-%d %H:%M:%S}" == stamp(15)
