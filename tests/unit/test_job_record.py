"""The record of what was started from a folder, and the index of such folders."""

import pytest

from src.job.job_record import indexed_folders, read_record, remove_record, update_record
from src.launch.processes import record_process, stop

pytestmark = pytest.mark.usefixtures("own_index")


def test_record_knows_a_process_by_pid_and_start_time(tmp_path, sleeper):
    record_process(tmp_path, "worker", 3, sleeper.pid, tmp_path, "")
    record = read_record(tmp_path)
    assert [p.label for p in record.running("worker")] == ["worker_3"]
    with update_record(tmp_path) as changed:
        changed.processes[0].created -= 100
    assert read_record(tmp_path).running() == []
    stop(read_record(tmp_path).processes)
    assert sleeper.poll() is None


def test_index_lists_folders_until_they_are_finished(tmp_path):
    with update_record(tmp_path) as record:
        record.fl_name = "job"
    assert indexed_folders() == [tmp_path]
    remove_record(tmp_path)
    assert indexed_folders() == []
