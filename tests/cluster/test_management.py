"""The scheduler's management API on the real engine: what it does, and what is guarded."""

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
import yaml
from commands import refused, succeed
from engine import Engine, listens, wait_for
from members import Member, assert_mean, initial, together
from ports import free_ports
from stand_ins import StandIn

from src.errors import UserError
from src.job.job_config import load_job
from src.job.job_record import FOLDER, update_record
from src.job.recovery_files import list_recovery_files
from src.launch.management import Management, disable, enable, new_instance
from src.launch.processes import record_process
from src.launch.redis_store import FINISHED, WINDOWS, JobStore
from src.launch.status import Collector
from src.model_utils.config import PROJECT_DIR

ITERATIONS = 4


class Cluster:
    """Redis, two servers, a scheduler, and what talks to them."""

    def __init__(self, engine: Engine, address: str):
        self.engine = engine
        self.management = Management(address)
        host, port = engine.redis_address.split(":")
        self.store = JobStore((host, int(port)), engine.fl_name)

    def members(self, iterations: int = ITERATIONS) -> list[Member]:
        names = ("bank_0 (30)", "clinic_1 (10)")
        return [
            Member(self.engine, name, images, iterations=iterations)
            for name, images in zip(names, (30, 10))
        ]

    def iteration(self) -> int:
        return int(self.store.status()["iterationNum"])


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with Engine(initial(), tmp_path, servers=2, iterations=ITERATIONS) as engine:
        command = [
            sys.executable,
            str(PROJECT_DIR / "test_fl_fasterrcnn.py"),
            "--ms_role=MS_SCHED",
            f"--yaml_config={engine.yaml_path}",
            f"--scheduler_manage_address={address}",
        ]
        with (tmp_path / "scheduler.log").open("wb") as log:
            scheduler = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        try:
            wait_for(lambda: listens(address), 60, "the scheduler")
            yield Cluster(engine, address)
        finally:
            scheduler.kill()
            scheduler.wait(10)


@pytest.mark.slow
def test_pausing_and_what_of_it_is_refused(cluster, tmp_path):
    state = cluster.management.state()
    assert state["cluster_state"] == "CLUSTER_READY"
    assert [node["role"] for node in state["nodes"]] == ["SERVER", "SERVER"]
    settings = cluster.management.query()
    assert settings["fl_iteration_num"] == ITERATIONS
    assert settings["global_iteration_time_window"] == 120_000
    assert cluster.store.settings() == settings

    silos = cluster.members()
    silos[0].join()
    assert cluster.store.joined(1) == ["bank_0 (30)"]
    with pytest.raises(UserError, match=r"what bank_0 \(30\) have trained in it is lost"):
        disable(cluster.management, cluster.store)
    assert cluster.management.state()["cluster_state"] == "CLUSTER_READY"
    assert cluster.iteration() == 1
    collected_while_one_is_missing(cluster, tmp_path)
    said = disable(cluster.management, cluster.store, force=True)
    assert "iteration 1 of 4 has failed by it; the job goes on with 2" in said[1]
    assert cluster.management.state()["cluster_state"] == "CLUSTER_DISABLE"
    with pytest.raises(UserError, match="already been disabled"):
        disable(cluster.management, cluster.store, force=True)

    assert enable(cluster.management, cluster.store) == ["Tiny is enabled: iteration 2 takes silos"]
    with pytest.raises(UserError, match="already been enabled"):
        enable(cluster.management, cluster.store)
    silos = cluster.members()
    assert_mean(silos, together(*silos))
    wait_for(lambda: cluster.iteration() == 3, 20, "iteration 3")
    assert "3 of 4 has failed by it" in disable(cluster.management, cluster.store)[1]
    enable(cluster.management, cluster.store)

    with pytest.raises(UserError, match="4 of 4 is the last one: the job would be over without it"):
        disable(cluster.management, cluster.store)
    assert cluster.management.state()["cluster_state"] == "CLUSTER_READY"
    assert_mean(silos, together(*silos))
    wait_for(lambda: cluster.store.status()["runningState"] == FINISHED, 20, "the end")
    finished_is_left_alone(cluster)


