"""Read what a run left in its folder, for plots and reports: losses, rounds, metrics, settings.

The folder is the one that the run_* scripts were called from. The earlier logs of a restarted silo
are in worker_0.1, worker_0.2, ...; those of the same job are part of the run, and those of
a job before it in the same folder are not, see `folders_of_job`.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError, user_path
from src.files import numbered, parsed_json
from src.job.iteration_results import METRICS, results_in, results_of_rounds
from src.job.job_record import FOLDER, status_path
from src.job.job_start import JobStart, job_start
from src.job.log_files import read_log

_ENTERED = re.compile(r"\] (joined|kept the place in) iteration (\d+) of \d+ as silo")
_FINISHED = re.compile(r"\] the job is finished: all (\d+) iterations are done")


@dataclass
class _Process:
    """Describe what a worker's log says about its part in a job.

    Attributes:
        first, last: the first and last iteration that it entered; 0 where it never did.
        kept: the servers knew the silo when it came, from a process before it.
        finished: number of iterations of the job, where the process saw its end; else 0.
        earlier: it had ended when the job of the folder around began.
    """

    first: int
    last: int
    kept: bool
    finished: int
    earlier: bool


def numbered_folders(folder: Path) -> list[Path]:
    """Return `folder` after its earlier ones (folder.1, folder.2, ...), oldest first."""
    return [path for path in numbered(folder) if path.is_dir()] + [folder]


def folders_of_job(folder: Path, started: JobStart | None) -> list[Path]:
    """Return the folders of a worker's processes in the job of `folder`, oldest first.

    Args:
        folder: folder of the latest process, worker_<n>.
        started: start of the job; None where the folder around does not tell.
    """
    *earlier, _ = numbered_folders(folder)
    if not earlier:
        return [folder]
    chain, later = [folder], _process(folder, started)
    for path in reversed(earlier):
        before = _process(path, started)
        if not _same_job(before, later, known=started is not None):
            break
        chain.insert(0, path)
        # A process that never joined says nothing about its job.
        later = before if before.first else later
    return chain


def ended_before(folder: Path, started: JobStart | None) -> bool:
    """Return whether a worker's process is known to have ended before the job began."""
    return started is not None and started.is_after(folder / "worker.log")


def _process(folder: Path, started: JobStart | None) -> _Process:
    log = read_log(folder / "worker.log")
    entries = _ENTERED.findall(log)
    finished = _FINISHED.findall(log)
    return _Process(
        first=int(entries[0][1]) if entries else 0,
        last=int(entries[-1][1]) if entries else 0,
        kept=bool(entries) and entries[0][0] != "joined",
        finished=int(finished[-1]) if finished else 0,
        earlier=ended_before(folder, started),
    )


def _same_job(before: _Process, later: _Process, known: bool) -> bool:
    """Return whether a worker's process and its predecessor took part in one job.

    Args:
        known: the folder around tells which processes are of an earlier job.
    """
    if before.earlier:
        return False
    if before.finished:
        # A finished job accepts nobody, unless it was given more iterations.
        return later.first > before.finished or bool(later.finished and not later.first)
    if later.kept:
        return True
    if later.first == 1:
        return known and before.last <= 1
    return not before.first > later.first > 0


# A line of worker.log; or of loss_0.log of upstream or of an earlier version.
# Iterations, bytes, seconds since 1970: no file of a run has a larger number.
LARGEST = 1e13
LOSS_LINE = re.compile(
    r"^(?:\[(?P<time>[\d-]{10} [\d:]{8})\]\[[^\]]*\]|(?P<seconds>\d{1,9}) s \| )"
    r"epoch: (?P<epoch>\d{1,9}) step: (?P<step>\d{1,9}) total_loss: (?P<loss>\S+)"
    r"(?:\s+lr: (?P<rate>\S+))?\s*$"
)
LOSS_FILES = ("loss_0.log", "worker.log")
# Folder of a silo that consists of several ranks; rank 0's losses represent it.
DISTRIBUTED = "worker_distributed"


@dataclass
class Silo:
    """Hold one worker of a run, with its processes in order.

    Attributes:
        label: worker_0.
        folders: folders of its processes, oldest first; the last is the run folder's worker_<n>.
        epochs, steps: (n,) int64, as logged, from 1.
        losses: (n,) float64; NaN or infinite where the training diverged.
        rates: (n,) float64 learning rates; NaN where the log has none.
        times: (n,) datetime64[s], local time.
        rounds: the lines of rounds.jsonl.
        metrics: the lines of metrics.jsonl, the global model's after each evaluated iteration.
        name: its --silo_name; "" where that is this machine's name, as without the flag.
    """

    label: str
    folders: list[Path]
    epochs: np.ndarray
    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    times: np.ndarray
    rounds: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    name: str = ""

    @property
    def title(self) -> str:
        """Return worker_0 (hospital_a)."""
        return f"{self.label} ({self.name})" if self.name else self.label

    def epoch_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return epoch numbers (e,) int64, and each epoch's mean of logged losses (e,) float64."""
        numbers, where = np.unique(self.epochs, return_inverse=True)
        counts = np.bincount(where, minlength=len(numbers))
        return numbers, np.bincount(where, self.losses, len(numbers)) / np.maximum(counts, 1)


