"""The client against small stand-ins for a server: half answers, silence, garbage, dead ones."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import SUCCESS, WEIGHTS, StandIn, answer, model_reply, read_request, send

from src.federated.messages import PIECE, encode
from src.federated.replies import Outcome
from src.federated.transport import Client


def client(*servers: StandIn) -> Client:
    return Client([server.address for server in servers], "job", "silo")


def dead_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % sock.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The cluster is in safemode.", Outcome.SAFEMODE),
        ("The server's training job is disabled or finished.", Outcome.FINISHED),
        ("An inner error occurred", Outcome.UNREACHABLE),
    ],
)
def test_sentences_of_the_engine(text, outcome):
    with StandIn(answer(text.encode())) as server:
        reply = client(server).start(1, 5)
    assert reply.outcome is outcome and text in str(reply)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("Current amount for startFLJob has reached the threshold.", Outcome.FULL),
        ("Current amount for updateModel is enough. Please retry later.", Outcome.FULL),
        ("Updating device metadata failed for fl id silo", Outcome.DUPLICATE),
        ("devices_meta for silo is not set. Please retry later.", Outcome.NOT_JOINED),
        ("UpdateModel iteration number is invalid:9, current iteration:1", Outcome.OVER),
        ("Verify model feature map failed", Outcome.REFUSED),
    ],
)
def test_refusals_of_the_engine(reason, outcome):
    with StandIn(answer(encode({0: 300, 1: reason, 2: 5}))) as server:
        reply = client(server).start(1, 5)
    assert (reply.outcome, reply.iteration) == (outcome, 5)


def test_one_connection_serves_many_calls():
    with StandIn(answer(model_reply())) as server:
        asking = client(server)
        for _ in range(3):
            reply = asking.get_model(3, 5)
            assert reply.outcome is Outcome.ACCEPTED and reply.iteration == 4
            np.testing.assert_array_equal(reply.features["w"], WEIGHTS["w"])
        assert server.connections == 1
    assert reply.received == len(model_reply())


def test_a_connection_closed_while_idle_is_opened_again():
    with StandIn(answer(SUCCESS, times=1)) as server:
        asking = client(server)
        for _ in range(3):
            assert asking.start(1, 5).outcome is Outcome.ACCEPTED
            time.sleep(0.05)
        assert server.connections == 3


def test_a_body_cut_off_in_the_middle_is_sent_again_whole():
    received = []

    def answer_then_cut(connection: socket.socket) -> None:
        answer(SUCCESS, times=1)(connection)
        for _ in range(10):
            connection.recv(65536)

    def take(connection: socket.socket) -> None:
        received.append(read_request(connection))
        send(connection, SUCCESS)

    big = {"w": np.ones(8 * PIECE, np.float32)}
    with StandIn(answer_then_cut, take) as server:
        asking = client(server)
        assert asking.start(1, 5).outcome is Outcome.ACCEPTED
        reply = asking.update(1, big, 3, 5)
    assert reply.outcome is Outcome.ACCEPTED and server.connections == 2
    assert len(received) == 1 and len(received[0]) == reply.sent > 32 * PIECE
    np.testing.assert_array_equal(np.frombuffer(received[0], np.float32)[-8 * PIECE :], 3)


def test_the_next_address_serves_where_the_first_stays_away():
    with StandIn(answer(SUCCESS)) as server:
        asking = Client([dead_address(), server.address], "job", "silo")
        assert asking.start(1, 5).outcome is Outcome.ACCEPTED
        assert asking.address == server.address


def test_nobody_there_is_told_for_each_address():
    addresses = [dead_address(), dead_address()]
    reply = Client(addresses, "job", "silo").start(1, 5)
    assert reply.outcome is Outcome.UNREACHABLE
    for address in addresses:
        assert f"{address}: connection refused" in reply.reason


def silence(connection: socket.socket) -> None:
    read_request(connection)
    time.sleep(3)


def drip(connection: socket.socket) -> None:
    read_request(connection)
    for _ in range(30):
        connection.sendall(b"H")
        time.sleep(0.1)


def half(connection: socket.socket) -> None:
    read_request(connection)
    send(connection, model_reply()[:-8], announced=len(model_reply()))
    time.sleep(3)


def unread(connection: socket.socket) -> None:
    time.sleep(3)


@pytest.mark.parametrize("handler", [silence, drip, half, unread])
def test_a_call_ends_at_its_deadline(handler):
    big = {"w": np.ones(8 * PIECE, np.float32)}
    with StandIn(handler) as server:
        begin = time.monotonic()
        reply = client(server).update(1, big, 1, 0.5)
        assert time.monotonic() - begin < 1.5
    assert reply.outcome is Outcome.UNREACHABLE
    assert "no answer within" in reply.reason or "nothing moved for" in reply.reason


@pytest.mark.parametrize("handler", [silence, unread])
def test_a_server_that_hangs_is_left_for_the_next_one(handler):
    body = {"w": np.ones(8 * PIECE, np.float32)}
    with StandIn(handler) as hung, StandIn(answer(SUCCESS)) as server:
        asking = Client([hung.address, server.address], "job", "silo")
        assert asking.update(1, body, 1, 1.0).outcome is Outcome.ACCEPTED
        assert asking.address == server.address


def test_servers_that_all_hang_are_left_when_the_deadline_is_over():
    with StandIn(silence) as first, StandIn(silence) as second:
        asking = Client([first.address, second.address], "job", "silo")
        reply = asking.start(1, 0.6)
        assert reply.outcome is Outcome.UNREACHABLE
        for server in (first, second):
            assert f"{server.address}: no answer within 0." in reply.reason
        assert asking.address == first.address


def slowly(connection: socket.socket) -> None:
    """Read a request at some 2 MB/s through a small window, then answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, rest = data.split(b"\r\n\r\n", 1)
    left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(rest)
    while left > 0:
        left -= len(connection.recv(min(left, 65536)))
        time.sleep(0.03)
    send(connection, SUCCESS)


