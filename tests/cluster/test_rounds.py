"""Rounds of silos on real servers and a real Redis, with weights of a few values."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time

import numpy as np
import pytest
from engine import Engine
from members import (
    ASPECTS,
    PRE_TRAINED,
    Exchange,
    Member,
    assert_mean,
    checkpoint,
    copied,
    initial,
    together,
    weights,
)

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, fingerprint, opened
from src.federated.identity import IdentityTakenError
from src.federated.replies import Outcome
from src.federated.rounds import (
    Deadlines,
    GaveUpError,
    JobRestartedError,
    NotFiniteError,
    UploadRefusedError,
)
from src.federated.transport import Client

NAMES = itertools.count()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One server with long windows; each test leaves it between two iterations."""
    with Engine(initial(), tmp_path_factory.mktemp("engine"), silos=2) as running:
        yield running


@pytest.fixture
def pair(engine) -> tuple[Member, Member]:
    number = next(NAMES)
    return Member(engine, f"silo_{number}_a", 30), Member(engine, f"silo_{number}_b", 10)


def test_the_global_model_is_the_weighted_mean_and_the_job_ends(tmp_path):
    path = tmp_path / "rounds.jsonl"
    with Engine(initial(), tmp_path, silos=2, servers=2, iterations=2) as engine:
        first = Member(engine, "a", 1180, iterations=2, rounds_path=path)
        second = Member(engine, "b", 37, iterations=5, addresses=engine.addresses[::-1])
        for iteration in (1, 2):
            sent = together(first, second, (0.5, -3.0))
            assert first.rounds[-1].iteration == iteration
            assert_mean([first, second], sent)
        assert first.finished and not second.finished
        first.join()
        second.join()
        assert second.finished
        assert second.said("WARNING: fl_iteration_num is 2 at the servers and 5 in this silo")
        assert not first.said("WARNING")

        late = Member(engine, "late", iterations=2)
        late.join()
        assert late.finished and not late.joined
        np.testing.assert_array_equal(late.model["conv.bias"], first.model["conv.bias"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert lines[0]["result"] == "aggregated"
    assert lines[0]["bytes_up"] > 100 and lines[0]["bytes_down"] > 100


def test_a_restarted_silo_keeps_its_place_and_is_counted_once(engine, pair):
    first, second = pair
    first.join()
    early = Member(engine, first.client.fl_id, 30)
    early.join()
    assert early.joined and early.said("kept the place in iteration")
    second.join()
    restarted = Member(engine, first.client.fl_id, 30)
    restarted.join()
    assert restarted.joined and restarted.iteration == second.iteration

    other = Exchange(restarted, 1.0)
    time.sleep(0.3)
    again = Exchange(early, 100.0)
    sent = second.train(2.0)
    second.exchange(sent)
    other.end()
    again.end()
    assert_mean([restarted, second], [other.sent, sent])


class Taking(threading.Thread):
    """A silo that takes part up to the iteration `last`, or until it cannot go on."""

    last = ITERATIONS = 30

    def __init__(self, silo: Member, everybody: list[Taking]):
        super().__init__(daemon=True)
        self.silo, self.error, self.everybody = silo, None, everybody
        everybody.append(self)

    def run(self) -> None:
        try:
            while self.silo.iteration <= Taking.last and not self.silo.finished:
                self.silo.join()
                self.silo.exchange(self.silo.train(1.0))
        except Exception as error:
            self.error = error
            # The others show for two iterations that they can do without this one; they may be
            # further than it is, and all end with the same iteration.
            Taking.last = max(taking.silo.iteration for taking in self.everybody) + 1


@pytest.mark.parametrize("others", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_of_two_processes_with_one_identity_one_ends_and_the_other_goes_on(
    tmp_path, monkeypatch, others
):
    """Without another silo every iteration fails, since the two are one of the two it needs."""
    monkeypatch.setattr(Taking, "last", Taking.ITERATIONS)
    everybody: list[Taking] = []
    # Alone, the two wait for the window of the start in every iteration.
    windows = (60, 20, 60) if others else (3, 20, 30)
    with Engine(initial(), tmp_path, silos=2, windows=windows) as engine:
        twins = [Taking(Member(engine, "clinic_0 (30)", 30), everybody) for _ in range(2)]
        rest = [Taking(Member(engine, "clinic_1 (10)"), everybody) for _ in range(others)]
        for taking in everybody:
            taking.start()
        for taking in everybody:
            taking.join(120)
            assert not taking.is_alive()
    ended, stayed = sorted(twins, key=lambda taking: taking.error is None)
    assert isinstance(ended.error, IdentityTakenError), (twins[0].silo.lines, twins[1].silo.lines)
    assert "another process uses this silo's identity, clinic_0 (30)" in str(ended.error)
    assert [taking.error for taking in [stayed, *rest]] == [None] * (1 + others)
    assert ended.silo.said("is lost: another process uses this silo's identity, clinic_0 (30)")
    counted, dropped = ("aggregated", "missed") if others else ("lost", "lost")
    assert [r.result for r in ended.silo.rounds[-2:]] == [dropped] * 2
    assert [r.result for r in stayed.silo.rounds[-2:]] == [counted] * 2
    assert stayed.silo.iteration >= ended.silo.iteration + 2
    for taking in rest:
        assert {record.result for record in taking.silo.rounds} == {"aggregated"}


def test_a_silo_too_late_for_an_iteration_takes_the_next(engine, pair):
    first, second = pair
    first.join()
    second.join()
    late = Member(engine, "late")
    waiting = threading.Thread(target=late.join, daemon=True)
    waiting.start()
    time.sleep(0.5)
    assert not late.joined and late.said("has its silos already")
    sent = together(first, second)
    waiting.join(20)
    assert late.joined and late.iteration == first.iteration
    np.testing.assert_array_equal(late.model["conv.bias"], first.model["conv.bias"])
    assert_mean([first, second], sent)
    together(late, first)


def test_not_finite_weights_stay_here(engine, pair):
    first, second = pair
    first.join()
    bad = first.train(1.0)
    bad["conv.bias"][3] = np.nan
    with pytest.raises(NotFiniteError, match=r"conv.bias: 1 of 7 values .* step 12"):
        first.exchange(bad, step=12)
    bad["conv.bias"][3] = 3e38
    with pytest.raises(NotFiniteError, match="conv.bias"):
        first.exchange(bad)
    assert_mean([first, second], together(first, second))


def test_a_refused_upload_says_why(engine, pair):
    first, second = pair
    first.join()
    with pytest.raises(UploadRefusedError, match="Verify model feature map failed"):
        first.exchange({**first.train(1.0), "unknown": np.ones(3, np.float32)})
    assert_mean([first, second], together(first, second))


def test_another_model_or_setting_is_named_before_training(engine):
    cases = [
        ({"aspects": {**ASPECTS, "class list": ["cat"]}}, "do not agree on: class list"),
        ({"aspects": {**ASPECTS, "class list": ["dog", "cat"]}}, "do not agree on: class list"),
        ({"aspects": {**ASPECTS, "more": 1}}, "of another version of this software: it compares"),
        ({"aspects": {}}, "unknown here, first suite.fingerprint"),
        ({"sizes": {"conv.weight": 18, "conv.bias": 8}}, "conv.bias has 7 values there and 8"),
        ({"sizes": {"conv.weight": 18, "x": 7}}, "1 weights are not in it, first x"),
    ]
    for options, words in cases:
        silo = Member(engine, "other", **options)
        with pytest.raises(UserError, match=words):
            silo.join()
        assert not silo.joined and not silo.model


def test_a_wait_for_another_silo_ends(engine, pair):
    first, second = pair
    hurried = Member(engine, first.client.fl_id, 30, deadlines=Deadlines(30, 10, 6))
    hurried.join()
    with pytest.raises(GaveUpError, match="waiting for the others of 2 silos"):
        hurried.exchange(hurried.train(1.0))
    assert hurried.said("gives up in 1 s")
    first.join()
    second.join()
    second.exchange(second.train(2.0))


def test_a_lost_iteration_is_told_and_the_global_model_stays(tmp_path):
    with Engine(initial(), tmp_path, silos=2, windows=(20, 2, 30)) as engine:
        first, absent = Member(engine, "a"), Member(engine, "b")
        first.join()
        absent.join()
        before = {key: value.copy() for key, value in first.model.items()}
        assert first.exchange(first.train(1.0)).result == "lost"
        assert first.said("iteration 1 failed at the servers") and first.iteration == 2
        np.testing.assert_array_equal(first.model["conv.bias"], before["conv.bias"])
        assert absent.exchange(absent.train(1.0)).result == "lost"
        assert_mean([first, absent], together(first, absent))


@pytest.mark.slow
def test_servers_end_as_failed_when_too_few_iterations_were_aggregated(tmp_path):
    engine = Engine(initial(), tmp_path, silos=2, iterations=1, windows=(1, 20, 30))
    engine.start_redis()
    try:
        engine.supervise_server(0)
        alone = Member(engine, "a", iterations=1)
        alone.join()
        assert alone.exchange(alone.train(1.0)).result == "lost" and alone.finished
        alone.client.close()
        assert engine.processes["server_0"].wait(60) == 1
    finally:
        engine.stop()
    said = "0 of 1 iterations aggregated, 1 failed; exit code 1"
    assert engine.log("server_0").splitlines()[-1].endswith(f"every silo has left; {said}")


def make(folder):
    folder.mkdir()
    return folder


def open_engine(folder, **options) -> Engine:
    """Servers whose initial model was made without a checkpoint."""
    model = initial()
    return Engine({**model, FEATURE_NAME: opened(model[FEATURE_NAME])}, folder, **options)


def starting(engine: Engine, name: str, images: int = 10, **options) -> Member:
    """A silo that starts from the checkpoint."""
    return Member(engine, name, images, aspects=PRE_TRAINED, start=checkpoint(), **options)


@pytest.mark.slow
def test_an_open_start_gives_the_model_of_servers_that_had_the_checkpoint(tmp_path):
    models = []
    for number, engine in enumerate(
        (
            open_engine(make(tmp_path / "open"), iterations=2),
            Engine(
                {**checkpoint().weights, FEATURE_NAME: fingerprint(PRE_TRAINED)},
                make(tmp_path / "same"),
                iterations=2,
            ),
        )
    ):
        with engine:
            first, second = starting(engine, "a", 30), starting(engine, "b", 10)
            first.join()
            for name, value in checkpoint().weights.items():
                np.testing.assert_array_equal(first.model[name], value)
            again = starting(engine, "a", 30)  # restarted within the iteration
            again.join()
            assert again.said("kept the place in iteration 1")
            assert again.said("starting from resnet50.ckpt, as every silo must") == (number == 0)
            assert_mean([again, second], together(again, second))
            models.append(copied(again.model))
            late = Member(engine, "late without the checkpoint")
            with pytest.raises(UserError, match=r"do not agree on: frozen weights \(pre_trained"):
                late.join()
            assert_mean([again, second], together(again, second))
            assert len([line for line in second.lines if "starting from" in line]) <= 1
    for name, value in models[1].items():
        np.testing.assert_allclose(models[0][name], value, rtol=3e-7, atol=3e-7)


def test_an_open_iteration_that_is_lost_begins_again_from_the_checkpoint(tmp_path):
    with open_engine(tmp_path, windows=(20, 2, 30)) as engine:
        first, absent = starting(engine, "a"), starting(engine, "b")
        first.join()
        absent.join()
        assert first.exchange(first.train(1.0)).result == "lost" and first.iteration == 2
        assert absent.exchange(absent.train(1.0)).result == "lost"
        for silo in (first, absent):
            for name, value in checkpoint().weights.items():
                np.testing.assert_array_equal(silo.model[name], value)
        assert_mean([first, absent], together(first, absent))


def test_silos_of_different_starts_are_told_after_the_first_iteration(tmp_path):
    with open_engine(tmp_path) as engine:
        first, without = starting(engine, "a"), Member(engine, "b")
        first.join()
        without.join()
        np.testing.assert_array_equal(without.model["conv.bias"], weights()["conv.bias"])
        words = "did not all start from the same weights (pre_trained, seed)"
        for _ in range(2):
            together(first, without)
            assert first.rounds[-1].result == without.rounds[-1].result == "lost"
            assert first.said(words) and without.said(words)
        first.join()
        without.join()
        other = Exchange(without, 1.0)
        with pytest.raises(UserError, match=re.escape(words)):
            first.exchange(first.train(1.0))
        with pytest.raises(UserError, match=re.escape(words)):
            other.end()


def test_a_start_that_no_silo_could_tell_from_another_is_refused(tmp_path):
    with open_engine(tmp_path) as engine:
        same_frozen = Member(engine, "a", start=checkpoint())
        with pytest.raises(UserError, match="start the servers with --pre_trained=resnet50.ckpt"):
            same_frozen.join()
        same = Member(engine, "b", start=checkpoint(0.0))
        same.join()
        assert same.joined and not same.said("starting from")


def test_fewer_uploads_than_silos_end_an_iteration(tmp_path):
    with Engine(initial(), tmp_path, silos=2, ratio=0.5) as engine:
        first, slow = Member(engine, "a"), Member(engine, "b")
        first.join()
        slow.join()
        sent = first.train(1.0)
        assert first.exchange(sent).result == "aggregated"
        assert slow.exchange(slow.train(5.0)).result == "missed"
        assert_mean([first], [sent])
        assert slow.iteration == first.iteration == 2


def test_a_killed_server_comes_back_and_training_goes_on(tmp_path):
    with Engine(initial(), tmp_path, silos=2) as engine:
        first, second = Member(engine, "a", 30), Member(engine, "b", 10)
        together(first, second)
        first.join()
        second.join()
        waiting = Exchange(first, 1.0)
        time.sleep(0.5)
        engine.kill("server_0")
        engine.start_server(0)
        sent = second.train(2.0)
        second.exchange(sent)
        waiting.end()
        assert first.iteration == second.iteration >= 3
        assert_mean([first, second], together(first, second))


def test_redis_that_comes_back_empty_costs_one_iteration(tmp_path):
    with Engine(initial(), tmp_path, silos=2) as engine:
        first, second = Member(engine, "a", 30), Member(engine, "b", 10)
        first.join()
        second.join()
        waiting = Exchange(first, 1.0)
        time.sleep(0.3)
        engine.kill("redis")
        time.sleep(1)
        engine.start_redis()
        assert second.exchange(second.train(2.0)).result == "lost"
        waiting.end()
        assert first.rounds[-1].result == "lost" and first.iteration == second.iteration == 2
        np.testing.assert_array_equal(first.model["conv.bias"], weights()["conv.bias"])
        assert_mean([first, second], together(first, second))


@pytest.mark.slow  # the engine waits 20 s for the dead server's statistics
def test_the_next_server_serves_where_one_is_gone(tmp_path):
    with Engine(initial(), tmp_path, silos=2, servers=2) as engine:
        first = Member(engine, "a", addresses=engine.addresses)
        second = Member(engine, "b", addresses=engine.addresses[::-1])
        sent = together(first, second)
        assert_mean([first, second], sent)
        engine.kill("server_0")
        sent = together(first, second)
        assert first.client.address == second.client.address == engine.addresses[1]
        assert_mean([first, second], sent)


def test_servers_that_come_late_are_waited_for(tmp_path):
    engine = Engine(initial(), tmp_path, silos=2)
    silo = Member(engine, "a")
    waiting = threading.Thread(target=silo.join, daemon=True)
    waiting.start()
    time.sleep(0.3)
    assert silo.said("connection refused")
    with engine:
        waiting.join(20)
        assert silo.joined and silo.iteration == 1


def test_a_job_that_starts_anew_stops_a_silo_of_the_old_one(engine, pair):
    first, _ = pair
    first.iteration = 1000
    with pytest.raises(JobRestartedError, match="this silo has seen 1000"):
        first.join()
    assert not first.model


def test_data_sizes_that_the_engine_does_not_take(engine):
    client = Client(engine.addresses, engine.fl_name, "big")
    assert client.start(70000, 5).outcome is Outcome.REFUSED
    with pytest.raises(UserError, match="set it to 2 or more"):
        Member(engine, "big", 118287)
    assert Member(engine, "big", 118287, data_size_unit=2).data_size == 59144
