"""What tools/status.py tells of a job, from records, status files and a Redis with its keys."""

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
import time

import pytest
from commands import run
from ports import free_port_range

from src.errors import UserError
from src.job.job_record import FOLDER, StatusFile, status_path, update_record, write_json
from src.launch.processes import record_process
from src.launch.redis_store import JobStore
from src.launch.status import Collector, as_values
from src.launch.status_view import Screen, duration, lines_of, watch
from src.model_utils.config import PROJECT_DIR
from src.security.roster import Member, text_of

SCRIPT = "tools/status.py"
JOB, INSTANCE = "FasterRCNN", "i_1"
# As many bytes that are no text as the engine puts there.
DEVICE = b"\n\x04\x8c\xff"


pytestmark = pytest.mark.usefixtures("own_index")


class Job:
    """A folder in which launchers seem to have started processes."""

    def __init__(self, folder, port):
        self.folder = folder
        self.sleepers = {}
        with update_record(folder) as record:
            record.fl_name, record.redis = JOB, f"127.0.0.1:{port}"

    def start(self, role, number=0, *flags):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        process = subprocess.Popen(command)
        label = f"{role}_{number}" if role != "scheduler" else role
        self.sleepers[label] = process
        address = "127.0.0.1:9" if role != "worker" else ""
        record_process(self.folder, role, number, process.pid, self.folder / label, address)
        write_json(self.folder / FOLDER / "specs" / f"{label}.json", {"argv": list(flags)})
        (self.folder / label).mkdir()

    def end(self, label, code=0, reason="ended"):
        self.sleepers[label].kill()
        self.sleepers[label].wait()
        values = {"code": code, "reason": reason}
        if reason:
            write_json(self.folder / FOLDER / "status" / f"{label}.exit.json", values)

    def says(self, label, **values):
        StatusFile(status_path(self.folder, label)).update(**values)

    def collect(self):
        return Collector(self.folder).collect()


@pytest.fixture
def job(tmp_path, redis_port):
    folder = tmp_path / "job"
    folder.mkdir()
    job = Job(folder, redis_port)
    yield job
    for process in job.sleepers.values():
        process.kill()
        process.wait()


def fill(redis, iteration, joined, sent=(), state=0, before=(), success=1):
    """The engine's keys of a job of 5 iterations of 3 silos."""
    key = f"ms_fl:{JOB}:{INSTANCE}"
    redis.set(f"ms_fl:{JOB}:InstanceName:String", INSTANCE)
    status = {"iterationNum": iteration, "runningState": state, "lastIterationSuccess": success}
    redis.hset(f"{key}:status:Hash", mapping={**status, "lastIterationResult": "Disable instance"})
    settings = {"fl_iteration_num": 5, "start_fl_job_threshold": 3}
    redis.set(f"{key}:hyperParams:String", json.dumps(settings))
    redis.set(f"{key}:server:heartbeat:127.0.0.1:9::x:String", "127.0.0.1:9", ex=10)
    for name in joined:
        redis.hset(f"{key}:{iteration}:client:DeviceMetas:Hash", name, DEVICE)
    for number, names in ((iteration, sent), (iteration - 1, before)):
        for name in names:
            redis.sadd(f"{key}:{number}:client:cipher:updateModel:flSet", name)


def test_a_folder_without_a_job_is_nothing(tmp_path):
    status = Collector(tmp_path).collect()
    assert (status.word, as_values(status)["exit_code"]) == ("nothing", 12)
    result = run(tmp_path, SCRIPT)
    assert result.returncode == 12
    assert result.stdout.startswith(f"nothing: no job was started from {tmp_path}")


def test_silos_that_the_roster_does_not_have_are_named(job, redis, tmp_path):
    roster = tmp_path / "silos.yaml"
    roster.write_text(text_of([Member("bank", "3f" * 32, "5A"), Member("clinic", "07" * 32, "0B")]))
    fill(redis, 2, ["bank_0 (30)", "shadow_1 (9)"], ["bank_0 (30)"])
    job.start("server")
    assert not any("in the roster" in line for line in lines_of(job.collect()))
    with update_record(job.folder) as record:
        record.roster = str(roster)
    words = f"WARNING: takes part and is not in the roster {roster}: shadow_1"
    assert f"  note: {words}" in lines_of(job.collect())
    roster.unlink()
    (line,) = (line for line in lines_of(job.collect()) if "WARNING" in line)
    assert "who is a stranger cannot be told" in line and str(roster) in line