def test_a_slow_line_gets_the_time_that_it_needs():
    body = {"w": np.ones(2**20, np.float32)}  # 4 MB: about 2 s, four times the deadline
    with StandIn(slowly) as server:
        reply = client(server).update(1, body, 1, 0.5)
    assert reply.outcome is Outcome.ACCEPTED and reply.seconds > 0.5


def test_a_line_that_stops_says_how_far_it_came():
    def stops(connection: socket.socket) -> None:
        connection.recv(65536)
        time.sleep(3)

    with StandIn(stops) as server:
        reply = client(server).update(1, {"w": np.ones(2**23, np.float32)}, 1, 0.5)
    assert reply.outcome is Outcome.UNREACHABLE and 0 < reply.sent < 2**25
    assert "nothing moved for 0.5 s (--request_timeout)" in reply.reason
    assert "of 33.6 MB were sent" in reply.reason


def test_a_request_ends_however_steadily_its_bytes_move():
    body = {"w": np.ones(2**20, np.float32)}
    with StandIn(slowly) as server:
        asking = Client([server.address], "job", "silo", longest=0.8)
        assert asking.update(1, body, 1, 0.5).outcome is Outcome.UNREACHABLE


def test_a_proxy_that_limits_requests_is_named_and_not_asked_again():
    def refuses(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    with StandIn(refuses) as server:
        reply = client(server).update(1, {"w": np.ones(2**20, np.float32)}, 1, 5)
    assert reply.outcome is Outcome.REFUSED and "413" in reply.reason and "4 MB" in reply.reason


def test_a_lost_answer_is_told_from_a_request_that_was_cut_off():
    body = {"w": np.ones(2**20, np.float32)}

    def swallows(connection: socket.socket) -> None:
        read_request(connection)

    def cuts(connection: socket.socket) -> None:
        connection.recv(1000)

    with StandIn(swallows) as server:
        assert client(server).update(1, body, 1, 5).unanswered
    with StandIn(cuts) as server:
        assert not client(server).update(1, body, 1, 5).unanswered


@pytest.mark.parametrize("body", [b"", b"\0\1\2\3" * 40, b"<html>404</html>", model_reply()[:-8]])
def test_garbage_is_unreachable(body):
    with StandIn(answer(body)) as server:
        assert client(server).get_model(1, 5).outcome is Outcome.UNREACHABLE


def test_half_an_answer_and_gone_is_unreachable():
    def cut(connection: socket.socket) -> None:
        read_request(connection)
        send(connection, model_reply()[:20], announced=len(model_reply()))

    with StandIn(cut) as server:
        reply = client(server).get_model(1, 5)
    assert reply.outcome is Outcome.UNREACHABLE and "IncompleteRead" in reply.reason


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=100)
def test_any_answer_is_an_outcome_or_unreachable(data):
    asking = Client(["127.0.0.1:1"], "job", "silo")
    asking._post = lambda *_: np.frombuffer(data, np.uint8)
    assert asking.get_model(1, 5).outcome in Outcome


def test_an_idle_connection_gives_signs_of_life():
    with StandIn(answer(b"The cluster is in safemode.")) as server:
        asking = client(server)
        asking.start(1, 5)
        sock = asking._connection.sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            assert sock.getsockopt(socket.IPPROTO_TCP, option) == 60
