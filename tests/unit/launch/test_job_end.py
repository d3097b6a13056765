"""When servers and scheduler may end, by what Redis and the servers' connections say."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import redis

from src.launch import job_end
from src.launch.job_end import QUIET_S, JobEnd, job_end_from, silo_at
from src.launch.redis_store import FINISHED, RUNNING, JobStore
from src.security.roster import Member, text_of

FETCH_S = 40.0
LEFT = "job finished, every silo has left"


class Job:
    """A job in Redis and the silos that are connected, as a test moves them; time as well."""

    def __init__(self):
        self.now = 0.5
        self.state = FINISHED
        self.silos: list[str] = []
        self.servers: dict[str, int] = {}
        self.sent, self.result = ["clinic_0"], "Weight aggregation finished!"
        self.seen: dict[str, int] = {}
        self.noted: dict[int, bool] = {}
        self.refuses = False
        self.members: list[str] = []

    def note_results(self, results):
        if self.refuses:
            raise redis.exceptions.OutOfMemoryError("used memory > 'maxmemory'")
        self.noted.update(results)

    def results(self):
        return self.noted

    def note_fetching(self, server, silos):
        self.seen[server] = silos

    def fetching(self):
        return sum(self.seen.values())

    def status(self):
        if self.state is None:
            raise redis.ConnectionError("away")
        return {"runningState": self.state, "iterationNum": "6", "lastIterationResult": self.result}

    def heartbeats(self):
        return self.servers

    def joined(self, iteration):
        return [f"{name} (30)" for name in self.members]

    def uploaded(self, iteration):
        return [f"{name} ({iteration})" for name in self.sent]


@pytest.fixture
def job(monkeypatch):
    job = Job()
    monkeypatch.setattr(job_end, "time", SimpleNamespace(monotonic=lambda: job.now))
    monkeypatch.setattr(job_end, "silo_at", lambda peer: peer)
    monkeypatch.setattr(JobEnd, "_peers", lambda self, pid: job.silos)
    return job


def after(job, end, seconds):
    job.now += seconds
    return end.poll(1)


def finished(job, silos=("clinic:1",), metrics=None):
    """The end of a server that has seen the job run, with silos connected, until now."""
    end = JobEnd(job, 7000, FETCH_S, metrics)
    job.state, job.silos = RUNNING, list(silos)
    assert after(job, end, 100 * FETCH_S) == ""
    job.state, job.silos = FINISHED, []
    assert after(job, end, 0.5) == ""
    return end


def test_a_server_ends_when_its_silos_have_left(job):
    end = finished(job)
    assert after(job, end, QUIET_S - 0.1) == ""
    assert after(job, end, 0.1) == LEFT


def test_a_server_that_looks_late_ends_too(job):
    end = finished(job)
    assert after(job, end, QUIET_S + 5) == LEFT
    end = finished(job)
    job.silos = ["clinic:1"]
    assert after(job, end, FETCH_S + 5) == "job finished"


def test_a_silo_that_comes_back_begins_the_quiet_time_again(job):
    end = finished(job)
    job.silos = ["clinic:2"]
    assert after(job, end, QUIET_S - 0.5) == ""
    job.silos = []
    assert after(job, end, 0.125) == ""
    assert after(job, end, QUIET_S - 0.125) == ""
    assert after(job, end, 0.125) == LEFT


def engines_file(folder, *results):
    path = folder / "metrics.json"
    lines = [
        json.dumps({"currentIteration": n, "iterationResult": "success" if result else "fail"})
        for n, result in enumerate(results, 1)
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("results", "words", "failed"),
    [
        ([True] * 5, "5 of 5 iterations aggregated", False),
        ([True, True, True, False, False], "3 of 5 iterations aggregated, 2 failed", False),
        ([True, True, False, False, False], "2 of 5 iterations aggregated, 3 failed", True),
        ([False] * 5, "0 of 5 iterations aggregated, 5 failed", True),
    ],
)
def test_a_server_ends_with_what_became_of_the_iterations(job, tmp_path, results, words, failed):
    end = finished(job, metrics=engines_file(tmp_path, *results))
    assert after(job, end, QUIET_S) == f"{LEFT}; {words}"
    assert end.failed == failed
    late = finished(job, metrics=tmp_path / "metrics.json")
    job.silos = ["clinic:1"]
    assert after(job, late, FETCH_S + 5) == f"job finished; {words}"
    assert late.failed == failed


def test_servers_of_two_machines_judge_what_both_have_ended(job, tmp_path):
    """A machine enters what is new in its own file, not what it has entered once more."""
    path = engines_file(tmp_path, False, False)
    end = JobEnd(job, 7000, FETCH_S, path)
    job.state, job.silos = RUNNING, ["clinic:1"]
    after(job, end, 1)
    # The job went back to iteration 2, which the other machine's server has ended then.
    job.noted.update({2: True, 4: True})
    engines_file(tmp_path, False, False, True)
    after(job, end, 1)
    assert job.noted == {1: False, 2: True, 3: True, 4: True}
    job.state, job.silos = FINISHED, []
    after(job, end, 1)
    words = "3 of 4 iterations aggregated, 1 failed (of 1 more nothing is known)"
    assert after(job, end, QUIET_S) == f"{LEFT}; {words}"
    assert not end.failed


def test_a_redis_that_comes_back_empty_is_told_again_what_the_files_hold(job, tmp_path):
    end = finished(job, metrics=engines_file(tmp_path, True, True, True))
    job.noted.clear()
    engines_file(tmp_path, True, True, True, False, False)
    job.state = RUNNING
    after(job, end, 1)
    assert job.noted == {1: True, 2: True, 3: True, 4: False, 5: False}


def test_servers_that_start_later_take_redis_word_before_their_folders(job, tmp_path):
    """Another machine has ended iteration 2 after the job went back to it."""
    job.noted.update({2: True})
    end = JobEnd(job, 7000, FETCH_S, engines_file(tmp_path, True, False))
    job.state = RUNNING
    after(job, end, 1)
    assert job.noted == {1: True, 2: True}
    engines_file(tmp_path, True, False, False)
    after(job, end, 1)
    assert job.noted == {1: True, 2: True, 3: False}


def test_results_that_redis_has_no_room_for_are_entered_later_and_keep_nobody(job, tmp_path):
    path = engines_file(tmp_path, False, False, False, False, True)
    job.refuses = True
    end = finished(job, metrics=path)
    assert after(job, end, QUIET_S) == LEFT
    end = finished(job, metrics=path)
    job.refuses = False
    assert after(job, end, QUIET_S) == f"{LEFT}; 1 of 5 iterations aggregated, 4 failed"


def test_a_silo_that_was_away_at_the_end_is_waited_for(job):
    job.sent = ["clinic_0", "bank_0"]
    end = finished(job)
    assert after(job, end, FETCH_S / 2) == ""
    (note,) = end.take_notes()
    assert "within 40 s (--fetch_timeout)" in note
    job.silos = ["bank:1"]
    assert after(job, end, 1) == ""
    job.silos = []
    assert after(job, end, 1) == ""
    assert after(job, end, QUIET_S) == LEFT
    assert end.take_notes() == []


def test_a_silo_that_never_comes_is_waited_for_so_long(job):
    job.sent = ["clinic_0", "bank_0"]
    end = finished(job)
    assert after(job, end, FETCH_S - 0.1) == ""
    assert after(job, end, 0.1) == LEFT


def test_silos_of_other_servers_count(job):
    job.sent = ["clinic_0", "bank_0"]
    job.seen["elsewhere:7000"] = 1
    end = finished(job)
    assert after(job, end, QUIET_S) == LEFT


def test_a_finished_job_that_is_served_again_waits_for_silos_nobody_knows(job):
    job.sent, job.result = [], ""
    end = finished(job)
    assert after(job, end, FETCH_S - 0.1) == ""
    assert after(job, end, 0.1) == LEFT


def test_a_job_that_goes_on_again_is_not_finished(job):
    end = finished(job)
    job.state, job.silos = RUNNING, ["clinic:1"]
    assert after(job, end, 100 * FETCH_S) == ""
    job.state, job.silos = FINISHED, []
    assert after(job, end, 1) == ""
    assert after(job, end, QUIET_S - 0.125) == ""
    assert after(job, end, 0.125) == LEFT


def test_a_redis_that_is_away_ends_nothing(job):
    end = JobEnd(job, 7000, FETCH_S)
    job.state = None
    assert after(job, end, 100 * FETCH_S) == ""


def test_a_silo_that_stays_connected_is_named_after_the_time_to_fetch(job):
    end = JobEnd(job, 7000, FETCH_S)
    job.silos = ["clinic:1"]
    assert after(job, end, 0) == ""
    assert after(job, end, FETCH_S - 0.125) == ""
    assert end.take_notes() == []
    assert after(job, end, 0.125) == "job finished"
    (note,) = end.take_notes()
    assert "within 40 s: clinic:1 (silos of iteration 5: clinic_0 (5))" in note
    assert end.take_notes() == []


def test_the_scheduler_ends_when_the_servers_have(job):
    end = JobEnd(job, 0, FETCH_S)
    job.servers = {"beat": 900}
    assert after(job, end, 0) == ""
    assert after(job, end, QUIET_S) == ""
    job.servers = {}
    assert after(job, end, 0.125) == "job finished"


def test_the_scheduler_of_a_finished_job_waits_for_servers_to_go_on(job):
    end = JobEnd(job, 0, FETCH_S)
    assert after(job, end, 0) == ""
    assert after(job, end, 100 * FETCH_S) == ""
    job.servers, job.state = {"beat": 900}, RUNNING
    assert after(job, end, 1) == ""
    job.servers, job.state = {}, FINISHED
    assert after(job, end, 1) == ""
    assert after(job, end, QUIET_S) == "job finished"


def test_the_scheduler_does_not_wait_for_a_server_that_hangs(job):
    end = JobEnd(job, 0, FETCH_S)
    job.servers = {"beat": 900}
    assert after(job, end, 0) == ""
    assert after(job, end, FETCH_S + 60) == ""
    assert after(job, end, 0.125) == "job finished"


CLIENT = """
import socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))):
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("flags", "name"), [
    (["--silo_name=clinic", "--user_id=3"], "clinic_3 at "),
    (["--silo_name=clinic=a"], "clinic=a_0 at "),
    ([], ""),
])  # fmt: skip
def test_a_silo_that_is_connected_is_seen_and_named_by_its_command_line(flags, name):
    """This process is the server; its connections to other ports do not count."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = server.getsockname()[1]
        end = JobEnd(Job(), port, 0.0)
        stranger = socket.create_connection(other.getsockname())
        assert end._peers(os.getpid()) == []
        command = [sys.executable, "-c", CLIENT, str(port), *flags]
        client = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert client.stdout.readline() == b"up\n"
            accepted, (ip, number) = server.accept()
            peer = f"{ip}:{number}"
            assert end._peers(os.getpid()) == [peer]
            assert silo_at(peer) == f"{name}{peer}"
            end.poll(os.getpid())
            (note,) = end.take_notes()
            assert f"{name}{peer} (silos of iteration 5" in note
        finally:
            client.kill()
            client.wait()
        accepted.recv(1)
        # Closed by the silo and not yet by the server.
        assert end._peers(os.getpid()) == []
        accepted.close()
        stranger.close()


def test_a_peer_that_nothing_here_is_connected_as_stays_an_address():
    assert silo_at("192.0.2.1:5") == "192.0.2.1:5"


def test_a_process_that_has_ended_has_no_peers():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert JobEnd(Job(), 7000, FETCH_S)._peers(ended.pid) == []


def test_results_of_a_job_are_kept_in_redis_by_its_instance(redis, redis_port):
    store = JobStore(("127.0.0.1", redis_port), "job")
    redis.set("ms_fl:job:InstanceName:String", "i")
    redis.hset("ms_fl:job:i:status:Hash", "iterationNum", 11)
    assert store.results() == {}
    store.note_results({10: True, 2: False})
    store.note_results({1: True, 2: True, 3: False})
    # An iteration that is not over yet is of before the job went back to it.
    store.note_results({11: True, 12: True})
    assert list(store.results().items()) == [(1, True), (2, True), (3, False), (10, True)]
    assert redis.ttl("ms_fl:job:i:iterationResults:Hash") > 24 * 3600
    redis.set("ms_fl:job:InstanceName:String", "another")
    assert store.results() == {}
    assert store.purge() == 3
    store.close()


def test_it_is_made_of_what_a_launcher_writes(redis, redis_port):
    values = {"redis": ["127.0.0.1", redis_port], "fl_name": "job", "http_port": 0, "tls": {}}
    end = job_end_from({**values, "fetch_timeout_s": 1.0})
    assert end.poll(1) == ""
    redis.set("ms_fl:job:InstanceName:String", "i")
    redis.hset("ms_fl:job:i:status:Hash", "runningState", FINISHED)
    assert end.poll(1) == ""


def test_a_server_tells_once_of_each_silo_that_the_roster_does_not_have(job, tmp_path):
    roster = tmp_path / "silos.yaml"
    entries = {
        name: Member(name, digit * 64, digit * 2)
        for name, digit in (("clinic", "1"), ("bank", "2"))
    }
    roster.write_text(text_of(entries.values()))
    end = JobEnd(job, 7000, FETCH_S, roster=str(roster))
    job.state, job.members = RUNNING, ["bank_0", "bank_1"]

    def told():
        after(job, end, 0.5)
        return end.take_notes()

    assert told() == []
    job.members.append("shadow_0")
    words = f"WARNING: is in iteration 6 and not in the roster {roster}: "
    assert told() == [f"{words}shadow_0"] and told() == []
    # One that joined and sent between two looks.
    job.sent.append("quick_3")
    assert told() == [f"{words}quick_3"]
    # And one whose entry is removed while it trains.
    roster.write_text(text_of([entries["clinic"]]))
    os.utime(roster, ns=(1, 1))
    assert told() == [f"{words}bank_0, bank_1"]
    roster.write_text("silos: 5\n")
    (line,) = told()
    assert "who is a stranger cannot be told" in line and told() == []


def test_a_scheduler_and_a_job_without_a_roster_tell_of_nobody(job):
    job.state, job.members = RUNNING, ["shadow_0"]
    for end in (JobEnd(job, 7000, FETCH_S), JobEnd(job, 0, FETCH_S)):
        assert after(job, end, 0.5) == "" and end.take_notes() == []
