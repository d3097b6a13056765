"""Read MindSpore checkpoints without loading MindSpore, and check those of the servers."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

MESSAGES = "mindspore.train.checkpoint_pb2"


def checkpoint_messages() -> ModuleType:
    """Load MindSpore's message classes from their file; importing its package takes seconds."""
    if MESSAGES in sys.modules:
        return sys.modules[MESSAGES]
    package: Any = importlib.util.find_spec("mindspore")  # `require_packages` has found it
    path = Path(package.submodule_search_locations[0]) / "train" / "checkpoint_pb2.py"
    spec: Any = importlib.util.spec_from_file_location("checkpoint_messages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_messages(path: Path) -> Any:
    """Return the parsed `Checkpoint` message of a file.

    Raises:
        ValueError: it is not a MindSpore checkpoint, or is cut short.
        OSError: it cannot be read.
    """
    content = checkpoint_messages().Checkpoint()
    try:
        content.ParseFromString(path.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return content


FLOAT_BYTES = 4
# The fingerprint's name among the weights of a model.
MARK = "suite.fingerprint"
ALL_ZERO = "all its weights are zero"


@dataclass(frozen=True)
class Content:
    """Hold what is in a checkpoint of the servers.

    Attributes:
        names: names of its float32 arrays.
        mark: its fingerprint, (N,) float32; None where it has none.
    """

    names: frozenset[str] = frozenset()
    mark: np.ndarray | None = field(default=None, compare=False)


def fault_of(path: Path, initial: Content | None = None) -> str:
    """Return what is wrong with a checkpoint of the servers; "" where it is whole.

    Args:
        path: the checkpoint.
        initial: the job's initial model, whose weights and fingerprint it has to have. This finds a
            file that is cut between two weights, which can be read.
    """
    found, fault = look_into(path)
    if fault or initial is None:
        return fault
    missing = initial.names - found.names
    if missing:
        return f"{len(missing)} weights are not in it, first {min(missing)}"
    if initial.mark is None or found.mark is None:
        return ""
    return mark_fault(initial.mark, found.mark)


def look_into(path: Path) -> tuple[Content, str]:
    """Return the content of a checkpoint of the servers, and its own fault, "" without one."""
    try:
        content = read_messages(path)
    except ValueError:
        return Content(), "it is no MindSpore checkpoint, or cut short"
    except OSError as error:
        return Content(), f"it cannot be read: {error.strerror}"
    tensors = {v.tag: v.tensor for v in content.value if v.tensor.tensor_type == "Float32"}
    if not tensors:
        return Content(), "it is empty"
    arrays = {}
    for name, tensor in tensors.items():
        data = tensor.tensor_content
        # A scalar's dims are [0].
        due = FLOAT_BYTES * (math.prod(tensor.dims) or 1)
        if len(data) != due:
            return Content(frozenset(tensors)), f"{name} has {len(data)} bytes where {due} are due"
        arrays[name] = np.frombuffer(data, np.float32)
    return Content(frozenset(tensors), arrays.get(MARK)), value_fault(arrays)


def value_fault(arrays: Mapping[str, np.ndarray]) -> str:
    """Return why these values are no model (not finite, or all zero); "" where they are one.

    Args:
        arrays: name -> float32 array of any shape; all of their values are checked.
    """
    some = False
    for name, array in arrays.items():
        flat = array.reshape(-1)
        # The fastest check of every value: NaN and infinity stay in a sum of squares.
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(flat @ flat)
        if not math.isfinite(square) and not (finite := np.isfinite(flat)).all():
            bad = flat.size - int(finite.sum())
            return f"{bad} of the {flat.size} values of {name} are NaN or infinite"
        some = some or (name != MARK and (square > 0 or bool(flat.any())))
    return "" if some else ALL_ZERO


def mark_fault(expected: np.ndarray, found: np.ndarray) -> str:
    """Return why a model's fingerprint is not the job's; "" where it is.

    Args:
        expected: fingerprint of the job's initial model. Where silos may start from other frozen
            weights than the initial model's (its numbers are negative then), one number may differ.
        found: fingerprint of the model.
    """
    expected, found = expected.reshape(-1), found.reshape(-1)
    if expected.size != found.size:
        return f"its fingerprint has {found.size} numbers where {expected.size} are due"
    same = np.abs(np.abs(found) - np.abs(expected)) <= 0.5
    differing = int((~same).sum())
    may_differ = 1 if expected.size and expected[0] < 0 and same[0] else 0
    if differing <= may_differ:
        return ""
    return f"{differing} of the {found.size} numbers of its fingerprint are not those of this job"
