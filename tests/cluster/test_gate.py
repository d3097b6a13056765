"""The gate: the real nginx before two servers of the real engine, its members, and strangers."""

from __future__ import annotations

import http.client
import socket
import ssl

import numpy as np
import pytest
from certificate_files import make_certificates
from engine import Engine, wait_for
from gate_process import Gate, Members, why_no_gate
from members import Member, assert_mean, initial, together
from ports import free_port_range

from src.federated import messages
from src.federated.replies import Outcome, Reply
from src.federated.transport import Client

SECONDS = 10.0
PREFIX = "/k3y7-k3y7-k3y7_k3y7/"


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    reason = why_no_gate(folder)
    if reason:
        pytest.skip(reason)
    return Members(folder, ["hospital_a", "hospital_b", "leaving"], strangers=["unlisted"])


@pytest.fixture(scope="module")
def engine(members, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with Engine(initial(), folder, servers=2, prefix=PREFIX) as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(members, engine):
    listen = f"127.0.0.1:{free_port_range(2)}"
    with Gate(members, engine.yaml_path, listen, engine.addresses[0], 2) as gate:
        yield gate


@pytest.fixture
def client(gate, members, engine):
    """A silo's connection through the gate, by the name of its certificate."""
    opened = []

    def connect(name: str, fl_id: str = "") -> Client:
        context = members.context(name)
        opened.append(connection_of(gate, engine, fl_id or f"{name}_0 (30)", context))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def connection_of(gate, engine, fl_id: str, context: ssl.SSLContext) -> Client:
    return Client(gate.addresses, engine.fl_name, fl_id, context, prefix=PREFIX)


def status(gate, members, name: str, method: str, path: str, **headers: str) -> int:
    """The status that a request of `name` gets."""
    host, port = gate.addresses[0].rsplit(":", 1)
    context = members.context(name)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=SECONDS)
    try:
        connection.request(method, path, body=b"x" * 10, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def refused(reply: Reply, words: str) -> bool:
    return reply.outcome is Outcome.REFUSED and words in reply.reason


def wait_for_line(gate, *words: str) -> None:
    """nginx logs a request once its answer is gone."""
    wait_for(lambda: any(all(w in line for w in words) for line in gate.log()), SECONDS, str(words))


def test_two_silos_and_two_servers_take_the_mean_through_the_gate(gate, members, engine):
    first = Member(engine, "hospital_a_0 (30)", 30, addresses=gate.addresses,
                   tls=members.context("hospital_a"))  # fmt: skip
    second = Member(engine, "hospital_b_0 (10)", 10, addresses=gate.addresses[::-1],
                    tls=members.context("hospital_b"))  # fmt: skip
    for _ in range(2):
        assert_mean([first, second], together(first, second))
    for silo, fl_id in (("hospital_a", "hospital_a_0 (30)"), ("hospital_b", "hospital_b_0 (10)")):
        upload = f'silo="{silo}" fl_id="{fl_id}" POST /updateModel 200 bytes='
        wait_for_line(gate, upload, f'certificate="CN={silo}" verified="SUCCESS"')
    first.client.close()
    second.client.close()


def test_strangers_are_refused_with_the_reason(gate, client, members, engine, tmp_path):
    assert refused(client("", "a_0 (1)").get_model(-1, SECONDS), "a certificate of this silo")
    assert refused(
        client("unlisted").start(30, SECONDS), "this silo's certificate is not in the roster"
    )
    other = make_certificates(tmp_path / "other", name="other")
    context = members.context()
    pair = tmp_path / "pair.pem"
    pair.write_bytes((other / "gate.key").read_bytes() + (other / "gate.crt").read_bytes())
    context.load_cert_chain(pair)
    stranger = connection_of(gate, engine, "a_0 (1)", context)
    assert refused(stranger.get_model(-1, SECONDS), "a certificate of this silo")
    wait_for_line(gate, 'silo=""', "POST /getModel 401 ", 'verified="FAILED:')
    with socket.create_connection(gate.addresses[0].split(":"), SECONDS) as plain:
        plain.sendall(b"POST /getModel HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
        assert plain.recv(12) == b"HTTP/1.1 400"
    old = members.context("hospital_a")
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.minimum_version = ssl.TLSVersion.TLSv1_1
    reply = connection_of(gate, engine, "hospital_a_0 (30)", old).get_model(-1, SECONDS)
    assert reply.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize("values", [7, 700_000], ids=["in memory", "in a file"])
def test_a_silo_that_uses_anothers_name_is_refused_and_named(gate, client, values):
    thief = client("hospital_b", "hospital_a_0 (30)")
    words = "belongs to another silo than its certificate"
    assert refused(thief.start(30, SECONDS), words)
    weights = {"conv.bias": np.ones(values, np.float32)}
    assert refused(thief.update(1, weights, 30, SECONDS), words)
    wait_for_line(gate, 'silo="hospital_b" fl_id="hospital_a_0 (30)" POST /updateModel 409')
    for name in ("hospital_b", "hospital_b_0", "hospital_b_0 (30)\n", "hospital_bad_0 (30)", ""):
        assert refused(client("hospital_b", name or " ").start(30, SECONDS), words)
    assert client("hospital_b", "hospital_b_12 (5)").has_joined(1, SECONDS).outcome in (
        Outcome.NOT_JOINED,
        Outcome.OVER,
    )


def test_requests_that_point_outside_of_themselves_are_refused(gate, members):
    whole = messages.encode({0: "Tiny", 1: "hospital_a_0 (30)", 3: 30, 4: "1"})
    host, port = gate.addresses[0].rsplit(":", 1)
    context = members.context("hospital_a")
    for body in (b"", b"\0" * 4, b"\xff" * 64, whole[:40], whole[:8] + b"\x7f" * 30):
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=SECONDS)
        connection.request("POST", f"{PREFIX}startFLJob", body=body)
        assert connection.getresponse().status in (400, 409), body
        connection.close()


def test_nothing_passes_but_a_post_to_three_paths(gate, members):
    def answer(method: str, path: str, **headers: str) -> int:
        return status(gate, members, "hospital_a", method, path, **headers)

    for path in ("pushWeight", "pullWeight", "pushMetrics", "state", "", "getModel/", "getmodel",
                 "getModel?x=1", "getModel%00", "x/%2e%2e/pushWeight"):  # fmt: skip
        assert answer("POST", f"/{path}") in (400, 404), path
        assert answer("POST", f"{PREFIX}{path}") in (400, 404), path
    for name in ("startFLJob", "updateModel", "getModel"):
        assert answer("POST", f"/{name}") == 404
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
            assert answer(method, PREFIX + name) == 405
    assert answer("POST", f"{PREFIX}getModel", Host="evil.example") == 421
    wait_for_line(gate, 'silo="hospital_a"', "POST /pushWeight 404")
    assert PREFIX not in "".join(gate.log())


def test_a_body_too_large_is_refused_before_it_is_sent(gate, members):
    size = {"Content-Length": str(401 << 20)}
    assert status(gate, members, "hospital_a", "POST", f"{PREFIX}updateModel", **size) == 413
    size = {"Content-Length": str(2 << 20)}
    assert status(gate, members, "hospital_a", "POST", f"{PREFIX}startFLJob", **size) == 413


def test_a_revoked_silo_is_refused_after_a_reload_and_the_others_go_on(gate, client, members):
    leaving, staying = client("leaving"), client("hospital_a")
    for one in (leaving, staying):
        assert one.get_model(-1, SECONDS).outcome is Outcome.ACCEPTED
    members.revoke("leaving")
    assert "2 silos: hospital_a, hospital_b" in gate.write()
    gate.reload()
    assert refused(leaving.get_model(-1, SECONDS), "this silo's certificate is not in the roster")
    assert staying.get_model(-1, SECONDS).outcome is Outcome.ACCEPTED


def test_a_silos_requests_at_a_time_are_limited(gate, members):
    host, port = gate.addresses[0].rsplit(":", 1)
    context, head = (
        members.context("hospital_b"),
        f"POST {PREFIX}updateModel HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    )
    opened = []
    try:
        for _ in range(40):
            plain = socket.create_connection((host, int(port)), SECONDS)
            opened.append(context.wrap_socket(plain, server_hostname=host))
            opened[-1].sendall(f"{head}Content-Length: 100\r\n\r\nx".encode())
        answers = []
        for one in opened[-1:]:
            one.settimeout(SECONDS)
            answers.append(one.recv(12))
        assert answers == [b"HTTP/1.1 429"]
    finally:
        for one in opened:
            one.close()


def test_a_server_that_is_gone_is_passed_over(gate, client, engine):
    engine.kill("server_0")
    reply = client("hospital_a").get_model(-1, SECONDS)
    assert reply.outcome is Outcome.ACCEPTED and reply.address == gate.addresses[1]
    wait_for_line(gate, 'silo="hospital_a"', "POST /getModel 502")