@dataclass
class Run:
    """Hold a run folder's content.

    Attributes:
        folder: absolute path.
        silos: ordered by number; at least one.
        statuses: what each worker's status file says, by label.
        evaluations: who evaluated the global model, and the lines of that metrics.jsonl.
        notes: lines of files that could not be read, for the reader of a report.
        started: start of the job; None where the folder does not tell.
        results: whether each iteration was aggregated, from servers here or else its silos.
    """

    folder: Path
    silos: list[Silo]
    statuses: dict[str, dict[str, Any]]
    evaluations: list[tuple[str, list[dict[str, Any]]]]
    notes: list[str] = field(default_factory=list)
    started: JobStart | None = None
    results: dict[int, bool] = field(default_factory=dict)


def read_run(folder: Path, metrics: Path | None = None) -> Run:
    """Read the workers' files of a run folder.

    Args:
        folder: the folder where the run_* scripts were called.
        metrics: file from elsewhere with lines like those of a worker's metrics.jsonl.

    Raises:
        UserError: no such folder, no worker_<number> in it, or nothing in `metrics`.
    """
    folder = user_path(folder).absolute()
    notes: list[str] = []
    started = job_start(folder)
    labels = _labels_of_job(folder, started, notes)
    silos = [_read_silo(folder / label, started, notes) for label in labels]
    commands = started_commands(folder)
    for silo in silos:
        silo.name = _silo_name(commands.get(silo.label, []))
    statuses = {label: read_json_object(status_path(folder, label)) for label in labels}
    evaluations = [(silo.title, silo.metrics) for silo in silos if silo.metrics]
    if metrics is not None:
        lines = read_json_lines(metrics, ("iteration",), notes)
        if not lines:
            raise UserError(
                f"--metrics {metrics}: no such file, or no line with an iteration in it; "
                "tools/evaluate.py --watch --output writes one"
            )
        evaluations.append((metrics.name, _by_iteration(lines)))
    results = results_in(folder / METRICS, started)
    results = results or results_of_rounds(line for silo in silos for line in silo.rounds)
    return Run(folder, silos, statuses, evaluations, notes, started, results)


def require_losses(run: Run) -> list[Silo]:
    """Return the silos that have logged a loss.

    Raises:
        UserError: none has; names the files and what was looked for.
    """
    silos = [silo for silo in run.silos if len(silo.losses)]
    if silos:
        return silos
    names = ", ".join(dict.fromkeys(silo.label for silo in run.silos))
    raise UserError(
        f"{run.folder}: no loss line in {' or '.join(LOSS_FILES)} of {names}; expected lines like "
        "'[2026-11-22 08:00:00][worker_0]epoch: 1 step: 1 total_loss: 5.249325', which the first "
        "training step writes"
    )


