"""The record of what was started from a folder, and the index of such folders."""

import errno
import json
import shutil
import socket

import psutil
import pytest

from src.errors import UserError
from src.job import job_record
from src.job.job_record import (
    FOLDER,
    indexed_folders,
    life_lock,
    read_record,
    remove_record,
    state_folder,
    update_record,
    write_json,
)
from src.launch.processes import record_process, require_not_running, stop

pytestmark = pytest.mark.usefixtures("own_index")


@pytest.fixture
def job(tmp_path, sleeper):
    """A folder that has started worker_3."""
    folder = tmp_path / "job"
    folder.mkdir()
    record_process(folder, "worker", 3, sleeper.pid, folder, "")
    return folder


def change(folder, **values):
    """Change the entries of the record in the file."""
    path = folder / FOLDER / "job.json"
    record = json.loads(path.read_text())
    for entry in record["processes"]:
        entry.update(values)
    path.write_text(json.dumps(record))


def test_the_records_folder_is_this_users_alone_also_one_of_an_earlier_release(tmp_path):
    made = state_folder(tmp_path / "job")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert state_folder(tmp_path / "job").stat().st_mode & 0o777 == 0o700


def test_a_group_of_others_may_not_write_the_records_and_the_users_own_may(tmp_path, monkeypatch):
    made = state_folder(tmp_path)
    made.chmod(0o2770)
    own = made.stat()
    monkeypatch.setattr(job_record.os, "getegid", lambda: own.st_gid + 1)
    with pytest.raises(UserError, match=r"others may write there \(mode 2770\)"):
        state_folder(tmp_path)
    if own.st_uid == own.st_gid:
        monkeypatch.undo()
        assert state_folder(tmp_path).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_a_link_in_the_place_of_the_records_folder_is_refused(tmp_path, kind):
    job, other = tmp_path / "job", tmp_path / "other"
    job.mkdir()
    other.mkdir()
    if kind == "a link":
        (job / FOLDER).symlink_to(other)
    else:
        (job / FOLDER).touch()
    with (
        pytest.raises(UserError, match=f"is {kind}, expected a folder .*: remove it"),
        update_record(job),
    ):
        pass
    assert not list(other.iterdir())


@pytest.mark.parametrize("name", ["lock", "locks/worker_0"])
def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("text")
    link = state_folder(tmp_path / "job") / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    with (
        pytest.raises(OSError) as caught,
        update_record(tmp_path / "job"),
        life_lock(tmp_path / "job", "worker_0"),
    ):
        pass
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(link))
    assert victim.read_text() == "text"


def elsewhere(folder):
    return [entry.label for entry in read_record(folder).elsewhere()]


def test_record_knows_a_process_by_pid_and_start(job, sleeper):
    assert [p.label for p in read_record(job).running("worker")] == ["worker_3"]
    with update_record(job) as changed:
        changed.processes[0].start_ticks -= 100
    assert read_record(job).running() == []
    stop(read_record(job).processes)
    assert sleeper.poll() is None


@pytest.mark.parametrize("step_s", [2, -3, 3600])
def test_a_clock_that_is_set_changes_nothing(job, sleeper, monkeypatch, step_s):
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + step_s)
    assert [p.pid for p in read_record(job).running()] == [sleeper.pid]
    with pytest.raises(UserError, match="worker_3 of this folder is running already"):
        require_not_running(job, ["worker_3"])
    assert stop(read_record(job).running(), grace_s=5) == []
    assert sleeper.wait(5) is not None


def test_a_record_of_the_version_before_is_read_by_time_of_start(job, sleeper):
    path = job / FOLDER / "job.json"
    record = json.loads(path.read_text())
    (entry,) = record["processes"]
    kept = ("role", "number", "pid", "created", "folder", "address")
    record["processes"] = [{key: entry[key] for key in kept}]
    path.write_text(json.dumps(record))
    assert [p.pid for p in read_record(job).running()] == [sleeper.pid]
    change(job, created=entry["created"] - 100)
    assert read_record(job).running() == []


def test_the_file_holds_what_a_process_is_known_by(job, sleeper):
    record = json.loads((job / FOLDER / "job.json").read_text())
    (entry,) = record["processes"]
    assert entry["host"] == socket.gethostname()
    assert entry["job_folder"] == str(job)
    assert entry["start_ticks"] > 0 and entry["boot_id"] and entry["pid_namespace"]
    assert "place" not in entry


