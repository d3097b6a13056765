"""Checks that the servers' model fits this silo and is a mean, and selects starting weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable

import numpy as np

from src.errors import UserError
from src.federated import fingerprint as fp
from src.federated.model_bounds import ModelBounds
from src.federated.replies import Reply
from src.federated.rounds import Features, SyncError, difference
from src.weights.ckpt_file import value_fault


class RuinedModelError(SyncError):
    """A model of the servers has values that honest training cannot produce."""


class DisagreementError(UserError):
    """A model of the servers does not have the fingerprint of this silo's settings."""


@dataclass(frozen=True)
class Start:
    """The weights of a silo's own checkpoint.

    Attributes:
        weights: name -> 1-D float32 array of every federated weight.
        origin: the checkpoint's path.
    """

    weights: dict[str, np.ndarray]
    origin: str

    def equals(self, weights: Features) -> bool:
        """Return whether `weights`, 1-D, are bitwise equal."""
        return all(np.array_equal(own, weights[name]) for name, own in self.weights.items())


class ModelCheck:
    """Checks each model from the servers, and makes the fingerprint of an upload.

    Args:
        sizes: name -> number of values of every federated weight.
        aspects: what silos must agree on, see `fingerprint`; {} checks no fingerprint.
        log: called with a log line.
        start: what this silo starts from if the servers have no checkpoint; None: their model.
        adds: whether the servers add uploads to their model.
        max_change: see `ModelBounds`.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        aspects: Mapping[str, object],
        log: Callable[[str], None],
        start: Start | None = None,
        adds: bool = False,
        max_change: float = 0.0,
    ):
        self._bounds = ModelBounds(max_change)
        self._sizes = sizes
        self._aspects = aspects
        self._log = log
        self._start = start
        self._adds = adds
        self._was_open = False  # whether the model before was open
        self._extra = {fp.FEATURE_NAME: fp.fingerprint(aspects)} if aspects else {}

    def sent_beside(self) -> dict[str, np.ndarray]:
        """Return what is sent with the weights: zeros for servers that add, to change nothing."""
        return {name: array * (not self._adds) for name, array in self._extra.items()}

    def factor(self, reply: Reply) -> float:
        """Return the factor by which the model in `reply` exceeds a mean; 1 if it is one."""
        if not self._extra or fp.FEATURE_NAME not in reply.features:
            return 1.0
        return fp.common_factor(self._extra[fp.FEATURE_NAME], reply.features[fp.FEATURE_NAME])

    def require_own(self, reply: Reply) -> None:
        """Check the model against this silo, by its values, fingerprint, names and sizes.

        Raises:
            RuinedModelError: it is zero, not finite, or too far from the last good model.
            DisagreementError: its fingerprint differs.
            UserError: it has other weights.
        """
        # If silos may start from other weights than this initial model, its change means nothing.
        is_start = self.is_open(reply)
        fault = (
            value_fault(reply.features)
            if is_start
            else self._bounds.fault(reply.features, reply.iteration)
        )
        if fault:
            raise RuinedModelError(f"the model of the servers at {reply.address}: {fault}")
        self._require_agreement(reply)
        expected = {**self._sizes, **{name: array.size for name, array in self._extra.items()}}
        received = {name: array.size for name, array in reply.features.items()}
        if expected != received:
            raise UserError(
                f"the servers at {reply.address} hold another model than this silo: "
                f"{difference(expected, received)}; give both the same configuration, and the "
                "servers a model from tools/create_initial_checkpoint.py"
            )

    @property
    def last_good(self) -> dict[str, np.ndarray]:
        """Return the weights last given to `keep`, 1-D; {} before the first."""
        return dict(self._bounds.good)

    def keep(self, weights: Features, iteration: int) -> None:
        """Note the weights that `iteration` starts from: name -> 1-D float32 array."""
        self._bounds.keep(weights, iteration)

    def starting_weights(self, reply: Reply) -> tuple[Features, bool]:
        """Return the weights to train from, and whether they are this silo's own.

        They are the servers', unless the servers made their initial model without a checkpoint and
        this silo has one. The silo's own weights are kept until an aggregated model arrives.

        Args:
            reply: a reply whose model has passed `require_own`.

        Raises:
            UserError: the silo has a checkpoint, and cannot start from it.
        """
        self._was_open = self.is_open(reply)
        if not self._was_open:
            self._start = None
        weights = {name: reply.features[name] for name in self._sizes}
        if self._start is None or self._start.equals(weights):
            return weights, False
        origin = self._start.origin
        theirs = f"the servers' initial model was made without a checkpoint ({reply.address})"
        if not self._differing(reply):
            # The fingerprint would not reveal a silo that starts from the servers' weights.
            raise UserError(
                f"{theirs} and differs from {origin} in trained weights alone, where nobody could "
                f"notice a silo that starts from another one; start the servers with "
                f"--pre_trained={origin} too"
            )
        self._log(f"{theirs}; starting from {origin}, as every silo must")
        return {**weights, **self._start.weights}, True

    def is_open(self, reply: Reply) -> bool:
        """Return whether silos may start from other weights than those of the model in `reply`."""
        return not self._adds and fp.is_open(reply.features.get(fp.FEATURE_NAME, np.empty(0)))

    def _differing(self, reply: Reply) -> list[str]:
        """Return the aspects in which the model's fingerprint, if any, differs from this silo's."""
        if not self._extra or fp.FEATURE_NAME not in reply.features:
            return []
        mine, theirs = self._extra[fp.FEATURE_NAME], reply.features[fp.FEATURE_NAME]
        return fp.differing(list(self._aspects), mine, theirs)

    def _require_agreement(self, reply: Reply) -> None:
        if self._extra and fp.FEATURE_NAME in reply.features:
            aspects = self._differing(reply)
            if aspects == [fp.FROZEN_ASPECT]:
                self._heed_start(reply)
            elif aspects:
                raise self._disagreement(reply, aspects)
        elif self._extra:
            self._log(
                "WARNING: the servers' model carries no fingerprint, so nobody checks that the "
                "silos' settings agree; tools/create_initial_checkpoint.py makes one with it"
            )
            self._extra = {}

    def _heed_start(self, reply: Reply) -> None:
        """Accept other frozen weights if this silo may start from its own.

        Raises:
            UserError: it may not start from its own weights.
        """
        if self._start is not None and self.is_open(reply):
            return
        if self._start is not None and self._adds:
            raise UserError(
                f"the servers at {reply.address} add to their own model (FedNova), whose frozen "
                f"weights are not those of {self._start.origin}; start the servers with "
                f"--pre_trained={self._start.origin} too"
            )
        if self._was_open and not self.is_open(reply):
            raise DisagreementError(
                "the silos did not all start from the same weights (pre_trained, seed), as the "
                f"fingerprint of the model at {reply.address} shows; start the job again with the "
                "same --pre_trained and --seed for every silo; where the servers have them too, "
                "another silo is refused before it trains"
            )
        raise self._disagreement(reply, [fp.FROZEN_ASPECT])

    def _disagreement(self, reply: Reply, aspects: list[str]) -> UserError:
        if aspects == [fp.VERSION_ASPECT]:
            return DisagreementError(
                f"the servers at {reply.address} hold a model of another {fp.VERSION_ASPECT}: it "
                "compares other settings; run the same version everywhere, or begin a new job with "
                "another --checkpoint_dir and --pre_trained=<a worker's newest checkpoint> (or a "
                "silo has sent a wrong fingerprint)"
            )
        return DisagreementError(
            f"the servers at {reply.address} and this silo do not agree on: {', '.join(aspects)}; "
            "give all of them the same configuration and the same pre_trained (a model that was in "
            "the servers' --checkpoint_dir before may be of another one, and a silo may have sent "
            "a wrong fingerprint)"
        )
