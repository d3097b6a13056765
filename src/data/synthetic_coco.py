"""Generates a small detection data set: coloured shapes on noise, with COCO labels.

Only the shape determines the category; the hue is a hint, since by default each category's range
overlaps the next one's. Every random number depends on the seed, the part and the image's number:
image 7 is the same in a set of ten and in a set of a thousand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np

from src.errors import UserError
from src.files import write_whole
from src.progress import progress

CATEGORIES = {  # COCO's name -> (COCO's id, middle of the hue range in degrees)
    "airplane": (5, 0),
    "sports ball": (37, 90),
    "pizza": (59, 180),
    "book": (84, 270),
}
SHAPE_SIDE = (30, 100)  # pixels
CROWD_SHAPE_SIDE = 14
OUTLINED = 0.35  # share of shapes that are drawn as an outline
JPEG_QUALITY = 90


@dataclass
class DrawingPlan:
    """The parameters of the generated images.

    Attributes:
        seed: seed of all random numbers.
        width, height: size in pixels, at least 64.
        max_shapes: largest number of shapes in an image, which has at least 1.
        crowd_share: share of images with a crowd: one box marked iscrowd around many shapes.
        empty_share: share of images without a box.
        hue_spread: degrees on either side of a category's hue; from 45 on the ranges overlap.
    """

    seed: int = 1
    width: int = 320
    height: int = 192
    max_shapes: int = 3
    crowd_share: float = 0.06
    empty_share: float = 0.06
    hue_spread: float = 60.0

    def check(self) -> None:
        """Raise a UserError if a size, a count or a share is out of range."""
        if min(self.width, self.height) < 64:
            raise UserError(f"image size {self.width}x{self.height}: expected 64x64 or more")
        if self.seed < 0 or self.max_shapes < 1:
            raise UserError("--seed must be 0 or more, --max_shapes 1 or more")
        if not 0 <= self.hue_spread <= 180:
            raise UserError(f"--hue_spread {self.hue_spread}: expected 0 to 180 degrees")
        if not (self.crowd_share >= 0 <= self.empty_share <= 1 - self.crowd_share):
            raise UserError("--crowd_share and --empty_share: expected 0 or more, 1 in sum at most")


def _polygon(name: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the corners, (n, 2) int32, of a category's shape that fills `box` = x, y, w, h."""
    unit = {
        "book": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "pizza": [(0.5, 0), (1, 1), (0, 1)],
        "airplane": [
            (1 / 3, 0), (2 / 3, 0), (2 / 3, 1 / 3), (1, 1 / 3), (1, 2 / 3), (2 / 3, 2 / 3),
            (2 / 3, 1), (1 / 3, 1), (1 / 3, 2 / 3), (0, 2 / 3), (0, 1 / 3), (1 / 3, 1 / 3),
        ],
        "sports ball": [
            (0.5 + 0.5 * np.cos(a), 0.5 + 0.5 * np.sin(a)) for a in np.arange(48) * np.pi / 24
        ],
    }[name]  # fmt: skip
    x, y, w, h = box
    return np.rint(np.array(unit) * (w - 1, h - 1) + (x, y)).astype(np.int32)