def test_who_has_joined_who_has_sent_and_who_is_missing(job, redis):
    job.start("worker", 0, "--silo_name=bank", "--user_id=0")
    job.says("worker_0", phase="wait", iteration=2, iterations=5, step=6, steps=15, loss=0.5)
    sent = ["bank_0 (30)"]
    fill(redis, 2, ["bank_0 (30)"], sent, before=["bank_0 (30)", "clinic_7 (12)"])
    status = job.collect()
    found = status.iteration
    assert (found.number, found.of, found.threshold) == (2, 5, 3)
    assert (found.joined, found.sent) == (["bank_0"], ["bank_0"])
    assert (found.missing, found.unknown) == (["clinic_7"], 1)
    text = "\n".join(lines_of(status))
    assert "FasterRCNN: running, iteration 2 of 5, time left unknown" in text
    assert "1 of 3 silo(s) joined, 1 sent" in text
    assert "joined   bank_0 (worker_0)" in text
    assert "missing  clinic_7, 1 of unknown name" in text
    assert "127.0.0.1:" in status.redis and "heartbeats of 1 server(s)" in status.redis


def test_names_from_redis_forge_no_line_and_steer_no_terminal(job, redis):
    job.start("server")
    name = "h\x1b]0;OWNED\x07\nFasterRCNN: finished\u202e"
    fill(redis, 2, [name, "医院_1 (4)"], success=0)
    redis.hset(f"ms_fl:{JOB}:{INSTANCE}:status:Hash", "lastIterationResult", "no\x1b[2J\n  note: x")
    out = run(job.folder, SCRIPT).stdout
    assert "医院_1" in out and r"h\x1b]0;OWNED\x07\nFasterRCNN: finished\u202e" in out
    assert all(line.isprintable() for line in out.split("\n"))
    assert not [
        line for line in out.splitlines()[1:] if line.startswith(("FasterRCNN", "  note: x"))
    ]
    shown = io.StringIO()
    Screen(shown).show(lines_of(job.collect()), "now")
    assert "\x1b" not in shown.getvalue() and "医院_1" in shown.getvalue()


def test_a_silo_that_was_seen_is_missed_after_redis_has_forgotten_it(job, redis):
    job.start("server")
    fill(redis, 2, ["clinic_7 (12)"])
    collector = Collector(job.folder)
    assert collector.collect().iteration.joined == ["clinic_7"]
    redis.flushall()
    fill(redis, 4, [])
    assert collector.collect().iteration.missing == ["clinic_7"]


def test_losses_precision_and_what_is_not_known_yet(job, redis):
    job.start("worker", 0)
    job.start("worker", 1)
    values = {"iteration": 3, "iterations": 5, "step": 7, "steps": 15, "loss": 0.51234}
    job.says("worker_0", phase="train", ap=0.213, ap50=0.4, **values)
    lines = lines_of(job.collect())
    first = next(line for line in lines if line.startswith("worker_0  train"))
    assert "3 of 5" in first and "7 of 15" in first and "0.5123" in first
    assert "0.213" in first and "0.400" in first
    assert any(line.startswith("worker_1  starting") for line in lines)


def test_without_redis_the_workers_tell(job):
    with update_record(job.folder) as record:
        record.redis = f"127.0.0.1:{free_port_range(1)}"
    job.start("worker", 0, "--silo_name=bank", "--user_id=0")
    job.start("worker", 1, "--silo_name=bank", "--user_id=1")
    job.says("worker_0", phase="wait", iteration=2, iterations=5)
    job.says("worker_1", phase="finished", iteration=1, iterations=5)
    status = job.collect()
    assert "does not answer" in status.redis
    found = status.iteration
    assert (found.number, found.of, found.source) == (2, 5, "worker status")
    assert (found.joined, found.sent, found.missing) == (["bank_0"], ["bank_0"], [])


def test_redis_and_scheduler_that_accept_and_never_answer_are_a_line_each(job):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with update_record(job.folder) as record:
            record.redis = address
        job.start("server")
        status = Collector(job.folder, address).collect()
    assert status.word == "running"
    assert status.redis.startswith(f"{address} does not answer (Timeout")
    assert status.scheduler.startswith(f"the scheduler at {address} does not answer (timed out)")
    assert "no iteration is known yet" in lines_of(status)


def test_a_scheduler_that_runs_and_does_not_answer_is_not_to_be_started(job, redis):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        job.start("scheduler")
        with update_record(job.folder) as record:
            record.redis = record.processes[0].address = address
        status = job.collect()
    assert status.scheduler == (
        f"the scheduler at {address} does not answer (timed out); it runs and waits for Redis"
    )


