"""Collect the status of a job from its folder, Redis and the scheduler, in about a second."""

from __future__ import annotations

import re
import socket
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from src.errors import UserError
from src.federated.identity import plain_names
from src.job.addresses import parse_address
from src.job.iteration_results import METRICS, counts_of, results_in, results_of_rounds
from src.job.job_record import (
    COPIED,
    ELSEWHERE,
    GONE,
    STOPPED_BY,
    WORKER_ROLES,
    JobRecord,
    ProcessRecord,
    ended_job,
    exit_states,
    read_record,
    read_status,
    status_path,
)
from src.job.job_start import job_start
from src.job.log_files import last_lines
from src.launch.management import Management
from src.launch.membership import stranger_words
from src.launch.redis_store import DISABLED, FINISHED, RAISE_LIMIT, RUNNING, STOPPED, JobStore
from src.reporting.run_folder import read_json_lines, started_commands
from src.security.tls import explain

NOTHING, FINISHED_JOB, FAILED, RUNNING_JOB = "nothing", "finished", "failed", "running"
# State of a process of another machine or container that shares the folder.
AWAY = "elsewhere"
# State of a process that the user ended before the job was done.
STOPPED_ROLE = "stopped"
EXIT_CODES = {RUNNING_JOB: 0, FINISHED_JOB: 10, FAILED: 11, NOTHING: 12}


@dataclass
class ProcessState:
    """Describe one process that a launcher started from the folder.

    Attributes:
        state: "running", "ended" (exit code 0), "stopped" (by a signal to its supervisor),
            "failed" or "elsewhere".
        since: start time, seconds since the epoch.
        address: what it listens on, or "".
        code: its exit code; None while it runs, or where nobody has seen its end.
        reason: why it ended.
    """

    label: str
    role: str
    state: str
    since: float
    pid: int
    address: str
    log: str
    code: int | None = None
    reason: str = ""


@dataclass
class SiloState:
    """Describe one worker of this folder; fields are None until the worker has written them.

    Attributes:
        name: its identity as the servers know it, without the number of images.
        updated: time of its last status, seconds since the epoch.
        step_s: seconds of a step; known after the second one, since the first one compiles.
        sync_s: seconds of an iteration besides its steps: synchronising, waiting for other silos,
            saving, evaluating; known after the first iteration.
        steps_left: steps to the end of the job.
        ap, ap50: of its latest evaluation, 0 to 1.
    """

    label: str
    name: str
    phase: str
    iteration: int | None = None
    iterations: int | None = None
    step: int | None = None
    steps: int | None = None
    steps_left: int | None = None
    step_s: float | None = None
    sync_s: float | None = None
    loss: float | None = None
    ap: float | None = None
    ap50: float | None = None
    updated: float | None = None
    reason: str = ""


@dataclass
class IterationState:
    """Describe the current iteration, with names of silos without their numbers of images.

    Attributes:
        number, of: from 1; None where unknown.
        threshold: silos that make an iteration; None where unknown.
        missing: silos of earlier iterations and of this folder that have not joined.
        unknown: further missing silos, of which only the number is known.
        aggregated, failed: ended iterations by their result; None where unknown. Together they may
            be fewer than have ended.
        source: "Redis", or "worker status" where Redis does not tell.
    """

    number: int | None = None
    of: int | None = None
    threshold: int | None = None
    joined: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: int = 0
    aggregated: int | None = None
    failed: int | None = None
    source: str = ""


@dataclass
class JobStatus:
    """Describe the whole job. `word` is running, finished, failed or nothing.

    Attributes:
        cluster: "running", "disabled", "finished", "stopped" as Redis has it, or "".
        scheduler: one line, what the scheduler reports about the cluster.
        redis: one line, what Redis holds of the job.
        eta_s: seconds to the end of the last iteration; None where unknown.
        ended: with the word "nothing", the job of the folder that finish has ended, and when.
        notes: lines that a reader should see.
    """

    word: str
    folder: str
    host: str = ""
    time: float = 0.0
    fl_name: str = ""
    redis: str = ""
    cluster: str = ""
    scheduler: str = ""
    iteration: IterationState = field(default_factory=IterationState)
    processes: list[ProcessState] = field(default_factory=list)
    silos: list[SiloState] = field(default_factory=list)
    eta_s: float | None = None
    ended: str = ""
    notes: list[str] = field(default_factory=list)


