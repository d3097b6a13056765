"""End a job on request: its processes, its keys in Redis, and its Redis if nobody else uses it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import redis

from src.job.addresses import parse_address
from src.job.job_record import (
    ENDED,
    FOLDER,
    HERE,
    WORKER_ROLES,
    JobRecord,
    ProcessRecord,
    ended_job,
    indexed_folders,
    note_end,
    read_record,
    remove_record,
    require_own,
    update_record,
)
from src.job.process_identity import this_place
from src.launch.processes import SUPERVISOR, how_to_end, stop
from src.launch.redis_store import JobStore, live_servers
from src.launch.status import RUNNING_JOB, job_word
from src.printing import print
from src.security.tls import from_record

# Workers get their signals first, so that no silo sees its server disappear.
ORDER = (*WORKER_ROLES, "server", "scheduler")


def finish(folder: Path, redis_port: int) -> int:
    """Stop what was started from `folder`, print what was done, and return an exit code.

    Args:
        folder: the folder that the launchers were called from.
        redis_port: port of the Redis to stop if it belongs to the job and nobody else uses it.

    Raises:
        UserError: the record is broken, or other users could have written it.
    """
    record = read_record(folder)
    if record is None and _stop_left_redis(folder, redis_port):
        return 0
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
    require_own(folder)
    nodes = _nodes(record)
    word = job_word(record, folder)
    left_redis = False
    if not _stop(folder, record, ORDER):
        print("no process of this job is running here any more")
    if record.elsewhere("server"):
        print(f"servers of {record.fl_name} may run elsewhere: its Redis is untouched")
    elif any(p.role in ("server", "scheduler") and _of_this_boot(p) for p in record.processes):
        left_redis = _clear_redis(record, redis_port, nodes)
    elif record.redis:
        print(f"the job {record.fl_name} itself was not started from here: its Redis is untouched")
    _stop(folder, record, ["redis"])
    _forget_ended(folder)
    left = {"redis": record.redis, "tls": record.tls} if left_redis else {}
    _note_end(folder, record.fl_name, "stopped" if word == RUNNING_JOB else word, **left)
    return 0


def _note_end(folder: Path, fl_name: str, word: str, **left: Any) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    note_end(folder, fl_name=fl_name, word=word, time=now, boot_id=this_place().boot_id, **left)


def _stop_left_redis(folder: Path, redis_port: int) -> bool:
    """Stop the Redis that an earlier call left running; return whether there is one."""
    ended = ended_job(folder)
    if not ended.get("redis") or ended.get("boot_id") != this_place().boot_id:
        return False
    require_own(folder)
    address = parse_address(ended["redis"], f"{folder / FOLDER / ENDED}")
    store = JobStore(address, ended["fl_name"], tls=from_record(ended["tls"]))
    try:
        if not store.answers():
            return False
        print(f"the job {ended['fl_name']} was ended at {ended['time']}")
        if address[1] != redis_port:
            print(_left_running(ended["redis"], redis_port))
        elif (said := store.stop_if_unused()).startswith("stopped"):
            print(said)
            note_end(folder, **{k: v for k, v in ended.items() if k not in ("redis", "tls")})
        else:
            print(said)
        return True
    finally:
        store.close()


def _left_running(redis_address: str, redis_port: int) -> str:
    port = redis_address.rpartition(":")[2]
    return (
        f"Redis at {redis_address} left running: --redis_port is {redis_port}; call finish again "
        f"with --redis_port={port} to stop it"
    )


def _forget_ended(folder: Path) -> None:
    """Remove the record, but keep and name the processes that live or may live elsewhere."""
    record = read_record(folder) or JobRecord()
    left = _left(folder, record)
    if not left:
        remove_record(folder)
        return
    with update_record(folder) as record:
        record.processes = left = _left(folder, record)
    for entry in left:
        place = (
            f"goes on (pid {entry.pid})" if entry.place == HERE else f"was started {entry.where()}"
        )
        print(f"WARNING: {entry.label} {place} and was not stopped: {how_to_end(folder)}")


def _left(folder: Path, record: JobRecord) -> list[ProcessRecord]:
    """Return the job's recorded processes that live, or may live elsewhere."""
    return [p for p in record.living() if p.place != HERE or _is_ours(folder, p)]


