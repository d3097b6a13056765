"""Plot the losses of a run: each step's as bars or a line, and each epoch's mean as a curve."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.files import write_whole
from src.printing import printable
from src.reporting.run_folder import Silo, number_in

# Okabe and Ito, "Color Universal Design", 2008: distinguishable with every kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
LINES = ("-", "--", ":", "-.")
SIZE_INCHES = (9.0, 4.0)
DPI = 130
MOST_BARS = 540  # two pixels each; thinner ones cannot be told apart
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "SimHei", "Microsoft YaHei", "PingFang SC", "Droid Sans Fallback",
)  # fmt: skip
# Without a salt the ids in an SVG are random.
SETTINGS = {"svg.hashsalt": "figure", "font.size": 10, "axes.axisbelow": True}


def any_language() -> dict[str, object]:
    """Return SETTINGS with fonts for Chinese, Japanese or Korean after the usual one."""
    installed = set(font_manager.get_font_names())
    fallbacks = [name for name in CJK_FONTS if name in installed]
    return {**SETTINGS, "font.family": ["DejaVu Sans", *fallbacks]}


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure with a grid along the values."""
    with mpl.rc_context(any_language()):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def from_zero(axes: Axes) -> None:
    """Start the values at zero, with a little room above the largest."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.07 * top if np.isfinite(top) and top > 0 else 1)


def from_first(axes: Axes) -> None:
    """Start a curve's axis just before its first number, so that no tick says zero."""
    low, high = axes.dataLim.x0, axes.dataLim.x1
    if np.isfinite(high - low):
        room = min(0.45, 0.03 * max(high - low, 1))
        axes.set_xlim(low - room, high + room)


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write `stem`.png and `stem`.svg into `folder`, replacing earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in ("png", "svg"):
        path = folder / f"{stem}.{kind}"
        write_whole(path, rendered(figure, kind))
        paths.append(path)
    return paths


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the figure as a file of `kind`, "png" or "svg"; equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(any_language()):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def colour(number: int) -> str:
    """Return the colour of the silo, class or phase with this number; they repeat after eight."""
    return PALETTE[number % len(PALETTE)]


