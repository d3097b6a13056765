"""The ranks of one silo among themselves: what travels, and what happens when one fails."""

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
from ports import free_ports

from src.errors import UserError
from src.federated import ranks as ranks_module
from src.federated.rank_silo import Follower
from src.federated.ranks import Channel, Message, RankError, Ranks
from src.federated.rounds import GaveUpError

HOST = "127.0.0.1"


class Group:
    """`count` ranks of one silo, each in a thread of its own while they connect."""

    def __init__(self, count: int, silo: str = "bank", silence_s: float = 10.0):
        self.address = (HOST, free_ports(1)[0])
        self.ranks: dict[int, Ranks] = {}
        at_once([lambda n=n: self.connect(n, count, silo, silence_s) for n in range(count)])

    def connect(self, number: int, count: int, silo: str, silence_s: float) -> None:
        self.ranks[number] = Ranks(number, count, self.address, silo, 10.0, silence_s)

    def close(self) -> None:
        for ranks in self.ranks.values():
            ranks.close()


def at_once(calls) -> list:
    """What each call raised, or None, of calls made in threads at the same time."""
    raised = [None] * len(calls)

    def run(number):
        try:
            calls[number]()
        except Exception as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a rank hangs"
    return raised


@pytest.fixture
def group():
    made = Group(3)
    yield made
    made.close()


def test_all_ranks_get_the_same_bits_of_the_mean(group):
    random = np.random.default_rng(0)
    given = [random.normal(size=100_000).astype(np.float32) for _ in range(3)]
    got = {}
    at_once([lambda n=n: got.update({n: group.ranks[n].mean(given[n])}) for n in range(3)])
    expected = np.mean(np.stack(given).astype(np.float64), 0)
    np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], got[2])
    for ranks in group.ranks.values():
        ranks.check()


def test_ranks_that_differ_all_end_with_what_differs(group):
    values = [{"steps": 3, "seed": 1}, {"steps": 3, "seed": 1}, {"steps": 4, "seed": 1}]

    def agree(number):
        try:
            group.ranks[number].agree(values[number])
        except RankError as error:
            group.ranks[number].fail(str(error))
            raise

    raised = at_once([lambda n=n: agree(n) for n in range(3)])
    for error in raised:
        assert isinstance(error, RankError)
        assert "rank 2 and rank 0 of this silo differ in: steps;" in str(error)


def test_a_rank_that_has_gone_is_named_after_the_step(group):
    group.ranks[2].close()
    one = np.ones(10, np.float32)

    def step(number):
        ranks = group.ranks[number]
        np.testing.assert_array_equal(ranks.mean(one), one)
        try:
            ranks.check()
        except RankError as error:
            ranks.fail(str(error))
            raise

    for error in at_once([lambda: step(0), lambda: step(1)]):
        assert "rank 2 of this silo has ended" in str(error)


def test_a_failing_rank_tells_the_others_why(group):
    group.ranks[1].fail("rank 1: the loss is nan")
    group.ranks[0].mean(np.ones(3, np.float32))
    with pytest.raises(RankError, match="^rank 1: the loss is nan$"):
        group.ranks[0].check()


def test_a_silent_rank_is_given_up():
    group = Group(2, silence_s=0.3)
    group.ranks[0].mean(np.ones(3, np.float32))
    with pytest.raises(RankError, match="rank 1 of this silo says nothing for 0 s"):
        group.ranks[0].check()
    group.close()


def test_missing_ranks_are_named():
    with pytest.raises(GaveUpError, match=r"rank\(s\) 1, 2 of this silo's 3 did not connect"):
        Ranks(0, 3, (HOST, free_ports(1)[0]), "bank", 0.2, 1.0)
    with pytest.raises(GaveUpError, match="rank 0 of this silo does not listen at 127.0.0.1"):
        Ranks(1, 3, (HOST, free_ports(1)[0]), "bank", 0.2, 1.0)


def test_a_port_that_is_taken_is_the_users_to_mend():
    words = "--rank_port: rank 0 cannot listen on 127.0.0.1"
    with socket.create_server((HOST, 0)) as taken, pytest.raises(UserError, match=words):
        Ranks(0, 2, taken.getsockname(), "bank", 0.2, 1.0)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\4null", b""])
def test_what_is_no_rank_does_not_disturb_the_start(said, monkeypatch):
    monkeypatch.setattr(ranks_module, "HELLO_S", 0.3)
    address, made = (HOST, free_ports(1)[0]), {}

    def stranger():
        # Closed with something unread, a connection ends with a reset.
        with connected(address) as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(said)
            while sock.recv(100):
                continue
        made[1] = Ranks(1, 2, address, "bank", 10.0, 10.0)

    def leader():
        made[0] = Ranks(0, 2, address, "bank", 10.0, 10.0)

    assert at_once([leader, stranger]) == [None, None]
    assert {ranks.rank for ranks in made.values()} == {0, 1}
    for ranks in made.values():
        ranks.close()