def as_values(status: JobStatus) -> dict[str, Any]:
    """Return the status as plain values for JSON, with its exit code."""
    return {**asdict(status), "exit_code": EXIT_CODES[status.word]}


ROLES = ("scheduler", "server", *WORKER_ROLES)
STATES = {RUNNING: "running", DISABLED: "disabled", FINISHED: "finished", STOPPED: "stopped"}
IN_ITERATION = ("train", "push", "wait", "pull")
ANSWER_S = 1.0
# Fields of a worker's status file that a SiloState has under the same name.
SAID = ("iteration", "iterations", "step", "steps", "steps_left", "step_s", "sync_s", "loss", "ap",
        "ap50", "reason")  # fmt: skip


class Collector:
    """Collect the status of one folder's job, and remember the silos that it has seen.

    Args:
        folder: the folder that the launchers were called from.
        manage_address: the scheduler's "ip:port"; "" uses the one that was started from there.
    """

    def __init__(self, folder: Path, manage_address: str = ""):
        self.folder = folder
        self._manage_address = manage_address
        self._seen: set[str] = set()

    def collect(self) -> JobStatus:
        """Return the current status; report in a line what does not answer within a second."""
        status = JobStatus(NOTHING, str(self.folder), socket.gethostname(), time.time())
        record = read_record(self.folder)
        if record is None or not any(entry.role in ROLES for entry in record.processes):
            status.ended = _ended(self.folder)
            return status
        if record.copied:
            status.notes.append(
                f"the record of this folder was copied from {record.copied.job_folder} on "
                f"{record.copied.host}; the job is that folder's"
            )
            return status
        status.fl_name = record.fl_name
        status.processes = _processes(record, self.folder)
        status.notes += [
            f"{entry.label} was started {entry.where()}; from here nobody can see whether it runs"
            for entry in record.elsewhere()
        ]
        status.silos = self._silos(record)
        status.word = _word(status.processes)
        self._ask_redis(status, record)
        self._ask_scheduler(status, record)
        if status.iteration.number is None:
            _iteration_from_silos(status)
        if status.iteration.aggregated is None:
            self._results_from_files(status)
        self._name_the_missing(status.iteration, status.silos)
        if status.word == RUNNING_JOB:
            paused = status.cluster in ("disabled", "finished")
            status.eta_s = None if paused else time_left(status)
        return status

    def _silos(self, record: JobRecord) -> list[SiloState]:
        commands = started_commands(self.folder)
        workers = sorted((p for p in record.processes if p.role in WORKER_ROLES), key=_number)
        return [_silo(self.folder, p.label, commands.get(p.label, [])) for p in workers]

    def _ask_redis(self, status: JobStatus, record: JobRecord) -> None:
        address = parse_address(record.redis, "job record")
        store = JobStore(address, record.fl_name, ANSWER_S, record.tls_files)
        try:
            values, settings = store.status(), store.settings()
            if not values:
                status.redis = f"{record.redis} answers and knows no job {record.fl_name}"
                return
            # After a new instance a server has a heartbeat in both instances for ten seconds.
            beats = len({key.split(":heartbeat:")[1] for key in store.heartbeats()})
            status.redis = f"{record.redis} answers, heartbeats of {beats} server(s)"
            if not beats and any(
                p.role == "server" and p.state == RUNNING_JOB for p in status.processes
            ):
                status.notes.append("servers run here, and Redis has no heartbeat of them")
            if store.is_full():
                status.notes.append(
                    f"Redis at {record.redis} is at its maxmemory and refuses the servers' writes: "
                    f"{RAISE_LIMIT.format(address[1])}"
                )
            status.cluster = STATES.get(values.get("runningState", ""), "")
            self._iteration(status.iteration, store, values, settings)
            seen = {*status.iteration.joined, *status.iteration.sent}
            if words := stranger_words(record.roster, sorted(seen)):
                status.notes.append(words)
            if values.get("lastIterationSuccess") == "0":
                reason = values.get("lastIterationResult", "")
                status.notes.append(f"the iteration before the current one failed: {reason}")
        except redis.RedisError as error:
            status.redis = f"{record.redis} does not answer ({explain(error)})"
        finally:
            store.close()

    def _iteration(
        self,
        found: IterationState,
        store: JobStore,
        values: dict[str, str],
        settings: dict[str, Any],
    ) -> None:
        current = int(values.get("iterationNum", 0))
        found.of = settings.get("fl_iteration_num")
        found.threshold = settings.get("start_fl_job_threshold")
        found.joined = plain_names(store.joined(current))
        found.sent = plain_names(store.uploaded(current))
        found.number, found.source = min(current, found.of or current), "Redis"
        if results := store.results():
            found.aggregated, found.failed = counts_of(results)
        self._seen |= {*found.joined, *plain_names(store.uploaded(current - 1))}

    def _results_from_files(self, status: JobStatus) -> None:
        """Fill in what Redis does not tell from the files of servers here, or else of workers."""
        results = results_in(self.folder / METRICS, job_start(self.folder))
        if not results:
            paths = [self.folder / silo.label / "rounds.jsonl" for silo in status.silos]
            lines = [line for path in paths for line in read_json_lines(path, ("iteration",), [])]
            results = results_of_rounds(lines)
        if results:
            status.iteration.aggregated, status.iteration.failed = counts_of(results)

    def _ask_scheduler(self, status: JobStatus, record: JobRecord) -> None:
        started = [p.address for p in record.running("scheduler")]
        address = self._manage_address or next(iter(started), "")
        if not address:
            status.scheduler = "not running here (--scheduler_manage_address asks one elsewhere)"
            return
        try:
            answer = Management(address, ANSWER_S, record.tls_files).state()
        except UserError as error:
            status.scheduler = str(error)
            if address in started:
                waits = " and waits for Redis" if "does not answer" in status.redis else ""
                status.scheduler = f"{status.scheduler.split(': start it')[0]}; it runs{waits}"
            return
        servers = len(answer.get("nodes", []))
        cluster = answer.get("cluster_state", "stopped")
        status.scheduler = f"{address} says {cluster}, {servers} server(s)"

    def _name_the_missing(self, iteration: IterationState, silos: list[SiloState]) -> None:
        if iteration.threshold is None:
            return
        expected = self._seen | {s.name for s in silos if s.phase not in ("finished", "failed")}
        lacking = max(0, iteration.threshold - len(iteration.joined))
        iteration.missing = sorted(expected - set(iteration.joined)) if lacking else []
        iteration.unknown = max(0, lacking - len(iteration.missing))