def line_style(number: int) -> str:
    """Return solid for the first eight, dashed for the next eight, and so on."""
    return LINES[number // len(PALETTE) % len(LINES)]


def grouped(values: np.ndarray, most: int = MOST_BARS) -> tuple[np.ndarray, int]:
    """Group consecutive `values` into at most `most` groups.

    Args:
        values: (n, ...).

    Returns:
        (groups, size, ...) with NaN after the last value, and the size of a group.
    """
    size = max(1, -(-len(values) // most))
    groups = -(-len(values) // size)
    padded = np.full((groups * size, *values.shape[1:]), np.nan)
    padded[: len(values)] = values
    return padded.reshape(groups, size, *values.shape[1:]), size


MOST_APART = 200  # more bars than that touch each other
MOST_STEPS = 10_000  # more are averaged: about nine to a pixel
MOST_MARKERS = 60
MOST_NAMED = 16  # beyond this many silos, there is no legend


def draw_losses(silos: Sequence[Silo], out: Path, by_epoch: bool = False) -> list[Path]:
    """Write worker_<n>_step_loss, worker_<n>_epoch_loss and epoch_loss, each as PNG and SVG.

    Args:
        silos: silos with at least one loss each.
        by_epoch: label epochs, not steps, below the bars.
    """
    paths = []
    for number, silo in enumerate(silos):
        paths += save(step_figure(silo, number, by_epoch), out, f"{silo.label}_step_loss")
        paths += save(epoch_figure([silo], number), out, f"{silo.label}_epoch_loss")
    return paths + save(epoch_figure(silos), out, "epoch_loss")


def step_figure(silo: Silo, number: int = 0, by_epoch: bool = False) -> Figure:
    """Plot the loss of each logged step: bars, or a thin line where bars would be too thin.

    Beyond `MOST_STEPS` it is the mean of several steps, within their minimum and maximum.

    Args:
        number: chooses the colour.
        by_epoch: label the epochs along the axis.
    """
    count, epochs = silo.losses.size, np.unique(silo.epochs).size
    counts = f"{_counted(count, 'step')}, {_counted(epochs, 'epoch')}"
    title = f"{_shown(silo)}: loss of each step ({counts})"
    figure, axes = new_axes(title, "training step", "total loss")
    finite = np.where(np.isfinite(silo.losses), silo.losses, np.nan)
    if count > MOST_STEPS:
        _draw_pooled(axes, finite, colour(number))
        axes.set_title(f"{_shown(silo)}: loss ({counts})")
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
    """Draw the mean of each group of steps as a line, over a band from minimum to maximum."""
    groups, size = grouped(losses)
    filled = np.flatnonzero(~np.isnan(groups).all(axis=1))
    groups, middles = groups[filled], 0.5 + size * (filled + 0.5)
    label = f"lowest to highest of {size} steps"
    low, high = np.nanmin(groups, axis=1), np.nanmax(groups, axis=1)
    axes.fill_between(middles, low, high, color=shade, alpha=0.3, linewidth=0, label=label)
    label = f"mean of {size} steps"
    axes.plot(middles, np.nanmean(groups, axis=1), color=shade, linewidth=1.2, label=label)


def epoch_figure(silos: Sequence[Silo], number: int = 0) -> Figure:
    """Plot the mean loss of each epoch as curves, of one silo or of several together.

    Args:
        number: chooses the first colour.
    """
    together = f"mean loss of each epoch, {len(silos)} silos"
    title = f"{_shown(silos[0])}: mean loss of each epoch" if len(silos) == 1 else together
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
            label=_shown(silo) if named else None,
        )
        _mark_not_finite(axes, numbers[~np.isfinite(means)])
    if not named:
        axes.plot(*_mean_of(silos), color=colour(0), label=f"mean of {len(silos)} silos")
    from_zero(axes)
    from_first(axes)
    if len(silos) > 1 or axes.get_legend_handles_labels()[0][1:]:
        axes.legend(edgecolor="none", ncols=2 if len(silos) > 8 else 1)
    return figure


def _shown(silo: Silo) -> str:
    """Return a silo's title without what Matplotlib takes for a formula."""
    return printable(silo.title).replace("$", r"\$")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _steps_in_epoch(silos: Sequence[Silo]) -> str:
    """Return how many logged steps an epoch has, as text for the axis."""
    counts = {int(np.unique(s.epochs, return_counts=True)[1].max()) for s in silos}
    low, high = min(counts), max(counts)
    steps = f"{low}" if low == high else f"{low} to {high}"
    return f"{steps} logged step{'s' if high > 1 else ''} each"


def _mean_of(silos: Sequence[Silo]) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs, and the mean over the silos of each epoch's finite means."""
    pairs = [silo.epoch_means() for silo in silos]
    numbers, means = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    numbers, means = numbers[np.isfinite(means)], means[np.isfinite(means)]
    epochs, where = np.unique(numbers, return_inverse=True)
    return epochs, np.bincount(where, means) / np.bincount(where)


def _mark_not_finite(axes: Axes, positions: np.ndarray) -> None:
    """Draw crosses on the axis where the loss was NaN or infinite."""
    if len(positions):
        label = "loss NaN or infinite"
        zeros = np.zeros(len(positions))
        axes.plot(positions, zeros, "x", color="#000000", clip_on=False, label=label, markersize=9)


def _name_epochs(axes: Axes, silo: Silo) -> None:
    """Label at most about twenty epochs where each begins, with a line at each."""
    begins = np.flatnonzero(np.diff(silo.epochs, prepend=silo.epochs[0] - 1))
    shown = begins[:: -(-len(begins) // 20)]
    axes.set_xticks(shown + 0.5, [str(silo.epochs[i]) for i in shown])
    axes.set_xlabel("epoch, at its first step")
    for position in shown[1:]:
        axes.axvline(position + 0.5, color="#bbbbbb", linewidth=0.6, zorder=0)


# Name, colour and description, in the order of a round.
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
    """Return seconds (rounds, 5) float64 of each phase in PHASES.

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
    """Plot a silo's rounds as stacked bars; the mean of several where there are too many."""
    seconds = phase_seconds(silo.rounds)
    numbers = np.array([entry["iteration"] for entry in silo.rounds])
    groups, size = grouped(seconds)
    means = np.nanmean(groups, axis=1)
    each = f"mean of {size} rounds" if size > 1 else "each round"
    figure, axes = new_axes(f"{_shown(silo)}: seconds of {each}", "iteration", "seconds")
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
    """Plot AP, AP50 and AP75 of the global model by iteration."""
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
    """Plot AP by iteration, with a curve for each named run."""
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
    """Plot each worker's largest resident memory so far, by iteration."""
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
                label=_shown(silo),
            )
    from_zero(axes)
    from_first(axes)
    if len(silos) <= 16:
        axes.legend(edgecolor="none", ncols=2 if len(silos) > 8 else 1)
    return figure


def _equal_curves(evaluations: Sequence[tuple[str, Lines]]) -> dict[str, dict[str, Any]]:
    """Return names with equal measurements -> metric -> iterations and values.

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