def test_a_redis_that_is_full_and_servers_without_a_sign_of_life_are_notes(job, redis):
    job.start("server")
    fill(redis, 2, [])
    redis.delete(*redis.keys("*heartbeat*"))
    assert job.collect().notes == ["servers run here, and Redis has no heartbeat of them"]
    redis.config_set("maxmemory", 1)
    try:
        (_, note) = job.collect().notes
        assert "is at its maxmemory and refuses the servers' writes" in note
        with pytest.raises(UserError, match="answers and takes no writes: .* maxmemory 0"):
            JobStore(("127.0.0.1", redis.connection_pool.connection_kwargs["port"]), JOB).require()
    finally:
        redis.config_set("maxmemory", 0)
    JobStore(("127.0.0.1", redis.connection_pool.connection_kwargs["port"]), JOB).require()
    assert not redis.keys("*trial*")


def test_why_a_process_failed_is_told_with_what_helps(job, redis):
    for number, reason in ((0, "ended"), (1, "killed by SIGKILL")):
        job.start("worker", number)
        folder = job.folder / f"worker_{number}"
        (folder / "worker.log").write_text("Traceback\nKeyError: 'x'\n\n[..] ended; exit code 1\n")
        job.end(f"worker_{number}", 1 + 136 * number, reason)
    text = "\n".join(lines_of(job.collect()))
    assert "worker_0 failed: exit code 1: KeyError: 'x' (see" in text
    assert "worker_1 failed: killed by SIGKILL; the kernel does so when memory runs out" in text


def write_rounds(job, *seconds, ago=0.0):
    path = job.folder / "worker_0" / "rounds.jsonl"
    lines = [json.dumps({"iteration": i, "round_s": s}) for i, s in enumerate(seconds, 1)]
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, (time.time() - ago, time.time() - ago))


def test_time_left_from_the_rounds_of_a_worker(job, redis):
    job.start("worker", 0)
    fill(redis, 3, [])
    assert job.collect().eta_s is None
    write_rounds(job, 90.0, 20.0, ago=5.0)
    write_rounds(job, 90.0, 20.0, 20.0, 20.0, 20.0, 20.0, ago=5.0)
    assert job.collect().eta_s == pytest.approx(2 * 20 + 15, abs=3)
    write_rounds(job, 90.0, 20.0, ago=5.0)
    assert job.collect().eta_s == pytest.approx(2 * 20 + 15, abs=3)
    write_rounds(job, 90.0, 20.0, 20.0, ago=100.0)
    assert job.collect().eta_s == pytest.approx(2 * 20, abs=1)


def test_time_left_from_steps_as_soon_as_a_second_one_is_done(job, redis):
    job.start("worker", 0)
    fill(redis, 1, [])
    said = {"phase": "train", "iteration": 1, "iterations": 5, "step": 2, "steps": 500}
    job.says("worker_0", **said)
    assert job.collect().eta_s is None
    job.says("worker_0", **said, steps_left=498, step_s=2.0)
    assert job.collect().eta_s == pytest.approx(996, abs=5)


def test_time_left_near_the_end_is_that_of_the_last_steps(job, redis):
    job.start("worker", 0)
    write_rounds(job, 400.0, 180.0, ago=170.0)
    fill(redis, 5, [])
    said = {"phase": "train", "iteration": 5, "iterations": 5, "steps_left": 3, "step_s": 4.0}
    job.says("worker_0", **said, sync_s=6.0)
    assert job.collect().eta_s == pytest.approx(18, abs=3)


def test_the_slowest_worker_that_runs_tells_the_time_left(job, redis):
    fill(redis, 4, [])
    for number, seconds in enumerate((1.0, 3.0, 100.0)):
        job.start("worker", number)
        said = {"phase": "train", "iteration": 4, "iterations": 5, "steps_left": 20}
        job.says(f"worker_{number}", **said, step_s=seconds, sync_s=10.0)
    job.end("worker_2", 1)
    assert job.collect().eta_s == pytest.approx(3 * 20 + 2 * 10, abs=4)


def test_time_left_from_the_servers_figures(job, redis):
    job.start("server")
    fill(redis, 4, [])
    entries = [
        {"currentIteration": 1, "iterationExecutionTime": 30_000, "iterationResult": "success"},
        {"currentIteration": 2, "iterationExecutionTime": 10**12, "iterationResult": "fail"},
    ]
    path = job.folder / "server_0" / "metrics.json"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"cut of')
    assert job.collect().eta_s == pytest.approx(60, abs=3)
    fill(redis, 4, [], state=1)
    status = job.collect()
    assert status.eta_s is None
    assert "disabled (status.py enable lets it go on)" in lines_of(status)[0]


