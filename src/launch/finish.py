"""Ending a job on request: its processes, its keys in Redis, and a Redis that nobody else uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil
import redis

from src.job.addresses import parse_address
from src.job.job_record import (
    HERE,
    WORKER_ROLES,
    JobRecord,
    indexed_folders,
    read_record,
    remove_record,
    update_record,
)
from src.launch.live_servers import live_servers
from src.launch.processes import how_to_end, stop
from src.launch.redis_store import JobStore
from src.printing import print

# The workers' signals go out first: then no silo sees its server disappear.
ORDER = (*WORKER_ROLES, "server", "scheduler")


def finish(folder: Path, redis_port: int) -> int:
    """Stop what was started from `folder`, say what was done, and return an exit code.

    Args:
        folder: the folder that the launchers were called from.
        redis_port: the Redis to stop if it is the job's and nobody else's.
    """
    record = read_record(folder)
    if record is None:
        print(f"nothing to stop: no job was started from {folder}, or it was finished already")
        if elsewhere := indexed_folders():
            print(
                f"jobs of this user: {', '.join(map(str, elsewhere))} (--all finishes all of them; "
                "under an account that several people use, those of the others too)"
            )
        return 0
    if record.copied:
        print(
            f"nothing to stop: the record of {folder} was copied from {record.copied.job_folder} "
            f"on {record.copied.host}; the job is that folder's"
        )
        return 0
    nodes = _nodes(record)
    if not _stop(record, ORDER):
        print("no process of this job is running here any more")
    if record.elsewhere("server"):
        print(f"servers of {record.fl_name} may run elsewhere: its Redis is untouched")
    elif any(p.role in ("server", "scheduler") and p.place == HERE for p in record.processes):
        _clear_redis(record, redis_port, nodes)
    elif record.redis:
        print(f"the job {record.fl_name} itself was not started from here: its Redis is untouched")
    _stop(record, ["redis"])
    _forget_ended(folder)
    return 0


def _forget_ended(folder: Path) -> None:
    """Remove the record; what lives, or may live elsewhere, is named and stays in it."""
    record = read_record(folder) or JobRecord()
    left = record.living()
    if not left:
        remove_record(folder)
        return
    with update_record(folder) as record:
        record.processes = left = record.living()
    for entry in left:
        place = (
            f"goes on (pid {entry.pid})" if entry.place == HERE else f"was started {entry.where()}"
        )
        print(f"WARNING: {entry.label} {place} and was not stopped: {how_to_end(folder)}")


def _stop(record: JobRecord, roles: Iterable[str]) -> bool:
    """Stop the recorded processes of `roles`; whether there were any."""
    running = [process for role in roles for process in record.running(role)]
    for line in stop(running):
        print(f"WARNING: {line}")
    if running:
        print(f"stopped {', '.join(process.label for process in running)}")
    return bool(running)


def _nodes(record: JobRecord) -> set[str]:
    """The addresses (ip:port) on which the record's servers listen, to silos and to each other."""
    found: set[str] = set()
    supervisors = (entry.process() for entry in record.running("server"))
    for supervisor in [one for one in supervisors if one is not None]:
        # One that ends meanwhile leaves a sign of life at most.
        with contextlib.suppress(psutil.Error, OSError):
            for child in supervisor.children():
                listening = [c for c in child.connections("tcp") if c.status == psutil.CONN_LISTEN]
                found.update(f"{c.laddr.ip}:{c.laddr.port}" for c in listening)
    return found


def _clear_redis(record: JobRecord, redis_port: int, stopped: set[str]) -> None:
    """Remove the job's keys; stop its Redis when it is the one of `redis_port` and unused.

    Args:
        stopped: nodes of the servers that have just been stopped; while others live, nothing is
            done.
    """
    address = parse_address(record.redis, "job record")
    store = JobStore(address, record.fl_name, tls=record.tls_files)
    try:
        if not store.answers():
            print(
                f"Redis at {record.redis} does not answer: no key of {record.fl_name} was removed; "
                "those that it still has when it answers again the next start of servers removes"
            )
            return
        others = live_servers(store, stopped)
        if others:
            print(
                f"servers of {record.fl_name} that were not started from here go on (nodes "
                f"{', '.join(others)}): its Redis is untouched"
            )
            return
        print(f"removed {store.purge()} Redis keys of {record.fl_name}")
        if address[1] == redis_port:
            print(store.stop_if_unused())
        else:
            print(f"Redis at {record.redis} left running: --redis_port is {redis_port}")
    except redis.RedisError as error:
        print(f"WARNING: Redis at {record.redis} failed while its keys were removed: {error}")
    finally:
        store.close()
