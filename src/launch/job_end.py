"""Decide when servers and scheduler may end: the engine itself keeps them running forever."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import psutil
import redis

from src.federated.identity import plain_names
from src.job.iteration_results import counts_of, has_failed, results_in, summary_of
from src.job.job_start import job_start
from src.launch.membership import StrangerWatch
from src.launch.redis_store import FINISHED, JobStore
from src.security.tls import from_record

# A silo whose connection broke in its last fetch is back within this time.
QUIET_S = 3.0


class JobEnd:
    """Watch one job for its end, on behalf of one process of the job.

    A server may end when the job's last iteration is done, no silo is connected to it any more,
    and as many silos as the last iteration counted were connected to the job's servers at its end:
    each of our workers keeps one connection and closes it when it has the last model. For a silo
    that was missing, because it was killed after its last upload, servers stay until the deadline.
    The scheduler may end when the servers have ended.

    Args:
        store: the job in Redis.
        http_port: port that silos connect to; 0 for the scheduler.
        fetch_timeout_s: time a silo may take to fetch its model after the last iteration.
        metrics: the engine's results file of all servers of the current folder; they report it
            to other machines through Redis.
        roster: file of the job's members; strangers among its silos are logged. "" for none.

    Attributes:
        failed: after the end of a server's job: too few of its iterations were aggregated.
    """

    def __init__(
        self,
        store: JobStore,
        http_port: int,
        fetch_timeout_s: float,
        metrics: Path | None = None,
        roster: str = "",
    ):
        self.failed = False
        self._metrics = metrics
        self._metrics_size = -1
        self._noted: dict[int, bool] = {}
        self._store = store
        self._http_port = http_port
        self._fetch_timeout_s = fetch_timeout_s
        self._finished_at: float | None = None
        self._quiet_since: float | None = None
        self._was_running = False
        self._before: set[str] = set()  # connected when the job was last seen running
        self._seen: set[str] = set()  # all that were in _before or connected at the job's end
        self._told_of_missing = False
        self._notes: list[str] = []
        self._strangers = StrangerWatch(roster) if roster else None

    def take_notes(self) -> list[str]:
        """Return the lines for the log since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def poll(self, pid: int) -> str:
        """Return the reason to end process `pid` now, or "" while it must go on."""
        now = time.monotonic()
        try:
            self._note_results()
            status = self._store.status()
            if self._strangers is not None:
                self._look_for(self._strangers, int(status.get("iterationNum", 1)))
            if status.get("runningState") != FINISHED:
                self._finished_at = self._quiet_since = None
                self._was_running = True
                self._before = set(self._peers(pid)) if self._http_port else set()
                return ""
            if self._finished_at is None:
                self._finished_at = now
            waited = now - self._finished_at
            if not self._http_port:
                return self._scheduler(waited)
            reason = self._server(pid, now, waited)
            return self._with_results(reason) if reason else ""
        except redis.RedisError:
            # The engine survives a missing Redis; without it nobody can tell that the job is done.
            return ""

    def _note_results(self) -> None:
        """Write the results of iterations in the engine's file since the last time to Redis.

        Also write those that Redis lost by coming back empty. Keep those that it has: they may be
        later values from another machine.
        """
        if self._metrics is None:
            return
        try:
            size = self._metrics.stat().st_size if self._metrics.is_file() else 0
            if size == self._metrics_size:
                return
            found = results_in(self._metrics, job_start(Path.cwd()))
            held, first = self._store.results(), self._metrics_size < 0
            new = {
                n: result
                for n, result in found.items()
                if n not in held or (not first and self._noted.get(n) != result)
            }
            if new:
                self._store.note_results(new)
        except (OSError, redis.RedisError):
            return  # unreachable or full: the next poll tries again
        self._noted, self._metrics_size = found, size

    def _with_results(self, reason: str) -> str:
        """Append the outcome of the job's iterations to `reason`; set `failed`."""
        results = self._store.results()
        if not results:
            return reason
        aggregated, failed = counts_of(results)
        self.failed = has_failed(aggregated, failed)
        unknown = self._last_iteration() - len(results)
        return f"{reason}; {summary_of(aggregated, failed, unknown)}"

    def _look_for(self, strangers: StrangerWatch, iteration: int) -> None:
        """Check the iteration before as well: one may have ended between two polls."""
        joined = plain_names(self._store.joined(iteration))
        sent = plain_names(self._store.uploaded(iteration - 1))
        if words := strangers.look([*joined, *sent], iteration):
            self._notes.append(words)

    def _server(self, pid: int, now: float, waited: float) -> str:
        peers = self._peers(pid)
        if (seen := self._seen | self._before | set(peers)) != self._seen or waited == 0:
            self._seen = seen
            self._store.note_fetching(f"{socket.gethostname()}:{self._http_port}", len(seen))
        if peers:
            self._quiet_since = None
            if waited < self._fetch_timeout_s:
                return ""
            self._notes.append(self._missing(peers))
            return "job finished"
        if self._quiet_since is None:
            self._quiet_since = now
        if now - self._quiet_since < QUIET_S:
            return ""
        if waited >= self._fetch_timeout_s or self._all_have_come():
            return "job finished, every silo has left"
        self._tell_of_missing()
        return ""

    def _all_have_come(self) -> bool:
        """Return whether all silos of the last iteration connected; they fetch while connected."""
        # A Redis in which no iteration has ended does not know the silos of a finished job.
        known = bool(self._store.status().get("lastIterationResult"))
        uploaded = len(self._store.uploaded(self._last_iteration()))
        return known and self._store.fetching() >= max(uploaded, 1)

    def _tell_of_missing(self) -> None:
        if not self._told_of_missing:
            self._told_of_missing = True
            self._notes.append(
                f"job finished; silos that do not have its last model yet get it within "
                f"{self._fetch_timeout_s:.0f} s (--fetch_timeout)"
            )

    def _scheduler(self, waited: float) -> str:
        gone = not self._store.heartbeats()
        self._was_running |= not gone
        # A scheduler that starts before the servers of a finished job resume waits for them.
        if not self._was_running:
            return ""
        overdue = waited > self._fetch_timeout_s + 60
        return "job finished" if (gone and waited >= QUIET_S) or overdue else ""

    def _peers(self, pid: int) -> list[str]:
        """Return the address of each silo that is connected to the server's HTTP port."""
        try:
            connections = psutil.Process(pid).connections(kind="tcp")
        except (psutil.Error, OSError):
            return []
        return [
            f"{c.raddr.ip}:{c.raddr.port}"
            for c in connections
            if c.raddr and c.laddr.port == self._http_port and c.status == psutil.CONN_ESTABLISHED
        ]

    def _last_iteration(self) -> int:
        return int(self._store.status().get("iterationNum", "1")) - 1

    def _missing(self, peers: list[str]) -> str:
        iteration = self._last_iteration()
        uploaded = ", ".join(self._store.uploaded(iteration)) or "no longer known"
        return (
            "WARNING: not every silo has fetched the last model within "
            f"{self._fetch_timeout_s:.0f} s: {', '.join(map(silo_at, peers))} (silos of iteration "
            f"{iteration}: {uploaded})"
        )


def silo_at(peer: str) -> str:
    """Return the address "ip:port" with the identity of the silo there, if it runs on this machine.

    The engine does not record who fetches; the worker's command line tells who it is.
    """
    for connection in psutil.net_connections(kind="tcp"):
        if connection.pid and connection.laddr and peer == "{}:{}".format(*connection.laddr):
            try:
                flags = psutil.Process(connection.pid).cmdline()
            except (psutil.Error, OSError):
                return peer
            values = dict(flag.lstrip("-").split("=", 1) for flag in flags if "=" in flag)
            if "silo_name" in values:
                return f"{values['silo_name']}_{values.get('user_id', '0')} at {peer}"
    return peer


def job_end_from(values: dict[str, Any]) -> JobEnd:
    """Create a JobEnd from the plain values that a launcher writes into a supervisor's file."""
    store = JobStore(tuple(values["redis"]), values["fl_name"], tls=from_record(values["tls"]))
    metrics = Path(values["metrics"]) if values.get("metrics") else None
    roster = values.get("roster", "")
    return JobEnd(store, values["http_port"], values["fetch_timeout_s"], metrics, roster)
