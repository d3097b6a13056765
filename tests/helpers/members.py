"""Run silos with a few values for tests, exchange side by side, and check the results."""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from typing import Callable

import numpy as np
from engine import Engine

from src.federated.fingerprint import FEATURE_NAME, FROZEN_ASPECT, fingerprint
from src.federated.model_check import Start
from src.federated.rounds import Deadlines
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client

ASPECTS = {
    "backbone": "resnet",
    "class list": ["cat", "dog"],
    "image size": (192, 320),
    FROZEN_ASPECT: "of the seed",
}
# Aspects of a silo that starts from a checkpoint.
PRE_TRAINED = {**ASPECTS, FROZEN_ASPECT: "of the checkpoint"}
DEADLINES = Deadlines(join=30, request=10, wait=30)
WINDOWS = (60, 20, 60)  # of an engine that meets faults: start, update, global; seconds
MOMENTS = ("before the uploads", "between the uploads", "while aggregating")


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(6, 3)).astype(np.float32),
        "conv.bias": random.normal(size=7).astype(np.float32),
    }


def initial() -> dict[str, np.ndarray]:
    return {**weights(), FEATURE_NAME: fingerprint(ASPECTS)}


def checkpoint(change: float = 5.0) -> Start:
    """Return what a silo gets from a checkpoint, with other values than `weights`."""
    flat = {name: value.reshape(-1) + np.float32(change) for name, value in weights().items()}
    return Start(flat, "resnet50.ckpt")


def settings_of(options: dict, images: int, iterations: int, **more) -> SiloSettings:
    """Make the settings of a silo from those of `options` that are its; they are removed there."""
    names = [field.name for field in fields(SiloSettings) if field.name in options]
    own = {name: options.pop(name) for name in names}
    return SiloSettings(**{"images": images, "iterations": iterations, **more, **own})


class Member(Silo):
    """Run a silo whose model is `model` and whose log is `lines`."""

    def __init__(self, engine: Engine, name: str, images: int = 10, **options):
        self.model: dict[str, np.ndarray] = {}
        self.lines: list[str] = []
        more = {"threshold": 2, "aspects": ASPECTS, "deadlines": DEADLINES}
        settings = settings_of(options, images, 30, log=self.lines.append, **more)
        sizes = options.pop("sizes", {key: value.size for key, value in weights().items()})
        client = Client(
            options.pop("addresses", engine.addresses),
            engine.fl_name,
            name,
            options.pop("tls", None),
            prefix=engine.prefix,
        )
        super().__init__(client, self.model.update, sizes, settings, **options)

    def train(self, change: float) -> dict[str, np.ndarray]:
        return {key: value + np.float32(change) for key, value in self.model.items()}

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Exchange(threading.Thread):
    """Run a silo's exchange next to the test's own; `join` raises what it raised."""

    def __init__(self, silo: Member, change: float):
        super().__init__(daemon=True)
        self.silo, self.sent, self.error = silo, silo.train(change), None
        self.start()

    def run(self) -> None:
        try:
            self.silo.exchange(self.sent)
        except Exception as error:
            self.error = error

    def end(self, seconds: float = 40) -> None:
        self.join(seconds)
        assert not self.is_alive(), "the exchange hangs"
        if self.error is not None:
            raise self.error


def together(first: Member, second: Member, changes=(1.0, 2.0)) -> list[dict]:
    """Let both silos join, train and exchange; return what they sent."""
    first.join()
    second.join()
    other = Exchange(second, changes[1])
    sent = first.train(changes[0])
    first.exchange(sent)
    other.end()
    return [sent, other.sent]


def assert_mean(silos: list[Member], sent: list[dict]) -> None:
    sizes = np.array([silo.data_size for silo in silos], np.float64)
    for key in sent[0]:
        stacked = np.stack([one[key].reshape(-1) for one in sent]).astype(np.float64)
        mean = (stacked * sizes[:, None]).sum(0) / sizes.sum()
        for silo in silos:
            np.testing.assert_allclose(silo.model[key], mean, rtol=3e-7, atol=3e-7)


def copied(model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in model.items()}


def assert_survived(silos: list[Member], before: dict[str, np.ndarray], sent: list[dict]) -> None:
    """Check after a fault within an iteration that it is over, and that all have one model.

    That is the mean of what was accepted if the iteration was aggregated, else the previous model.
    """
    results = {silo.rounds[-1].result for silo in silos}
    numbers = {silo.iteration for silo in silos}
    assert len(numbers) == 1, numbers
    if results == {"aggregated"}:
        assert_mean(silos, sent)
    else:
        assert results <= {"lost", "missed"}, results
        for silo in silos:
            for name, value in before.items():
                np.testing.assert_array_equal(silo.model[name], value)
    for silo in silos:
        iterations = [record.iteration for record in silo.rounds]
        assert iterations == sorted(set(iterations)) and silo.iteration > iterations[-1]
        assert not silo.said("another process uses this silo's identity"), silo.lines


def one_fault(engine: Engine, moment: str, strike: Callable[[], None]) -> None:
    """Run two silos: a good iteration, one that `strike` hits at `moment`, and a good one again."""
    first = Member(engine, "a", 30)
    second = Member(engine, "b", 10, addresses=engine.addresses[::-1])
    assert_mean([first, second], together(first, second))
    first.join()
    second.join()
    before = copied(first.model)
    if moment == "before the uploads":
        strike()
    exchanges = [Exchange(first, 1.0)]
    time.sleep(0.3)
    if moment == "between the uploads":
        strike()
    exchanges.append(Exchange(second, 2.0))
    if moment == "while aggregating":
        time.sleep(0.15)
        strike()
    for exchange in exchanges:
        exchange.end(90)
    assert_survived([first, second], before, [exchange.sent for exchange in exchanges])
    assert_mean([first, second], together(first, second))
    assert first.iteration == second.iteration == 4
