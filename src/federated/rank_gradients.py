"""Averages the gradients over the ranks of a silo, within the graph of a training step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import init
from mindspore.ops import CustomRegOp, DataType

from src.federated.ranks import RankError, Ranks
from src.job.addresses import parse_address
from src.job.job_config import JobConfig
from src.model_utils.device_adapter import use_device


def share_gradients(step: nn.Cell, ranks: Ranks) -> None:
    """Make the training step `step` use the mean of all ranks' gradients.

    Args:
        step: an `nn.TrainOneStepCell` that is not yet compiled. On devices other than a CPU it
            already has the library's reducer, see `join_devices`.
    """
    if ms.get_context("device_target") == "CPU" and ranks.size > 1:
        step.grad_reducer = MeanOverRanks(ranks, step.weights)


def join_devices(config: Any) -> None:
    """Set this process's rank and device as given by mpirun, on devices other than a CPU.

    The library then averages gradients itself (HCCL or NCCL). This has not been run yet.

    Args:
        config: device_target and device_id are read; rank and device_id are set.
    """
    config.rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    config.device_id += int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])
    use_device(config.device_target, config.device_id, config.threads)
    init()
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL,
        gradients_mean=True,
        device_num=config.device_num,
    )


class MeanOverRanks(nn.Cell):
    """Replaces gradients by their mean over the ranks, with all of them in one message.

    Args:
        ranks: the silo's ranks.
        weights: the gradients' weights, in the same order; float32.
    """

    def __init__(self, ranks: Ranks, weights: Sequence[Parameter]):
        super().__init__()
        self.shapes = tuple(weight.shape for weight in weights)
        ends = np.cumsum([weight.size for weight in weights]).tolist()
        self.bounds = tuple(zip([0, *ends[:-1]], ends))
        self.mean = _mean_operator(ranks)

    def construct(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the means, in the shapes of the gradients."""
        flat = ()  # type: tuple
        for grad in grads:
            flat += (ops.reshape(grad, (-1,)),)
        mean = self.mean(ops.concat(flat))
        means = ()  # type: tuple
        for i in range(len(self.shapes)):
            begin, end = self.bounds[i]
            means += (ops.reshape(mean[begin:end], self.shapes[i]),)
        return means


def _mean_operator(ranks: Ranks) -> ops.Custom:
    def mean_over_ranks(values: np.ndarray) -> np.ndarray:
        return ranks.mean(values)

    # Without this registration the library logs a warning.
    entry = CustomRegOp("mean_over_ranks").input(0, "values").output(0, "mean")
    entry.dtype_format(DataType.F32_Default, DataType.F32_Default).target("CPU")
    info = entry.get_op_info()
    return ops.Custom(mean_over_ranks, lambda shape: shape, ms.float32, "pyfunc", reg_info=info)


def label_of(config: Any) -> str:
    """Return the worker's name in log lines: worker_0, or worker_0 rank 1."""
    name = f"worker_{config.user_id}"
    return f"{name} rank {config.rank}" if is_rank(config) else name


def is_rank(config: Any) -> bool:
    """Return whether this process is one of several ranks of a silo."""
    return getattr(config, "run_distribute", False)


def is_leader(config: Any) -> bool:
    """Return whether this process saves, evaluates and talks to servers for its silo."""
    return not is_rank(config) or config.rank == 0


@contextlib.contextmanager
def opened_ranks(job: JobConfig, config: Any) -> Iterator[Ranks | None]:
    """Open connections to the silo's other ranks; if this rank fails, tell them why.

    Raises:
        SyncError: another rank is missing, has failed or has ended.
    """
    if not is_rank(config):
        yield None
        return
    if config.device_target != "CPU":
        join_devices(config)
    address = parse_address(f"{config.rank_host}:{config.rank_port}", "--rank_host, --rank_port")
    name = f"{job.name} {config.silo_name}_{config.user_id}"
    ranks = Ranks(
        config.rank, config.device_num, address, name, config.join_timeout, config.rank_timeout
    )
    try:
        yield ranks
    except Exception as error:
        from_another = isinstance(error, RankError)
        ranks.fail(str(error) if from_another else f"rank {config.rank}: {error}")
        raise
    finally:
        ranks.close()
