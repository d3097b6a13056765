"""A role's progress in a file that others read meanwhile."""

import os
import time

from src.job.job_record import StatusFile, read_status


def test_status_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "status" / "worker_0.json"
    assert read_status(path) == {}
    status = StatusFile(path)
    status.update(phase="train", step=1)
    status.update(step=2)
    values = read_status(path)
    assert (values["phase"], values["step"]) == ("train", 2)
    assert values["time"] <= time.time()
    assert os.listdir(path.parent) == ["worker_0.json"]