def test_an_iteration_that_failed_is_told(job, redis):
    job.start("server")
    fill(redis, 3, [], success=0)
    assert "the iteration before the current one failed: Disable instance" in job.collect().notes


def test_finished(job, redis):
    job.start("server")
    job.start("worker", 0)
    job.end("server_0", reason="job finished, every silo has left")
    job.end("worker_0")
    fill(redis, 6, [], state=2)
    status = job.collect()
    assert (status.word, as_values(status)["exit_code"]) == ("finished", 10)
    assert status.iteration.number == 5
    assert "all 5 iterations are done" in lines_of(status)


def note_results(redis, results):
    """As the servers' supervisors do; the engine's own keys are those of `fill`."""
    port = redis.connection_pool.connection_kwargs["port"]
    store = JobStore(("127.0.0.1", port), JOB)
    store.note_results(dict(enumerate(results, 1)))
    store.close()


def test_the_first_line_tells_how_many_iterations_failed(job, redis):
    job.start("server")
    fill(redis, 4, [])
    note_results(redis, [True, True, True])
    assert "aggregated" not in lines_of(job.collect())[0]
    note_results(redis, [True, False, True])
    status = job.collect()
    assert ", 2 of 3 iterations aggregated, 1 failed, " in lines_of(status)[0]
    assert (status.iteration.aggregated, status.iteration.failed) == (2, 1)
    fill(redis, 6, [], state=2)
    note_results(redis, [False, False, True, False, True])
    reason = "job finished, every silo has left; 2 of 5 iterations aggregated, 3 failed"
    job.end("server_0", code=1, reason=reason)
    status = job.collect()
    assert (status.word, as_values(status)["exit_code"]) == ("failed", 11)
    headline, *_ = lines = lines_of(status)
    assert headline.endswith(": failed, iteration 5 of 5, 2 of 5 iterations aggregated, 3 failed")
    assert f"  note: server_0 failed: {reason} (see server_0/server.log)" in lines


