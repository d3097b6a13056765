"""The ranks of a silo: rank 0 acts as the silo, the others follow its decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from src.federated.ranks import Message, RankError, Ranks
from src.federated.rounds import Features, Round
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client

Load = Callable[[dict[str, np.ndarray]], None]


class Leader(Silo):
    """The silo on rank 0, which sends each model that it loads and each decision to the others.

    Args:
        ranks: the silo's ranks.
        client, load, sizes, settings: see `Silo`, and likewise for the remaining arguments.
    """

    def __init__(
        self,
        ranks: Ranks,
        client: Client,
        load: Load,
        sizes: Mapping[str, int],
        settings: SiloSettings,
        **options: Any,
    ):
        def load_everywhere(features: dict[str, np.ndarray]) -> None:
            ranks.tell(Message("load", arrays=features))
            load(features)

        super().__init__(client, load_everywhere, sizes, settings, **options)
        self._ranks = ranks

    def join(self) -> None:
        """Call `Silo.join`, and tell the other ranks even if nothing was left to do."""
        super().join()
        self._tell_state()

    def exchange(self, features: Features, step: int = 0, epsilon: float | None = None) -> Round:
        """Call `Silo.exchange`, and tell the other ranks."""
        record = super().exchange(features, step, epsilon)
        self._tell_state()
        return record

    def reload(self) -> None:
        """Call `Silo.reload`, and tell the other ranks."""
        super().reload()
        self._tell_state()

    def _tell_state(self) -> None:
        state = {"iteration": self.iteration, "joined": self.joined, "finished": self.finished}
        result = self.rounds[-1].result if self.rounds else ""
        self._ranks.tell(Message("state", {**state, "result": result}))


class _NoServers:
    """Replaces the connection to the servers, which only rank 0 has."""

    def close(self) -> None:
        """Do nothing: the other ranks may still need to be told why this one ends."""


class Follower:
    """Replaces `Silo` on the other ranks, and follows rank 0.

    Args:
        ranks: the silo's ranks.
        load, on_phase: see `Silo`; the phases are "train", "wait" and "done".
    """

    def __init__(self, ranks: Ranks, load: Load, on_phase: Callable[[str, int], None]):
        self.client = _NoServers()
        self.iteration = 0
        self.joined = False
        self.finished = False
        self.data_size = 1
        self.controls: dict[str, np.ndarray] = {}
        self.rounds: list[Round] = []
        self._ranks = ranks
        self._load = load
        self._on_phase = on_phase

    def join(self) -> None:
        """Wait until rank 0 has joined an iteration, with its weights, or the job has ended."""
        self._follow()
        self._on_phase("done" if self.finished else "train", self.iteration)

    def exchange(self, features: Features, step: int = 0, epsilon: float | None = None) -> Round:
        """Wait for the end of rank 0's exchange; this rank's weights are not sent."""
        self._on_phase("wait", self.iteration)
        record = Round(self.iteration)
        record.result = self._follow()
        self.rounds.append(record)
        return record

    def reload(self) -> None:
        """Wait for the model that rank 0 loads."""
        self._follow()

    def _follow(self) -> str:
        while (message := self._ranks.hear()).kind == "load":
            self._load(message.arrays)
        told: list[Any] = [message.fields.get(key) for key in ("iteration", "joined", "finished")]
        if [type(value) for value in told] != [int, bool, bool]:
            raise RankError("rank 0 of this silo does not say how its round ended")
        self.iteration, self.joined, self.finished = told
        return str(message.fields.get("result", ""))


def silo_of(
    ranks: Ranks | None,
    client: Client,
    load: Load,
    sizes: Mapping[str, int],
    settings: SiloSettings,
    **options: Any,
) -> Silo | Follower:
    """Make this process's silo: a `Silo`, or its part in a silo of several ranks.

    Args:
        ranks: the silo's ranks; None for a silo of one process.
        client, load, sizes, settings: see `Silo`, and likewise for the remaining arguments.
    """
    if ranks is None:
        return Silo(client, load, sizes, settings, **options)
    if ranks.rank == 0:
        return Leader(ranks, client, load, sizes, settings, **options)
    return Follower(ranks, load, settings.on_phase)
