"""What the rounds of a run took, and how good their models are, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from src.reporting.plot_style import (
    LINES,
    colour,
    from_first,
    from_zero,
    grouped,
    line_style,
    new_axes,
)
from src.reporting.run_folder import Silo, number_in

# Name, colour, and what it is, in the order of a round.
PHASES = (
    ("train", 0, "train (with joining and compiling)"),
    ("upload", 4, "upload"),
    ("wait", 5, "wait for the other silos"),
    ("download", 2, "download"),
    ("own work", 1, "own work (check, decode, load)"),
)
METRICS = ("AP", "AP50", "AP75")
MOST_SINGLE_BARS = 60

Lines = Sequence[dict[str, Any]]


def phase_seconds(rounds: Lines) -> np.ndarray:
    """Seconds (rounds, 5) float64 of each phase in PHASES.

    A round lasts from the request to join to the loaded model: what is neither transfer nor waiting
    nor the silo's own handling of weights is training.
    """
    rows = []
    for entry in rounds:
        upload, wait, download = (float(entry[k]) for k in ("upload_s", "wait_s", "download_s"))
        own = float(np.nan_to_num(number_in(entry.get("client_s"))))
        train = max(0.0, float(entry["round_s"]) - upload - wait - download - own)
        rows.append((train, upload, wait, download, own))
    return np.array(rows, np.float64).reshape(len(rows), len(PHASES))


def seconds_figure(silo: Silo) -> Figure:
    """Stacked bars of a silo's rounds; of the mean of several where there are too many."""
    seconds = phase_seconds(silo.rounds)
    numbers = np.array([entry["iteration"] for entry in silo.rounds])
    groups, size = grouped(seconds)
    means = np.nanmean(groups, axis=1)
    each = f"mean of {size} rounds" if size > 1 else "each round"
    figure, axes = new_axes(f"{silo.label}: seconds of {each}", "iteration", "seconds")
    edges = np.append(numbers[::size] - 0.5, numbers[-1] + 0.5)
    bottom = np.zeros(len(means))
    for (_, tone, label), values in zip(PHASES, means.T):
        style: dict[str, Any] = {"color": colour(tone), "label": label}
        if len(means) <= MOST_SINGLE_BARS:
            axes.bar(numbers, values, width=0.8, bottom=bottom, **style)
        else:
            axes.stairs(bottom + values, edges, baseline=bottom, fill=True, **style)
        bottom = bottom + values
    from_zero(axes)
    axes.set_xlim(edges[0], edges[-1])
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def metrics_figure(evaluations: Sequence[tuple[str, Lines]]) -> Figure:
    """Curves of AP, AP50 and AP75 of the global model, by iteration."""
    figure, axes = new_axes(
        "average precision of the global model", "iteration", "average precision (0 to 1)"
    )
    for index, (labels, curves) in enumerate(_equal_curves(evaluations).items()):
        for style, (key, (numbers, values)) in zip(LINES, curves.items()):
            axes.plot(
                numbers,
                values,
                style,
                color=colour(index),
                marker="o" if len(numbers) <= MOST_SINGLE_BARS else None,
                markersize=4,
                label=f"{key}, {labels}".replace("$", r"\$"),
            )
    from_zero(axes)
    from_first(axes)
    figure.legend(loc="outside lower center", ncols=len(METRICS), frameon=False, fontsize=9)
    return figure


def comparison_figure(runs: Mapping[str, Lines]) -> Figure:
    """Curves of AP by iteration, one for each run of that name."""
    figure, axes = new_axes(
        "average precision on held-out images", "iteration", "AP (0 to 1, mean of IoU 0.5 to 0.95)"
    )
    for index, (name, lines) in enumerate(runs.items()):
        axes.plot(
            [line["iteration"] for line in lines],
            [number_in(line["AP"]) for line in lines],
            line_style(index),
            color=colour(index),
            marker="o",
            markersize=4,
            label=name,
        )
    from_zero(axes)
    from_first(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def memory_figure(silos: Sequence[Silo]) -> Figure:
    """Curves of each worker's largest resident memory so far, by iteration."""
    figure, axes = new_axes("peak resident memory of the workers", "iteration", "GB (10⁹ bytes)")
    for index, silo in enumerate(silos):
        pairs = [(r["iteration"], number_in(r.get("peak_rss_mb")) / 1000) for r in silo.rounds]
        if pairs:
            axes.plot(
                *zip(*pairs),
                line_style(index),
                color=colour(index),
                marker="o" if len(pairs) <= MOST_SINGLE_BARS else None,
                markersize=4,
                label=silo.label,
            )
    from_zero(axes)
    from_first(axes)
    if len(silos) <= 16:
        axes.legend(edgecolor="none", ncols=2 if len(silos) > 8 else 1)
    return figure


def _equal_curves(evaluations: Sequence[tuple[str, Lines]]) -> dict[str, dict[str, Any]]:
    """Names of those who measured the same -> metric -> iterations and values.

    Silos that evaluate on the same images get the same numbers: their curves are drawn once.
    """
    same: dict[str, list[tuple[str, Lines]]] = {}
    for label, lines in evaluations:
        series = [(line["iteration"], *(line.get(key) for key in METRICS)) for line in lines]
        same.setdefault(repr(series), []).append((label, lines))
    named = {}
    for group in same.values():
        lines = group[0][1]
        numbers = [line["iteration"] for line in lines]
        names = ", ".join(label for label, _ in group[:4]) + ", ..." * (len(group) > 4)
        named[names] = {k: (numbers, [number_in(line.get(k)) for line in lines]) for k in METRICS}
    return named
