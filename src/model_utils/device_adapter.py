"""The device on which a worker computes, or a one-line error if it is unavailable."""

from __future__ import annotations

import mindspore as ms

from src.errors import UserError
from src.model_utils.local_adapter import (
    get_device_id,
    get_device_num,
    get_job_id,
    get_rank_id,
)

__all__ = ["get_device_id", "get_device_num", "get_job_id", "get_rank_id", "use_device"]


def use_device(device_target: str, device_id: int, threads: int = 0) -> None:
    """Set MindSpore's context: graph mode on the given device.

    Args:
        device_target: CPU, GPU or Ascend.
        device_id: number of the GPU or Ascend device; a CPU has none.
        threads: size of MindSpore's own thread pool; 0 keeps its default of 30, with which workers
            that share a machine wait for each other.

    Raises:
        UserError: this MindSpore or this machine has no such device.
    """
    try:
        ms.set_context(mode=ms.GRAPH_MODE, device_target=device_target)
        if device_target != "CPU":
            ms.set_context(device_id=device_id)
        if threads:
            ms.set_context(runtime_num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"device_target: {device_target} is not available here "
            f"({str(error).strip().splitlines()[0]}); use --device_target=CPU, or install the "
            "MindSpore package and the driver of that device"
        ) from error
