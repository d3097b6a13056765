"""What finishing stops, and what it leaves: of another folder, machine or container."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import FINISH, run, start_redis, succeed
from namespaces import CONTAINER, why_no_container
from ports import free_port_range

from src.errors import UserError
from src.job.job_record import FOLDER, ProcessRecord, read_record, update_record
from src.job.process_identity import this_place
from src.launch.finish import finish
from src.launch.processes import Role, record_process, require_not_running, start, stop_started
from src.launch.status import Collector
from src.model_utils.config import PROJECT_DIR

NO_CONTAINER = why_no_container()
pytestmark = pytest.mark.usefixtures("own_index")


def test_jobs_elsewhere_are_named_as_possibly_those_of_others(tmp_path, capsys):
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    assert finish(here, 2345) == 0
    assert "--all" not in capsys.readouterr().out
    with update_record(other):
        pass
    assert finish(here, 2345) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"nothing to stop: no job was started from {here}")
    assert second.startswith(f"jobs of this user: {other} (--all finishes all of them")
    assert "several people use, those of the others too" in second


@pytest.fixture
def job(tmp_path):
    """A folder with a supervised worker_0 that sleeps."""
    folder = tmp_path / "job"
    with update_record(folder) as record:
        record.fl_name, record.redis = "FasterRCNN", "127.0.0.1:1"
    role = Role("worker", 0, [sys.executable, "-c", "import time; time.sleep(60)"])
    started = []
    start(folder, role, started)
    yield folder
    stop_started(folder, started)


def running(folder):
    return [entry.label for entry in read_record(folder).running()]


def test_a_copied_folder_stops_nothing_of_the_first_one(job, capsys):
    copy = job.parent / "copy"
    shutil.copytree(job, copy)
    for _ in range(2):
        assert finish(copy, 2345) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"nothing to stop: the record of {copy} was copied from {job} on ")
    assert running(job) == ["worker_0"]
    assert finish(job, 2345) == 0
    assert "stopped worker_0" in capsys.readouterr().out


def rewrite(folder, **values):
    """Forge the record: each entry with other values."""
    path = folder / FOLDER / "job.json"
    record = json.loads(path.read_text())
    for entry in record["processes"]:
        entry.update(values)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("role", ["worker", "redis"])
@pytest.mark.parametrize("of_an_old_release", [False, True])
def test_a_record_that_names_another_process_stops_it_not(
    job, sleeper, role, of_an_old_release, capsys
):
    finish(job, 2345)
    record_process(job, role, 0, sleeper.pid, job, "")
    if of_an_old_release:  # which told a process by its start as the clock was
        rewrite(job, boot_id="", start_ticks=0)
    capsys.readouterr()
    assert finish(job, 2345) == 0
    label = "redis" if role == "redis" else "worker_0"
    assert (
        f"WARNING: the record names pid {sleeper.pid} as {label}, but no launcher started that "
        f"process from {job}: it is left alone"
    ) in capsys.readouterr().out.splitlines()
    assert sleeper.poll() is None
    assert read_record(job) is None


def test_the_supervisor_of_another_folder_is_left_alone(job, tmp_path, capsys):
    other = tmp_path / "other"
    (pid,) = (entry.pid for entry in read_record(job).running())
    record_process(other, "worker", 0, pid, other, "")
    assert finish(other, 2345) == 0
    assert f"names pid {pid} as worker_0, but no launcher started" in capsys.readouterr().out
    assert running(job) == ["worker_0"]


def test_a_forged_record_purges_no_redis(tmp_path, capsys):
    with update_record(tmp_path) as record:
        record.fl_name, record.redis = "FasterRCNN", "127.0.0.1:1"
        record.processes = [ProcessRecord("server", 0, 2**22, 0.0, str(tmp_path))]
    assert finish(tmp_path, 1) == 0
    said = capsys.readouterr().out
    assert "the job FasterRCNN itself was not started from here: its Redis is untouched" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_another_users_record_is_not_followed(job):
    os.chown(job / FOLDER, 12345, -1)
    try:
        with pytest.raises(UserError, match="belongs to user 12345, and this is user 0: call this"):
            finish(job, 2345)
        assert running(job) == ["worker_0"]
    finally:
        os.chown(job / FOLDER, 0, -1)


def test_a_record_that_others_could_have_written_is_not_followed(job):
    (job / FOLDER).chmod(0o757)
    with pytest.raises(UserError, match=r"others may write there \(mode 757\).* chmod 700 /"):
        finish(job, 2345)
    assert running(job) == ["worker_0"]


def test_a_wrong_redis_port_and_then_the_right_one_stop_redis_in_the_end(tmp_path, capsys):
    port = free_port_range(2)
    process = start_redis(tmp_path, port)
    try:
        with update_record(tmp_path) as record:
            record.fl_name, record.redis = "FasterRCNN", f"127.0.0.1:{port}"
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        start(tmp_path, Role("server", 0, sleep), [])
        for wrong in range(2):
            assert finish(tmp_path, port + 1) == 0
            hint = f"call finish again with --redis_port={port} to stop it"
            assert hint in capsys.readouterr().out, wrong
        assert process.poll() is None
        assert finish(tmp_path, port) == 0
        assert f"stopped Redis at 127.0.0.1:{port}" in capsys.readouterr().out
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert finish(tmp_path, port) == 0
    assert "nothing to stop" in capsys.readouterr().out


def test_a_folder_whose_job_was_ended_says_so_although_others_run_elsewhere(job, tmp_path):
    finish(job, 2345)
    for name in ("b", "c"):
        with update_record(tmp_path / name) as record:
            record.fl_name = "Other"
        status = run(job, "tools/status.py")
        assert status.returncode == 12
        line = f"nothing runs in {job}: the job FasterRCNN ran, and finish ended it at 20"
        assert status.stdout.startswith(line)


def test_a_renamed_folder_is_finished(job, capsys):
    moved = job.rename(job.parent / "moved")
    assert finish(moved, 2345) == 0
    assert "stopped worker_0" in capsys.readouterr().out


def test_what_another_machine_started_stays_in_the_record(job, capsys):
    path = job / FOLDER / "job.json"
    record = json.loads(path.read_text())
    theirs = dict(record["processes"][0], role="server", host="other", boot_id="b")
    record["processes"].append(theirs)
    path.write_text(json.dumps(record))
    assert finish(job, 2345) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stopped worker_0"
    assert "servers of FasterRCNN may run elsewhere: its Redis is untouched" in said
    assert said[-1].startswith("WARNING: server_0 was started on other and was not stopped: end it")
    assert [entry.label for entry in read_record(job).elsewhere()] == ["server_0"]
    assert [entry.label for entry in read_record(job).processes] == ["server_0"]


@pytest.mark.skipif(bool(NO_CONTAINER), reason=NO_CONTAINER)
def test_another_container_that_shares_the_folder_sees_that_and_stops_nothing(job):
    status = run(job, "tools/status.py", "--json", through=CONTAINER)
    assert status.returncode == 0, status.stderr
    values = json.loads(status.stdout)
    assert values["processes"][0]["state"] == "elsewhere"
    assert "worker_0 was started in another container of" in values["notes"][0]
    said = succeed(job, FINISH, through=CONTAINER)
    assert "no process of this job is running here any more" in said
    assert "WARNING: worker_0 was started in another container of" in said
    assert running(job) == ["worker_0"]
    assert "stopped worker_0" in succeed(job, FINISH)
    assert "nothing to stop" in succeed(job, FINISH, through=CONTAINER)


@pytest.mark.skipif(bool(NO_CONTAINER), reason=NO_CONTAINER)
def test_a_container_that_was_killed_leaves_nothing_that_is_waited_for(tmp_path):
    program = (
        "import sys; from pathlib import Path; from src.launch.processes import Role, start; "
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']; "
        "start(Path.cwd(), Role('worker', 0, sleep), [])"
    )
    command = [*CONTAINER, sys.executable, "-c", program]
    with update_record(tmp_path) as record:
        record.fl_name, record.redis = "FasterRCNN", "127.0.0.1:1"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=True)
    (entry,) = read_record(tmp_path).processes
    assert entry.pid_namespace != this_place().pid_namespace
    assert read_record(tmp_path).living() == []
    require_not_running(tmp_path, ["worker_0"])
    status = Collector(tmp_path).collect()
    assert status.word == "failed"
    assert status.processes[0].reason.startswith("ended with its machine or container (")
