"""What the demo says at its end: losses, the global model's figures, where everything lies."""

from __future__ import annotations

import json
import re
from pathlib import Path

from src.printing import print

LOSS = re.compile(r"\]epoch: \d+ step: \d+ total_loss: (\S+)")


def report(folder: Path, silos: int, iterations: int) -> None:
    """Mean losses of each silo, the global model's figures, and where everything lies."""
    print()
    print(f"{'silo':10}{'first iteration':>17}{'last iteration':>17}   mean loss")
    for number in range(silos):
        log = folder / f"worker_{number}" / "worker.log"
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        losses = [float(value) for value in LOSS.findall(text)]
        steps = len(losses) // iterations or 1
        first, last = _mean(losses[:steps]), _mean(losses[-steps:])
        print(f"worker_{number:<3}{first:17.3f}{last:17.3f}")
    _report_figures(folder)
    print()
    print(f"logs        {folder}/worker_0/worker.log and beside it")
    print(f"models      {folder}/worker_0/ckpt/mindrecord_0/")
    print(f"rounds      {folder}/worker_0/rounds.jsonl")


def _report_figures(folder: Path) -> None:
    """AP of the global model in each evaluated iteration."""
    path = folder / "worker_0" / "metrics.jsonl"
    if not path.exists():
        return
    print()
    print(f"{'iteration':10}{'AP':>8}{'AP50':>8}   of the global model, on held-out images")
    for line in path.read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        ap, ap50 = (float("nan") if figures[k] is None else figures[k] for k in ("AP", "AP50"))
        print(f"{figures['iteration']:<10}{ap:8.3f}{ap50:8.3f}")


def _mean(values: list[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")
