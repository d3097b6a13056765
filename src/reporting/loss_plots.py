"""The losses of a run as figures: each step's as bars or a line, a curve of each epoch's mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.plot_style import (
    MOST_BARS,
    colour,
    from_first,
    from_zero,
    grouped,
    line_style,
    new_axes,
    save,
)
from src.reporting.run_folder import Silo

MOST_APART = 200  # more bars than that touch each other
MOST_STEPS = 10_000  # one by one; about nine to a pixel
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
    """The loss of each logged step: bars, a thin line where they would be too thin to see.

    Beyond `MOST_STEPS` it is the mean of several steps, within their lowest and highest.

    Args:
        number: chooses the colour.
        by_epoch: name the epochs along the axis.
    """
    count, epochs = silo.losses.size, np.unique(silo.epochs).size
    counts = f"{_counted(count, 'step')}, {_counted(epochs, 'epoch')}"
    title = f"{silo.label}: loss of each step ({counts})"
    figure, axes = new_axes(title, "training step", "total loss")
    finite = np.where(np.isfinite(silo.losses), silo.losses, np.nan)
    if count > MOST_STEPS:
        _draw_pooled(axes, finite, colour(number))
        axes.set_title(f"{silo.label}: loss ({counts})")
    elif count > MOST_BARS:
        axes.plot(np.arange(1, count + 1), finite, color=colour(number), linewidth=0.6)
    elif count > MOST_APART:
        edges = 0.5 + np.arange(count + 1)
        axes.stairs(np.nan_to_num(finite), edges, fill=True, color=colour(number))
    else:
        axes.bar(np.arange(1, count + 1), np.nan_to_num(finite), width=0.8, color=colour(number))
    _mark_not_finite(axes, np.flatnonzero(np.isnan(finite)) + 1)
    if by_epoch:
        _name_epochs(axes, silo)
    axes.set_xlim(0.5, count + 0.5)
    from_zero(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none")
    return figure


def _draw_pooled(axes: Axes, losses: np.ndarray, shade: str) -> None:
    """The mean of each few steps as a line, over a band from the lowest to the highest of them."""
    groups, size = grouped(losses)
    filled = np.flatnonzero(~np.isnan(groups).all(axis=1))
    groups, middles = groups[filled], 0.5 + size * (filled + 0.5)
    label = f"lowest to highest of {size} steps"
    low, high = np.nanmin(groups, axis=1), np.nanmax(groups, axis=1)
    axes.fill_between(middles, low, high, color=shade, alpha=0.3, linewidth=0, label=label)
    label = f"mean of {size} steps"
    axes.plot(middles, np.nanmean(groups, axis=1), color=shade, linewidth=1.2, label=label)


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
