"""What all figures share: colours, sizes, files that are the same for the same input."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.files import write_whole

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
# Without a salt the ids in an SVG are drawn by chance.
SETTINGS = {"svg.hashsalt": "figure", "font.size": 10, "axes.axisbelow": True}


def any_language() -> dict[str, object]:
    """SETTINGS with those fonts behind the usual one that have Chinese, Japanese or Korean."""
    installed = set(font_manager.get_font_names())
    fallbacks = [name for name in CJK_FONTS if name in installed]
    return {**SETTINGS, "font.family": ["DejaVu Sans", *fallbacks]}


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure with a grid along the values."""
    with mpl.rc_context(SETTINGS):
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
    """Let the values begin at zero, with a little room above the largest."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.07 * top if np.isfinite(top) and top > 0 else 1)


def from_first(axes: Axes) -> None:
    """Let the axis of a curve begin just before its first number, so that no zeroth is named."""
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
    """The figure as a file of `kind`, "png" or "svg"; the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def colour(number: int) -> str:
    """The colour of the silo, class or phase with this number; they repeat after eight."""
    return PALETTE[number % len(PALETTE)]


def line_style(number: int) -> str:
    """Solid for the first eight, dashed for the next, and so on."""
    return LINES[number // len(PALETTE) % len(LINES)]


def grouped(values: np.ndarray, most: int = MOST_BARS) -> tuple[np.ndarray, int]:
    """`values` in at most `most` groups of consecutive ones.

    Args:
        values: (n, ...).

    Returns:
        (groups, size, ...) with NaN behind the last value, and the size of a group.
    """
    size = max(1, -(-len(values) // most))
    groups = -(-len(values) // size)
    padded = np.full((groups * size, *values.shape[1:]), np.nan)
    padded[: len(values)] = values
    return padded.reshape(groups, size, *values.shape[1:]), size
