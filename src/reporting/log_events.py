"""Find warnings and faults of a run, in time order, in the logs of all its roles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from src.files import parsed_json
from src.job.job_record import DONE
from src.job.job_start import JobStart
from src.job.log_files import log_parts, read_log
from src.reporting.run_folder import Run, numbered_folders

FAULT, WARNING = "fault", "warning"
# An event of the same kind within this time is counted, not listed.
SAME_WITHIN = timedelta(seconds=60)

_OWN = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\]\[[^\]]*\] ?(.*)$")
_ENGINE = re.compile(
    r"^\[(?P<level>[A-Z]+)\] [A-Z_]+\([^)]*\):(?P<day>\d{4}-\d\d-\d\d)-(?P<hour>\d\d:\d\d:\d\d)"
    r"[.\d]*\s*(?:\[(?P<file>[^\]]*)\] ?)?(?P<text>.*)$"
)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b")
_EXIT_CODE = re.compile(r"; exit code (\d+)$")
_OWN_KINDS = (
    (FAULT, ("ERROR: ", "CRITICAL: "), ("failed at the servers",)),
    (WARNING, ("WARNING: ", "waiting for the servers", "the servers have forgotten"), (
        "ended without this silo's weights", "has its silos already", "did not end within",
        "stopped by SIG",
    )),
)  # fmt: skip
# A worker takes part, or a server or scheduler serves.
_SERVED = re.compile(
    r"\] (?:joined|kept the place in) iteration |started successfully\.|Start http server!"
)
# Every healthy scheduler logs it when it ends.
_HARMLESS = ("Stop the restful scheduler http service",)


@dataclass
class Event:
    """Describe something that failed, or may have.

    Attributes:
        time: time of the first one, local; None where the log gives none.
        role: server_0; with the number of an earlier process, server_0.1.
        level: "fault" or "warning".
        text: the line, without time and level.
        source: the engine's source file and line, or "".
        count: number of events of the same kind together.
        last: time of the last one.
    """

    time: datetime | None
    role: str
    level: str
    text: str
    source: str = ""
    count: int = 1
    last: datetime | None = None

    def same_kind(self, other: Event) -> bool:
        """Return whether two texts differ only in numbers."""
        mine, theirs = (re.sub(r"\d+", "#", event.text) for event in (self, other))
        return mine == theirs and (self.level, self.source) == (other.level, other.source)


@dataclass
class RunLogs:
    """Hold what the logs of a run report besides losses.

    Attributes:
        paths: the logs that were read; for a rotated log, the newest file.
        events: in time order.
        failed_starts: for each earlier process that ended before it took part, why.
        first, last: times of the first and last line of all logs, without those processes.
    """

    paths: list[Path]
    events: list[Event]
    failed_starts: list[Event]
    first: datetime | None
    last: datetime | None


def read_logs(run: Run) -> RunLogs:
    """Read the logs of workers, servers and scheduler, those of replaced processes included."""
    lines = {path: _timed_lines(path) for path in _log_paths(run)}
    begin = min((t for p in _first_logs(run) for t, _ in lines.get(p, []) if t), default=None)
    mine = {path for silo in run.silos for path in _logs_of(silo.folders)}
    kept = [p for p in lines if p in mine or _of_this_run(p, lines[p], begin, run.started)]
    failed = {path: start for path in kept if (start := _failed_start(path, lines[path]))}
    kept = [path for path in kept if path not in failed]
    events = [event for path in kept for event in _collapsed(_events(path, lines[path]))]
    past = {path.parent for path in lines if path not in kept}
    folders = [folder for folder in sorted(run.folder.glob("server_*")) if folder not in past]
    events += [event for folder in folders for event in _failed_iterations(folder)]
    events.sort(key=lambda event: event.time or datetime.min)
    times = [time for path in kept for time, _ in lines[path] if time]
    starts = sorted(failed.values(), key=lambda event: event.time or datetime.min)
    return RunLogs(kept, events, starts, min(times, default=None), max(times, default=None))


def most_serious(events: list[Event], most: int) -> list[Event]:
    """Return at most `most` events, faults before warnings, still in time order."""
    chosen = sorted(events, key=lambda event: event.level != FAULT)[:most]
    return sorted(chosen, key=lambda event: event.time or datetime.min)


def _failed_start(path: Path, lines: list[tuple[datetime | None, str]]) -> Event | None:
    """Return why an earlier process ended before it took part; None for any other process."""
    if not path.parent.suffix or any(_SERVED.search(line) for _, line in lines):
        return None
    reasons = [line[len("error: ") :] for _, line in lines if line.startswith("error: ")]
    if not reasons:
        return None
    # The line with the reason has no time, and may be the first one.
    last = max((time for time, _ in lines if time), default=None)
    return Event(last, path.parent.name, FAULT, reasons[-1])


def _of_this_run(
    path: Path,
    lines: list[tuple[datetime | None, str]],
    begin: datetime | None,
    started: JobStart | None,
) -> bool:
    """Return whether a log did not end before this run's workers, or its servers, started."""
    if path.parent.suffix and started is None:
        last = max((time for time, _ in lines if time), default=None)
        return bool(begin and (last or begin) >= begin)
    # The scheduler starts before the servers, and may then have nothing more to log.
    is_latest_scheduler = path.name == "scheduler.log" and not path.parent.suffix
    return started is None or is_latest_scheduler or not started.is_after(path)


