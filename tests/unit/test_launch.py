"""The launch layer's parts, one by one: addresses, folders, records, recovery files, log lines."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import psutil
import pytest
from models import save_model

from src.errors import StartError, UserError
from src.job.addresses import parse_address, require_free_port, server_addresses
from src.job.disk_room import require_disk
from src.job.job_record import indexed_folders, read_record, remove_record, update_record
from src.job.recovery_files import (
    list_recovery_files,
    put_aside_earlier_run,
    recovery_name,
    require_iterations_left,
)
from src.job.status_file import StatusFile, read_status
from src.launch.folders import fresh_folder
from src.launch.log_filter import LogFilter
from src.launch.processes import (
    SUPERVISOR,
    Role,
    record_process,
    start,
    stop,
    wait_until_ready,
)
from src.launch.role_checks import require_shards
from src.launch.supervise import SuperviseSpec
from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.usefixtures("own_index")


@pytest.fixture
def sleeper():
    """A process that would run for a minute."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_addresses_of_the_servers():
    assert parse_address("127.0.0.1:6668", "--flag") == ("127.0.0.1", 6668)
    assert server_addresses("127.0.0.1:6668", 2) == ["127.0.0.1:6668", "127.0.0.1:6669"]
    assert server_addresses("10.0.0.1:1, fl.bank.example:2", 1) == [
        "10.0.0.1:1",
        "fl.bank.example:2",
    ]


