"""Measure what the processes of a job hold, by sample, and how much it grows per iteration."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from src.job.job_record import read_record
from src.model_utils.config import PROJECT_DIR

PAGE = PROJECT_DIR / "docs" / "long_runs.md"
BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(kB|B|)")
UNITS = {"": 1.0, "B": 1.0, "kB": 1000.0}


@dataclass
class Sample:
    """Hold the amounts at one iteration: name of a row of the page -> amount."""

    iteration: int
    values: dict[str, float] = field(default_factory=dict)


def limits(page: Path = PAGE) -> dict[str, float]:
    """Return the last column of the page's table, in bytes or pieces, by the first column."""
    _, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert begin and end, f"{page}: no table between {BEGIN} and {END}"
    found = {}
    for line in table.strip().splitlines()[2:]:
        name, *_, limit = (cell.strip() for cell in line.strip("| ").split("|"))
        amount = AMOUNT.fullmatch(limit)
        assert amount, f"{page}: {line}"
        found[name] = float(amount[1]) * UNITS[amount[2]]
    return found


def sample(folder: Path, redis_port: int, redis_pid: int, iteration: int) -> Sample | None:
    """Return what the job of `folder` holds now; None where one of its processes has just ended."""
    taken = Sample(iteration)
    try:
        for name, process in _processes(folder, redis_pid).items():
            with process.oneshot():
                taken.values[f"memory, {name}"] = process.memory_info().rss
                taken.values[f"file handles, {name}"] = process.num_fds()
                taken.values[f"threads, {name}"] = process.num_threads()
    except psutil.Error:
        return None
    taken.values["keys in Redis"] = redis_keys(redis_port)
    for name in ("worker_0", "worker_1", "server_0", "scheduler"):
        role = name.split("_")[0]
        for path in sorted((folder / name).iterdir()):
            if path.is_file():
                row = f"{role}: {path.name}"
                taken.values[row] = max(taken.values.get(row, 0), path.stat().st_size)
    return taken


def _processes(folder: Path, redis_pid: int) -> dict[str, psutil.Process]:
    record = read_record(folder)
    found = {"Redis": psutil.Process(redis_pid)}
    for entry in record.running() if record else []:
        supervisor = psutil.Process(entry.pid)
        (role,) = supervisor.children()
        found[entry.label.replace("_", " ")] = role
        found[f"supervisor of {entry.label.replace('_', ' ')}"] = supervisor
    return found


def redis_keys(port: int) -> int:
    """Return DBSIZE."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"DBSIZE\r\n")
        return int(connection.recv(100).strip().lstrip(b":"))


def row_of(name: str) -> str:
    """Return the page's row for a sampled value: workers share one, supervisors too."""
    name = re.sub(r"supervisor of .*", "a supervisor", name)
    name = re.sub(r"worker \d+", "a worker", name)
    return re.sub(r"server \d+", "a server", name)


def growth(samples: Sequence[Sample], ends: int = 8) -> dict[str, float]:
    """Return the growth per iteration of each sampled value.

    It compares the median of the first `ends` samples with that of the last: a single sample can
    fall into a moment in which a model is being sent.
    """
    first, last = samples[:ends], samples[-ends:]
    iterations = _median(last, lambda s: s.iteration) - _median(first, lambda s: s.iteration)
    assert iterations > 0
    found = {}
    for name in samples[-1].values:
        rise = _median(last, lambda s, n=name: s.values.get(n, 0)) - _median(
            first, lambda s, n=name: s.values.get(n, 0)
        )
        found[name] = rise / iterations
    return found


def _median(samples: Sequence[Sample], value) -> float:
    return float(np.median([value(one) for one in samples]))