def _ended(folder: Path) -> str:
    """Return the folder's job that finish has ended, as a line; "" if there is none."""
    found = ended_job(folder)
    if not found:
        return ""
    word = {FINISHED_JOB: "had finished", FAILED: "had failed"}.get(found.get("word", ""), "ran")
    return f"the job {found.get('fl_name')} {word}, and finish ended it at {found.get('time')}"


def _number(entry: ProcessRecord) -> int:
    return entry.number


def _processes(record: JobRecord, folder: Path) -> list[ProcessState]:
    exits = exit_states(folder)
    entries = [entry for entry in record.processes if entry.place != COPIED]
    return [_process(entry, exits, folder) for entry in entries]


def _process(entry: ProcessRecord, exits: dict[str, dict], folder: Path) -> ProcessState:
    log = f"{entry.label}/{entry.role.split('_')[0]}.log"
    shown = ProcessState(
        entry.label, entry.role, RUNNING_JOB, entry.created, entry.pid, entry.address, log
    )
    if entry.role == "redis":
        shown.log = "redis.log"
    if entry.place == ELSEWHERE:
        shown.state = AWAY
        return shown
    if entry.process() is not None:
        return shown
    end = exits.get(entry.label, {})
    shown.code, shown.reason = end.get("code"), end.get("reason", "")
    if shown.reason.startswith(STOPPED_BY):
        shown.state = STOPPED_ROLE
    elif entry.role == "redis" or shown.code == 0:
        shown.state = "ended"
    else:
        shown.state = FAILED
        shown.reason = _why_failed(entry, shown, folder / log)
    return shown


def _why_failed(entry: ProcessRecord, shown: ProcessState, log: Path) -> str:
    """Return the supervisor's reason, with what helps to find the cause."""
    if not shown.reason and entry.place == GONE:
        return f"ended with its machine or container ({entry.host})"
    if not shown.reason:
        return "was killed together with its supervisor"
    if shown.reason == "ended":
        # The last line is the supervisor's own.
        return ": ".join([f"exit code {shown.code}", *last_lines(log)[-2:-1]])
    if shown.reason == "killed by SIGKILL":
        return f"{shown.reason}; the kernel does so when memory runs out: dmesg -T | grep -i oom"
    return shown.reason


