"""Which servers of a job are alive, by their signs of life in Redis."""

from __future__ import annotations

import time
from collections.abc import Collection

from src.errors import UserError
from src.launch.redis_store import JobStore
from src.printing import print

# A server renews its sign of life each second; one that died leaves it for this long.
HEARTBEAT_LIFE_S = 10.0


def require_no_live_servers(store: JobStore) -> None:
    """Raise a UserError when servers of this job's name are alive."""
    nodes = live_servers(store)
    if nodes:
        host, port = store.address
        raise UserError(
            f"servers of a job named {store.fl_name} are alive in Redis {host}:{port} "
            f"(nodes {', '.join(nodes)}): finish that job, choose another --fl_name, or add to it "
            "with --resume"
        )


def live_servers(store: JobStore, known_dead: Collection[str] = ()) -> list[str]:
    """The nodes (ip:port) of the job's servers that are alive; waits for signs of dead ones to end.

    Those of the nodes `known_dead` are not waited for. A sign whose time to live only falls belongs
    to a server that was killed, or to one that is busy for some seconds and renews it then.
    """
    deadline = time.monotonic() + HEARTBEAT_LIFE_S + 2
    before = _signs_of_life(store, known_dead)
    said = False
    while before and time.monotonic() < deadline:
        time.sleep(1.5)
        after = _signs_of_life(store, known_dead)
        renewed = [node for node, ttl in after.items() if ttl > before.get(node, 0) - 1300]
        if renewed:
            return renewed
        if not said:
            print("waiting for servers' signs of life in Redis to be renewed or to expire (10 s)")
            said = True
        before = after
    return []


def _signs_of_life(store: JobStore, known_dead: Collection[str]) -> dict[str, int]:
    """Milliseconds to live of each node's sign of life."""
    beats = {k.split(":heartbeat:")[1].split("::")[0]: ttl for k, ttl in store.heartbeats().items()}
    return {node: ttl for node, ttl in beats.items() if node not in known_dead}
