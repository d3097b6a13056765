"""Whether a server's checkpoint is whole; without loading MindSpore."""

from __future__ import annotations

import math
from pathlib import Path

from google.protobuf.message import DecodeError

from src.launch.checkpoint_content import checkpoint_messages

FLOAT_BYTES = 4


def fault_of(path: Path, initial: Path | None = None) -> str:
    """What is wrong with a checkpoint of the servers; "" where it is whole.

    Args:
        path: the checkpoint.
        initial: an earlier one of the same job, all of whose weights have to be in it too: a file
            that is cut between two weights can be read.
    """
    try:
        sizes = _sizes(path)
        if not sizes:
            return "it is empty"
        short = next((name for name, (size, due) in sizes.items() if size != due), None)
        if short is not None:
            size, due = sizes[short]
            return f"{short} has {size} bytes where {due} are due"
        missing = set(_sizes(initial)) - set(sizes) if initial else ()
    except (DecodeError, ValueError, RecursionError):
        return "it is no MindSpore checkpoint, or cut short"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return f"{len(missing)} weights are not in it, first {min(missing)}" if missing else ""


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
