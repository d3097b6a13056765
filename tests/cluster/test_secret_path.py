"""A job whose servers' paths begin with a secret, on the real engine."""

import http.client
from types import SimpleNamespace

import pytest
from engine import Engine
from members import Member, assert_mean, initial, together

from src.errors import UserError
from src.federated.replies import Outcome
from src.federated.transport import Client
from src.job.job_config import load_job
from src.launch.preflight.network import large_messages_pass, servers_answer
from src.launch.supervise import LogFilter
from src.model_utils.config import get_config

PREFIX = "/k3y7-k3y7-k3y7_k3y7/"
PATHS = ("startFLJob", "updateModel", "getModel", "pushWeight", "pullWeight", "pushMetrics")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Log level 1, as the launchers have it: the engine names its paths then."""
    folder = tmp_path_factory.mktemp("engine")
    with Engine(initial(), folder, log_level=1, prefix=PREFIX) as engine:
        yield engine


def status_of(address, path):
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", path, body=b"x")
        return connection.getresponse().status
    finally:
        connection.close()


def test_silos_that_know_it_train_and_every_plain_path_is_not_there(engine):
    first, second = Member(engine, "a_0 (30)", 30), Member(engine, "b_0 (10)", 10)
    assert_mean([first, second], together(first, second))
    (address,) = engine.addresses
    for prefix, found in (("/", 404), ("/another-secret-path/", 404), (PREFIX, 200)):
        assert {path: status_of(address, prefix + path) for path in PATHS[:4]} == dict.fromkeys(
            PATHS[:4], found
        ), prefix
    assert {status_of(address, f"/{path}") for path in PATHS} == {404}
    assert_mean([first, second], together(first, second))


def test_a_silo_with_another_one_reads_what_differs(engine):
    client = Client(engine.addresses, engine.fl_name, "c_0 (10)")
    reply = client.get_model(-1, 10)
    client.close()
    assert reply.outcome is Outcome.UNREACHABLE
    assert "another client.http_url_prefix in its federation file than in this silo's" in str(reply)


def test_the_preflight_asks_on_the_secret_path(engine):
    flags = SimpleNamespace(http_server_address=engine.addresses[0], server_num=1)
    job = load_job(engine.yaml_path)
    assert servers_answer(job, flags).endswith("take connections")
    host, port = engine.addresses[0].split(":")
    config = SimpleNamespace(**vars(get_config([])), **vars(flags))
    assert "64 kB pass" in large_messages_pass(job, config, [(host, int(port))])
    plain = load_job(engine.yaml_path, {"client.http_url_prefix": ""})
    with pytest.raises(UserError, match="no server of a job answers but .*HTTP status 404"):
        servers_answer(plain, flags)


def test_no_line_that_reaches_the_log_has_it(engine):
    lines = engine.log("server_0").splitlines(keepends=True)
    shown, log_filter = [], LogFilter()
    for line in lines:
        shown.append(log_filter.shown(line))
    assert any(PREFIX in line for line in lines)
    assert not any(PREFIX.strip("/") in line for line in shown)
    (paths,) = (line for line in shown if "Ev http register handle of:" in line)
    assert "/pushWeight, /pullWeight, /getModel, /updateModel, /startFLJob" in paths
