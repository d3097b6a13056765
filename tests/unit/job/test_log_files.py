"""Logs that rotate: no line lost or cut, and whoever reads them gets them in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from run_folders import own_line, write_worker

from src.job.log_files import RotatingLog, log_parts, read_log, rotation
from src.launch.processes import SUPERVISOR
from src.launch.rank_runner import RankProcess
from src.launch.supervise import SuperviseSpec
from src.model_utils.config import PROJECT_DIR, load_config
from src.network_define import LossCallBack
from src.reporting.log_events import read_logs
from src.reporting.run_folder import read_run

TALKS = "for i in range(3000): print(f'line {i} ' + 'x' * (i % 90))"
SAID = [f"line {i} " + "x" * (i % 90) for i in range(3000)]


def rotate(path: Path, max_bytes: int) -> None:
    """Write a log again, as if it had rotated."""
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    log = RotatingLog(path, max_bytes, 1000)
    for line in lines:
        log.write(line)
    log.close()
    assert len(log_parts(path)) > 2


def test_every_line_is_whole_in_one_of_the_files(tmp_path):
    path = tmp_path / "worker.log"
    log = RotatingLog(path, max_bytes=1000, kept=500)
    for line in SAID:
        log.write(f"{line}\n")
    for part in log_parts(path):
        assert part.read_text().endswith("\n")
        assert 0 < part.stat().st_size <= 1000
    assert read_log(path).splitlines() == SAID
    assert log_parts(path)[-1] == path and log_parts(path)[-2].name == "worker.log.1"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in log_parts(path))


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_only_so_many_are_kept_and_the_newest(tmp_path, kept):
    log = RotatingLog(tmp_path / "server.log", max_bytes=100, kept=kept)
    for number in range(200):
        log.write(f"{number:09d}\n")
    numbers = [int(line) for line in read_log(tmp_path / "server.log").splitlines()]
    assert numbers == list(range(200))[-len(numbers) :]
    assert len(list(tmp_path.iterdir())) == kept + 1
    assert kept * 10 < len(numbers) <= (kept + 1) * 10


def test_a_line_longer_than_a_file_is_kept_whole(tmp_path):
    log = RotatingLog(tmp_path / "a.log", max_bytes=10, kept=9)
    for line in ("short\n", "x" * 50 + "\n", "end\n"):
        log.write(line)
    assert read_log(tmp_path / "a.log").split() == ["short", "x" * 50, "end"]


def test_without_a_limit_it_is_one_file(tmp_path):
    log = RotatingLog(tmp_path / "a.log")
    for line in SAID:
        log.write(f"{line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_a_log_that_is_there_goes_on(tmp_path):
    for part in range(4):
        log = RotatingLog(tmp_path / "a.log", 60, 9)
        log.write(f"part {part} " + "x" * 30 + "\n")
        log.close()
    assert [line.split()[1] for line in read_log(tmp_path / "a.log").splitlines()] == list("0123")


def test_where_no_new_file_can_be_made_the_present_one_goes_on(tmp_path, monkeypatch):
    log = RotatingLog(tmp_path / "a.log", 100, 3)
    log.write("x" * 90 + "\n")

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(RotatingLog, "_open", staticmethod(full))
        log.write("y" * 90 + "\n")
    log.write("z" * 90 + "\n")
    assert [line[0] for line in read_log(tmp_path / "a.log").splitlines()] == ["x", "y", "z"]


def supervised(folder: Path, code: str, **spec: object) -> subprocess.CompletedProcess:
    values = asdict(
        SuperviseSpec(
            label="worker_0",
            argv=[sys.executable, "-c", code],
            log=str(folder / "worker.log"),
            exit_file=str(folder / "exit.json"),
        )
    )
    (folder / "spec.json").write_text(json.dumps({**values, **spec}))
    with (folder / "worker.log").open("a") as log:
        return subprocess.run(
            [sys.executable, str(SUPERVISOR), str(folder / "spec.json")],
            env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
            stdout=log,
            stderr=log,
            timeout=60,
            check=False,
        )


def test_a_supervised_role_loses_nothing_while_its_log_rotates(tmp_path):
    spec = {"log_max_bytes": 5000, "log_files_kept": 100}
    assert supervised(tmp_path, TALKS, **spec).returncode == 0
    *lines, end = read_log(tmp_path / "worker.log").splitlines()
    assert lines == SAID
    assert end.endswith("][worker_0] ended; exit code 0")
    assert len(log_parts(tmp_path / "worker.log")) > 20


def test_what_the_supervisor_itself_prints_follows_the_rotation(tmp_path):
    path = tmp_path / "worker.log"
    with path.open("ab") as file:
        log = RotatingLog(path, 100, 3, follow=(file.fileno(),))
        log.write("x" * 90 + "\n")
        log.write("y" * 90 + "\n")
        os.write(file.fileno(), b"Traceback\n")
    assert path.read_text() == "y" * 90 + "\nTraceback\n"


def test_lines_of_several_threads_stay_whole(tmp_path):
    spec = SuperviseSpec(
        "w", [], str(tmp_path / "w.log"), str(tmp_path / "exit.json"), log_max_bytes=500
    )
    from src.launch.supervise import Supervisor

    supervisor = Supervisor(spec, RotatingLog(tmp_path / "w.log", 500, 1000))
    threads = [
        threading.Thread(target=lambda n=n: [supervisor.say(f"{n} {i}") for i in range(300)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    said = [line.split("] ")[1] for line in read_log(tmp_path / "w.log").splitlines()]
    assert sorted(said) == sorted(f"{n} {i}" for n in range(4) for i in range(300))


def test_the_output_of_a_rank_rotates(tmp_path):
    log = tmp_path / "rank.0" / "stdout"
    rank = RankProcess(0, [sys.executable, "-c", TALKS], log, False, (5000, 100))
    rank.process.wait(60)
    rank.finish_reading()
    assert read_log(log).splitlines() == SAID
    assert len(log_parts(log)) > 20


def test_the_loss_log_rotates(tmp_path, capsys):
    from test_network_define import run_epoch

    limits = {"log_max_bytes": 200, "log_files_kept": 100}
    losses = [float(n) for n in range(1, 51)]
    run_epoch(LossCallBack(folder=tmp_path, lr=[0.5], **limits), losses)
    lines = read_log(tmp_path / "loss_0.log").splitlines()
    assert [float(line.split("total_loss: ")[1].split()[0]) for line in lines] == losses
    assert len(log_parts(tmp_path / "loss_0.log")) > 10
    assert len(capsys.readouterr().out.splitlines()) == 50


@pytest.mark.parametrize("kept_loss_log", [True, False])
def test_reports_read_rotated_logs_in_order(tmp_path, kept_loss_log):
    epochs = [[float(10 * e + s) for s in range(5)] for e in range(30)]
    warning = own_line(400, "worker_0", "WARNING: the last word")
    folder = write_worker(tmp_path / "worker_0", epochs, more=[warning])
    whole = read_run(tmp_path)
    rotate(folder / "worker.log", 900)
    rotate(folder / "loss_0.log", 900)
    if not kept_loss_log:
        for part in log_parts(folder / "loss_0.log"):
            part.unlink()
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.silos[0].losses, whole.silos[0].losses)
    np.testing.assert_array_equal(run.silos[0].times, whole.silos[0].times)
    np.testing.assert_array_equal(run.silos[0].losses, np.concatenate(epochs))
    logs = read_logs(run)
    assert [event.text for event in logs.events] == ["the last word"]
    assert logs.paths == [folder / "worker.log"]
    assert logs.first == read_logs(whole).first


def test_a_replaced_process_with_rotated_logs_is_part_of_the_run(tmp_path):
    write_worker(tmp_path / "worker_0.1", [[1.0] * 20, [2.0] * 20])
    write_worker(tmp_path / "worker_0", [[3.0] * 20], first_iteration=3, seconds=100)
    rotate(tmp_path / "worker_0" / "worker.log", 600)
    silo = read_run(tmp_path).silos[0]
    assert [path.name for path in silo.folders] == ["worker_0.1", "worker_0"]


def test_the_keys_in_bytes():
    assert rotation(load_config()) == (64_000_000, 4)
    assert rotation(load_config(log_max_mb=0.001, log_files_kept=0)) == (1000, 0)


def test_a_log_is_not_written_through_a_link(tmp_path):
    victim, log = tmp_path / "victim", tmp_path / "worker.log"
    victim.write_text("kept")
    log.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        RotatingLog(log, 0, 0)
    assert victim.read_text() == "kept"
