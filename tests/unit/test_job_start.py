"""What the start of a new job notes and forgets in the folder of its servers."""

import os
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
    assert begin <= job_start(tmp_path) <= datetime.now()
    assert [entry.label for entry in read_record(tmp_path).processes] == ["scheduler"]
    there = [name for name in names if (state / name).exists()]
    assert there == ["specs/scheduler.json", "status/scheduler.json"]


def test_a_note_that_is_not_whole_is_none(tmp_path):
    for text in ("", "[]", '{"started": 5}', '{"started": "yesterday"}'):
        (tmp_path / ".federation").mkdir(exist_ok=True)
        (tmp_path / ".federation" / "job_start.json").write_text(text)
        assert job_start(tmp_path) is None