@pytest.mark.parametrize(
    "address", ["localhost:1", "0.0.0.0:1", "1.2.3.255:1", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:99999"]
)
def test_address_that_the_engine_refuses(address):
    with pytest.raises(UserError, match="--flag: "):
        parse_address(address, "--flag")


def test_several_addresses_and_a_number_are_refused():
    with pytest.raises(UserError, match="give the addresses or their number"):
        server_addresses("127.0.0.1:1,127.0.0.1:2", 2)


def test_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            require_free_port("127.0.0.1", port, "--flag")
    require_free_port("127.0.0.1", port, "--flag")


def test_earlier_folders_are_renamed_never_deleted(tmp_path):
    folder = tmp_path / "worker_0"
    for text in ("first", "second"):
        (fresh_folder(folder) / "worker.log").write_text(text)
    fresh_folder(folder)
    assert (tmp_path / "worker_0.1" / "worker.log").read_text() == "first"
    assert (tmp_path / "worker_0.2" / "worker.log").read_text() == "second"
    assert not list(folder.iterdir())


def test_record_knows_a_process_by_pid_and_start_time(tmp_path, sleeper):
    record_process(tmp_path, "worker", 3, sleeper.pid, tmp_path, "")
    record = read_record(tmp_path)
    assert [p.label for p in record.running("worker")] == ["worker_3"]
    with update_record(tmp_path) as changed:
        changed.processes[0].created -= 100
    assert read_record(tmp_path).running() == []
    stop(read_record(tmp_path).processes)
    assert sleeper.poll() is None


def test_stop_ends_only_what_is_recorded(tmp_path, sleeper):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record_process(tmp_path, "worker", 0, sleeper.pid, tmp_path, "")
        assert stop(read_record(tmp_path).running(), grace_s=5) == []
        assert not psutil.pid_exists(sleeper.pid)
        assert psutil.pid_exists(other.pid)
    finally:
        other.kill()
        other.wait()


def test_stop_kills_what_does_not_end(tmp_path):
    stubborn = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    stubborn.stdout.readline()
    record_process(tmp_path, "server", 0, stubborn.pid, tmp_path, "")
    lines = stop(read_record(tmp_path).running(), grace_s=0.5)
    assert lines == [f"server_0 (pid {stubborn.pid}) had to be killed"]
    assert not psutil.pid_exists(stubborn.pid)


def role(*lines):
    return Role("worker", 0, [sys.executable, "-uc", "; ".join(["import time", *lines])])


def test_the_second_start_of_a_role_is_refused_and_the_first_goes_on(tmp_path):
    first = start(tmp_path, role("time.sleep(60)"))
    try:
        with pytest.raises(UserError, match="worker_0 of this folder is running already"):
            start(tmp_path, role("time.sleep(60)"))
        assert [p.pid for p in read_record(tmp_path).running()] == [first.supervisor.pid]
        assert not (tmp_path / "worker_0.1").exists()
    finally:
        first.supervisor.terminate()
        first.supervisor.wait(timeout=20)


@pytest.mark.parametrize(("code", "ready"), [(0, False), (3, True), (3, False)])
def test_a_role_that_ended_badly_or_before_it_was_ready(tmp_path, code, ready):
    started = start(tmp_path, role(f"raise SystemExit({code})"))
    started.supervisor.wait(timeout=20)
    with pytest.raises(StartError, match=f"worker_0 ended with exit code {code}") as caught:
        wait_until_ready([started], lambda _: ready, 5)
    assert caught.value.code == (code or 1)


def test_a_role_that_was_ready_may_have_ended_well(tmp_path):
    started = start(tmp_path, role("raise SystemExit(0)"))
    started.supervisor.wait(timeout=20)
    wait_until_ready([started], lambda _: True, 5)


def test_a_full_disk_does_not_stop_a_role_that_talks(tmp_path):
    spec = SuperviseSpec(
        label="worker_0",
        argv=[sys.executable, "-c", "print('line\\n' * 100_000)"],
        log="/dev/full",
        exit_file=str(tmp_path / "exit.json"),
    )
    (tmp_path / "spec.json").write_text(json.dumps(asdict(spec)))
    command = [sys.executable, str(SUPERVISOR), str(tmp_path / "spec.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    assert subprocess.run(command, env=environment, timeout=30, check=False).returncode == 0


def test_index_lists_folders_until_they_are_finished(tmp_path):
    with update_record(tmp_path) as record:
        record.fl_name = "job"
    assert indexed_folders() == [tmp_path]
    remove_record(tmp_path)
    assert indexed_folders() == []


def make(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")


def test_recovery_files_of_this_job_newest_first(tmp_path):
    make(
        tmp_path,
        "job_recovery_iteration_2_20260101_000000.ckpt",
        "job_recovery_iteration_10_20260101_000000.ckpt",
        "job_recovery_iteration_10_20260101_000001.ckpt",
        "job_recovery_iteration_x_20260101_000000.ckpt",
        "another_job_recovery_iteration_3_20260101_000000.ckpt",
        recovery_name("job", 0),
    )
    found = list_recovery_files(tmp_path, "job")
    assert [f.iteration for f in found] == [10, 10, 2, 0]
    assert found[0].stamp == "20260101_000001"


def test_an_earlier_runs_files_go_aside_and_the_initial_one_stays(tmp_path):
    make(tmp_path, "job_recovery_iteration_0_20260101_000000.ckpt")
    assert put_aside_earlier_run(tmp_path, "job") is None
    make(tmp_path, "job_recovery_iteration_3_20260101_000000.ckpt")
    aside = put_aside_earlier_run(tmp_path, "job")
    assert [f.iteration for f in list_recovery_files(tmp_path, "job")] == [0]
    assert [f.iteration for f in list_recovery_files(aside, "job")] == [3]


def test_the_users_own_later_file_is_what_a_start_goes_on_from(tmp_path):
    save_model(tmp_path / "job_recovery_iteration_3_20260101_000000.ckpt")
    assert put_aside_earlier_run(tmp_path, "job") is None
    assert require_iterations_left(tmp_path, "job", 5) == 4
    with pytest.raises(UserError, match="nothing is left to do"):
        require_iterations_left(tmp_path, "job", 3)


NATIVE = "(1,2,python):2026-01-01-00:00:00.000.000 [file.cc:1] Run] "


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("[2026-01-01 00:00:00][worker_0]epoch: 1 step: 1 total_loss: 5.2\n", True),
        (f"[INFO] FEDERATED{NATIVE}Scheduler started successfully.\n", True),
        (f"[INFO] FEDERATED{NATIVE}Begin to lock server\n", False),
        (f"[INFO] PIPELINE{NATIVE}Start http server!\n", False),
        (f"[WARNING] ME{NATIVE}something is odd\n", True),
        (f"[WARNING] ME{NATIVE}LoadDynamicLib] no libcublas.so\n", False),
        (f"[ERROR] FEDERATED{NATIVE}it broke\n", True),
        ("Traceback (most recent call last):\n", True),
    ],
)
def test_which_lines_reach_the_log(line, passes):
    assert LogFilter().passes(line) is passes


def test_a_shown_line_comes_once():
    log_filter = LogFilter()
    line = f"[INFO] FEDERATED{NATIVE}Start http server!\n"
    assert [log_filter.passes(line) for _ in range(3)] == [True, False, False]


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


def test_missing_shards_are_named(tmp_path):
    shard = tmp_path / "mindrecord_0"
    shard.mkdir()
    make(shard, "f", "f.db")
    with pytest.raises(UserError, match="in mindrecord_1, mindrecord_2 .*found: mindrecord_0"):
        require_shards(tmp_path, [0, 1, 2], "f", 2)
    with pytest.raises(UserError, match="mindrecord_0"):
        require_shards(tmp_path, [0], "f", 2)


def test_too_little_disk_says_how_much(tmp_path):
    with pytest.raises(UserError, match=r"3 checkpoints need 1000000000.0 GB"):
        require_disk(tmp_path, 10**18, "3 checkpoints")
