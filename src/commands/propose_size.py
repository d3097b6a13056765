"""The image size that keeps the small objects of a data set large enough, and is no larger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from src.commands.propose_anchors import FEW
from src.data.label_statistics import ASPECT_STEPS, SIDE_STEP, SIZE_STEPS, LabelStatistics

# Of the objects of a class this share is smaller than a "small object". That should have so many
# pixels (the square root of its area): 4 x 4 cells of the finest level.
SMALL_SHARE, SMALL_PIXELS = 0.05, 16
DECIDING = 5  # classes with the smallest objects, which decide
# The longer side has this many pixels at least, unless the images themselves have fewer.
LEAST_SIDE, MOST_SIDE = 320, 2048
MOST_IMAGES = 0.9  # the input is not larger than the images, but for the largest tenth


@dataclass(frozen=True)
class ImageSize:
    """A size of the network's input.

    Attributes:
        width, height: pixels.
        own: width and height of the images themselves, which a size does not exceed.
        pixels: square root of the area of a small object in it.
        smallest: the class that has it.
        is_limited: whether the small objects are too small because `area` allowed no larger one.
    """

    width: int
    height: int
    own: tuple[int, int]
    pixels: float
    smallest: str
    is_limited: bool


@dataclass(frozen=True)
class _Objects:
    """The sizes of a class' objects: image's aspect, share of its longer side, count; (n,) each."""

    aspect: np.ndarray
    size: np.ndarray
    count: np.ndarray

    def small(self, width: float, height: float) -> float:
        """Return the pixels of a small object in an input of this size."""
        pixels = self.size * extents(self.aspect, width, height)
        return _quantile(pixels, self.count, SMALL_SHARE)


def extents(aspect: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return the longer side that images have in the network's input, in pixels.

    Args:
        aspect: width divided by height of each image.
        width, height: the network's input, into which an image is fitted with its proportions.
    """
    lying = np.minimum(width, height * aspect)
    return np.where(aspect >= 1, lying, np.minimum(height, width / aspect))


def propose_size(labels: LabelStatistics, area: float) -> ImageSize:
    """Return the smallest size that is large enough; if none is, the one that comes closest.

    Args:
        area: the largest number of pixels that memory and time allow.
    """
    classes = _deciding(labels)
    sizes = np.array(list(labels.image_sizes), np.float64)
    counts = np.array(list(labels.image_sizes.values()), np.float64)
    own = [min(MOST_SIDE, int(_quantile(sides, counts, MOST_IMAGES))) for sides in sizes.T]
    least = min(LEAST_SIDE, _quantile(sizes.max(axis=1), counts, 0.5))
    widths, heights = (range(SIDE_STEP, side + 1, SIDE_STEP) for side in own)
    found: list[tuple[float, int, tuple[int, int]]] = []
    for size in sorted(product(widths, heights), key=lambda size: size[0] * size[1]):
        pixels = size[0] * size[1]
        if found and pixels > area:
            break
        side = _quantile(extents(sizes[:, 0] / sizes[:, 1], *size), counts, 0.5)
        small = min(objects.small(*size) for objects in classes.values())
        lacking = max(0.0, 1 - side / least)
        if is_too_small(small):
            lacking += 1 - small / SMALL_PIXELS
        found.append((round(lacking, 3), pixels, size))
        if not lacking:
            break
    width, height = min(found)[2]
    small, name = min((objects.small(width, height), name) for name, objects in classes.items())
    is_limited = is_too_small(small) and own[0] * own[1] > area
    return ImageSize(width, height, (own[0], own[1]), small, name, is_limited)


def is_too_small(pixels: float) -> bool:
    """Return whether a small object has too few pixels, which are known to within a bin only."""
    return round(pixels) < SMALL_PIXELS


def _deciding(labels: LabelStatistics) -> dict[str, _Objects]:
    """Return the classes with the smallest objects, of those that have enough of them."""
    counts: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for (name, shape), count in labels.boxes.items():
        counts[name][shape.aspect, shape.size] += count
    enough = min(FEW, max(sum(entries.values()) for entries in counts.values()))
    classes = {}
    for name, entries in counts.items():
        if sum(entries.values()) >= enough:
            aspect, size = np.array(list(entries), np.float64).T
            number = np.array(list(entries.values()), np.float64)
            classes[name] = _Objects(2 ** (aspect / ASPECT_STEPS), 2 ** (size / SIZE_STEPS), number)
    order = sorted(classes, key=lambda name: (classes[name].small(1, 1), name))
    return {name: classes[name] for name in order[:DECIDING]}


def _quantile(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """Return the least value such that `share` of all are not above it."""
    order = np.argsort(values)
    filled = np.cumsum(counts[order])
    place = int(np.searchsorted(filled, share * filled[-1]))
    return float(values[order][min(place, len(values) - 1)])


def quantile_of(counts: dict[int, int], share: float) -> int:
    """Return the least key of value -> count such that `share` of all are not above it."""
    pairs: Sequence[tuple[int, int]] = sorted(counts.items())
    values, numbers = (np.array(column, np.float64) for column in zip(*pairs))
    return int(_quantile(values, numbers, share))
