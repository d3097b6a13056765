"""What the algorithms send and keep, and which settings go together."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from mindspore_federated.startup.feature_map import FeatureMap

from src.errors import UserError
from src.federated.aggregation import (
    ABSOLUTE,
    AdaptiveSettings,
    Aggregation,
    aggregation_of,
)
from src.federated.algorithms import (
    AdaptiveFrequency,
    DriftTerm,
    FedNova,
    ProximalTerm,
    Scaffold,
    algorithm_of,
)
from src.federated.fingerprint import FEATURE_NAME, differing, fingerprint
from src.federated.rounds import Round, SyncError
from src.federated.server import ServerJob, _add_controls
from src.job.job_config import load_job
from src.model_utils.config import load_config

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def weights() -> list[Parameter]:
    return [
        Parameter(Tensor(np.full((2, 3), number + 1, np.float32)), name)
        for number, name in enumerate(NAMES)
    ]


def arrays(*values: float) -> dict[str, np.ndarray]:
    return {name: np.full(6, value, np.float32) for name, value in zip(NAMES, values)}


def job_of(tmp_path, **aggregation):
    values = load_job("default_yaml_config.yaml")
    values.values["aggregation"] = aggregation
    return load_job(values.write(tmp_path / "job.yaml"))


def test_settings_come_from_both_files(tmp_path):
    job = job_of(tmp_path, aggregation_type="FedProx", iid_rate=0.5)
    config = load_config(sync_type="adaptive", observation_window_size=2)
    found = aggregation_of(job, config)
    assert found == Aggregation("FedProx", 0.5, AdaptiveSettings(observation_window_size=2))
    assert found.words() == "FedProx with iid_rate 0.5, after an adaptive number of steps"
    assert (found.server_models, found.silo_models) == (2, 4)


def test_defaults_are_the_engines():
    job = load_job("default_yaml_config.yaml")
    assert aggregation_of(job, load_config()) == Aggregation()
    adaptive = aggregation_of(job, load_config(sync_type="adaptive")).adaptive
    assert adaptive == AdaptiveSettings()


@pytest.mark.parametrize("kind", ["Scaffold", "FedNova"])
def test_adaptive_goes_with_plain_means_only(tmp_path, kind):
    job = job_of(tmp_path, aggregation_type=kind, total_client_num=2)
    with pytest.raises(UserError, match="with FedAvg and FedProx only"):
        aggregation_of(job, load_config(sync_type="adaptive"))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_a_smoothing_factor_out_of_range(tmp_path, alpha):
    with pytest.raises(UserError, match=f"ema_alpha is {alpha}, expected more than 0"):
        aggregation_of(job_of(tmp_path), load_config(ema_alpha=alpha))


@pytest.mark.parametrize(
    ("mine", "theirs", "named"),
    [
        (Aggregation(), Aggregation("FedNova"), "aggregation"),
        (Aggregation("FedProx", 0.1), Aggregation("FedProx", 0.2), "aggregation"),
        (Aggregation(), Aggregation(adaptive=AdaptiveSettings()), "sync_type"),
    ],
)
def test_silos_that_differ_in_it_have_other_fingerprints(mine, theirs, named):
    names = list(mine.aspects())
    found = differing(names, fingerprint(mine.aspects()), fingerprint(theirs.aspects()))
    assert [name.split()[0] for name in found] == [named]


def test_the_proximal_term_pulls_what_travels_and_nothing_else():
    trained = weights()
    term = ProximalTerm(trained, ["c", "a"], 0.5)
    term.load(arrays(0.0, 9.0, 1.0))
    assert {weight.name for weight in term.trainable_params()} == set(NAMES)
    grads = tuple(Tensor(np.full((2, 3), 10.0 * k, np.float32)) for k in range(3))
    found = [float(grad.asnumpy()[0, 0]) for grad in term(grads)]
    assert found == [0.5 * (1 - 0), 10.0, 20 + 0.5 * (3 - 1)]


def test_the_drift_term_corrects_by_the_rate_and_adds_the_rates_up():
    trained = weights()
    term = DriftTerm(trained)
    term.load(arrays(1.0, -2.0, 0.0))
    term(Tensor(np.array([0.25], np.float32)))
    term(Tensor(np.array([0.5], np.float32)))
    assert term.total.asnumpy()[0] == 0.75
    assert [float(w.asnumpy()[0, 0]) for w in trained] == [1 - 0.75, 2 + 1.5, 3.0]


def test_an_iteration_of_more_steps_than_fednova_can_declare():
    with pytest.raises(UserError, match="an iteration of 65536 steps"):
        FedNova(NAMES, 65536)


def trained_silo() -> Scaffold:
    """A silo of Scaffold whose weights have moved by -1, -2, -3 at rates that sum up to 0.5."""
    trained = weights()
    one = Scaffold(trained)
    one.loaded(arrays(2.0, 4.0, 6.0))
    one.joined({f"control.{name}": value for name, value in arrays(1.0, 1.0, 1.0).items()})
    one.terms.weight(Tensor(np.array([0.5], np.float32)))
    return one


def test_variates_of_a_round_that_failed_stay_as_they_were():
    one = trained_silo()
    for result, expected in (("lost", 0.0), ("missed", 0.0), ("aggregated", 1.0)):
        sent = one.upload(arrays(1.0, 2.0, 3.0), 4)
        np.testing.assert_array_equal(sent["control.a"], np.full(6, (1 / 0.5 - 1) / 4))
        one.ended(Round(1, result))
        one.joined({f"control.{name}": value for name, value in arrays(3.0, 3.0, 3.0).items()})
        drift = one.terms.weight.drifts[0].asnumpy()
        assert drift[0, 0] == 3.0 - expected
        one = trained_silo()


def test_a_silo_that_only_kept_its_place_sends_no_change_of_its_variates():
    one = trained_silo()
    one.joined({})
    assert not one.terms.weight.drifts[0].asnumpy().any()
    sent = one.upload(arrays(1.0, 2.0, 3.0), 4)
    assert not any(sent[f"control.{name}"].any() for name in NAMES)


def test_variates_of_another_model():
    with pytest.raises(SyncError, match="2 control variates that are not those"):
        trained_silo().joined({"control.a": np.zeros(6), "control.z": np.zeros(6)})


def test_a_job_goes_on_with_the_variates_of_its_recovery_file():
    features = FeatureMap()
    for name, value in {**arrays(1.0, 2.0, 3.0), "control.a": np.ones(6, np.float32)}.items():
        features.add_feature(name, value, require_aggr=True)
    features.add_feature(FEATURE_NAME, np.ones(2, np.float32), require_aggr=True)
    _add_controls(features)
    found = features.feature_map()
    assert set(found) == {*NAMES, FEATURE_NAME, *(f"control.{name}" for name in NAMES)}
    assert found["control.a"].data.all() and not found["control.b"].data.any()


@pytest.mark.parametrize(
    ("made_for", "refused"),
    [(Aggregation(adaptive=AdaptiveSettings()), False), (Aggregation("FedNova"), True)],
)
def test_servers_refuse_a_model_that_was_made_for_another_algorithm(tmp_path, made_for, refused):
    job = load_job("default_yaml_config.yaml")
    mark = fingerprint({"backbone": "resnet", **made_for.aspects()})
    server = ServerJob(
        "server_0", str(job.path), "127.0.0.1:1", "127.0.0.1", str(tmp_path), Aggregation()
    )
    features = {**arrays(1.0, 2.0, 3.0), FEATURE_NAME: mark}
    if not refused:
        assert set(server._load_feature_map(features, []).feature_map()) == set(features)
        return
    with pytest.raises(UserError, match="made for another algorithm than FedAvg"):
        server._load_feature_map(features, [])


def test_a_failed_round_tells_nothing_of_consistency():
    frequency = AdaptiveFrequency(AdaptiveSettings(observation_window_size=1), 8, ["a"])
    start = {"a": np.zeros(6, np.float32), ABSOLUTE + "a": np.zeros(6, np.float32)}
    frequency.loaded(start)
    for _ in range(9):
        frequency.upload({"a": np.ones((2, 3), np.float32)})
        frequency.loaded(start)
    assert frequency.frequency == 8


def test_the_window_grows_and_the_steps_end_at_one():
    settings = AdaptiveSettings(observation_window_size=1, frequency_increase_ratio=3)
    frequency = AdaptiveFrequency(settings, 5, ["a"])
    model = np.zeros(6, np.float32)
    frequency.loaded({"a": model})
    steps = []
    for _ in range(12):
        frequency.upload({"a": model})
        model = model + np.float32(1)
        frequency.loaded({"a": model, ABSOLUTE + "a": np.ones(6, np.float32)})
        steps.append(frequency.frequency)
    # All changes agree: the first round is the minimum, and no later one is lower.
    assert steps == [5, 5, 2] + [2] * 4 + [1] * 5


def test_the_factory_knows_every_algorithm():
    found = {
        kind: type(algorithm_of(Aggregation(kind, 0.1), weights(), NAMES, 3)).__name__
        for kind in ("FedAvg", "FedProx", "Scaffold", "FedNova")
    }
    assert list(found.values()) == ["FedAvg", "FedProx", "Scaffold", "FedNova"]
