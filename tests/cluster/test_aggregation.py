"""Each aggregation algorithm on the real servers, against the same thing written with numpy.

Two silos with unequal images, steps and data fit a plane; what they hold after each iteration has
to be what the algorithm of the papers gives.
"""

from __future__ import annotations

import threading

import mindspore as ms
import numpy as np
import pytest
import yaml
from engine import Engine
from members import settings_of
from mindspore import Parameter, Tensor, nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from src.errors import UserError
from src.federated.aggregation import AdaptiveSettings, Aggregation
from src.federated.fingerprint import FEATURE_NAME, FROZEN_ASPECT, fingerprint, opened
from src.federated.manager import SiloManager
from src.federated.privacy import Privacy, PrivacyLedger, PrivacySettings
from src.federated.rounds import Deadlines
from src.federated.transport import Client
from src.network_define import TrainOneStepCell

DEADLINES = Deadlines(join=40, request=10, wait=40)
IMAGES, STEPS, SILOS = (30, 10, 20), (3, 5, 4), 2
ITERATIONS, RATE, MOMENTUM, TOTAL = 3, 0.05, 0.5, 3
WIDTH = 4


class Halving(LearningRateSchedule):
    """The learning rate falls to a half over the steps, so that a wrong step would show."""

    def construct(self, global_step):
        return RATE / (1.0 + 0.1 * ops.cast(global_step, ms.float32))


class Plane(nn.Cell):
    """The mean squared error of a plane; takes five inputs, as the detector does."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.linspace(1, 2, WIDTH, dtype=np.float32)), "weight")
        self.bias = Parameter(Tensor(np.zeros(1, np.float32)), "bias")

    def construct(self, x, y, _a, _b, _c):
        found = (x * self.weight).sum(1) + self.bias
        return ((found - y) ** 2).mean().reshape((1,))


def batches(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of one iteration of a silo; silos pull towards different planes."""
    random = np.random.default_rng(number)
    plane = random.normal(size=WIDTH)
    made = []
    for _ in range(STEPS[number]):
        x = random.normal(size=(8, WIDTH))
        made.append((x.astype(np.float32), (x @ plane + number).astype(np.float32)))
    return made


class Reference:
    """A silo in double precision."""

    def __init__(self, number: int):
        self.batches, self.steps = batches(number), STEPS[number]
        self.momentum = np.zeros(WIDTH + 1)
        self.done = 0
        self.control = np.zeros(WIDTH + 1)
        self.rates = 0.0

    def train(self, start: np.ndarray, pull: float = 0.0, drift: np.ndarray | float = 0.0, steps=0):
        """The weights after one iteration that begins with `start`."""
        w, self.rates = start.copy(), 0.0
        for _ in range(steps or self.steps):
            x, y = self.batches[self.done % len(self.batches)]
            error = x @ w[:WIDTH] + w[WIDTH] - y
            grad = np.append((2 * error[:, None] * x).mean(0), (2 * error).mean())
            grad += pull * (w - start)
            # The first step of MindSpore's SGD takes the gradient itself as its momentum.
            self.momentum = grad if not self.done else MOMENTUM * self.momentum + grad
            rate = RATE / (1 + 0.1 * self.done)
            w -= rate * self.momentum + rate * drift
            self.done, self.rates = self.done + 1, self.rates + rate
        return w


def reference(aggregation: Aggregation) -> list[np.ndarray]:
    """The global models after each iteration, by the papers' formulas."""
    silos = [Reference(number) for number in range(SILOS)]
    images, steps = np.array(IMAGES[:SILOS], float), np.array(STEPS[:SILOS], float)
    model, common, models = first_model(), np.zeros(WIDTH + 1), []
    for _ in range(ITERATIONS):
        if aggregation.kind == "Scaffold":
            trained = [s.train(model, drift=common - s.control) for s in silos]
            changes = [(model - w) / s.rates - common for s, w in zip(silos, trained)]
            for silo, change in zip(silos, changes):
                silo.control = silo.control + change
            common = common + sum(changes) / TOTAL
            model = np.average(trained, axis=0, weights=images)
        elif aggregation.kind == "FedNova":
            trained = [s.train(model) for s in silos]
            each = np.stack([(w - model) / k for w, k in zip(trained, steps)])
            model = model + steps.mean() * each.mean(0)
        else:
            trained = [s.train(model, pull=aggregation.iid_rate) for s in silos]
            model = np.average(trained, axis=0, weights=images)
        models.append(model)
    return models


def first_model() -> np.ndarray:
    return np.append(np.linspace(1, 2, WIDTH), 0.0)