def _colour(name: str, spread: float, rng: np.random.Generator) -> tuple[int, int, int]:
    hue = (CATEGORIES[name][1] + rng.uniform(-spread, spread)) % 360
    hsv = np.array([[[hue / 2, rng.uniform(150, 255), rng.uniform(150, 255)]]])
    blue, green, red = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def _draw_shape(
    image: np.ndarray,
    name: str,
    box: tuple[int, int, int, int],
    spread: float,
    rng: np.random.Generator,
) -> None:
    """Draw one shape of a category, filled or as an outline that stays within `box`."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [_polygon(name, box)], 1)
    if rng.random() < OUTLINED:
        width = int(rng.integers(4, 8))
        mask -= cv2.erode(mask, np.ones((2 * width + 1, 2 * width + 1), np.uint8))
    image[mask > 0] = _colour(name, spread, rng)


def _background(plan: DrawingPlan, rng: np.random.Generator) -> np.ndarray:
    level = rng.uniform(70, 180) + rng.uniform(-20, 20, 3)  # greyish, so that shapes stand out
    noise = rng.normal(0, rng.uniform(8, 24), (plan.height, plan.width, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def _free_box(
    taken: list[tuple[int, int, int, int]], plan: DrawingPlan, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Return a box x, y, w, h that touches none of `taken`; None if twenty tries find no room."""
    largest = min(SHAPE_SIDE[1], min(plan.width, plan.height) // 2)
    for _ in range(20):
        side = rng.integers(SHAPE_SIDE[0], largest + 1)
        w, h = (int(max(side * rng.uniform(0.75, 1.0), SHAPE_SIDE[0])) for _ in range(2))
        x, y = int(rng.integers(0, plan.width - w)), int(rng.integers(0, plan.height - h))
        if all(x > a + c or a > x + w or y > b + d or b > y + h for a, b, c, d in taken):
            return x, y, w, h
    return None


def _draw_crowd(
    image: np.ndarray,
    name: str,
    box: tuple[int, int, int, int],
    spread: float,
    rng: np.random.Generator,
) -> None:
    """Fill `box` up to its edges with small shapes of one category."""
    x, y, w, h = box
    side = CROWD_SHAPE_SIDE
    for top in np.linspace(y, y + h - side, max(2, h // (side + 4))).astype(int):
        for left in np.linspace(x, x + w - side, max(2, w // (side + 4))).astype(int):
            cv2.fillPoly(
                image, [_polygon(name, (left, top, side, side))], _colour(name, spread, rng)
            )


def draw_image(plan: DrawingPlan, part: int, number: int) -> tuple[np.ndarray, list[dict]]:
    """Draw image `number` of a part, (height, width, 3) uint8 BGR; return it and annotations.

    The annotations have no ids. Boxes are tight: x, y, w, h of the pixels that the shape covers.
    """
    rng = np.random.default_rng([plan.seed, part, number])
    image = _background(plan, rng)
    annotations: list[dict[str, Any]] = []
    kind = rng.random()
    if kind < plan.empty_share:
        return image, annotations
    taken: list[tuple[int, int, int, int]] = []
    for place in range(int(rng.integers(1, plan.max_shapes + 1))):
        box = _free_box(taken, plan, rng)
        if box is None:
            continue
        taken.append(box)
        name = str(rng.choice(list(CATEGORIES)))
        crowd = place == 0 and kind < plan.empty_share + plan.crowd_share
        (_draw_crowd if crowd else _draw_shape)(image, name, box, plan.hue_spread, rng)
        annotations.append(
            {
                "category_id": CATEGORIES[name][0],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(crowd),
            }
        )
    return image, annotations


@dataclass(frozen=True)
class Kind:
    """What a data set shows.

    Attributes:
        plan: the default parameters.
        draw: draws an image, like `draw_image`.
        categories: name -> id.
        words: what is in the images, for the json.
        file_name: returns the name of image `number`.
    """

    plan: DrawingPlan
    draw: Callable[[DrawingPlan, int, int], tuple[np.ndarray, list[dict]]]
    categories: dict[str, int]
    words: str
    file_name: Callable[[int], str]


SHAPES = Kind(
    plan=DrawingPlan(),
    draw=draw_image,
    categories={name: id_ for name, (id_, _) in CATEGORIES.items()},
    words="shapes",
    file_name="{:012d}.jpg".format,
)


def draw_part(
    plan: DrawingPlan, root: Path, data_type: str, part: int, count: int, kind: Kind = SHAPES
) -> dict:
    """Draw `count` images into root/data_type and write root/annotations/instances_<type>.json.

    Args:
        part: distinguishes the parts of one seed; the training set is 0, the validation set 1.
        kind: what is drawn.

    Returns:
        The content of the json.

    Raises:
        OSError: a file cannot be written; names the file.
    """
    folder = root / data_type
    folder.mkdir(parents=True)
    coco: dict[str, Any] = {
        "info": {"description": f"{kind.words} drawn with seed {plan.seed}"},
        "images": [],
        "annotations": [],
        "categories": [{"id": id_, "name": name} for name, id_ in kind.categories.items()],
    }
    for number in progress(range(1, count + 1), f"drawing {data_type}", "image"):
        image, annotations = kind.draw(plan, part, number)
        name = kind.file_name(number)
        # Not cv2.imwrite, which does not notice a full disk.
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        write_whole(folder / name, jpeg.tobytes())
        size = {"width": plan.width, "height": plan.height}
        coco["images"].append({"id": number, "file_name": name, **size})
        for annotation in annotations:
            ids = {"id": len(coco["annotations"]) + 1, "image_id": number}
            coco["annotations"].append({**ids, **annotation})
    labels = root / "annotations" / f"instances_{data_type}.json"
    labels.parent.mkdir(exist_ok=True)
    write_whole(labels, json.dumps(coco))
    return coco