def _log_paths(run: Run) -> list[Path]:
    roles = sorted(path for path in run.folder.glob("server_*") if path.suffix == "")
    roles = [run.folder / "scheduler", *roles, *(silo.folders[-1] for silo in run.silos)]
    return _logs_of([folder for role in roles for folder in numbered_folders(role)])


def _logs_of(folders: list[Path]) -> list[Path]:
    paths = [folder / f"{re.split('[_.]', folder.name)[0]}.log" for folder in folders]
    return [path for path in paths if log_parts(path)]


def _first_logs(run: Run) -> list[Path]:
    return _logs_of([silo.folders[0] for silo in run.silos])


def _timed_lines(path: Path) -> list[tuple[datetime | None, str]]:
    """Return the lines with their time; a line without a time has that of the line before."""
    time, lines = None, []
    for line in read_log(path).splitlines():
        own, engine = _OWN.match(line), _ENGINE.match(line)
        stamp = own[1] if own else f"{engine['day']} {engine['hour']}" if engine else ""
        time = _time(stamp) or time
        lines.append((time, line))
    return lines


def _time(stamp: str) -> datetime | None:
    try:
        return datetime.fromisoformat(stamp)
    except ValueError:
        return None


def _events(path: Path, lines: list[tuple[datetime | None, str]]) -> Iterator[Event]:
    role, traceback = path.parent.name, False
    for time, line in lines:
        event = _event(time, role, line, traceback)
        if event:
            yield event
        if line.startswith("Traceback (most recent call last)"):
            traceback = True
        elif event or not line.startswith(" "):
            traceback = False


def _event(time: datetime | None, role: str, line: str, traceback: bool) -> Event | None:
    """Return the event that a line reports; None for any other line."""
    if line.startswith("error: "):
        return Event(time, role, FAULT, line[len("error: ") :])
    if traceback and _EXCEPTION.match(line):
        return Event(time, role, FAULT, line)
    engine = _ENGINE.match(line)
    if engine and engine["level"] in ("WARNING", "ERROR", "CRITICAL"):
        if any(text in line for text in _HARMLESS):
            return None
        level = WARNING if engine["level"] == "WARNING" else FAULT
        source = Path(engine["file"] or "").name
        text = re.sub(r"^(\w+)\] (?:: )?", r"\1: ", engine["text"])
        return Event(time, role, level, text, source)
    own = _OWN.match(line)
    if own is None:
        return None
    level = _own_level(own[2])
    return Event(time, role, level, _without_level(own[2])) if level else None


def _own_level(text: str) -> str:
    code = _EXIT_CODE.search(text)
    if code and int(code[1]):
        return FAULT
    if code and text.startswith(DONE):
        return ""
    for level, begins, contains in _OWN_KINDS:
        if text.startswith(begins) or any(part in text for part in contains):
            return level
    return ""


def _without_level(text: str) -> str:
    return re.sub(r"^(?:WARNING|ERROR|CRITICAL): ", "", text)


def _collapsed(events: Iterator[Event]) -> list[Event]:
    """Merge events of one log that are of the same kind and follow each other closely."""
    kept: list[Event] = []
    for event in events:
        for earlier in reversed(kept[-8:]):
            if event.same_kind(earlier) and _close(earlier, event):
                earlier.count += 1
                earlier.last = event.time
                break
        else:
            kept.append(event)
    return kept


def _close(earlier: Event, later: Event) -> bool:
    before = earlier.last or earlier.time
    return not (before and later.time) or later.time - before <= SAME_WITHIN


def _failed_iterations(folder: Path) -> Iterator[Event]:
    """Yield the iterations that failed according to the summary in a server's folder."""
    path = folder / "metrics.json"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = parsed_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("iterationResult", "success") != "success":
            time = _time(str(entry.get("endTime", "")))
            text = f"iteration {entry.get('currentIteration')} failed (metrics.json)"
            yield Event(time, folder.name, FAULT, text)
