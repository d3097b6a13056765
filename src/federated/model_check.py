"""Whether the model that servers hold is this silo's, and whether it is a mean at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import numpy as np

from src.errors import UserError
from src.federated import fingerprint as fp
from src.federated.replies import Reply
from src.federated.rounds import SyncError, difference, sample


class ModelCheck:
    """Looks at each model that servers give, and makes the fingerprint that goes with an upload.

    Args:
        sizes: name -> number of values of every weight that travels.
        aspects: what must agree between silos, see `fingerprint`; {} checks no fingerprint.
        log: takes a line.
    """

    def __init__(
        self, sizes: Mapping[str, int], aspects: Mapping[str, object], log: Callable[[str], None]
    ):
        self._sizes = sizes
        self._aspects = aspects
        self._log = log
        self._extra = {fp.FEATURE_NAME: fp.fingerprint(aspects)} if aspects else {}

    def sent_beside(self, adds: bool) -> dict[str, np.ndarray]:
        """What travels beside the weights; servers that add get zeros, to leave theirs as it is."""
        return {name: array * (not adds) for name, array in self._extra.items()}

    def factor(self, reply: Reply) -> float:
        """By what the model in `reply` is a multiple of a mean; 1 where it is one."""
        if not self._extra or fp.FEATURE_NAME not in reply.features:
            return 1.0
        return fp.common_factor(self._extra[fp.FEATURE_NAME], reply.features[fp.FEATURE_NAME])

    def require_own(self, reply: Reply) -> None:
        """Whether the model is this silo's, by its values, fingerprint, names and sizes.

        Raises:
            SyncError: it is zero or not finite.
            UserError: it is another one.
        """
        values = sample(reply.features, reply.features)
        if not (np.isfinite(values).all() and values.any()):
            raise SyncError(
                f"the servers at {reply.address} hold a model that is zero or not finite; start "
                "them anew from an earlier checkpoint"
            )
        self._require_agreement(reply)
        expected = {**self._sizes, **{name: array.size for name, array in self._extra.items()}}
        received = {name: array.size for name, array in reply.features.items()}
        if expected != received:
            raise UserError(
                f"the servers at {reply.address} hold another model than this silo: "
                f"{difference(expected, received)}; give both the same configuration, and the "
                "servers a model from tools/create_initial_checkpoint.py"
            )

    def _require_agreement(self, reply: Reply) -> None:
        if self._extra and fp.FEATURE_NAME in reply.features:
            theirs = reply.features[fp.FEATURE_NAME]
            aspects = fp.differing(list(self._aspects), self._extra[fp.FEATURE_NAME], theirs)
            if aspects:
                raise UserError(
                    f"the servers at {reply.address} and this silo do not agree on: "
                    f"{', '.join(aspects)}; give all of them the same configuration and the same "
                    "pre_trained (a model that was in the servers' --checkpoint_dir before may be "
                    "of another one)"
                )
        elif self._extra:
            self._log(
                "WARNING: the servers' model carries no fingerprint, so nobody checks that the "
                "silos' settings agree; tools/create_initial_checkpoint.py makes one with it"
            )
            self._extra = {}
