"""Find what else of a job runs on this machine, from whichever folder this user started it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from src.errors import UserError
from src.federated.identity import silo_label
from src.job.addresses import parse_address, server_addresses
from src.job.job_config import JobConfig
from src.job.job_record import (
    WORKER_ROLES,
    JobRecord,
    ProcessRecord,
    indexed_folders,
    read_record,
)
from src.launch.processes import same_silo
from src.launch.redis_store import JobStore
from src.printing import print

THRESHOLD = "start_fl_job_threshold"
ANSWER_S = 1.0


def require_other_silos(base: Path, job: JobConfig, config: Any, labels: dict[int, str]) -> None:
    """Raise a UserError where a silo that is to start in `base` takes part in the job already.

    The servers would count the first upload of the two and drop the other one silently.

    Args:
        labels: number of each silo to start -> its label.
    """
    here = silos_here(base, job.name, addresses_of(config))
    taken = {entry.silo for _, entry in here}
    free = 0
    while any(silo_label(config.silo_name, free + i) in taken for i in range(len(labels))):
        free += 1
    for number, label in labels.items():
        silo = silo_label(config.silo_name, number)
        for folder, entry in here:
            elsewhere = None if folder == base else folder
            if entry.silo == silo and (elsewhere or entry.label != label):
                raise UserError(same_silo(entry, label, elsewhere, free))


def silos_here(
    base: Path, fl_name: str, servers: Sequence[str]
) -> list[tuple[Path, ProcessRecord]]:
    """Return the silos of a job that run on this machine, each with its folder.

    Args:
        base: all silos of this folder count, since a folder has one job.
        fl_name: the job's name.
        servers: "host:port" of its servers; two jobs may share a name, but not a server.
    """
    found = []
    for folder, record in _records(base):
        for entry in (p for role in WORKER_ROLES for p in record.running(role) if p.silo):
            same_job = record.fl_name == fl_name and set(servers) & set(entry.servers)
            if folder == base or same_job:
                found.append((folder, entry))
    return found


def addresses_of(config: Any) -> list[str]:
    """Return the servers that a launcher's flags name, each as "host:port"."""
    return server_addresses(config.http_server_address, config.server_num)


def take_threshold(base: Path, job: JobConfig, config: Any) -> None:
    """Let workers use the threshold of servers on this machine, as the servers do."""
    store = _store_of_servers(base, job.name, addresses_of(config))
    settings, _, _ = _look(store)
    there, own = settings.get(THRESHOLD), job[f"round.{THRESHOLD}"]
    if there and there != own:
        print(f"note: the servers of {job.name} go by {THRESHOLD} {there}, and not {own}")
        job.values["round"][THRESHOLD] = there


def tell_missing_silos(base: Path, job: JobConfig, config: Any) -> None:
    """Report how many silos an iteration still needs, where it needs some.

    For servers on this machine, Redis tells which silos have joined. Servers elsewhere tell neither
    that nor what they need, so then only what is known here is reported.
    """
    addresses = addresses_of(config)
    settings, iteration, joined = _look(_store_of_servers(base, job.name, addresses))
    threshold = settings.get(THRESHOLD, job[f"round.{THRESHOLD}"])
    here = len(silos_here(base, job.name, addresses))
    count = joined or here
    missing = threshold - count
    if missing < 1:
        return
    if not iteration:
        run = "1 silo runs" if here == 1 else f"{here} silos run"
        print(
            f"{run} on this machine, and an iteration takes {threshold} by {THRESHOLD} of "
            f"{job.path}; who has joined, and what the servers go by, is known where they were "
            "started: tools/status.py there, and worker.log says what it waits for"
        )
        return
    have, start = ("silo has", "it") if missing == 1 else ("silos have", "them")
    known = f"{joined} of {threshold} have" if joined else f"{here} of {threshold} run here"
    print(
        f"iteration {iteration} begins when {missing} more {have} joined ({known}): start {start}, "
        f"or start the servers with --{THRESHOLD}={count}"
    )


def _look(store: JobStore | None) -> tuple[dict[str, Any], int, int]:
    """Return the servers' settings, iteration and silos; nothing where Redis does not tell."""
    if store is None:
        return {}, 0, 0
    try:
        current = int(store.status().get("iterationNum", 0))
        # Between two iterations nobody has joined the new one yet.
        joined = max(len(store.joined(number)) for number in (current - 1, current))
        return store.settings(), current, joined
    except redis.RedisError:
        return {}, 0, 0
    finally:
        store.close()


def _store_of_servers(base: Path, fl_name: str, servers: Sequence[str]) -> JobStore | None:
    """Return the job's Redis, where one of its servers was started from this machine."""
    for _, record in _records(base):
        addresses = {entry.address for entry in record.running("server")}
        if record.fl_name == fl_name and addresses & set(servers):
            address = parse_address(record.redis, "job record")
            return JobStore(address, fl_name, ANSWER_S, record.tls_files)
    return None


def _records(base: Path) -> Iterator[tuple[Path, JobRecord]]:
    """Yield the record of `base`, and those of other folders that can be read."""
    if record := read_record(base):
        yield base, record
    for folder in indexed_folders():
        if folder == base.resolve():
            continue
        try:
            record = read_record(folder)
        except (UserError, OSError):
            continue  # another job's record; the commands of that job report the error
        if record:
            yield folder, record
