"""Checks that a launcher makes before it starts anything."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path

from src.errors import UserError
from src.launch.redis_store import JobStore

# A server renews its sign of life each second; one that died leaves it for this long.
HEARTBEAT_LIFE_S = 10.0


def require_packages() -> None:
    """Raise a UserError when this Python lacks the engine."""
    for package in ("mindspore", "mindspore_federated"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{sys.executable} has no {package}: run make install, then "
                "source .venv/bin/activate"
            )


def require_disk(folder: Path, needed: int, what: str) -> None:
    """Raise a UserError when the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "free some, choose a folder on another disk, or keep fewer (--keep_checkpoint_max)"
        )


def require_no_live_servers(store: JobStore) -> None:
    """Raise a UserError when servers of this job's name live; wait for signs of dead ones to end.

    A sign whose time to live only falls belongs to a server that was killed.
    """
    deadline = time.monotonic() + HEARTBEAT_LIFE_S + 2
    before = store.heartbeats()
    said = False
    while before and time.monotonic() < deadline:
        time.sleep(1.5)
        after = store.heartbeats()
        renewed = [key for key, ttl in after.items() if ttl > before.get(key, 0) - 1300]
        if renewed:
            nodes = ", ".join(key.split(":heartbeat:")[1].split("::")[0] for key in renewed)
            host, port = store.address
            raise UserError(
                f"servers of a job named {store.fl_name} are alive in Redis {host}:{port} "
                f"(nodes {nodes}): finish that job, choose another --fl_name, or add to it with "
                "--resume"
            )
        if not said:
            print("waiting for the last sign of life of servers that were killed to expire")
            said = True
        before = after
