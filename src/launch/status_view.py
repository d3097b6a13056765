"""Show a job's status as text: once, or redrawn in place while the job runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Callable, TextIO

from src.job.iteration_results import summary_of
from src.launch.status import (
    FAILED,
    NOTHING,
    RUNNING_JOB,
    STOPPED_ROLE,
    IterationState,
    JobStatus,
    ProcessState,
    SiloState,
)
from src.printing import printable

CLEAR, HOME, END_OF_LINE, BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"


def lines_of(status: JobStatus) -> list[str]:
    """Return the status as lines."""
    if status.word == NOTHING:
        ended = f"nothing runs in {status.folder}: {status.ended}"
        return [
            ended if status.ended else f"nothing: no job was started from {status.folder}",
            *(f"  note: {line}" for line in status.notes),
        ]
    lines = [
        f"{status.fl_name}: {headline(status)}",
        f"  folder     {status.folder} on {status.host}",
        f"  Redis      {status.redis}",
        f"  scheduler  {status.scheduler}",
        "",
    ]
    rows = [("process", "state", "since", "pid", "where", "log")]
    rows += [_process_row(process, status.time) for process in status.processes]
    lines += [*_table(rows, "<<<><<"), "", *_iteration_lines(status)]
    if status.silos:
        figures = [("silo", "phase", "iteration", "step", "loss", "AP", "AP50", "said")]
        figures += [_silo_row(silo, status.time) for silo in status.silos]
        lines += ["", *_table(figures, "<<>>>>><")]
    return lines + [f"  note: {line}" for line in [*_failures(status), *status.notes]]


def headline(status: JobStatus) -> str:
    """Summarize the status: the word, the iteration, the remaining time."""
    parts = [status.word]
    if status.cluster == "disabled" and status.word == RUNNING_JOB:
        parts = ["running, but disabled (status.py enable lets it go on)"]
    iteration = status.iteration
    if iteration.number is not None:
        parts.append(f"iteration {iteration.number} of {iteration.of or '?'}")
    if iteration.aggregated is not None and (iteration.failed or status.word != RUNNING_JOB):
        parts.append(_results(status))
    if status.word == RUNNING_JOB and status.cluster == "finished":
        parts.append("its processes are ending")
    elif status.word == RUNNING_JOB:
        eta = status.eta_s
        parts.append("time left unknown" if eta is None else f"about {duration(eta)} left")
    return ", ".join(parts)


def _results(status: JobStatus) -> str:
    """Return the results of the ended iterations, as far as they are known."""
    iteration = status.iteration
    aggregated, failed = iteration.aggregated or 0, iteration.failed or 0
    over = (iteration.number or 1) - 1
    if status.cluster == "finished":
        over = iteration.of or 0
    return summary_of(aggregated, failed, over - aggregated - failed)


def duration(seconds: float) -> str:
    """Format a duration such as 42 s, 12 min, 3 h 20 min, 2 d 5 h."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _state(process: ProcessState) -> str:
    """Format a state such as running, ended 0, failed 137."""
    if process.state == RUNNING_JOB or process.code is None:
        return process.state
    return f"{process.state} {process.code}"


def _process_row(process: ProcessState, now: float) -> tuple[str, str, str, str, str, str]:
    begin, today = time.localtime(process.since), time.localtime(now)
    same_day = (begin.tm_year, begin.tm_yday) == (today.tm_year, today.tm_yday)
    since = time.strftime("%H:%M" if same_day else "%d %b", begin)
    where = process.address or "-"
    return process.label, _state(process), since, str(process.pid), where, process.log


