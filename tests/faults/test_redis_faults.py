"""Redis killed at every moment of an iteration, and back with its data or without."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from engine import Engine, listens, wait_for
from members import MOMENTS, WINDOWS, Exchange, Member, assert_mean, initial, one_fault, together

from src.federated import server_requests
from src.federated.replies import Outcome
from src.federated.rounds import Deadlines, SyncError
from src.launch.redis_store import redis_binary

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class PersistentEngine(Engine):
    """An engine whose Redis writes everything down and has it again after a kill."""

    def start_redis(self) -> None:
        port = self.redis_address.rsplit(":", 1)[1]
        command = [redis_binary(), "--port", port, "--bind", "127.0.0.1", "--appendonly", "yes"]
        self._start("redis", command)
        wait_for(lambda: listens(self.redis_address), 10, "redis-server")


ENGINES = {"with its data": PersistentEngine, "empty": Engine}


def gone_for(engine: Engine, seconds: float) -> None:
    engine.kill("redis")
    time.sleep(seconds)
    engine.start_redis()


@pytest.mark.parametrize(
    ("moment", "back"),
    [
        ("between the uploads", "with its data"),
        ("while aggregating", "empty"),
        pytest.param("before the uploads", "with its data", marks=pytest.mark.slow),
        pytest.param("while aggregating", "with its data", marks=pytest.mark.slow),
        pytest.param("before the uploads", "empty", marks=pytest.mark.slow),
        pytest.param("between the uploads", "empty", marks=pytest.mark.slow),
    ],
)
def test_redis_killed_and_back(tmp_path, moment, back):
    with ENGINES[back](initial(), tmp_path, silos=2, windows=WINDOWS) as engine:
        one_fault(engine, moment, lambda: gone_for(engine, 0.5))


@pytest.mark.slow  # 12 s each, and six of them
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("back", ENGINES)
def test_redis_killed_and_back_with_two_servers(tmp_path, moment, back):
    with ENGINES[back](initial(), tmp_path, silos=2, servers=2, windows=WINDOWS) as engine:
        one_fault(engine, moment, lambda: gone_for(engine, 6.0))


def test_redis_gone_for_good_ends_with_a_reason(tmp_path):
    with Engine(initial(), tmp_path, silos=2) as engine:
        deadlines = Deadlines(join=1, request=5, wait=30)
        first = Member(engine, "a", deadlines=deadlines)
        first.join()
        before = first.model["conv.bias"].copy()
        engine.kill("redis")
        wait_for(lambda: first.client.start(1, 5).outcome is Outcome.SAFEMODE, 10, "safemode")
        begin = time.monotonic()
        with pytest.raises(SyncError, match="gave up after .* waiting for the servers"):
            first.exchange(first.train(1.0))
        assert time.monotonic() - begin < 15
        np.testing.assert_array_equal(first.model["conv.bias"], before)
        late = Member(engine, "b", deadlines=deadlines)
        with pytest.raises(SyncError, match="gave up after"):
            late.join()


def test_servers_without_redis_that_call_an_iteration_full_are_asked_again(tmp_path, monkeypatch):
    """They do for a second after it died; every silo would wait for silos that never joined."""
    monkeypatch.setattr(server_requests, "ASK_AGAIN_SECONDS", 1.0)
    with PersistentEngine(initial(), tmp_path, silos=2) as engine:
        first, second = Member(engine, "a", 30), Member(engine, "b", 10)
        assert_mean([first, second], together(first, second))
        engine.kill("redis")
        joining = threading.Thread(target=first.join, daemon=True)
        joining.start()
        time.sleep(0.2)
        engine.start_redis()
        joining.join(20)
        assert first.joined and first.iteration == 2
        second.join()
        engine.kill("redis")
        exchanges = [Exchange(first, 1.0), Exchange(second, 2.0)]
        time.sleep(0.2)
        engine.start_redis()
        for exchange in exchanges:
            exchange.end()
        assert_mean([first, second], [exchange.sent for exchange in exchanges])
        assert_mean([first, second], together(first, second))