def test_without_redis_the_folders_files_tell_what_became_of_iterations(job):
    job.start("worker", 0)
    job.says("worker_0", phase="train", iteration=4, iterations=9)
    line = {"iteration": 1, "result": "aggregated"}
    rounds = [line, {**line, "iteration": 2, "result": "lost"}]
    (job.folder / "worker_0" / "rounds.jsonl").write_text("\n".join(map(json.dumps, rounds)))
    with update_record(job.folder) as record:
        record.redis = "127.0.0.1:1"
    words = "1 of 2 iterations aggregated, 1 failed (of 1 more nothing is known)"
    assert words in lines_of(job.collect())[0]
    (job.folder / "server_0").mkdir()
    lines = [{"currentIteration": n, "iterationResult": "fail"} for n in (1, 2, 3)]
    (job.folder / "server_0" / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert "0 of 3 iterations aggregated, 3 failed, " in lines_of(job.collect())[0]


@pytest.mark.parametrize(
    ("code", "reason", "said", "told"),
    [
        (1, "ended", {"phase": "failed", "reason": "the loss is nan"}, "failed: the loss is nan"),
        (0, "stopped by SIGTERM", {"phase": "train"}, "was stopped by SIGTERM"),
        (None, "", {"phase": "train"}, "failed: was killed together with its supervisor"),
    ],
)
def test_a_worker_that_failed_while_servers_wait(job, redis, code, reason, said, told):
    job.start("server")
    job.start("worker", 0)
    job.says("worker_0", **said)
    job.end("worker_0", code, reason)
    status = job.collect()
    assert (status.word, as_values(status)["exit_code"]) == ("failed", 11)
    text = "\n".join(lines_of(status))
    assert f"worker_0 {told}" in text
    assert "the servers wait for it" in text
    # Nothing is left to wait for.
    fill(redis, 6, [], state=2)
    text = "\n".join(lines_of(job.collect()))
    assert f"worker_0 {told}" in text
    assert "the servers wait for it" not in text


def test_a_worker_killed_with_its_supervisor_after_it_was_finished_has_ended_well(job, redis):
    job.start("server")
    job.start("worker", 0)
    job.end("server_0", reason="job finished, every silo has left")
    job.says("worker_0", phase="finished")
    job.end("worker_0", reason="")
    status = job.collect()
    assert (status.word, status.processes[1].state, status.processes[1].code) == (
        "finished",
        "ended",
        0,
    )


@pytest.mark.parametrize(
    ("code", "reason", "shown"),
    [
        (137, "killed by SIGKILL", "failed 137"),
        (137, "stopped by SIGTERM and killed 4 s later", "stopped 137"),
        (0, "stopped by SIGTERM", "stopped 0"),
        (0, "job finished (it had to be killed)", "ended 0"),
    ],
)
def test_state_and_date_stand_apart(job, redis, code, reason, shown):
    job.start("server", 0)
    job.end("server_0", code, reason)
    lines = lines_of(job.collect())
    (title,) = (line for line in lines if line.startswith("process"))
    (line,) = (line for line in lines if line.startswith("server_0  "))
    since = title.index("since")
    assert line[title.index("state") : since].rstrip() == shown and line[since - 1] == " "
    assert re.match(r"\d\d:\d\d ", line[since:])


def test_80_columns_show_every_figure_and_log(job, redis):
    job.start("scheduler")
    job.start("worker", 0)
    with update_record(job.folder) as record:
        record.processes[0].address = "10.0.0.12:18019"
        record.processes[0].pid, record.processes[0].created = 4194303, 1e9
    values = {"iteration": 14, "iterations": 140, "step": 1350, "steps": 35000, "loss": 0.51234}
    job.says("worker_0", phase="train", ap=0.213, ap50=0.456, **values)
    lines = lines_of(job.collect())
    (silo,) = (line for line in lines if line.startswith("worker_0  train"))
    assert "0.213  0.456" in silo[:79]
    assert all(len(line) < 80 for line in lines if line.endswith(".log"))
    assert any(line.endswith("scheduler/scheduler.log") for line in lines)


def test_one_worker_of_two_that_failed_leaves_the_job_running(job, redis):
    job.start("worker", 0)
    job.start("worker", 1)
    job.end("worker_1", 137, "killed by SIGKILL")
    status = job.collect()
    assert status.word == "running"
    assert any("worker_1 failed: killed by SIGKILL" in line for line in lines_of(status))


def test_the_command_shows_the_users_only_job_from_anywhere(job, redis, tmp_path):
    job.start("worker", 0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run(elsewhere, SCRIPT, "--json")
    assert result.returncode == 0
    values = json.loads(result.stdout)
    assert (values["folder"], values["word"], values["exit_code"]) == (
        str(job.folder),
        "running",
        0,
    )

    second = Job(tmp_path / "elsewhere", 1)
    second.start("worker", 0)
    second.end("worker_0", 1)
    third = tmp_path / "third"
    third.mkdir()
    result = run(third, SCRIPT)
    assert result.returncode == 2
    assert "several elsewhere" in result.stderr
    result = run(third, SCRIPT, "--all", "--json")
    assert result.returncode == 0
    assert {entry["word"] for entry in json.loads(result.stdout)} == {"running", "failed"}


def test_management_without_a_scheduler_is_one_line(job, redis):
    job.start("server")
    result = run(job.folder, SCRIPT, "disable")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no scheduler of FasterRCNN was started from here")
    address = f"127.0.0.1:{free_port_range(1)}"
    result = run(job.folder, SCRIPT, "query", f"--scheduler_manage_address={address}")
    assert result.returncode == 2
    assert f"the scheduler at {address} does not answer" in result.stderr


def test_watch_draws_one_block_below_the_other_in_a_file_and_ends_with_the_job(job, redis):
    job.start("worker", 0)
    shown = io.StringIO()

    def collect():
        if shown.getvalue().count("== ") == 2:
            job.end("worker_0")
        return job.collect()

    assert watch(collect, 0.01, Screen(shown)).word == "finished"
    text = shown.getvalue()
    assert text.count("== ") == 3
    assert "\x1b" not in text


def test_watch_on_a_terminal_draws_in_place(job, redis):
    job.start("worker", 0)
    job.end("worker_0", 1)
    ours, theirs = pty.openpty()
    command = [sys.executable, str(PROJECT_DIR / SCRIPT), "--watch"]
    process = subprocess.Popen(command, cwd=job.folder, stdout=theirs, stderr=theirs)
    assert process.wait(timeout=60) == 11
    os.close(theirs)
    text = os.read(ours, 10**5).decode()
    os.close(ours)
    assert text.startswith("\x1b[2J\x1b[H")
    assert "FasterRCNN: failed" in text


def test_watch_ends_with_0_when_the_job_has_finished_so_that_a_script_goes_on(job, redis):
    job.start("worker", 0)
    job.end("worker_0")
    assert run(job.folder, SCRIPT).returncode == 10
    assert run(job.folder, SCRIPT, "--watch").returncode == 0


def test_words_for_spans_of_time():
    spans = [duration(s) for s in (0.4, 119, 125, 7200, 12_000, 200_000)]
    assert spans == ["0 s", "119 s", "2 min", "2 h 0 min", "3 h 20 min", "2 d 7 h"]
