"""More silos than an iteration takes, and fewer uploads than silos that joined it."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from typing import Callable

import numpy as np
import pytest
from engine import Engine
from members import Exchange, Member, copied, initial

SILOS, THRESHOLD, RATIO, ITERATIONS = 5, 3, 0.6, 5  # 2 of the 3 silos of an iteration suffice


def test_each_global_model_is_a_mean_of_uploads_that_were_accepted(tmp_path):
    sent, models, errors = defaultdict(dict), defaultdict(list), []

    def take_part(silo: Member) -> None:
        try:
            silo.join()
            while not silo.finished:
                weights = silo.train(1.0 + silo.data_size)
                record = silo.exchange(weights)
                models[record.iteration].append(copied(silo.model))
                if record.result == "aggregated":
                    sent[record.iteration][silo.data_size] = weights
                silo.join()
        except Exception as error:
            errors.append(error)

    with Engine(initial(), tmp_path, silos=THRESHOLD, iterations=ITERATIONS, ratio=RATIO) as engine:
        silos = [
            Member(engine, f"silo {number}", 10 + number, iterations=ITERATIONS)
            for number in range(SILOS)
        ]
        run_all(take_part, silos, 60)
    assert not errors
    assert all(silo.finished for silo in silos)
    for silo in silos:
        iterations = [record.iteration for record in silo.rounds]
        assert iterations == sorted(set(iterations))
    assert_means(models, sent)
    results = [record.result for silo in silos for record in silo.rounds]
    assert results.count("aggregated") > ITERATIONS
    assert any(silo.said("taking the next one") for silo in silos)


def run_all(take_part: Callable[[Member], None], silos: list[Member], seconds: float) -> None:
    threads = [threading.Thread(target=take_part, args=(silo,), daemon=True) for silo in silos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)


def assert_means(models: dict[int, list[dict]], sent: dict[int, dict[int, dict]]) -> None:
    """After each iteration all silos hold one model: a mean of some uploads, or the one before."""
    before = initial()
    for iteration in sorted(models):
        after = models[iteration][0]
        for model in models[iteration]:
            for name, value in after.items():
                np.testing.assert_array_equal(model[name], value)
        unchanged = all(np.array_equal(after[n], before[n].reshape(-1)) for n in after)
        assert unchanged or is_mean_of_some(after, sent[iteration])
        before = after


def is_mean_of_some(model: dict, counted: dict[int, dict]) -> bool:
    """Whether `model` is the weighted mean of at least two of the uploads that were accepted."""
    for count in range(2, len(counted) + 1):
        for sizes in itertools.combinations(counted, count):
            means = {
                name: sum(n * counted[n][name].astype(np.float64).reshape(-1) for n in sizes)
                / sum(sizes)
                for name in model
            }
            if all(np.allclose(model[n], means[n], rtol=1e-6, atol=1e-6) for n in model):
                return True
    return False


@pytest.mark.parametrize("late_by", [2, 3])
def test_a_silo_that_is_iterations_late_trains_on_the_latest_model(tmp_path, late_by):
    """It joins the current iteration with the current model, and what it sends then counts."""
    with Engine(initial(), tmp_path, silos=3, iterations=30, ratio=0.5) as engine:
        first, second, late = (Member(engine, name) for name in "abc")
        for silo in (first, second, late):
            silo.join()
        slow = late.train(50.0)
        for _ in range(late_by):
            for silo in (first, second):
                silo.join()
            other = Exchange(first, 1.0)
            second.exchange(second.train(1.0))
            other.end()
        latest = copied(second.model)
        assert late.exchange(slow).result == "missed"
        assert late.iteration == late_by + 1
        for name, value in latest.items():
            np.testing.assert_array_equal(late.model[name], value)
        for silo in (late, first):
            silo.join()
        other = Exchange(first, 1.0)
        late.exchange(late.train(1.0))
        other.end()
        for name, value in latest.items():
            np.testing.assert_allclose(late.model[name], value + 1, rtol=1e-6)


def test_a_silo_that_is_late_at_the_end_has_the_jobs_last_model(tmp_path):
    with Engine(initial(), tmp_path, silos=3, iterations=3, ratio=0.5) as engine:
        first, second, late = (Member(engine, name, iterations=3) for name in "abc")
        for silo in (first, second, late):
            silo.join()
        slow = late.train(50.0)
        for _ in range(3):
            for silo in (first, second):
                silo.join()
            other = Exchange(first, 1.0)
            second.exchange(second.train(1.0))
            other.end()
        assert late.exchange(slow).result == "missed" and late.finished
        for name, value in second.model.items():
            np.testing.assert_array_equal(late.model[name], value)
        assert late.said("received the last model of the job")


@pytest.mark.slow  # the engine has to meet the moment: half a minute of uploads sent at once
@pytest.mark.parametrize("servers", [1, 2])
def test_uploads_beyond_those_that_suffice_never_spoil_the_model(tmp_path, servers):
    """The engine adds some of them to the finished mean; see docs/synchronisation.md."""
    silos_in, rounds = 4, 15
    together = threading.Barrier(silos_in)
    sent, models, errors = defaultdict(dict), defaultdict(list), []

    def take_part(silo: Member) -> None:
        try:
            for _ in range(rounds):
                silo.join()
                weights = silo.train(1.0 + silo.data_size)
                together.wait(60)
                record = silo.exchange(weights)
                models[record.iteration].append(copied(silo.model))
                if record.result != "missed":
                    sent[record.iteration][silo.data_size] = weights
        except Exception as error:
            errors.append(error)
            together.abort()

    with Engine(initial(), tmp_path, silos=silos_in, servers=servers, ratio=0.5) as engine:
        silos = [
            Member(engine, f"silo {n}", 10 + n, addresses=engine.addresses[:: 1 - n % 2 * 2])
            for n in range(silos_in)
        ]
        run_all(take_part, silos, 120)
    assert not errors
    assert len(models) == rounds
    before = initial()["conv.bias"]
    for iteration in sorted(models):
        bias = models[iteration][0]["conv.bias"]
        uploads = np.stack([weights["conv.bias"] for weights in sent[iteration].values()])
        within = (uploads.min(0) - 1e-3 <= bias) & (bias <= uploads.max(0) + 1e-3)
        assert within.all() or np.array_equal(bias, before)
        before = bias
