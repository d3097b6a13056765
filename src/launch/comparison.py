"""Training together against training alone: the same steps on the same drawn images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.errors import StartError
from src.launch.demo import Demo, DemoPlan

# Of the skewed split: most of a silo's images show two of the four categories.
SKEW = 0.3


def plans(base: DemoPlan) -> dict[str, DemoPlan]:
    """The runs by name: equal numbers of steps in each silo, evaluated on the same images.

    Args:
        base: two silos, images split evenly.
    """
    return {
        "two silos together, even split": base,
        "one of the two alone, even split": replace(base, silos=1),
        "all images in one place": replace(base, shards=1, silos=1),
        "two silos together, skewed split": replace(base, alpha=SKEW),
        "one of the two alone, skewed split": replace(base, alpha=SKEW, silos=1),
    }


def compare(base: DemoPlan, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run all plans, each in a folder of its own below `folder`; a finished one is not repeated.

    Returns:
        For each run the lines of its `metrics.jsonl`, an evaluated iteration each.

    Raises:
        StartError: a run failed.
    """
    results = {}
    for number, (name, plan) in enumerate(plans(base).items()):
        place = folder / f"run_{number}"
        if len(metrics(place)) < plan.iterations // plan.interval:
            print(f"\n==== {name}", flush=True)
            code = Demo(place, plan).run()
            if code:
                raise StartError(f"{place}: ended with exit code {code}; see its logs", code)
        results[name] = metrics(place)
    return results


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What the first silo of the run in `folder` evaluated so far."""
    path = folder / "worker_0" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The last evaluation of each run, as Markdown."""
    lines = ["| training | AP | AP50 | AP75 |", "|---|---|---|---|"]
    for name, figures in results.items():
        last = figures[-1]
        values = " | ".join(f"{last[key]:.3f}" for key in ("AP", "AP50", "AP75"))
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)