def _of_this_boot(entry: ProcessRecord) -> bool:
    """Check that the entry was written on this boot: a forger elsewhere does not know its id."""
    return entry.place == HERE and bool(entry.boot_id)


def _is_ours(folder: Path, entry: ProcessRecord) -> bool:
    """Check that the process itself shows that a launcher started it from `folder`.

    It must belong to this user, have `folder` as its working folder, and be a supervisor of this
    role, or, for the Redis of the demo, a redis-server.
    """
    process = entry.process()
    try:
        if process is None or process.uids().effective != os.geteuid():
            return False
        if not folder.samefile(process.cwd()):
            return False
        words = process.cmdline()
    except (psutil.Error, OSError):
        return False
    if entry.role == "redis":
        # Redis overwrites its command line with "redis-server 127.0.0.1:2345".
        return bool(words) and Path(words[0].split()[0]).name == "redis-server"
    paths = [Path(word) for word in words[1:3]]
    return (
        len(paths) == 2
        and paths[0].parts[-3:] == SUPERVISOR.parts[-3:]
        and paths[1].parts[-2:] == ("specs", f"{entry.label}.json")
    )


def _stop(folder: Path, record: JobRecord, roles: Iterable[str]) -> bool:
    """Stop the recorded processes of `roles`; return whether there were any."""
    found = [process for role in roles for process in record.running(role)]
    running = [process for process in found if _is_ours(folder, process)]
    for entry in (process for process in found if process not in running):
        print(
            f"WARNING: the record names pid {entry.pid} as {entry.label}, but no launcher started "
            f"that process from {folder}: it is left alone"
        )
    for line in stop(running):
        print(f"WARNING: {line}")
    if running:
        print(f"stopped {', '.join(process.label for process in running)}")
    return bool(running)


def _nodes(record: JobRecord) -> set[str]:
    """Return the addresses (ip:port) where the record's servers listen to silos and each other."""
    found: set[str] = set()
    supervisors = (entry.process() for entry in record.running("server"))
    for supervisor in [one for one in supervisors if one is not None]:
        # A server that ends meanwhile leaves a heartbeat at most.
        with contextlib.suppress(psutil.Error, OSError):
            for child in supervisor.children():
                listening = [c for c in child.connections("tcp") if c.status == psutil.CONN_LISTEN]
                found.update(f"{c.laddr.ip}:{c.laddr.port}" for c in listening)
    return found


def _clear_redis(record: JobRecord, redis_port: int, stopped: set[str]) -> bool:
    """Remove the job's keys; stop its Redis if it is the one at `redis_port` and unused.

    Returns whether it is left running because it is at another port.

    Args:
        stopped: nodes of the servers that have just been stopped; while other servers live,
            nothing is done.
    """
    address = parse_address(record.redis, "job record")
    store = JobStore(address, record.fl_name, tls=record.tls_files)
    try:
        if not store.answers():
            print(
                f"Redis at {record.redis} does not answer: no key of {record.fl_name} was removed; "
                "those that it still has when it answers again the next start of servers removes"
            )
            return False
        others = live_servers(store, stopped)
        if others:
            print(
                f"servers of {record.fl_name} that were not started from here go on (nodes "
                f"{', '.join(others)}): its Redis is untouched"
            )
            return False
        print(f"removed {store.purge()} Redis keys of {record.fl_name}")
        if address[1] != redis_port:
            print(_left_running(record.redis, redis_port))
            return True
        print(store.stop_if_unused())
    except redis.RedisError as error:
        print(f"WARNING: Redis at {record.redis} failed while its keys were removed: {error}")
    finally:
        store.close()
    return False
