"""What a worker process that is one of several ranks of a silo does before it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from src.federated.rank_channel import RankError
from src.federated.rank_gradients import join_devices
from src.federated.ranks import Ranks
from src.job.addresses import parse_address
from src.job.job_config import JobConfig


def label_of(config: Any) -> str:
    """The worker's name in log lines: worker_0, or worker_0 rank 1."""
    name = f"worker_{config.user_id}"
    return f"{name} rank {config.rank}" if is_rank(config) else name


def is_rank(config: Any) -> bool:
    """Whether this process is one rank of a silo of several."""
    return getattr(config, "run_distribute", False)


def is_leader(config: Any) -> bool:
    """Whether this process is the one of its silo that saves, evaluates and talks to servers."""
    return not is_rank(config) or config.rank == 0


@contextlib.contextmanager
def opened_ranks(job: JobConfig, config: Any) -> Iterator[Ranks | None]:
    """The connections to the silo's other ranks, who are told why this one fails.

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
