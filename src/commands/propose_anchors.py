"""Anchor scales and ratios that fit the boxes of a data set.

An anchor of scale s and ratio r has, on a level of stride d, the area (s * d)**2 and a height of r
times its width; there is one at every d-th pixel, and training takes those that lie inside the
image. So the recall follows from the sizes of boxes, if their places are uniform in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

RECALLED = 0.5  # IoU from which a box counts as met by an anchor
PLACES = 25  # places in the image at which each size of a box is tried
SCALES = (2, 3, 4, 5, 6, 8, 10)
TWO_SCALES = tuple((scale, round(scale * 2**0.5, 1)) for scale in (2, 3, 4, 6, 8))
USUAL_RATIOS = (0.5, 1.0, 2.0)
# Ready-made detectors have three anchors at a position, and their weights fit no other number.
USUAL_NUMBER = 3
WORTH_MORE = 0.03  # recall that more anchors must add
FEW = 20  # a class with fewer boxes does not decide
ROUNDS = 50
APART = 1.15  # least factor between two ratios


@dataclass
class Boxes:
    """Boxes in pixels of the network's input.

    Attributes:
        width, height: sides, (n,).
        counts: (classes, n) how many of each class have these sides.
    """

    width: np.ndarray
    height: np.ndarray
    counts: np.ndarray

    @property
    def by_class(self) -> np.ndarray:
        """Return the weights (n,) with which each class that has boxes counts the same."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares = self.counts[totals[:, 0] > 0] / totals[totals[:, 0] > 0]
        return shares.mean(axis=0)

    @property
    def all(self) -> np.ndarray:
        """Return the weights (n,) with which each box counts the same."""
        return self.counts.sum(axis=0) / self.counts.sum()


@dataclass(frozen=True)
class Anchors:
    """Scales and ratios, and what they reach.

    Attributes:
        recall: share of the boxes that some anchor meets with an IoU of `RECALLED`.
        class_recall: the same for each class; nan for a class without boxes.
        overlap: mean of the boxes' best IoU, where each class counts the same.
        weakest: the lowest recall of a class that has `FEW` boxes or more.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    recall: float = 0.0
    class_recall: tuple[float, ...] = field(default=(), compare=False)
    overlap: float = 0.0
    weakest: float = 0.0

    @property
    def score(self) -> float:
        """Return what is maximised: no class may be left out, and boxes should fit well."""
        return self.overlap + self.weakest

    @property
    def number(self) -> int:
        """Return the number of anchors at a position."""
        return len(self.scales) * len(self.ratios)


class Canvas(NamedTuple):
    """The network's input, and the strides of its levels."""

    width: int
    height: int
    strides: Sequence[int]


def propose_anchors(boxes: Boxes, canvas: Canvas, default: Anchors) -> tuple[Anchors, Anchors]:
    """Return the anchors to use, and `default` with what it reaches.

    Those are the three at a position with the highest score whose recall is not below the
    default's. More of them are taken only if the recall rises by `WORTH_MORE`.
    """
    default = measured(default, boxes, canvas)
    fitted = cluster_ratios(boxes, USUAL_NUMBER)
    ratio_sets = list(dict.fromkeys([default.ratios, USUAL_RATIOS, fitted]))
    usual = [
        measured(Anchors((scale,), ratios), boxes, canvas)
        for scale in sorted({*SCALES, *default.scales})
        for ratios in ratio_sets
    ]
    best = _best([default, *usual], default)
    more = [
        measured(Anchors(scales, ratios), boxes, canvas)
        for scales in TWO_SCALES
        for ratios in ratio_sets
    ]
    richer = _best([default, *more], default)
    return (richer if richer.recall >= best.recall + WORTH_MORE else best), default


def _best(candidates: Sequence[Anchors], default: Anchors) -> Anchors:
    enough = [one for one in candidates if one.recall >= default.recall]
    return max(enough, key=lambda one: (round(one.score, 2), -one.number))