@pytest.mark.parametrize("values", [
    {"host": "other", "boot_id": "b"},
    {"pid_namespace": "pid:[1]"},
])  # fmt: skip
def test_what_another_machine_or_container_started_is_neither_running_nor_gone(job, values):
    change(job, **values)
    record = read_record(job)
    assert record.running() == []
    assert [entry.label for entry in record.living()] == elsewhere(job) == ["worker_3"]
    with pytest.raises(UserError, match="worker_3 of this folder was started") as caught:
        require_not_running(job, ["worker_3"])
    assert "may run there still" in str(caught.value)


def test_what_has_ended_elsewhere_is_gone(job):
    change(job, host="other", boot_id="b")
    write_json(job / FOLDER / "status" / "worker_3.exit.json", {"code": 0, "reason": "ended"})
    assert read_record(job).living() == []


def test_a_container_that_was_killed_is_told_by_its_lock(job):
    change(job, pid_namespace="pid:[1]")
    with life_lock(job, "worker_3"):
        assert elsewhere(job) == ["worker_3"]
    assert elsewhere(job) == []
    require_not_running(job, ["worker_3"])
    # From another machine the lock may be out of sight.
    change(job, host="other", boot_id="b")
    assert elsewhere(job) == ["worker_3"]


def test_a_machine_that_was_started_again_runs_nothing_of_before(job):
    change(job, boot_id="b")
    assert read_record(job).living() == []
    with life_lock(job, "worker_3"):
        # Another machine of the same name.
        assert elsewhere(job) == ["worker_3"]


def test_a_copied_folder_has_nothing_running_and_the_first_one_keeps_it(job, sleeper):
    copy = job.parent / "copy"
    shutil.copytree(job, copy)
    record = read_record(copy)
    assert record.running() == record.elsewhere() == []
    assert record.copied.job_folder == str(job)
    require_not_running(copy, ["worker_3"])
    assert [p.pid for p in read_record(job).running()] == [sleeper.pid]
    assert read_record(job).copied is None


def test_a_copy_on_another_machine_is_one_too(job):
    copy = job.parent / "copy"
    shutil.copytree(job, copy)
    change(copy, host="other", boot_id="b")
    assert read_record(copy).copied.host == "other"


def test_a_renamed_folder_and_another_name_for_it_keep_what_runs(job, sleeper):
    moved = job.rename(job.parent / "moved")
    link = job.parent / "link"
    link.symlink_to(moved)
    for folder in (moved, link):
        assert [p.pid for p in read_record(folder).running()] == [sleeper.pid]


def test_index_lists_folders_until_they_are_finished(tmp_path):
    with update_record(tmp_path) as record:
        record.fl_name = "job"
    assert indexed_folders() == [tmp_path]
    remove_record(tmp_path)
    assert indexed_folders() == []


def test_a_home_that_machines_share_has_an_entry_for_each(tmp_path, monkeypatch):
    with update_record(tmp_path):
        pass
    monkeypatch.setattr(job_record.socket, "gethostname", lambda: "other")
    with update_record(tmp_path):
        pass
    assert indexed_folders() == [tmp_path]
    index = tmp_path / "state" / "cross_silo_faster_rcnn"
    assert len(list(index.iterdir())) == 2
    remove_record(tmp_path)
    (entry,) = index.iterdir()
    assert not entry.name.startswith("other")


@pytest.mark.parametrize("home", [None, "/proc/nothing"])
def test_without_a_home_a_job_is_recorded_and_one_note_says_what_is_lost(
    tmp_path, monkeypatch, capsys, home
):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(job_record.pwd, "getpwuid", unknown)
    job_record._note_once.cache_clear()
    for name in ("one", "two"):
        with update_record(tmp_path) as record:
            record.fl_name = name
    assert indexed_folders() == []
    remove_record(tmp_path)
    assert read_record(tmp_path) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: finish --all will not find this job: ")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pid": -1}, "pid is -1"),
        ({"pid": 10**400}, "pid is 1000"),
        ({"pid": "7"}, "pid is '7'"),
        ({"number": None}, "number is None"),
        ({"created": "x"}, "created is 'x'"),
        ({"servers": [1]}, "servers has other values than text"),
        ({"label": "x"}, "unexpected keyword"),
    ],
)
def test_a_record_with_values_of_another_kind_is_refused_in_one_line(job, values, words):
    change(job, **values)
    with pytest.raises(UserError, match=f"job.json: no record of a job .*{words}") as caught:
        read_record(job)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_record_that_is_nested_too_deep_is_refused(job):
    (job / FOLDER / "job.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deep"):
        read_record(job)
