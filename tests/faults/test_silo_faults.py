"""Silos that die, come twice or send nonsense: the iteration goes on and the mean is right."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from commands import processes_of
from engine import Engine
from members import Exchange, Member, assert_mean, initial, together
from proxy import FAULTS, Proxy
from silo_process import SiloProcess

from src.federated.replies import Outcome
from src.federated.rounds import Deadlines
from src.federated.transport import Client

NAMES = itertools.count()
CHANGE, OTHER_CHANGE = 1.0, 2.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One server; each test leaves it between two iterations."""
    folder = tmp_path_factory.mktemp("engine")
    with Engine(initial(), folder, silos=2) as running:
        yield running
    assert not processes_of(folder)


@pytest.fixture
def other(engine) -> Member:
    """The silo that nothing happens to."""
    return Member(engine, f"other_{next(NAMES)}", 10)


def finish_round(other: Member, silo: SiloProcess) -> None:
    """`other` ends the iteration; its model is then the mean of its weights and those of `silo`."""
    before = {name: value.copy() for name, value in other.model.items()}
    iteration = other.iteration
    assert other.exchange(other.train(OTHER_CHANGE)).result == "aggregated"
    assert silo.end() == 0
    assert other.iteration == iteration + 1
    assert_moved(other, before, (30 * CHANGE + 10 * OTHER_CHANGE) / 40)


def assert_moved(silo: Member, before: dict[str, np.ndarray], mean: float) -> None:
    for name, value in silo.model.items():
        np.testing.assert_allclose(value, before[name] + np.float32(mean), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("moment", ["train", "half"])
def test_a_silo_killed_before_or_within_its_upload_keeps_its_place(engine, other, moment):
    name = f"killed_{next(NAMES)}"
    with SiloProcess(engine, name, 30, 100.0, halt=moment) as killed:
        killed.await_line(moment)
        other.join()
    with SiloProcess(engine, name, 30, CHANGE) as restarted:
        restarted.await_line(f"wait {other.iteration}")
        finish_round(other, restarted)


def test_a_silo_killed_after_its_upload_is_counted_once(engine, other):
    name = f"killed_{next(NAMES)}"
    with SiloProcess(engine, name, 30, CHANGE, halt="wait") as killed:
        killed.await_line("wait")
        other.join()
    with SiloProcess(engine, name, 30, 100.0) as restarted:
        restarted.await_line(f"wait {other.iteration}")
        finish_round(other, restarted)


def test_a_silo_that_stays_away_after_its_upload_is_counted_and_takes_the_next(engine, other):
    name = f"killed_{next(NAMES)}"
    with SiloProcess(engine, name, 30, CHANGE, halt="wait") as killed:
        killed.await_line("wait")
    other.join()
    before = {key: value.copy() for key, value in other.model.items()}
    assert other.exchange(other.train(OTHER_CHANGE)).result == "aggregated"
    assert_moved(other, before, (30 * CHANGE + 10 * OTHER_CHANGE) / 40)
    other.join()
    with SiloProcess(engine, name, 30, CHANGE) as restarted:
        restarted.await_line(f"wait {other.iteration}")
        finish_round(other, restarted)


def test_two_processes_with_one_identity_count_as_one(engine, other):
    name = f"twin_{next(NAMES)}"
    first, twin = Member(engine, name, 30), Member(engine, name, 30)
    other.join()
    first.join()
    twin.join()
    assert twin.said("kept the place")
    before = {key: value.copy() for key, value in other.model.items()}
    exchanges = [Exchange(first, CHANGE), Exchange(twin, -20.0)]
    time.sleep(0.5)
    other.exchange(other.train(OTHER_CHANGE))
    for exchange in exchanges:
        exchange.end()
    counted = CHANGE if other.model["conv.bias"][0] > before["conv.bias"][0] else -20.0
    assert_moved(other, before, (30 * counted + 10 * OTHER_CHANGE) / 40)
    for silo in (first, twin):
        np.testing.assert_array_equal(silo.model["conv.bias"], other.model["conv.bias"])
    assert_mean([first, other], together(first, other))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_upload_that_is_not_finite_is_refused_and_the_silo_may_send_again(engine, other, value):
    silo = Member(engine, f"nan_{next(NAMES)}", 30)
    silo.join()
    other.join()
    careless = Client(engine.addresses, engine.fl_name, silo.client.fl_id)
    bad = {**silo.train(CHANGE), **initial()}
    bad["conv.bias"] = np.full(7, value, np.float32)
    reply = careless.update(silo.iteration, bad, 30, 10)
    assert reply.outcome is Outcome.REFUSED and "feature map" in reply.reason
    assert_mean([silo, other], together(silo, other))


@pytest.mark.parametrize(
    ("path", "fault"),
    [("/updateModel", fault) for fault in FAULTS]
    + [("/startFLJob", "no reply"), ("/startFLJob", "garbage")]
    + [("/getModel", "half a reply"), ("/getModel", "silence")],
)
def test_a_request_that_is_spoiled_on_its_way_is_repeated_and_counted_once(
    engine, other, path, fault
):
    with Proxy(engine.addresses[0], path, fault) as proxy:
        deadlines = Deadlines(join=20, request=0.5, wait=30)
        name = f"spoiled_{next(NAMES)}"
        silo = Member(engine, name, 30, addresses=[proxy.address], deadlines=deadlines)
        assert_mean([silo, other], together(silo, other))
        assert proxy.spoiled == 1
        silo.client.close()
