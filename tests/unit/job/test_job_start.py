"""What the start of a new job notes and forgets in the folder of its servers."""

import os
import shutil
from datetime import datetime

from src.job.job_record import read_record, update_record, write_json
from src.job.job_start import job_start, note_start
from src.launch.processes import record_process


def test_a_new_job_has_its_time_and_forgets_the_roles_that_have_ended(tmp_path):
    assert job_start(tmp_path) is None
    record_process(tmp_path, "scheduler", 0, os.getpid(), tmp_path, "")
    record_process(tmp_path, "worker", 1, os.getpid(), tmp_path, "")
    with update_record(tmp_path) as record:
        record.processes[1].start_ticks -= 100
    state = tmp_path / ".federation"
    names = ["specs/scheduler.json", "status/scheduler.json", "specs/worker_1.json",
             "status/worker_1.json", "status/worker_1.exit.json"]  # fmt: skip
    for name in names:
        write_json(state / name, {})
    begin = datetime.now().replace(microsecond=0)
    note_start(tmp_path)
    assert begin <= job_start(tmp_path).began <= datetime.now()
    assert [entry.label for entry in read_record(tmp_path).processes] == ["scheduler"]
    there = [name for name in names if (state / name).exists()]
    assert there == ["specs/scheduler.json", "status/scheduler.json"]


def test_a_log_is_of_an_earlier_job_as_long_as_nobody_writes_to_it(tmp_path):
    """Whatever its times say, under whatever name its folder goes on, and in a copy too."""
    for role in ("worker_0", "worker_1", "worker_2", "worker_3"):
        (tmp_path / role).mkdir()
        if role != "worker_3":
            log = tmp_path / role / "worker.log"
            log.write_text(f"[2999-01-01 00:00:00][{role}]ended; exit code 0\n")
    note_start(tmp_path)
    (tmp_path / "worker_0").rename(tmp_path / "worker_0.1")
    (tmp_path / "worker_0").mkdir()
    (tmp_path / "worker_0" / "worker.log").write_text("[1999-01-01 00:00:00][worker_0]16 images\n")
    with (tmp_path / "worker_1" / "worker.log").open("a") as log:
        log.write("[1999-01-01 00:00:00][worker_1]joined iteration 1 of 3\n")
    shutil.copytree(tmp_path, tmp_path / "copy")
    for folder in (tmp_path, tmp_path / "copy"):
        start = job_start(folder)
        names = ("worker_0.1", "worker_0", "worker_1", "worker_2", "worker_3")
        earlier = [name for name in names if start.is_after(folder / name / "worker.log")]
        assert earlier == ["worker_0.1", "worker_2"]


def test_a_note_that_is_not_whole_is_none(tmp_path):
    whole = '"started": "2026-11-22 08:00:00"'
    for text in (
        "",
        "[]",
        '{"started": 5}',
        '{"started": "yesterday"}',
        f'{{{whole}, "earlier_logs": 5}}',
    ):
        (tmp_path / ".federation").mkdir(exist_ok=True)
        (tmp_path / ".federation" / "job_start.json").write_text(text)
        assert job_start(tmp_path) is None
