"""Whether a server's checkpoint is whole; without loading MindSpore."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from google.protobuf.message import DecodeError

from src.weights.checkpoint_messages import checkpoint_messages

FLOAT_BYTES = 4


def fault_of(path: Path, needed: Collection[str] = ()) -> str:
    """What is wrong with a checkpoint of the servers; "" where it is whole.

    Args:
        path: the checkpoint.
        needed: weights that have to be in it: a file that is cut between two weights can be read.
    """
    names, fault = look_into(path)
    missing = set(needed) - names
    if fault or not missing:
        return fault
    return f"{len(missing)} weights are not in it, first {min(missing)}"


def look_into(path: Path) -> tuple[set[str], str]:
    """The weights in a checkpoint of the servers, and its fault by itself, "" where it has none."""
    try:
        sizes = _sizes(path)
    except (DecodeError, ValueError, RecursionError):
        return set(), "it is no MindSpore checkpoint, or cut short"
    except OSError as error:
        return set(), f"it cannot be read: {error.strerror}"
    if not sizes:
        return set(), "it is empty"
    for name, (size, due) in sizes.items():
        if size != due:
            return set(sizes), f"{name} has {size} bytes where {due} are due"
    return set(sizes), ""


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Name of each float32 array -> bytes that are there and bytes that its shape asks for."""
    content = checkpoint_messages().Checkpoint()
    content.ParseFromString(path.read_bytes())
    return {
        value.tag: (
            len(value.tensor.tensor_content),
            # A scalar's dims are [0].
            FLOAT_BYTES * (math.prod(value.tensor.dims) or 1),
        )
        for value in content.value
        if value.tensor.tensor_type == "Float32"
    }
