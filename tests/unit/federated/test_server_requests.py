"""How long a silo goes on asking: what it waits for, and which wait an answer restarts."""

from types import SimpleNamespace

import pytest

from src.federated import rounds, server_requests
from src.federated.identity import IdentityWatch
from src.federated.replies import Outcome, Reply
from src.federated.rounds import Deadlines, GaveUpError, SyncError
from src.federated.server_requests import ServerRequests

AWAY, NOT_YET, MODEL = (Reply(one) for one in (
    Outcome.UNREACHABLE, Outcome.NOT_READY, Outcome.ACCEPTED
))  # fmt: skip
JOIN_S, WAIT_S = 10.0, 100.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves."""
    clock = SimpleNamespace(now=1000.0)

    def sleep(seconds):
        clock.now += max(seconds, 0.001)

    time = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(rounds, "time", time)
    monkeypatch.setattr(server_requests, "time", time)
    return clock


def polls(clock, answer, full=Outcome.FULL, log=lambda line: None):
    """The answers of `polls`, where `answer` gives the server's to the seconds that have passed."""
    begin = clock.now
    client = SimpleNamespace(
        get_model=lambda iteration, seconds: answer(clock.now - begin),
        is_full=lambda seconds: Reply(full),
    )
    deadlines = Deadlines(JOIN_S, 1.0, WAIT_S, join_window=600.0, upload_window=3600.0)
    watch = IdentityWatch("clinic_0 (10)", print)
    return ServerRequests(client, 10, 2, deadlines, log, watch).polls(1)


def test_servers_that_are_away_now_and_then_are_waited_for_anew(clock):
    """Away for less than the deadline each time, and for longer than it in all."""

    def answer(passed):
        if passed > 60:
            return MODEL
        return AWAY if passed % 15 < 8 else NOT_YET

    found = polls(clock, answer)
    while (reply := next(found)) is None:
        pass
    assert reply is MODEL


def test_servers_that_stay_away_end_the_wait_at_the_deadline_of_joining(clock):
    begin = clock.now
    with pytest.raises(GaveUpError, match="gave up after 10 s of waiting for the servers"):
        list(polls(clock, lambda passed: AWAY))
    assert clock.now - begin == pytest.approx(JOIN_S, abs=0.1)


def test_others_that_never_send_end_the_wait_at_its_own_deadline(clock):
    begin = clock.now
    with pytest.raises(GaveUpError, match="the others of 2 silos in iteration 1"):
        list(polls(clock, lambda passed: NOT_YET))
    assert clock.now - begin == pytest.approx(WAIT_S, abs=0.1)


@pytest.mark.parametrize(
    ("full", "window"),
    [
        (Outcome.FULL, "(the servers end it 3600 s after its first upload)"),
        (Outcome.REFUSED, "has fewer so far (the servers end it 600 s after its first silo)"),
    ],
)
def test_who_waits_for_others_says_when_the_servers_end_the_iteration(clock, full, window):
    lines = []
    found = polls(clock, lambda passed: MODEL if passed > 17 else NOT_YET, full, lines.append)
    while next(found) is None:
        pass
    waiting = [line for line in lines if line.startswith("waiting for the others of 2 silos")]
    assert waiting and all(window in line for line in waiting)


def test_a_refused_model_ends_it_at_once(clock):
    refused = Reply(Outcome.REFUSED, "no such silo", address="server:1")
    with pytest.raises(SyncError, match="server:1 does not give the model: no such silo"):
        next(polls(clock, lambda passed: refused))


def test_the_caller_may_look_after_something_every_five_seconds(clock):
    found = polls(clock, lambda passed: MODEL if passed > 17 else NOT_YET)
    given = []
    while next(found) is None:
        given.append(clock.now - 1000)
    assert given == pytest.approx([5, 10, 15], abs=0.2)