def _table(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Align the columns, no wider than their texts: a terminal of 80 columns shows all of them.

    Args:
        rows: texts, the headers first.
        sides: < or > for each column.
    """
    wide = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, wide))
        for row in rows
    )
    return [line.rstrip() for line in lines]


def _iteration_lines(status: JobStatus) -> list[str]:
    iteration = status.iteration
    if iteration.number is None:
        return ["no iteration is known yet"]
    if status.cluster == "finished":
        return [f"all {iteration.of} iterations are done"]
    of = f" of {iteration.threshold}" if iteration.threshold else ""
    lines = [
        f"iteration {iteration.number} of {iteration.of or '?'} (from {iteration.source}): "
        f"{len(iteration.joined)}{of} silo(s) joined, {len(iteration.sent)} sent"
    ]
    for what, names in (("joined", iteration.joined), ("sent", iteration.sent)):
        if names:
            lines.append(f"  {what:9}{', '.join(_with_labels(names, status.silos))}")
    missing = _missing(iteration, status.silos)
    return lines + ([f"  missing  {missing}"] if missing else [])


def _missing(iteration: IterationState, silos: list[SiloState]) -> str:
    names = _with_labels(iteration.missing, silos)
    if iteration.unknown:
        names.append(f"{iteration.unknown} of unknown name")
    return ", ".join(names)


def _with_labels(names: list[str], silos: list[SiloState]) -> list[str]:
    """Return the names, each with the worker of this folder that has it."""
    labels = {silo.name: silo.label for silo in silos}
    return [f"{name} ({labels[name]})" if name in labels else name for name in names]


def _silo_row(silo: SiloState, now: float) -> tuple[str, str, str, str, str, str, str, str]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    done = "-" if silo.iteration is None else f"{_within(silo)} of {silo.iterations}"
    steps = "-" if silo.step is None else f"{silo.step} of {silo.steps}"
    said = "-" if silo.updated is None else f"{duration(max(0.0, now - silo.updated))} ago"
    loss, ap, ap50 = number(silo.loss, ".4f"), number(silo.ap, ".3f"), number(silo.ap50, ".3f")
    return silo.label, silo.phase, done, steps, loss, ap, ap50, said


def _within(silo: SiloState) -> int:
    """Limit the iteration: a silo that is done has one more than there are."""
    return min(silo.iteration or 0, silo.iterations or silo.iteration or 0)


def _failures(status: JobStatus) -> list[str]:
    reasons = {silo.label: silo.reason for silo in status.silos if silo.reason}
    lines = []
    for p in status.processes:
        if p.state == FAILED:
            lines.append(f"{p.label} failed: {reasons.get(p.label) or p.reason} (see {p.log})")
        elif p.state == STOPPED_ROLE:
            lines.append(f"{p.label} was {p.reason} (see {p.log})")
    serves = any(p.role == "server" and p.state == RUNNING_JOB for p in status.processes)
    if lines and serves and status.cluster != "finished":
        lines.append(
            "the servers wait for it: start it again, or finish_cross_silo_fasterrcnn.py ends all"
        )
    return lines


class Screen:
    """Show one block after the other: in place on a terminal, else one below the other."""

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._first = True

    def show(self, lines: list[str], stamp: str) -> None:
        """Show a block below its time."""
        lines = [printable(line) for line in lines]
        if not self._terminal:
            self._out.write("\n".join([f"== {stamp}", *lines, ""]) + "\n")
        else:
            size = shutil.get_terminal_size()
            # Some terminals report that they have no size.
            width, height = size.columns or 80, size.lines or 24
            block = [f"{stamp}   (Ctrl-C ends the display, not the job)", *lines][: height - 1]
            text = "".join(line[: width - 1] + END_OF_LINE + "\n" for line in block)
            self._out.write((CLEAR if self._first else "") + HOME + text + BELOW)
        self._first = False
        self._out.flush()


def watch(collect: Callable[[], JobStatus], interval_s: float, screen: Screen) -> JobStatus:
    """Show the status every `interval_s` seconds until the job has ended; return the last one."""
    while True:
        status = collect()
        screen.show(lines_of(status), time.strftime("%Y-%m-%d %H:%M:%S"))
        if status.word != RUNNING_JOB:
            return status
        time.sleep(interval_s)
