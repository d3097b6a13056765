"""The losses of a run as figures: a bar for each step, a curve of each epoch's mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.plot_style import (
    colour,
    from_first,
    from_zero,
    grouped,
    line_style,
    new_axes,
    save,
)
from src.reporting.run_folder import Silo

MOST_MARKERS = 60
MOST_NAMED = 16  # more silos than that are told apart by no legend


def draw_losses(silos: Sequence[Silo], out: Path, by_epoch: bool = False) -> list[Path]:
    """Write worker_<n>_step_loss, worker_<n>_epoch_loss and epoch_loss, each as PNG and SVG.

    Args:
        silos: with at least one loss each.
        by_epoch: count epochs, not steps, along the bars.
    """
    paths = []
    for number, silo in enumerate(silos):
        paths += save(step_figure(silo, number, by_epoch), out, f"{silo.label}_step_loss")
        paths += save(epoch_figure([silo], number), out, f"{silo.label}_epoch_loss")
    return paths + save(epoch_figure(silos), out, "epoch_loss")


def step_figure(silo: Silo, number: int = 0, by_epoch: bool = False) -> Figure:
    """Bars of the loss of each logged step; of the mean of several where there are too many.

    Args:
        number: chooses the colour.
        by_epoch: name the epochs along the axis.
    """
    with np.errstate(all="ignore"):
        finite = np.where(np.isfinite(silo.losses), silo.losses, np.nan)
    groups, size = grouped(finite)
    filled = ~np.isnan(groups).all(axis=1)
    means, highest = np.zeros(len(groups)), np.zeros(len(groups))
    means[filled] = np.nanmean(groups[filled], axis=1)
    highest[filled] = np.nanmax(groups[filled], axis=1)
    edges = 0.5 + size * np.arange(len(groups) + 1)
    epochs = np.unique(silo.epochs).size
    counts = f"{_counted(silo.losses.size, 'step')}, {_counted(epochs, 'epoch')}"
    title = f"{silo.label}: loss of each step ({counts})"
    figure, axes = new_axes(title, "training step", "total loss")
    if size > 1:
        label = f"largest of {size} steps"
        axes.stairs(highest, edges, fill=True, color=colour(number), alpha=0.35, label=label)
        label = f"mean of {size} steps"
        axes.stairs(means, edges, fill=True, color=colour(number), label=label)
    elif len(means) > 200:
        axes.stairs(means, edges, fill=True, color=colour(number))
    else:
        axes.bar(np.arange(1, len(means) + 1), means, width=0.8, color=colour(number))
    _mark_not_finite(axes, np.flatnonzero(~np.isfinite(silo.losses)) + 1)
    if by_epoch:
        _name_epochs(axes, silo)
    axes.set_xlim(0.5, edges[-1])
    from_zero(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none")
    return figure


def epoch_figure(silos: Sequence[Silo], number: int = 0) -> Figure:
    """Curves of the mean loss of each epoch, of one silo or of several together.

    Args:
        number: chooses the first colour.
    """
    together = f"mean loss of each epoch, {len(silos)} silos"
    title = f"{silos[0].label}: mean loss of each epoch" if len(silos) == 1 else together
    figure, axes = new_axes(title, f"epoch ({_steps_in_epoch(silos)})", "mean total loss")
    named = len(silos) <= MOST_NAMED
    for index, silo in enumerate(silos, number):
        numbers, means = silo.epoch_means()
        axes.plot(
            numbers,
            np.where(np.isfinite(means), means, np.nan),
            line_style(index) if named else "-",
            color=colour(index) if named else "#bbbbbb",
            marker="o" if len(numbers) <= MOST_MARKERS and named else None,
            markersize=4,
            linewidth=1.8 if named else 0.8,
            label=silo.label if named else None,
        )
        _mark_not_finite(axes, numbers[~np.isfinite(means)])
    if not named:
        axes.plot(*_mean_of(silos), color=colour(0), label=f"mean of {len(silos)} silos")
    from_zero(axes)
    from_first(axes)
    if len(silos) > 1 or axes.get_legend_handles_labels()[0][1:]:
        axes.legend(edgecolor="none", ncols=2 if len(silos) > 8 else 1)
    return figure


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _steps_in_epoch(silos: Sequence[Silo]) -> str:
    """How many logged steps an epoch has, in words for the axis."""
    counts = {int(np.unique(s.epochs, return_counts=True)[1].max()) for s in silos}
    low, high = min(counts), max(counts)
    steps = f"{low}" if low == high else f"{low} to {high}"
    return f"{steps} logged step{'s' if high > 1 else ''} each"


def _mean_of(silos: Sequence[Silo]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and the mean over the silos of each one's finite means."""
    pairs = [silo.epoch_means() for silo in silos]
    numbers, means = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    numbers, means = numbers[np.isfinite(means)], means[np.isfinite(means)]
    epochs, where = np.unique(numbers, return_inverse=True)
    return epochs, np.bincount(where, means) / np.bincount(where)


def _mark_not_finite(axes: Axes, positions: np.ndarray) -> None:
    """Crosses on the axis where the loss was NaN or infinite."""
    if len(positions):
        label = "loss NaN or infinite"
        zeros = np.zeros(len(positions))
        axes.plot(positions, zeros, "x", color="#000000", clip_on=False, label=label, markersize=9)


def _name_epochs(axes: Axes, silo: Silo) -> None:
    """The epochs' numbers where each begins, at most about twenty of them, and a line at each."""
    begins = np.flatnonzero(np.diff(silo.epochs, prepend=silo.epochs[0] - 1))
    shown = begins[:: -(-len(begins) // 20)]
    axes.set_xticks(shown + 0.5, [str(silo.epochs[i]) for i in shown])
    axes.set_xlabel("epoch, at its first step")
    for position in shown[1:]:
        axes.axvline(position + 0.5, color="#bbbbbb", linewidth=0.6, zorder=0)
