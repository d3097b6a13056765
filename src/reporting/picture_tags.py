"""Find places for the tags of boxes where they hide little of what is in other boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

HIDDEN_OTHER = 0.04  # share of another box that a tag may hide
HIDDEN_OWN = 0.12  # share of its own box, in a corner


@dataclass(frozen=True)
class Area:
    """Describe a rectangle on the drawn image, in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def size(self) -> float:
        """Return the number of pixels."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def common(self, other: Area) -> float:
        """Return the number of pixels that are also in `other`."""
        return Area(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).size


@dataclass(frozen=True)
class Tag:
    """Hold a text and its place."""

    text: str
    area: Area


def place_tags(
    boxes: Sequence[Area],
    texts: Sequence[Sequence[str]],
    size_of: Callable[[str], tuple[float, float]],
    whole: Area,
    taken: Sequence[Area] = (),
) -> Iterator[tuple[int, Tag]]:
    """Yield the position of each box and the first of its texts that has room, if one has.

    Args:
        boxes: the more important ones first.
        texts: for each box what its tag may say, best first; no text for no tag.
        size_of: returns width and height of a text.
        whole: the drawn image.
        taken: where no tag may be.
    """
    tags: list[Tag] = []
    for number, box in enumerate(boxes):
        others = [one for place, one in enumerate(boxes) if place != number]
        options = (
            Tag(text, area) for text in texts[number] for area in _places(box, *size_of(text))
        )
        used = [*taken, *(tag.area for tag in tags)]
        free = (tag for tag in options if _is_free(tag.area, box, others, used, whole))
        tag = next(free, None)
        if tag is not None:
            tags.append(tag)
            yield number, tag


def _places(box: Area, width: float, height: float) -> Iterator[Area]:
    """Yield places for a text: above and below the box, next to it, in its corners."""
    lefts = (box.left, box.right - width)
    corners = [(left, top) for top in (box.top - height, box.bottom) for left in lefts]
    corners += [(box.right, box.top), (box.left - width, box.top)]
    corners += [(left, top) for top in (box.top, box.bottom - height) for left in lefts]
    for left, top in corners:
        yield Area(left, top, left + width, top + height)


def _is_free(
    area: Area, box: Area, others: Sequence[Area], used: Sequence[Area], whole: Area
) -> bool:
    inside = area.common(whole) >= 0.999 * area.size
    hides = any(area.common(other) > HIDDEN_OTHER * other.size for other in others)
    hides = hides or area.common(box) > HIDDEN_OWN * box.size
    return inside and not hides and not any(area.common(one) > 0 for one in used)
