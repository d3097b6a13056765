"""Servers killed at every moment of an iteration: training goes on from a true mean."""

from __future__ import annotations

import signal
import time

import pytest
from engine import Engine
from members import (
    DEADLINES,
    MOMENTS,
    WINDOWS,
    Exchange,
    Member,
    assert_mean,
    assert_survived,
    copied,
    initial,
    one_fault,
    together,
)

from src.federated.rounds import Deadlines, GaveUpError

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def killed_and_restarted(engine: Engine, numbers, restart: bool = True) -> None:
    for number in numbers:
        engine.kill(f"server_{number}")
    if restart:
        for number in numbers:
            engine.start_server(number, wait=False)


@pytest.mark.slow  # 17 s: a server that starts waits until its dead self's heartbeat expires
@pytest.mark.parametrize("moment", ["before the uploads", "while aggregating"])
def test_the_only_server_killed_and_restarted(tmp_path, moment):
    with Engine(initial(), tmp_path, silos=2, windows=WINDOWS) as engine:
        one_fault(engine, moment, lambda: killed_and_restarted(engine, [0]))


@pytest.mark.slow  # the other server waits for the dead one, 10 to 25 s
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("number", "restart"), [(0, True), (0, False), (1, True)])
def test_one_of_two_servers_killed(tmp_path, moment, number, restart):
    with Engine(initial(), tmp_path, silos=2, servers=2, windows=WINDOWS) as engine:
        one_fault(engine, moment, lambda: killed_and_restarted(engine, [number], restart))


@pytest.mark.slow  # servers that start wait until the heartbeats of the dead ones expire, 10 s
@pytest.mark.parametrize("moment", MOMENTS)
def test_both_servers_killed_and_restarted(tmp_path, moment):
    with Engine(initial(), tmp_path, silos=2, servers=2, windows=WINDOWS) as engine:
        one_fault(engine, moment, lambda: killed_and_restarted(engine, [0, 1]))


def test_a_server_that_hangs_is_left_for_the_other(tmp_path):
    deadlines = Deadlines(join=30, request=4, wait=60)
    with Engine(initial(), tmp_path, silos=1, servers=2, windows=WINDOWS) as engine:
        engine.processes["server_0"].send_signal(signal.SIGSTOP)
        try:
            silo = Member(engine, "a", deadlines=deadlines)
            silo.join()
            assert silo.joined and silo.client.address == engine.addresses[1]
        finally:
            engine.processes["server_0"].send_signal(signal.SIGCONT)


def test_servers_gone_for_good_end_each_wait_with_a_reason(tmp_path):
    with Engine(initial(), tmp_path, silos=2) as engine:
        deadlines = Deadlines(join=1, request=5, wait=30)
        waiting, sending, joining = (
            Member(engine, name, deadlines=deadlines) for name in ("a", "b", "c")
        )
        waiting.join()
        sending.join()
        exchange = Exchange(waiting, 1.0)
        time.sleep(0.3)
        engine.kill("server_0")
        begin = time.monotonic()
        for act in (
            exchange.end,
            lambda: sending.exchange(sending.train(1.0)),
            joining.join,
        ):
            with pytest.raises(GaveUpError, match=r"the servers \(unreachable: .* refused\)"):
                act()
        assert time.monotonic() - begin < 10
        assert not waiting.rounds and waiting.iteration == 1


@pytest.mark.slow  # half a minute of rounds
def test_a_server_that_comes_and_goes(tmp_path):
    with Engine(initial(), tmp_path, silos=2, windows=WINDOWS) as engine:
        first, second = Member(engine, "a", 30), Member(engine, "b", 10)
        for pause in (0.0, 0.3, 0.7, 1.1):
            first.join()
            second.join()
            before = copied(first.model)
            exchanges = [Exchange(first, 1.0), Exchange(second, 2.0)]
            time.sleep(pause)
            killed_and_restarted(engine, [0])
            for exchange in exchanges:
                exchange.end(DEADLINES.wait)
            assert_survived([first, second], before, [exchange.sent for exchange in exchanges])
        assert_mean([first, second], together(first, second))
