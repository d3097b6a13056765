"""What is known of a job's other processes on this machine when workers are started."""

import argparse
import json

import pytest

from src.errors import UserError
from src.job.job_config import load_job
from src.job.job_record import FOLDER, update_record
from src.launch.machine_jobs import require_other_silos, take_threshold, tell_missing_silos
from src.launch.processes import record_process

pytestmark = pytest.mark.usefixtures("own_index")

SERVER = "127.0.0.1:9"


class Folder:
    """A folder whose job seems to have started processes; all of them are the one sleeper."""

    def __init__(self, path, sleeper, redis_port=1, fl_name="FasterRCNN"):
        path.mkdir()
        self.path, self._pid = path, sleeper.pid
        with update_record(path) as record:
            record.fl_name, record.redis = fl_name, f"127.0.0.1:{redis_port}"

    def worker(self, number=0, role="worker", silo="clinic", servers=(SERVER,)):
        record_process(self.path, role, number, self._pid, self.path, "")
        with update_record(self.path) as record:
            record.processes[-1].silo = f"{silo}_{number}" if silo else ""
            record.processes[-1].servers = list(servers)
        return self

    def server(self):
        record_process(self.path, "server", 0, self._pid, self.path, SERVER)
        return self


@pytest.fixture
def folder(tmp_path, sleeper, redis_port):
    def make(name="here", **more):
        return Folder(tmp_path / name, sleeper, redis_port, **more)

    return make


def config(**values):
    given = {"silo_name": "clinic", "http_server_address": SERVER, "server_num": 1, **values}
    return argparse.Namespace(**given)


@pytest.fixture
def job():
    return load_job("default_yaml_config.yaml", {"round.start_fl_job_threshold": 4})


def test_a_silo_of_this_folder_does_not_start_a_second_time(folder, job, sleeper):
    here = folder().worker(0, "worker_distributed").worker(1)
    with pytest.raises(UserError) as error:
        require_other_silos(here.path, job, config(), {0: "worker_0", 1: "worker_1"})
    assert str(error.value) == (
        f"worker_distributed of this folder (pid {sleeper.pid}) is silo 0 already, and worker_0 "
        "would be the same silo (clinic_0) a second time; give --first_worker_id=2 for another "
        "silo, or stop it with finish_cross_silo_fasterrcnn.py"
    )
    require_other_silos(here.path, job, config(), {2: "worker_2"})
    require_other_silos(here.path, job, config(silo_name="bank"), {0: "worker_0"})


def test_a_silo_of_another_folder_does_not_start_a_second_time(folder, job):
    there = folder("there").worker(0, servers=["127.0.0.1:8", SERVER])
    with pytest.raises(
        UserError, match=f"worker_0 of {there.path} .* another --silo_name .* there"
    ):
        require_other_silos(folder().path, job, config(), {0: "worker_distributed"})


@pytest.mark.parametrize(
    ("job_there", "silo"),
    [
        ({"fl_name": "Other"}, {}),
        ({}, {"servers": ["127.0.0.1:10"]}),
        # A rank on another machine, or its stand-in: it does not talk to the servers.
        ({}, {"role": "worker_distributed", "silo": ""}),
        ({}, {"number": 1}),
    ],
)
def test_what_is_another_silo_or_job_may_start(folder, job, job_there, silo):
    folder("there", **job_there).worker(**silo)
    require_other_silos(folder().path, job, config(), {0: "worker_0"})


def test_a_record_of_another_folder_that_cannot_be_read_stops_nobody(folder, job):
    there = folder("there").worker(0)
    (there.path / FOLDER / "job.json").write_text("{")
    require_other_silos(folder().path, job, config(), {0: "worker_0"})


@pytest.mark.parametrize(
    ("running", "words"),
    [
        (1, "1 silo runs on this machine, and an iteration takes 4 by start_fl_job_threshold of "),
        (3, "3 silos run on this machine, and an iteration takes 4 by start_fl_job_threshold of "),
        (4, ""),
        (5, ""),
    ],
)
def test_of_servers_elsewhere_only_what_is_known_here_is_said(folder, job, capsys, running, words):
    here = folder().worker(0)
    there = folder("there")
    for number in range(1, running):
        there.worker(number)
    tell_missing_silos(here.path, job, config())
    said = capsys.readouterr().out
    assert said.startswith(words) and bool(said) == bool(words)
    assert "begins when" not in said and "has joined (" not in said
    if words:
        assert f"{job.path}; who has joined, and what the servers go by, is known where" in said


def test_servers_on_this_machine_tell_their_threshold_and_who_has_joined(
    folder, job, redis, capsys
):
    here, key = folder().worker(0), "ms_fl:FasterRCNN:i"
    folder("coordinator").server()
    redis.set("ms_fl:FasterRCNN:InstanceName:String", "i")
    redis.hset(f"{key}:status:Hash", "iterationNum", 3)
    redis.set(f"{key}:hyperParams:String", json.dumps({"start_fl_job_threshold": 3}))
    for silo in ("clinic_0 (5)", "bank_0 (7)"):
        redis.hset(f"{key}:3:client:DeviceMetas:Hash", silo, "x")
    tell_missing_silos(here.path, job, config())
    words = "iteration 3 begins when 1 more silo has joined (2 of 3 have): start it, or start the "
    assert capsys.readouterr().out == f"{words}servers with --start_fl_job_threshold=2\n"
    take_threshold(here.path, job, config())
    assert job["round.start_fl_job_threshold"] == 3
    note = "note: the servers of FasterRCNN go by start_fl_job_threshold 3, and not 4\n"
    assert capsys.readouterr().out == note
    redis.hset(f"{key}:2:client:DeviceMetas:Hash", mapping={"a": "x", "b": "x", "c": "x"})
    tell_missing_silos(here.path, job, config())
    assert capsys.readouterr().out == ""


def test_servers_whose_redis_is_gone_leave_the_file_its_word(
    folder, job, tmp_path, sleeper, capsys
):
    Folder(tmp_path / "coordinator", sleeper, redis_port=1).server()
    here = folder().worker(0)
    take_threshold(here.path, job, config())
    assert job["round.start_fl_job_threshold"] == 4
    tell_missing_silos(here.path, job, config())
    said = capsys.readouterr().out
    assert said.startswith("1 silo runs on this machine, and an iteration takes 4 by")
