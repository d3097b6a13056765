"""Compare runs of the demo that differ in one thing: the silos, or how weights are averaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import StartError
from src.federated.aggregation import ALGORITHMS
from src.launch.demo import Demo, DemoPlan
from src.printing import print

# For the skewed split: most of a silo's images show two of the four categories.
SKEW = 0.3

Figures = list[dict[str, Any]]


def silo_plans(base: DemoPlan) -> dict[str, DemoPlan]:
    """Return the runs by name, with equal steps per silo and the same evaluation images.

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


def algorithm_plans(base: DemoPlan, seeds: Sequence[int]) -> dict[str, DemoPlan]:
    """Return a run for each algorithm and seed on the skewed split, named "FedAvg, seed 1" etc."""
    return {
        f"{kind}, seed {seed}": replace(
            base, alpha=SKEW, seed=seed, aggregation={"aggregation_type": kind, **facts.example}
        )
        for seed in seeds
        for kind, facts in ALGORITHMS.items()
    }


def run_all(plans: Mapping[str, DemoPlan], folder: Path) -> dict[str, Figures]:
    """Run each plan in its own folder below `folder`; skip runs that have finished.

    Returns:
        For each run the lines of its `metrics.jsonl`, one for each evaluated iteration.

    Raises:
        StartError: a run failed.
    """
    results = {}
    for number, (name, plan) in enumerate(plans.items()):
        place = folder / f"run_{number}"
        if len(metrics(place)) < plan.iterations // plan.interval:
            print()
            print(f"==== {name}", flush=True)
            code = Demo(place, plan).run()
            if code:
                raise StartError(f"{place}: ended with exit code {code}; see its logs", code)
        results[name] = metrics(place)
    return results


def metrics(folder: Path) -> Figures:
    """Read what the first silo of the run in `folder` has evaluated so far."""
    path = folder / "worker_0" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def silo_table(results: Mapping[str, Figures]) -> str:
    """Format the last evaluation of each run as a Markdown table."""
    lines = ["| training | AP | AP50 | AP75 |", "|---|---|---|---|"]
    for name, figures in results.items():
        last = figures[-1]
        values = " | ".join(f"{last[key]:.3f}" for key in ("AP", "AP50", "AP75"))
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def mean_by_algorithm(results: Mapping[str, Figures]) -> dict[str, Figures]:
    """Merge runs that differ only in their seed: mean and spread of AP for each iteration.

    Args:
        results: of `algorithm_plans`.

    Returns:
        For each algorithm a line with `iteration`, `AP` and `spread` (greatest less smallest).
    """
    by_kind: dict[str, list[Figures]] = {}
    for name, figures in results.items():
        by_kind.setdefault(name.split(",")[0], []).append(figures)
    means = {}
    for kind, runs in by_kind.items():
        values = np.array([[line["AP"] for line in run] for run in runs], np.float64)
        iterations = [line["iteration"] for line in runs[0]]
        means[kind] = [
            {"iteration": iteration, "AP": column.mean(), "spread": np.ptp(column)}
            for iteration, column in zip(iterations, values.T)
        ]
    return means


def algorithm_table(means: Mapping[str, Figures]) -> str:
    """Format the result of `mean_by_algorithm` as Markdown, with a column for each iteration."""
    iterations = [str(line["iteration"]) for line in next(iter(means.values()))]
    lines = [
        f"| AP after iteration | {' | '.join(iterations)} | spread of the last |",
        "|---" * (len(iterations) + 2) + "|",
    ]
    for kind, figures in means.items():
        values = [f"{line['AP']:.3f}" for line in figures] + [f"{figures[-1]['spread']:.3f}"]
        lines.append(f"| {kind} | {' | '.join(values)} |")
    return "\n".join(lines)
