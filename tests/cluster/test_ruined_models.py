"""Members and strangers that ruin the global model: who is told, and that the job goes on."""

from __future__ import annotations

import numpy as np
import pytest
from engine import Engine
from members import ASPECTS, Exchange, Member, assert_mean, copied, initial, weights

from src.errors import UserError
from src.federated import messages
from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.rounds import Features
from src.job.iteration_results import results_in
from src.job.recovery_files import usable_files

LIMIT = 10.0


def honest(engine: Engine, name: str, images: int, **options) -> Member:
    return Member(engine, name, images, max_change=LIMIT, **options)


class Mallory(Member):
    """A member that sends what it likes."""

    def upload(self, features: Features, factor: int = 1) -> None:
        features = {FEATURE_NAME: fingerprint(ASPECTS), **features}
        self.client.update(self.iteration, features, factor, 10)
        self.joined = False

    def push(self, value: float) -> None:
        """What needs no place in the iteration, and leaves no name."""
        model = {**weights(), FEATURE_NAME: fingerprint(ASPECTS)}
        features = {name: np.full_like(array, value) for name, array in model.items()}
        body = messages.WeightsBody({0: self.iteration}, features, 1, slot=1)
        self.client._call("/pushWeight", body, body.length, 10, (-1, -1))


def boosted(mallory: Mallory) -> None:
    mallory.upload({name: value * 1000 for name, value in mallory.model.items()})


def one_huge_weight(mallory: Mallory) -> None:
    features = copied(mallory.model)
    features["conv.weight"].reshape(-1)[5] = 1e30
    mallory.upload(features)


def wrong_fingerprint(mallory: Mallory) -> None:
    features = {name: value * mallory.data_size for name, value in mallory.model.items()}
    mallory.upload({**features, FEATURE_NAME: fingerprint({**ASPECTS, "backbone": "vit"})})


def not_a_number(mallory: Mallory) -> None:
    mallory.upload({name: value * mallory.data_size for name, value in mallory.model.items()})
    mallory.push(np.nan)


ATTACKS = {
    boosted: "its weights changed by a norm of",
    one_huge_weight: "its weights changed by a norm of",
    wrong_fingerprint: "of its fingerprint are not those of this job",
    not_a_number: "",  # zeros, or another factor for each value
}


@pytest.mark.parametrize("servers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_ruined_model_costs_one_iteration_and_names_the_uploads(tmp_path, servers):
    with Engine(initial(), tmp_path, silos=3, servers=servers) as engine:
        silos = [
            honest(engine, "a", 30),
            honest(engine, "b", 10, addresses=engine.addresses[::-1]),
        ]
        mallory = Mallory(engine, "mallory\n[x] forged", 10)
        good_round([*silos, mallory])
        for number, (attack, words) in enumerate(ATTACKS.items(), 1):
            for silo in [*silos, mallory]:
                silo.join()
            before = copied(silos[0].model)
            exchanges = [Exchange(silo, 1.0) for silo in silos]
            attack(mallory)
            for exchange in exchanges:
                exchange.end()
            for silo in silos:
                assert silo.rounds[-1].result == "lost", (attack, silo.lines)
                for name, value in before.items():
                    np.testing.assert_array_equal(silo.model[name], value)
            log = "".join(engine.log(f"server_{n}") for n in range(servers))
            said = [line for line in log.splitlines() if " is not kept: " in line]
            assert len(said) == number and words in said[-1], (attack, said)
            assert r"uploads in it: 'a', 'b', 'mallory\n[x] forged'" in said[-1]
            ended = silos[0].rounds[-1].iteration
            files, warnings = usable_files(tmp_path / "ckpt", "Tiny")
            assert files[0].iteration == ended - 1 and not warnings
            good_round([*silos, mallory])
            assert results_in(tmp_path / "metrics.json")[ended] is False


def good_round(silos: list[Member]) -> None:
    for silo in silos:
        silo.join()
    exchanges = [Exchange(silo, change) for silo, change in zip(silos, (1.0, 2.0, 0.5))]
    for exchange in exchanges:
        exchange.end()
    assert_mean(silos, [exchange.sent for exchange in exchanges])


def test_a_fresh_silo_is_not_kept_out_by_a_wrong_fingerprint_and_a_real_difference_is(tmp_path):
    """Two servers, of which the one that is not told of the iteration's end holds the bad model."""
    with Engine(initial(), tmp_path, silos=2, servers=2) as engine:
        silo, mallory = honest(engine, "a", 30), Mallory(engine, "mallory", 10)
        good_round([silo, mallory])
        good = copied(silo.model)
        silo.join()
        mallory.join()
        exchange = Exchange(silo, 1.0)
        wrong_fingerprint(mallory)
        exchange.end()
        warned = 0
        for addresses in (engine.addresses, engine.addresses[::-1]):
            fresh = honest(engine, f"fresh at {addresses[0]}", 10, addresses=addresses)
            fresh.join()
            warned += fresh.said("the model of iteration 2 is not taken, the last good one is")
            for name, value in good.items():
                np.testing.assert_array_equal(fresh.model[name], value)
        assert warned == 1
        other = honest(engine, "other", 10, aspects={**ASPECTS, "backbone": "vit"})
        with pytest.raises(UserError, match="do not agree on: backbone"):
            other.join()