def collected_while_one_is_missing(cluster, folder):
    """The status of the folder's job, as Redis and the scheduler have it."""
    process = cluster.engine.processes["server_0"]
    record_process(folder, "server", 0, process.pid, folder, cluster.engine.addresses[0])
    with update_record(folder) as record:
        record.fl_name, record.redis = "Tiny", cluster.engine.redis_address
    status = Collector(folder, cluster.management.address).collect()
    assert status.word == "running"
    assert status.scheduler.endswith("says CLUSTER_READY, 2 server(s)")
    found = status.iteration
    assert (found.number, found.of, found.threshold) == (1, ITERATIONS, 2)
    assert (found.joined, found.sent, found.unknown) == (["bank_0"], [], 1)


def finished_is_left_alone(cluster):
    assert cluster.management.state()["cluster_state"] == "CLUSTER_FINISH"
    with pytest.raises(UserError, match="is completed and cannot be disabled"):
        disable(cluster.management, cluster.store, force=True)
    with pytest.raises(UserError, match="is completed and cannot be enabled"):
        enable(cluster.management, cluster.store)
    with pytest.raises(UserError, match="Tiny is finished and its servers are about to end"):
        new_instance(cluster.management, cluster.store, load_job(cluster.engine.yaml_path), None)


@pytest.mark.slow
def test_a_new_instance_counts_from_one_with_windows_in_seconds(cluster, tmp_path):
    silos = cluster.members()
    assert_mean(silos, together(*silos))
    assert_mean(silos, together(*silos))
    wait_for(lambda: list_recovery_files(tmp_path / "ckpt", "Tiny")[0].iteration == 2, 20, "file 2")
    settings = yaml.safe_load(cluster.engine.yaml_path.read_text())
    settings["round"]["start_fl_job_time_window"] = 5000
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(settings))
    job = load_job(changed, {"fl_iteration_num": 3})
    with pytest.raises(UserError, match=r"bank_0 \(30\), clinic_1 \(10\) take part"):
        new_instance(cluster.management, cluster.store, job, None)
    silos[0].join()
    with pytest.raises(UserError, match=r"take part \(iteration 3 of 4\) and would end with an"):
        new_instance(cluster.management, cluster.store, job, None)
    model = silos[0].model
    begun = time.monotonic()
    said = new_instance(cluster.management, cluster.store, job, tmp_path / "ckpt", force=True)
    assert "iteration 1 of 3, 2 silos" in said[0]
    assert "earlier recovery files are in" in said[1]
    assert cluster.iteration() == 1
    assert {key: cluster.store.settings()[key] for key in WINDOWS} == {
        key: job[f"round.{key}"] for key in WINDOWS
    }
    assert [f.iteration for f in list_recovery_files(tmp_path / "ckpt", "Tiny")] == [0]

    one, other = cluster.members(3)
    one.join()
    for name, values in model.items():
        assert (one.model[name] == values).all()
    # Taken as the engine does, 5,000 ms would be 5,000 s.
    wait_for(lambda: cluster.iteration() == 2, 30, "the end of the 5 s for joining")
    assert time.monotonic() - begun > 4
    one, other = cluster.members(3)
    assert_mean([one, other], together(one, other))