def cluster_ratios(boxes: Boxes, number: int) -> tuple[float, ...]:
    """Return `number` ratios around which those of the boxes lie: weighted k-means of logarithms.

    They are at least a factor of `APART` from each other, so that none is there twice.
    """
    logs, weights = np.log(boxes.height / boxes.width), boxes.by_class
    order = np.argsort(logs)
    filled = np.cumsum(weights[order])
    marks = (np.arange(number) + 0.5) / number
    centres = logs[order][np.minimum(np.searchsorted(filled, marks), len(logs) - 1)]
    for _ in range(ROUNDS):
        nearest = np.abs(logs[:, None] - centres).argmin(axis=1)
        mass = np.bincount(nearest, weights, number)
        sums = np.bincount(nearest, weights * logs, number)
        moved = np.where(mass > 0, sums / np.maximum(mass, 1e-12), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    middle, apart = len(centres) // 2, np.log(APART)
    centres = np.sort(centres)
    for place in range(middle + 1, number):
        centres[place] = max(centres[place], centres[place - 1] + apart)
    for place in range(middle - 1, -1, -1):
        centres[place] = min(centres[place], centres[place + 1] - apart)
    return tuple(round(float(ratio), 2) for ratio in np.exp(np.clip(centres, -3, 3)))


def measured(anchors: Anchors, boxes: Boxes, canvas: Canvas) -> Anchors:
    """Return `anchors` with their recall and mean IoU on boxes at evenly spread places."""
    best = np.zeros((len(boxes.width), PLACES))
    across, down = _places()
    x = boxes.width[:, None] / 2 + across * np.maximum(canvas.width - boxes.width, 0)[:, None]
    y = boxes.height[:, None] / 2 + down * np.maximum(canvas.height - boxes.height, 0)[:, None]
    for stride in canvas.strides:
        for scale in anchors.scales:
            for ratio in anchors.ratios:
                width, height = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                if width <= canvas.width and height <= canvas.height:
                    common_x = _common(x, boxes.width, width, stride, canvas.width)
                    common_y = _common(y, boxes.height, height, stride, canvas.height)
                    common = common_x * common_y
                    area = (boxes.width * boxes.height)[:, None] + width * height
                    np.maximum(best, common / (area - common), out=best)
    met = (best >= RECALLED).mean(axis=1)
    totals = boxes.counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        class_recall = (boxes.counts @ met) / totals
    enough = totals >= min(FEW, totals.max())
    return Anchors(
        anchors.scales,
        anchors.ratios,
        float(boxes.all @ met),
        tuple(class_recall.tolist()),
        float(boxes.by_class @ best.mean(axis=1)),
        float(class_recall[enough].min()),
    )


def _places() -> tuple[np.ndarray, np.ndarray]:
    """Return places in the unit square, (PLACES,) each, spread evenly: a rank-1 lattice."""
    numbers = np.arange(PLACES)
    return (numbers + 0.5) / PLACES, (numbers * 0.618034) % 1


def _common(
    centre: np.ndarray, side: np.ndarray, anchor: float, stride: int, limit: int
) -> np.ndarray:
    """Return how long a box and the nearest anchor inside the image overlap, along one axis.

    Args:
        centre: (n, places) of the boxes.
        side: (n,) of the boxes.
        anchor: the anchor's side.
        stride: the distance of anchors.
        limit: the image's side.
    """
    first = 0.5 * (stride - 1)
    low = np.ceil((anchor / 2 - first) / stride)
    high = np.floor((limit - anchor / 2 - first) / stride)
    if low > high:
        return np.zeros_like(centre)
    cell = np.clip(np.rint((centre - first) / stride), low, high)
    distance = np.abs(cell * stride + first - centre)
    half = side[:, None] / 2
    reach = np.minimum(half, distance + anchor / 2) - np.maximum(-half, distance - anchor / 2)
    return np.maximum(reach, 0.0)
