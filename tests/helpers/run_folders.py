"""Write run folders for tests, line by line as the suite's processes do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

BEGIN = datetime(2026, 11, 22, 8, 0, 0)


def stamp(seconds: float) -> str:
    """Return the time in a log line, this many seconds after the run's start."""
    return f"{BEGIN + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}"


def own_line(seconds: float, label: str, text: str) -> str:
    """Return a line of the suite itself."""
    return f"[{stamp(seconds)}][{label}] {text}"


def engine_line(seconds: float, level: str, text: str, file: str = "redis.cc:310") -> str:
    """Return a line of the engine."""
    time = stamp(seconds).replace(" ", "-")
    where = f"mindspore_federated/fl_arch/ccsrc/{file}"
    return f"[{level}] FEDERATED(12,7f7fbd,python):{time}.601.195 [{where}] {text}"


def write_worker(
    folder: Path,
    losses: Sequence[Sequence[float]],
    first_iteration: int = 1,
    seconds: float = 0,
    more: Sequence[str] = (),
    label: str = "",
) -> Path:
    """Write a worker's folder: an epoch for each list of losses, with a step per second.

    Args:
        first_iteration: first iteration of the federation; an epoch is an iteration.
        seconds: time of the first line, after the run's start.
        more: lines at the end of worker.log.
    """
    folder.mkdir(parents=True)
    label = label or folder.name.split(".")[0]
    entered = f"joined iteration {first_iteration} of 9 as silo 0 with 12 images (clinic_0)"
    begin, log, steps = seconds, [own_line(seconds, label, entered)], []
    for epoch, values in enumerate(losses, first_iteration):
        for step, loss in enumerate(values, 1):
            seconds += 1
            where, rate = f"epoch: {epoch} step: {step}", 0.001 * epoch
            log.append(f"[{stamp(seconds)}][{label}]{where} total_loss: {loss:.7f}")
            since = int(seconds - begin)
            steps.append(f"{since} s | {where} total_loss: {loss:.5f}  lr: {rate:.6f}")
    (folder / "worker.log").write_text("\n".join([*log, *more]) + "\n")
    (folder / "loss_0.log").write_text("".join(f"{line}\n" for line in steps))
    return folder


def write_rounds(folder: Path, numbers: Sequence[int], tail: str = "", **values: object) -> None:
    """Write rounds.jsonl with 10 s a round: 2 upload, 3 wait, 1 download, 0.5 own, 3.5 training."""
    line = {
        "result": "aggregated", "bytes_up": 2_000_000, "bytes_down": 1_000_000, "upload_s": 2.0,
        "wait_s": 3.0, "download_s": 1.0, "client_s": 0.5, "round_s": 10.0, "peak_rss_mb": 1500.0,
        **values,
    }  # fmt: skip
    lines = [json.dumps({"iteration": number, **line}) for number in numbers]
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n" + tail)


def write_metrics(folder: Path, precisions: Sequence[float | None]) -> None:
    """Write metrics.jsonl with an AP for each iteration."""
    lines = [
        {"iteration": n, "AP": ap, "AP50": ap and 2 * ap, "per_class": {"dog <b>": ap, "cat": None}}
        for n, ap in enumerate(precisions, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