@pytest.mark.slow
def test_the_tool_finds_the_jobs_scheduler_redis_and_models(cluster, tmp_path):
    silos = cluster.members()
    assert_mean(silos, together(*silos))
    wait_for(lambda: list_recovery_files(tmp_path / "ckpt", "Tiny"), 20, "file 1")
    with update_record(tmp_path) as record:
        record.fl_name, record.redis = "Tiny", cluster.engine.redis_address
    specs = tmp_path / FOLDER / "specs"
    specs.mkdir()
    command = ["python", "--checkpoint_dir=" + str(tmp_path / "ckpt")]
    (specs / "server_0.json").write_text(json.dumps({"argv": command}))

    address = f"--scheduler_manage_address={cluster.management.address}"

    def said(*flags: str) -> list[str]:
        return succeed(tmp_path, "tools/status.py", *flags, address).splitlines()

    settings = dict(line.split() for line in said("query"))
    assert settings["fl_iteration_num"] == str(ITERATIONS)
    assert json.loads("\n".join(said("query", "--json"))) == cluster.store.settings()
    assert "iteration 2 of 4 has failed by it; the job goes on with 3" in said("disable", "--force")
    assert said("enable") == ["Tiny is enabled: iteration 3 takes silos"]
    file = f"--yaml_config={cluster.engine.yaml_path}"
    begun, model, last = said("new-instance", file, "--fl_iteration_num=2", "--force")
    assert begun.startswith("Tiny begins again: iteration 1 of 2")
    assert str(tmp_path / "ckpt" / "earlier_1") in model
    assert last == "start each silo again with --fl_iteration_num=2"
    assert cluster.iteration() == 1 and cluster.store.settings()["fl_iteration_num"] == 2
    settings = yaml.safe_load(cluster.engine.yaml_path.read_text())
    settings["distributed_cache"]["address"] = "127.0.0.1:1"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(settings))
    flags = ("new-instance", f"--yaml_config={other}", address)
    line = refused(tmp_path, "tools/status.py", *flags)
    assert "distributed_cache.address is not the job's Redis" in line


def test_an_address_that_is_no_schedulers():
    with pytest.raises(UserError, match="does not answer"):
        Management(f"127.0.0.1:{free_ports(1)[0]}").state()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host, port = silent.getsockname()
        with pytest.raises(UserError, match=r"does not answer \(timed out\)"):
            Management(f"{host}:{port}", timeout_s=0.3).state()
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as stranger:
        threading.Thread(target=stranger.handle_request, daemon=True).start()
        with pytest.raises(UserError, match="is no scheduler of a federation"):
            Management(f"127.0.0.1:{stranger.server_port}").state()


STATE = json.dumps({"code": "0", "cluster_state": "CLUSTER_READY"}).encode()


def head(connection) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    return data


def answers(status: str, body: bytes = STATE, *headers: str):
    def handle(connection):
        head(connection)
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)

    return handle


def drips(*begin: bytes):
    """Begins an answer and goes on with a byte each 50 ms."""

    def handle(connection):
        head(connection)
        connection.sendall(b"".join(begin))
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    return handle


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    with StandIn(answers("200 OK")) as scheduler, StandIn(answers("200 OK")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert Management(scheduler.address).state()["cluster_state"] == "CLUSTER_READY"
        assert (scheduler.connections, proxy.connections) == (1, 0)


def test_an_answer_that_leads_elsewhere_is_not_followed():
    with StandIn(answers("200 OK")) as other:
        leads = answers("302 Found", b"", f"Location: http://{other.address}/state")
        with StandIn(leads) as scheduler, pytest.raises(UserError, match="is no scheduler of a"):
            Management(scheduler.address).state()
        assert other.connections == 0


def test_what_a_scheduler_refuses_comes_with_its_reason():
    body = json.dumps({"code": "1", "error_message": "not now"}).encode()
    with (
        StandIn(answers("400 Bad Request", body)) as scheduler,
        pytest.raises(UserError, match="refuses /disableFLS: not now"),
    ):
        Management(scheduler.address).disable()


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nA: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
    ],
    ids=["status", "head", "body"],
)
def test_an_answer_that_drips_ends_with_the_time(begin):
    with (
        StandIn(drips(begin)) as scheduler,
        pytest.raises(UserError, match=r"does not answer \(timed out\)"),
    ):
        Management(scheduler.address, timeout_s=0.5).state()