def read_json_lines(path: Path, required: Iterable[str], notes: list[str]) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file that have all `required` keys; [] without a file.

    A line that is no JSON object, as a kill leaves it at the end, becomes a note.
    """
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            entry = parsed_json(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and not any(np.isnan(number_in(entry.get(k))) for k in required):
            entries.append(entry)
        elif line.strip():
            notes.append(f"{path}: line {number} is left out: no whole entry ({line[:60]!r})")
    return entries


def started_commands(folder: Path) -> dict[str, list[str]]:
    """Return the command of each role of a run, by label (worker_0, server_1, scheduler)."""
    commands = {}
    for path in sorted((folder / FOLDER / "specs").glob("*.json")):
        spec = read_json_object(path)
        if isinstance(spec.get("argv"), list):
            commands[path.stem] = [str(word) for word in spec["argv"]]
    return commands


def _silo_name(command: list[str]) -> str:
    given = [word.partition("=")[2] for word in command if word.startswith("--silo_name=")]
    return given[-1] if given and given[-1] != socket.gethostname() else ""


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a small JSON file; {} where it is missing or incomplete."""
    try:
        value = parsed_json(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def number_in(value: Any) -> float:
    """Return a number in a file; NaN for anything else, or larger than any count here."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and -LARGEST <= value <= LARGEST else math.nan


def _worker_labels(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that the run was started from")
    found = [path.name for path in folder.iterdir() if path.is_dir()]
    numbers = sorted(int(name[7:]) for name in found if re.fullmatch(r"worker_\d+", name))
    labels = [f"worker_{number}" for number in numbers]
    if DISTRIBUTED in found:
        labels.insert(0, DISTRIBUTED)
    if labels:
        return labels
    if re.fullmatch(rf"(worker_\d+|{DISTRIBUTED})(\.\d+)?", folder.name):
        raise UserError(f"{folder}: is one worker's folder; give the one above, {folder.parent}")
    raise UserError(
        f"{folder}: no folder worker_<number> in it (found: {', '.join(sorted(found)[:8]) or '-'});"
        " give the folder that run_cross_silo_fasterrcnn_worker.py was called from"
    )


def _labels_of_job(folder: Path, started: JobStart | None, notes: list[str]) -> list[str]:
    """Return the workers of the job that began with `started`, else of the job before."""
    labels = _worker_labels(folder)
    past = [label for label in labels if ended_before(folder / label, started)]
    if started is not None and len(past) == len(labels):
        notes.append(
            f"{folder}: no worker of the job that began at {started.began} has started yet; the "
            "workers are those of the job before it"
        )
        return labels
    if past:
        notes.append(f"{folder}: left out as of an earlier job: {', '.join(past)}")
    return [label for label in labels if label not in past]


def _read_silo(folder: Path, started: JobStart | None, notes: list[str]) -> Silo:
    folders = folders_of_job(folder, started)
    steps = [step for path in folders for step in _logged_steps(path, notes)]
    silo = Silo(
        label=folder.name,
        folders=folders,
        epochs=np.array([step.epoch for step in steps], np.int64),
        steps=np.array([step.number for step in steps], np.int64),
        losses=np.array([step.loss for step in steps], np.float64),
        rates=np.array([step.rate for step in steps], np.float64),
        times=np.array([step.time for step in steps], "datetime64[s]"),
    )
    keys = ("iteration", "upload_s", "wait_s", "download_s", "round_s")
    for path in folders:
        silo.rounds += read_json_lines(path / "rounds.jsonl", keys, notes)
        silo.metrics += read_json_lines(path / "metrics.jsonl", ("iteration",), notes)
    silo.metrics = _by_iteration(silo.metrics)
    return silo


def _by_iteration(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each iteration, the latest where there are several."""
    latest = {line["iteration"]: line for line in lines}
    return [latest[iteration] for iteration in sorted(latest)]


@dataclass
class _Step:
    """Hold what is logged of a training step; the rate is NaN where the log has none."""

    epoch: int
    number: int
    loss: float
    rate: float
    time: datetime


def _logged_steps(folder: Path, notes: list[str]) -> list[_Step]:
    """Return the training steps of one process, in order.

    worker.log has the end time of a step and more digits of its loss, loss_0.log the learning rate;
    for a step that only one of them still has, that one's values are used.
    """
    file, log = (_loss_lines(folder / name) for name in LOSS_FILES)
    begin = _begin(folder / LOSS_FILES[0], file, log)
    steps = []
    for place in sorted({**file, **log}):
        line = log.get(place) or file[place]
        rate = _number(file[place]["rate"]) if place in file else math.nan
        steps.append(_Step(*place, _number(line["loss"]), rate, _time(line, begin)))
    if not steps:
        notes.append(f"{folder}: no loss line in {' or '.join(LOSS_FILES)}")
    return steps


def _loss_lines(path: Path) -> dict[tuple[int, int], re.Match]:
    """Return the loss lines of a log by epoch and step."""
    matches = filter(None, map(LOSS_LINE.match, read_log(path).splitlines()))
    return {(int(match["epoch"]), int(match["step"])): match for match in matches}


def _begin(
    path: Path, file: dict[tuple[int, int], re.Match], log: dict[tuple[int, int], re.Match]
) -> datetime:
    """Return the start of loss_0.log's seconds, from a step also in worker.log or its age."""
    for place, line in file.items():
        if line["seconds"] and place in log:
            return _time(log[place]) - timedelta(seconds=int(line["seconds"]))
    last = max((int(line["seconds"] or 0) for line in file.values()), default=0)
    written = int(path.stat().st_mtime) if path.is_file() else 0
    return datetime.fromtimestamp(written) - timedelta(seconds=last)


def _time(line: re.Match, begin: datetime = datetime.min) -> datetime:
    if line["time"]:
        return datetime.fromisoformat(line["time"])
    return begin + timedelta(seconds=int(line["seconds"]))


def _number(text: str | None) -> float:
    """Return a float; NaN for None and for anything else."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
