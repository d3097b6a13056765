"""The engine's own client of the base class of a manager, which this suite does not start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mindspore_federated.trainer import _fl_manager


class _NoEngineClient:
    """Stands in for the engine's binding while the base class is set up."""

    @staticmethod
    def init_federated_worker(initial_model: dict) -> None:
        """Do not start the engine's client, which would keep a copy of the model."""


@contextlib.contextmanager
def without_engine_client() -> Iterator[None]:
    """Within it, a manager that is made starts no client of the engine."""
    binding = _fl_manager.Federated_
    _fl_manager.Federated_ = _NoEngineClient
    try:
        yield
    finally:
        _fl_manager.Federated_ = binding
