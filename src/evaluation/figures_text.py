"""COCO's figures for people: one line of a log, or a table."""

from __future__ import annotations

from typing import Any

from src.evaluation.coco_metrics import FIGURES

WHAT = {
    "AP": "precision, mean over the overlaps 0.50 to 0.95",
    "AP50": "precision at an overlap of 0.50",
    "AP75": "precision at an overlap of 0.75",
    "APs": "of objects smaller than 32 x 32 pixels",
    "APm": "of objects of 32 x 32 to 96 x 96",
    "APl": "of larger objects",
    "AR1": "recall with the best detection of an image alone",
    "AR10": "recall with 10 detections of an image",
    "AR100": "recall with 100 detections of an image",
    "ARs": "recall of objects smaller than 32 x 32",
    "ARm": "recall of objects of 32 x 32 to 96 x 96",
    "ARl": "recall of larger objects",
}


def figures_line(record: dict[str, Any]) -> str:
    """A record of metrics.jsonl on one line, "-" where there is nothing to measure."""
    figures = " ".join(f"{name}: {_number(record[name])}" for name in FIGURES)
    return f"iteration: {record['iteration']} {figures}{rate(record)}"


def figures_table(figures: dict[str, Any], per_class: dict[str, float]) -> list[str]:
    """The twelve figures and the AP of each class, as lines."""
    width = max([9, *map(len, per_class)]) + 2
    lines = [f"{name:{width}}{_number(figures[name]):>7}   {WHAT[name]}" for name in FIGURES]
    lines += ["", f"{'class':{width}}{'AP':>7}"]
    return lines + [f"{name:{width}}{_number(value):>7}" for name, value in per_class.items()]


def rate(record: dict[str, Any]) -> str:
    """ " (60 images, 4.9 images/s)" of an evaluation."""
    speed = record["images"] / max(record["seconds"], 1e-9)
    return f" ({record['images']} images, {speed:.1f} images/s)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