def connected(address) -> socket.socket:
    """A plain connection, as soon as something listens there."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(address, timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nothing listens at {address}"
            time.sleep(0.05)


def test_a_rank_of_another_silo_is_told_so_and_the_silo_waits_for_its_own(caplog):
    address, made = (HOST, free_ports(1)[0]), {}

    def leader():
        made[0] = Ranks(0, 2, address, "bank", 10.0, 5.0)

    def stranger_then_own():
        words = r"rank 1 of hospital\\x1b\[2J with 2 ranks connected to rank 0 of bank with 2"
        with pytest.raises(RankError, match=words):
            Ranks(1, 2, address, "hospital\x1b[2J", 10.0, 5.0).hear()
        made[1] = Ranks(1, 2, address, "bank", 10.0, 5.0)

    assert at_once([leader, stranger_then_own]) == [None, None]
    assert "refused at the start: rank 1 of hospital" in caplog.text
    for ranks in made.values():
        ranks.close()


def test_a_peer_that_drips_keeps_no_rank_out(monkeypatch):
    monkeypatch.setattr(ranks_module, "HELLO_S", 1.0)
    address, made, closed = (HOST, free_ports(1)[0]), {}, []

    def drip():
        with connected(address) as sock:
            for byte in b"\0\0\xff\xff" + b"[" * 40:
                try:
                    sock.sendall(bytes([byte]))
                except OSError:
                    closed.append(True)
                    return
                time.sleep(0.1)

    def rank(number):
        if number:
            connected(address).close()
            time.sleep(0.3)
        made[number] = Ranks(number, 2, address, "bank", 10.0, 10.0)

    assert at_once([drip, drip, lambda: rank(0), lambda: rank(1)]) == [None] * 4
    assert closed == [True, True], "a peer that drips is not waited for without an end"
    for ranks in made.values():
        ranks.close()


def head(*values):
    text = json.dumps(list(values)).encode()
    return len(text).to_bytes(4, "big") + text


BAD = {
    "an array of terabytes": head("gradients", {}, [["", 10**13]]),
    "arrays of terabytes together": head("gradients", {}, [["", 2**28]] * 4),
    "a negative size": head("gradients", {}, [["", -1]]),
    "a size that is none": head("gradients", {}, [["", "x"]]),
    "sizes that are none": head("gradients", {}, 7),
    "a kind that is none": head([], {}, []),
    "brackets without an end": (60_000).to_bytes(4, "big") + b"[" * 60_000,
    "another kind": head("load", {}, []),
    "gradients without any": head("gradients", {}, []),
    "too few gradients": head("gradients", {}, [["", 1]]) + bytes(4),
    "an error without a reason": head("error", {}, []),
    "an error of another kind": head("error", {"reason": ["\x1b[2J\n"]}, []),
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
def test_a_message_that_no_rank_sends_is_a_reason_in_one_line(said):
    ours, theirs = pair()
    channel = Channel(ours, "rank 1", 5.0)
    theirs.sendall(said)
    with pytest.raises(RankError) as caught:
        ranks_module._gradients(channel, 3)
    assert str(caught.value).isprintable()
    channel.close()
    theirs.close()


def pair():
    """Two ends of a TCP connection."""
    with socket.create_server((HOST, 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return server.accept()[0], theirs


@pytest.mark.parametrize("hello", [{}, {"rank": [1]}, {"rank": 10**400}, {"rank": True, "size": 2}])
def test_an_introduction_that_no_rank_makes_does_not_end_rank_0(hello):
    address, made = (HOST, free_ports(1)[0]), {}

    def stranger():
        with connected(address) as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(head("hello", {"silo": "bank", **hello}, []))
            while sock.recv(100):
                continue
        made[1] = Ranks(1, 2, address, "bank", 10.0, 10.0)

    def leader():
        made[0] = Ranks(0, 2, address, "bank", 10.0, 10.0)

    assert at_once([leader, stranger]) == [None, None]
    for ranks in made.values():
        ranks.close()


def test_a_follower_does_as_rank_0_tells():
    group = Group(2)
    loaded, phases = [], []
    follower = Follower(group.ranks[1], loaded.append, lambda *phase: phases.append(phase))
    model = {"a": np.arange(3, dtype=np.float32), "b": np.empty(0, np.float32)}
    state = {"iteration": 4, "joined": True, "finished": False, "result": ""}
    group.ranks[0].tell(Message("load", arrays=model))
    group.ranks[0].tell(Message("state", state))
    follower.join()
    assert (follower.iteration, follower.joined, follower.finished) == (4, True, False)
    end = {"iteration": 5, "joined": False, "finished": True, "result": "missed"}
    group.ranks[0].tell(Message("load", arrays={"a": model["a"] + 1}))
    group.ranks[0].tell(Message("state", end))
    assert follower.exchange({}, 7).result == "missed"
    assert follower.finished
    assert phases == [("train", 4), ("wait", 4)]
    np.testing.assert_array_equal(loaded[0]["a"], model["a"])
    np.testing.assert_array_equal(loaded[1]["a"], model["a"] + 1)
    assert loaded[0]["b"].size == 0
    follower.client.close()
    group.ranks[1].fail("rank 1: no room")
    with pytest.raises(RankError, match="^rank 1: no room$"):
        group.ranks[0].agree({})
    group.ranks[0].fail("no servers")
    with pytest.raises(RankError, match="^no servers$"):
        follower.join()
    group.close()
