"""Draws microscope images of blood: many red cells, some large white ones, tiny platelets.

Cells may overlap and be cut off by the image's edge. Eight images are of one slide, with its own
light and stain, and their names begin with it, as the images of one patient often do. An image
depends on the seed, the part and its number only, as in `synthetic_coco`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from src.data.synthetic_coco import DrawingPlan, Kind

SLIDE_IMAGES = 8
CLOSEST = 0.72  # distance of two cells' centres, in sums of their radii
LEAST_RADIUS = 2.0  # pixels
CUT_OFF = 0.3  # of the radius: a centre may be that far outside the image


class CellClass(NamedTuple):
    """A kind of cell: id, share of the cells, range of radii in shorter sides, BGR colour."""

    id_: int
    share: float
    radii: tuple[float, float]
    colour: tuple[float, float, float]


CELL_CLASSES = {  # drawn in this order: nothing small is hidden
    "RBC": CellClass(1, 0.78, (0.075, 0.105), (158, 150, 208)),
    "WBC": CellClass(2, 0.10, (0.14, 0.19), (205, 172, 196)),
    "Platelets": CellClass(3, 0.12, (0.024, 0.036), (150, 88, 132)),
}
NUCLEUS = (122, 42, 92)
GLASS = (222, 214, 226)


class _Slide(NamedTuple):
    """What the images of a slide share: light and stain as factors of BGR, noise in grey levels."""

    light: np.ndarray
    stain: float
    noise: float


class _Cell(NamedTuple):
    name: str
    x: float
    y: float
    radius: float


def _slide(plan: DrawingPlan, part: int, number: int) -> _Slide:
    rng = np.random.default_rng([plan.seed, part, slide_of(number), 1])
    return _Slide(rng.uniform(0.9, 1.08, 3), rng.uniform(0.75, 1.0), rng.uniform(2, 6))


def slide_of(number: int) -> int:
    """Return the number of the slide of image `number`, both from 1."""
    return (number - 1) // SLIDE_IMAGES + 1


def _places(plan: DrawingPlan, rng: np.random.Generator) -> list[_Cell]:
    """Return the cells of an image in the order in which they are drawn."""
    side = min(plan.width, plan.height)
    count = int(rng.integers(max(1, plan.max_shapes // 3), plan.max_shapes + 1))
    shares = [kind.share for kind in CELL_CLASSES.values()]
    cells: list[_Cell] = []
    for name in sorted(
        rng.choice(list(CELL_CLASSES), count, p=shares), key=list(CELL_CLASSES).index
    ):
        radius = max(LEAST_RADIUS, side * rng.uniform(*CELL_CLASSES[str(name)].radii))
        for _ in range(20):
            beyond = CUT_OFF * radius
            x = rng.uniform(-beyond, plan.width - 1 + beyond)
            y = rng.uniform(-beyond, plan.height - 1 + beyond)
            if all(
                math.hypot(x - one.x, y - one.y) >= CLOSEST * (radius + one.radius) for one in cells
            ):
                cells.append(_Cell(str(name), x, y, radius))
                break
    return cells


def _distances(
    shape: tuple[int, ...], x: float, y: float, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Return each pixel's squared distance from a slightly oval cell's centre; 1 at its edge."""
    turn, oval = rng.uniform(0, math.pi), rng.uniform(0.9, 1.0)
    across, down = np.arange(shape[1]) - x, np.arange(shape[0])[:, None] - y
    first = across * math.cos(turn) + down * math.sin(turn)
    second = down * math.cos(turn) - across * math.sin(turn)
    return (first / radius) ** 2 + (second / (radius * oval)) ** 2


def _paint(image: np.ndarray, where: np.ndarray, colour: Any, strength: Any) -> None:
    """Blend `colour` into the pixels `where`, (h, w) bool, by `strength`, a number or (h, w)."""
    amount = np.broadcast_to(strength, where.shape)[where][:, None]
    image[where] += (np.array(colour) - image[where]) * amount


def _draw_cell(
    image: np.ndarray, cell: _Cell, slide: _Slide, rng: np.random.Generator
) -> np.ndarray:
    """Draw a cell; return its pixels, (h, w) bool."""
    apart = _distances(image.shape, cell.x, cell.y, cell.radius, rng)
    inside, colour = apart <= 1, CELL_CLASSES[cell.name].colour
    if cell.name == "RBC":
        # Biconcave: the middle is thin and lets the light through.
        _paint(image, inside, colour, slide.stain * np.clip(0.35 + 0.75 * apart, 0, 1))
    elif cell.name == "WBC":
        _paint(image, inside, colour, 0.9 * slide.stain)
        lobes, begin = int(rng.integers(2, 5)), rng.uniform(0, 2 * math.pi)
        for lobe in range(lobes):
            angle = begin + lobe * rng.uniform(0.9, 1.5)
            x = cell.x + 0.38 * cell.radius * math.cos(angle)
            y = cell.y + 0.38 * cell.radius * math.sin(angle)
            size = cell.radius * rng.uniform(0.34, 0.44)
            _paint(image, inside & (_distances(image.shape, x, y, size, rng) <= 1), NUCLEUS, 0.92)
    else:
        _paint(image, inside, colour, slide.stain * rng.uniform(0.8, 1.0))
    return inside


def draw_cells(plan: DrawingPlan, part: int, number: int) -> tuple[np.ndarray, list[dict]]:
    """Draw image `number` of a part, (height, width, 3) uint8 BGR; return it and annotations.

    The annotations have no ids. Boxes are tight around the part of a cell that is in the image.
    """
    rng, slide = np.random.default_rng([plan.seed, part, number]), _slide(plan, part, number)
    slope = rng.uniform(-0.06, 0.06, 2)
    light = 1 + slope[0] * np.linspace(-1, 1, plan.width)
    light = light * (1 + slope[1] * np.linspace(-1, 1, plan.height))[:, None]
    image = np.full((plan.height, plan.width, 3), GLASS, np.float64)
    annotations: list[dict[str, Any]] = []
    for cell in _places(plan, rng) if rng.random() >= plan.empty_share else ():
        rows, columns = np.nonzero(_draw_cell(image, cell, slide, rng))
        if not len(rows):
            continue
        x, y = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) + 1 - x, int(rows.max()) + 1 - y
        annotations.append(
            {
                "category_id": CELL_CLASSES[cell.name].id_,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    image = cv2.GaussianBlur(image, (3, 3), 0) * light[:, :, None] * slide.light
    image += rng.normal(0, slide.noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), annotations


def _file_name(number: int) -> str:
    return f"slide{slide_of(number):03d}_{number:06d}.jpg"


CELLS = Kind(
    plan=DrawingPlan(max_shapes=24, crowd_share=0.0),
    draw=draw_cells,
    categories={name: kind.id_ for name, kind in CELL_CLASSES.items()},
    words="cells",
    file_name=_file_name,
)