def flat(network: nn.Cell) -> np.ndarray:
    return np.concatenate([p.asnumpy().reshape(-1) for p in network.trainable_params()])


class Models(ms.Callback):
    """Keeps the model after each iteration, and the steps till then; stands behind the manager."""

    def __init__(self, manager: SiloManager, network: nn.Cell):
        super().__init__()
        self.manager, self.network, self.models = manager, network, []
        self.done, self.steps = 0, []

    def on_train_step_end(self, run_context):
        self.done += 1
        if len(self.manager.rounds) > len(self.models):
            self.models.append(flat(self.network))
            self.steps.append(self.done)


class TrainedSilo:
    """A silo that really trains."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        aggregation: Aggregation,
        iterations: int = ITERATIONS,
        **options,
    ):
        self.network = Plane()
        self.lines: list[str] = []
        self.batches = batches(number)
        more = {
            "threshold": SILOS,
            "number": number,
            "aspects": {FROZEN_ASPECT: options.get("pre_trained", ""), **aggregation.aspects()},
            "deadlines": DEADLINES,
            "log": self.lines.append,
        }
        settings = settings_of(options, IMAGES[number], iterations, **more)
        self.manager = SiloManager(
            str(engine.yaml_path),
            self.network,
            STEPS[number],
            Client(engine.addresses, engine.fl_name, f"silo {number}", longest=DEADLINES.wait),
            settings,
            aggregation=aggregation,
            **options,
        )
        optimizer = nn.SGD(self.network.trainable_params(), Halving(), MOMENTUM)
        gradient, weight = self.manager.terms
        self.cell = TrainOneStepCell(
            self.network, optimizer, gradient_term=gradient, weight_term=weight
        )
        self.kept = Models(self.manager, self.network)


def engine_of(
    aggregation: Aggregation,
    folder,
    servers: int = 1,
    iterations: int = ITERATIONS,
    opened_at: np.ndarray | None = None,
    **options,
) -> Engine:
    """The servers, with `first_model`, or with an open one of other values."""
    first = first_model() if opened_at is None else opened_at
    weights = {"weight": first[:WIDTH], "bias": first[WIDTH:]}
    features = {name: array.astype(np.float32) for name, array in weights.items()}
    features.update(aggregation.server_features(features))
    mark = fingerprint({FROZEN_ASPECT: "", **aggregation.aspects()})
    features[FEATURE_NAME] = mark if opened_at is None else opened(mark)
    options = {"silos": SILOS, **options}
    engine = Engine(features, folder, servers=servers, iterations=iterations, **options)
    values = yaml.safe_load(engine.yaml_path.read_text())
    values["aggregation"] = {"aggregation_type": aggregation.kind, "total_client_num": TOTAL}
    if aggregation.iid_rate:
        values["aggregation"]["iid_rate"] = aggregation.iid_rate
    engine.yaml_path.write_text(yaml.safe_dump(values))
    return engine


class _Arguments:
    """What a training loop tells its callbacks, as far as they ask."""

    net_outputs: Tensor


class _Context:
    def __init__(self):
        self.arguments, self.stopped = _Arguments(), False

    def original_args(self):
        return self.arguments

    def request_stop(self):
        self.stopped = True


def train_together(silos: list[TrainedSilo], iterations: int | None = None) -> None:
    """The silos' training loops, side by side, to the end of the job or for some iterations."""
    threads = [_Loop(silo, iterations) for silo in silos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a silo hangs"
        if thread.error is not None:
            raise thread.error


class _Loop(threading.Thread):
    """A silo's training, until the job is finished or it has done so many iterations."""

    lock = threading.Lock()

    def __init__(self, silo: TrainedSilo, iterations: int | None = None):
        super().__init__(daemon=True)
        self.silo, self.error = silo, None
        self.until = None if iterations is None else len(silo.manager.rounds) + iterations

    def run(self) -> None:
        try:
            self._train()
        except Exception as error:
            self.error = error

    def _train(self) -> None:
        silo, context = self.silo, _Context()
        while not context.stopped and len(silo.manager.rounds) != self.until:
            x, y = silo.batches[silo.kept.done % len(silo.batches)]
            silo.manager.on_train_step_begin(context)
            inputs = [Tensor(x), Tensor(y), Tensor(0.0), Tensor(0.0), Tensor(0.0)]
            with self.lock:
                context.arguments.net_outputs = silo.cell(*inputs)
            silo.manager.on_train_step_end(context)
            silo.kept.on_train_step_end(context)


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize(
    ("aggregation", "servers"),
    [
        (Aggregation("FedProx", iid_rate=0.7), 1),
        (Aggregation("Scaffold"), 1),
        (Aggregation("FedNova"), 2),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_global_models_are_those_of_the_papers(aggregation, servers, tmp_path):
    with engine_of(aggregation, tmp_path, servers) as engine:
        silos = [TrainedSilo(engine, number, aggregation) for number in range(SILOS)]
        names = [parameter.name for parameter in silos[0].network.get_parameters()]
        assert names == ["weight", "bias"]
        train_together(silos)
    expected = reference(aggregation)
    for silo in silos:
        assert len(silo.kept.models) == ITERATIONS
        np.testing.assert_allclose(silo.kept.models, expected, rtol=2e-5, atol=2e-6)
    plain = reference(Aggregation())
    assert np.abs(expected[-1] - plain[-1]).max() > 1e-3


PARTIAL_ROUNDS = 5


def partial_reference() -> list[np.ndarray]:
    """Scaffold's global models where another one of three silos sits out each iteration."""
    silos = [Reference(number) for number in range(3)]
    model, common, models = first_model(), np.zeros(WIDTH + 1), []
    for number in range(PARTIAL_ROUNDS):
        chosen = [n for n in range(3) if n != number % 3]
        trained = [silos[n].train(model, drift=common - silos[n].control) for n in chosen]
        changes = [(model - w) / silos[n].rates - common for n, w in zip(chosen, trained)]
        for n, change in zip(chosen, changes):
            silos[n].control = silos[n].control + change
        common = common + sum(changes) / TOTAL
        model = np.average(trained, axis=0, weights=[IMAGES[n] for n in chosen])
        models.append(model)
    return models


def test_scaffold_keeps_its_variates_where_silos_sit_iterations_out(tmp_path):
    """A silo that was busy is let into a later iteration than the one it asked for."""
    scaffold = Aggregation("Scaffold")
    with engine_of(scaffold, tmp_path, iterations=PARTIAL_ROUNDS) as engine:
        silos = [TrainedSilo(engine, n, scaffold, PARTIAL_ROUNDS) for n in range(3)]
        for number, expected in enumerate(partial_reference()):
            chosen = [silos[n] for n in range(3) if n != number % 3]
            train_together(chosen, 1)
            for silo in chosen:
                np.testing.assert_allclose(flat(silo.network), expected, rtol=0, atol=5e-7)
    assert not any("WARNING" in line for silo in silos for line in silo.lines)


def test_a_late_silo_sends_a_private_change_of_the_latest_model(tmp_path):
    """Two of three uploads suffice; the third silo comes when three iterations are over."""
    settings = PrivacySettings(clip_norm=1e-3, noise_multiplier=0.0, delta=1e-5)
    privacy = Privacy(settings, PrivacyLedger(tmp_path, tmp_path), print)
    plain = Aggregation()
    with engine_of(plain, tmp_path, iterations=9, silos=3, ratio=0.5) as engine:
        silos = [TrainedSilo(engine, number, plain, 9) for number in range(2)]
        late = TrainedSilo(engine, 2, plain, 9, privacy=privacy)
        for silo in (*silos, late):
            silo.manager.join()
        for _ in range(3):
            train_together(silos, 1)
        train_together([late], 1)
        assert late.manager.rounds[0].result == "missed" and late.manager.iteration == 4
        latest = flat(silos[0].network)
        np.testing.assert_array_equal(flat(late.network), latest)
        trained = {p.name: p.asnumpy() + 1 for p in late.network.trainable_params()}
        protected = privacy.protect(trained, 1, 4)
    assert np.abs(np.concatenate([a.reshape(-1) for a in protected.values()]) - latest).max() < 1e-3


@pytest.mark.parametrize(
    "aggregation",
    [
        pytest.param(Aggregation(), marks=pytest.mark.slow),
        pytest.param(Aggregation("FedProx", iid_rate=0.7), marks=pytest.mark.slow),
        Aggregation("Scaffold"),
    ],
    ids=lambda value: value.kind,
)
def test_silos_with_a_checkpoint_train_as_if_the_servers_had_it_too(aggregation, tmp_path):
    elsewhere = first_model() + 7
    with engine_of(aggregation, tmp_path, opened_at=elsewhere) as engine:
        silos = [TrainedSilo(engine, n, aggregation, pre_trained="r.ckpt") for n in range(SILOS)]
        train_together(silos)
        late = TrainedSilo(engine, 0, aggregation)
        with pytest.raises(UserError, match="do not agree on: frozen weights"):
            late.manager.join()
    for silo in silos:
        np.testing.assert_allclose(silo.kept.models, reference(aggregation), rtol=2e-5, atol=2e-6)
        said = [line for line in silo.lines if "starting from r.ckpt, as every silo must" in line]
        assert len(said) == 1


def test_with_privacy_the_clipped_change_is_from_the_silos_own_start(tmp_path):
    clip, aggregation = 0.05, Aggregation()
    with engine_of(aggregation, tmp_path, opened_at=first_model() + 7, iterations=1) as engine:
        silos = []
        for number in range(SILOS):
            (folder := tmp_path / str(number)).mkdir()
            settings = PrivacySettings(clip, 0.0, 1e-5)
            privacy = Privacy(settings, PrivacyLedger(folder, folder), print)
            options = {"iterations": 1, "pre_trained": "r.ckpt", "privacy": privacy}
            silos.append(TrainedSilo(engine, number, aggregation, **options))
        train_together(silos)
    for silo in silos:
        assert 0 < np.linalg.norm(silo.kept.models[0] - first_model()) <= clip * 1.001


def test_fednovas_servers_need_the_checkpoint_too(tmp_path):
    """They add to their own model, so silos cannot start from another one."""
    aggregation = Aggregation("FedNova")
    with engine_of(aggregation, tmp_path) as engine:
        silo = TrainedSilo(engine, 0, aggregation, pre_trained="r.ckpt")
        with pytest.raises(UserError, match=r"FedNova.*start the servers with --pre_trained=r\.ck"):
            silo.manager.join()


ADAPTIVE = Aggregation(
    adaptive=AdaptiveSettings(observation_window_size=1, ema_alpha=0.3, unchanged_round=1)
)
ROUNDS = 6


def adaptive_reference() -> tuple[list[np.ndarray], list[list[int]]]:
    """The global models, and the silos' steps in each iteration."""
    settings, silos = ADAPTIVE.adaptive, [Reference(number) for number in range(SILOS)]
    model, models, steps = first_model(), [], [list(STEPS[:SILOS])]
    change, size = np.zeros(WIDTH + 1), np.zeros(WIDTH + 1)
    lowest, at, window = settings.min_consistent_rate, 0, settings.observation_window_size
    for number in range(ROUNDS):
        trained = [silo.train(model, steps=k) for silo, k in zip(silos, steps[-1])]
        mean = np.average(trained, axis=0, weights=IMAGES[:SILOS])
        moved = np.average(np.abs(np.array(trained) - model), axis=0, weights=IMAGES[:SILOS])
        alpha = settings.ema_alpha
        change = alpha * change + (1 - alpha) * (mean - model)
        size = alpha * size + (1 - alpha) * moved
        consistency = (np.abs(change) / size).mean()
        now = steps[-1]
        if consistency < lowest:
            lowest, at = consistency, number
        elif number - at > window and number > settings.unchanged_round and max(now) > 1:
            now = [-(-k // 2) for k in now]
            lowest, at, window = 1.1, number, 2 * window
            change, size = np.zeros(WIDTH + 1), np.zeros(WIDTH + 1)
        steps.append(now)
        model = mean
        models.append(model)
    return models, steps


@pytest.mark.parametrize("checkpoint", ["", pytest.param("r.ckpt", marks=pytest.mark.slow)])
def test_adaptive_synchronisation_takes_fewer_steps_when_changes_disagree(tmp_path, checkpoint):
    """Also where the silos start from a checkpoint and the servers have made another model."""
    elsewhere = first_model() + 7 if checkpoint else None
    given = {"pre_trained": checkpoint}
    models, steps = adaptive_reference()
    assert steps[0] == [3, 5] and steps[-2] == [2, 3], "the case does not show a change"
    with engine_of(ADAPTIVE, tmp_path, iterations=ROUNDS, opened_at=elsewhere) as engine:
        silos = [TrainedSilo(engine, n, ADAPTIVE, ROUNDS, **given) for n in range(SILOS)]
        train_together(silos)
    for number, silo in enumerate(silos):
        np.testing.assert_allclose(silo.kept.models, models, rtol=2e-5, atol=2e-6)
        assert silo.kept.steps == np.cumsum([each[number] for each in steps[:ROUNDS]]).tolist()
        text = f"synchronising every {steps[-2][number]} instead of {STEPS[number]}"
        assert any(text in line for line in silo.lines)
        assert silo.cell.optimizer.parameters[-1].name == "bias"
