"""The state of a job in words and numbers: its processes, its silos, its iteration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

NOTHING, FINISHED_JOB, FAILED, RUNNING_JOB = "nothing", "finished", "failed", "running"
# State of a process of another machine or container that shares the folder.
AWAY = "elsewhere"
# Of a process alone: the user ended it before the job was done.
STOPPED_ROLE = "stopped"
EXIT_CODES = {RUNNING_JOB: 0, FINISHED_JOB: 10, FAILED: 11, NOTHING: 12}


@dataclass
class ProcessState:
    """One process that a launcher started from the folder.

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
    """One worker of this folder; None where it has not said so yet.

    Attributes:
        name: its identity as the servers know it, without the number of images.
        updated: time of its last word, seconds since the epoch.
        ap, ap50: of its latest evaluation, 0 to 1.
    """

    label: str
    name: str
    phase: str
    iteration: int | None = None
    iterations: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    ap: float | None = None
    ap50: float | None = None
    updated: float | None = None
    reason: str = ""


@dataclass
class IterationState:
    """The current iteration: names of silos, without their numbers of images.

    Attributes:
        number, of: from 1; None where nobody says.
        threshold: silos that make it; None where nobody says.
        missing: silos of earlier iterations and of this folder that have not joined.
        unknown: further silos that are missing, of which only the number is known.
        aggregated, failed: iterations that are over, by what became of them; None where nobody
            says. Together they may be fewer than are over.
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
    """All of it. `word` is running, finished, failed or nothing.

    Attributes:
        cluster: "running", "disabled", "finished", "stopped" as Redis has it, or "".
        scheduler: one line, what the scheduler says of the cluster.
        redis: one line, what Redis holds of the job.
        eta_s: seconds to the end of the last iteration; None is unknown.
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
    notes: list[str] = field(default_factory=list)


def as_values(status: JobStatus) -> dict[str, Any]:
    """The status as plain values for JSON, with its exit code."""
    return {**asdict(status), "exit_code": EXIT_CODES[status.word]}