def _silo(folder: Path, label: str, command: list[str]) -> SiloState:
    flags = dict(word[2:].split("=", 1) for word in command if re.match(r"--\w+=", word))
    name = f"{flags.get('silo_name', socket.gethostname())}_{flags.get('user_id', label[7:])}"
    values = read_status(status_path(folder, label))
    known = {key: values[key] for key in SAID if key in values}
    return SiloState(
        label, name, values.get("phase", "starting"), **known, updated=values.get("time")
    )


def job_word(record: JobRecord, folder: Path) -> str:
    """Return the state of the folder's job in one word, see `JobStatus`, by its processes alone."""
    return _word(_processes(record, folder))


def _word(processes: list[ProcessState]) -> str:
    roles = [p for p in processes if p.role in ROLES]
    workers = [p for p in roles if p.role in WORKER_ROLES]
    # Servers would wait forever for a silo that has failed.
    lost = (FAILED, STOPPED_ROLE)
    if any(p.state in lost for p in workers) and not any(
        p.state in (RUNNING_JOB, AWAY) for p in workers
    ):
        return FAILED
    if any(p.state in (RUNNING_JOB, AWAY) for p in roles):
        return RUNNING_JOB
    return FAILED if any(p.state in lost for p in roles) else FINISHED_JOB


RECENT = 5  # iterations whose median duration predicts the remaining ones


def time_left(status: JobStatus) -> float | None:
    """Return the seconds to the end of the last iteration; None where that is not known.

    The steps of the workers of this folder tell, from their second step on. Elsewhere, as on the
    coordinator's machine, the iterations so far do.
    """
    running = {p.label for p in status.processes if p.state in (RUNNING_JOB, AWAY)}
    silos = [silo for silo in status.silos if silo.label in running]
    known = [left for silo in silos if (left := _silo_left(silo, status.time)) is not None]
    if known:
        return max(known)
    number, last = status.iteration.number, status.iteration.of
    if not number or not last:
        return None
    durations, ended = _pace(Path(status.folder), [silo.label for silo in status.silos])
    if not durations:
        return None
    # The first one includes the compilation.
    each = statistics.median((durations[1:] or durations)[-RECENT:])
    return (last - number) * each + max(0.0, each - max(0.0, status.time - ended))


def _silo_left(silo: SiloState, now: float) -> float | None:
    """Return the seconds that a worker still needs, by its steps and synchronisations."""
    if silo.step_s is None or silo.steps_left is None or silo.updated is None:
        return None
    sync_s = silo.sync_s or 0.0
    syncs = max(0, (silo.iterations or 0) - (silo.iteration or 0) + 1)
    since = max(0.0, now - silo.updated)
    current = silo.step_s if silo.phase == "train" else sync_s
    return max(0.0, silo.steps_left * silo.step_s + syncs * sync_s - min(since, current))


def _pace(folder: Path, workers: list[str]) -> tuple[list[float], float]:
    """Return the seconds of each successful iteration, oldest first, and the latest end."""
    notes: list[str] = []
    metrics = folder / METRICS
    lines = read_json_lines(metrics, ("currentIteration", "iterationExecutionTime"), notes)
    good = [line for line in lines if line.get("iterationResult") == "success"]
    if good:
        return [line["iterationExecutionTime"] / 1000 for line in good], metrics.stat().st_mtime
    for label in workers:
        path = folder / label / "rounds.jsonl"
        if rounds := read_json_lines(path, ("iteration", "round_s"), notes):
            return [line["round_s"] for line in rounds], path.stat().st_mtime
    return [], 0.0


def _iteration_from_silos(status: JobStatus) -> None:
    """Fill in what the workers of this folder know, where Redis cannot be reached."""
    silos = [silo for silo in status.silos if silo.iteration]
    if not silos:
        return
    found = status.iteration
    newest = max(silo.iteration or 0 for silo in silos)
    found.of = silos[0].iterations
    found.number = min(newest, found.of or newest)
    now = [silo for silo in silos if silo.iteration == found.number]
    found.joined = sorted(silo.name for silo in now if silo.phase in IN_ITERATION)
    found.sent = sorted(silo.name for silo in now if silo.phase in ("wait", "pull"))
    found.source = "worker status"
