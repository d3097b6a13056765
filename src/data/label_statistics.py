"""Counts and histograms of labels: boxes by class and shape, objects of an image, image sizes.

They say what a configuration depends on, and hold no image, no file name and no coordinate. Sizes
and ratios are counted in bins, whose widths are fractions of a power of two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.coco import image_files, image_folder, image_folders, read_coco, size_of
from src.data.coco_boxes import boxes_by_image, match_ids, rows_within, some
from src.data.image_check import BrokenImageError, image_header, peek
from src.data.labels.convert import class_names
from src.data.labels.files import alike, files_below
from src.data.labels.source import Source
from src.data.labels.voc import read_voc
from src.data.labels.yolo import read_yolo
from src.data.mindrecord import BASE_NAME, check_mindrecord, written_classes
from src.errors import UserError
from src.model_utils.config import load_config

FORMATS = ("coco", "voc", "yolo", "mindrecord")
SIDE_STEP = 32  # pixels: sides of images are rounded up to multiples
# Bins of a doubling, and the outermost bin.
SIZE_STEPS, SMALLEST_SIZE = 8, -128
ASPECT_STEPS, LARGEST_ASPECT = 8, 64
RATIO_STEPS, LARGEST_RATIO = 4, 32
MOST_CLASSES, LONGEST_NAME = 2000, 200
BACKGROUND = "background"


class Shape(NamedTuple):
    """The bins of a box, see `LabelStatistics`."""

    aspect: int
    size: int
    ratio: int


@dataclass
class LabelStatistics:
    """What labels look like in numbers.

    Attributes:
        classes: names of the classes, without the background.
        image_sizes: (width, height), rounded up to multiples of `SIDE_STEP` -> number of images.
        objects: number of objects, without crowds -> number of images with so many.
        boxes: (class, shape) -> number of objects. A shape has three bins: the image's width
            divided by its height; the square root of the box's area divided by the image's longer
            side; the box's height divided by its width.
    """

    classes: list[str]
    image_sizes: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)
    boxes: Counter = field(default_factory=Counter)

    def add_image(self, size: tuple[int, int], rows: np.ndarray) -> None:
        """Count an image.

        Args:
            size: (width, height) in pixels.
            rows: (n, 6) x1, y1, x2, y2, class from 1, iscrowd, within the image.
        """
        width, height = size
        objects = rows[rows[:, 5] == 0]
        self.image_sizes[rounded_side(width), rounded_side(height)] += 1
        self.objects[len(objects)] += 1
        aspect = _bin(width / height, ASPECT_STEPS, -LARGEST_ASPECT, LARGEST_ASPECT)
        for x1, y1, x2, y2, number, _ in objects.tolist():
            across, down = x2 - x1, y2 - y1
            share = math.sqrt(across * down) / max(size)
            shape = Shape(
                aspect,
                _bin(share, SIZE_STEPS, SMALLEST_SIZE, 0),
                _bin(down / across, RATIO_STEPS, -LARGEST_RATIO, LARGEST_RATIO),
            )
            self.boxes[self.classes[int(number) - 1], shape] += 1

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(self.objects.values())

    def by_class(self) -> dict[str, int]:
        """Return class -> number of its objects, in the order of the classes."""
        counts: Counter = Counter()
        for (name, _), count in self.boxes.items():
            counts[name] += count
        return {name: counts[name] for name in self.classes}


def rounded_side(side: float) -> int:
    """Return a side in pixels, rounded up to a multiple of `SIDE_STEP`."""
    return max(1, math.ceil(side / SIDE_STEP)) * SIDE_STEP


def _bin(value: float, steps: int, lowest: int, highest: int) -> int:
    return min(max(round(math.log2(value) * steps), lowest), highest)


def merged(parts: Sequence[LabelStatistics]) -> LabelStatistics:
    """Return the statistics of all labels together.

    The classes are those of all parts. Where one list has all of them its order is kept, unless
    another one has them all in another order; otherwise they are sorted. So the result does not
    depend on the order of the parts.

    Raises:
        UserError: two names differ only in case or Unicode form.
    """
    names = {name for part in parts for name in part.classes}
    require_usable_names(sorted(names), "the silos' classes together")
    whole = {tuple(part.classes) for part in parts if set(part.classes) == names}
    total = LabelStatistics(list(whole.pop()) if len(whole) == 1 else sorted(names))
    for part in parts:
        total.image_sizes.update(part.image_sizes)
        total.objects.update(part.objects)
        total.boxes.update(part.boxes)
    return total


def require_usable_names(names: Sequence[object], where: Path | str) -> None:
    """Check the names of classes, without the background.

    Raises:
        UserError: one cannot be a class, or two are alike.
    """
    if not 1 <= len(names) <= MOST_CLASSES:
        raise UserError(f"{where}: {len(names)} classes, expected 1 to {MOST_CLASSES}")
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
            raise UserError(
                f"{where}: the class name {name!r:.80} is no text of 1 to {LONGEST_NAME} characters"
            )
        if not name.isprintable() or name != name.strip() or alike(name) == BACKGROUND:
            raise UserError(
                f"{where}: the class name {name!r} has control characters, a space at an end, or "
                "is the background's; rename it in the labels"
            )
        other = seen.setdefault(alike(name), name)
        if other is not name:
            difference = "occurs twice" if other == name else f"differs from {other!r} in case only"
            raise UserError(
                f"{where}: the class name {name!r} {difference}; agree on one and rename the other "
                "in the labels"
            )


def read_statistics(
    path: Path,
    kind: str = "",
    splits: str = "",
    image_dir: str = "",
    difficult: str = "ignore",
    columns: str = "auto",
) -> tuple[LabelStatistics, list[str]]:
    """Read labels of one silo; return their statistics, and remarks for the user.

    Args:
        path: a COCO json, the folder of VOC or YOLO labels, or a MindRecord file or its folder.
        kind: one of `FORMATS`; "" is what `path` looks like.
        splits: VOC and YOLO: the splits to read; "" is one, train, trainval or all.
        image_dir: COCO: the images' folder; only read if the json lacks sizes of images.
        difficult, columns: see `read_voc` and `read_yolo`.

    Raises:
        UserError: the labels cannot be read, a class name is unusable, or there is no object.
    """
    kind = kind or kind_of(path)
    notes: Counter = Counter()
    lines: list[str] = []
    if kind == "coco":
        found = _from_coco(path, image_dir, notes)
    elif kind == "mindrecord":
        found = _from_mindrecord(path, notes)
    else:
        is_voc = kind == "voc"
        source = read_voc(path, splits, difficult) if is_voc else read_yolo(path, splits, columns)
        used = [name for name, images in source.splits.items() if images]
        used = used if splits else used[:1]
        found = _from_source(source, used, path, notes)
        lines = [f"splits that were read: {', '.join(used)}", *source.notes.lines()]
    if not found.boxes:
        why = "; ".join([f"{count} boxes {what}" for what, count in notes.items()] + lines)
        raise UserError(
            f"{path}: no object in the labels of {found.images} images{': ' * bool(why)}{why}; "
            "give the labels that the silo trains on"
        )
    lines += [f"{count} boxes {what}" for what, count in notes.items()]
    empty = [name for name, count in found.by_class().items() if not count]
    return found, lines + ([f"classes without an object: {some(empty)}"] if empty else [])


def kind_of(path: Path) -> str:
    """Return the format that a path looks like.

    Raises:
        UserError: there is nothing.
    """
    if not path.exists():
        raise UserError(
            f"--source {path}: not there; give a COCO json, a folder of VOC or YOLO labels, or a "
            "MindRecord's folder"
        )
    if path.is_file():
        return "mindrecord" if ".mindrecord" in path.name else "coco"
    if (path / BASE_NAME).exists():
        return "mindrecord"
    return "voc" if files_below(path, (".xml",)) else "yolo"


def _from_coco(path: Path, image_dir: str, notes: Counter) -> LabelStatistics:
    coco = read_coco(path)
    names = [entry["name"] for entry in coco["categories"]]
    require_usable_names(names, path)
    found = LabelStatistics(names)
    match_ids(coco, notes)
    boxes = boxes_by_image(coco, [BACKGROUND, *names], notes)
    sizes = [size_of(entry) for entry in coco["images"]]
    if None in sizes:
        folders = image_folders(load_config(image_dir=image_dir), path, coco.get("info"))
        files = image_files(coco, image_folder(coco, folders, path), path)
        headers = (None if size else peek(file) for size, file in zip(sizes, files))
        sizes = [header.size if header else size for size, header in zip(sizes, headers)]
    for entry, size in zip(coco["images"], sizes):
        array = np.array(boxes[entry["id"]], np.float64).reshape(-1, 6)
        if size is None:
            notes["of images without a size in the labels or their file, left out"] += len(array)
        else:
            found.add_image(size, rows_within(array, size, notes))
    return found


def _from_source(
    source: Source, splits: Sequence[str], path: Path, notes: Counter
) -> LabelStatistics:
    names = class_names(source, [])
    require_usable_names(names, path)
    number = {name: place for place, name in enumerate(names, 1)}
    found = LabelStatistics(names)
    for image in (image for split in splits for image in source.splits[split]):
        rows = [[*box.corners, number[box.name], box.crowd] for box in image.boxes]
        array = np.array(rows, np.float64).reshape(-1, 6)
        found.add_image(image.size, rows_within(array, image.size, notes))
    return found


def _from_mindrecord(path: Path, notes: Counter) -> LabelStatistics:
    file = path / BASE_NAME if path.is_dir() else path
    check_mindrecord(file)
    classes = written_classes(file)
    if classes is None:
        raise UserError(f"{file}: does not hold its class list; give the labels it was made from")
    require_usable_names(classes[1:], file)
    found = LabelStatistics(classes[1:])
    for image, rows in _mindrecord_rows(file):
        try:
            size = image_header(image, max_pixels=2**31).size
        except BrokenImageError:
            notes["of images that cannot be read, left out"] += len(rows)
            continue
        unknown = (rows[:, 4] < 1) | (rows[:, 4] >= len(classes))
        strange = unknown & (rows[:, 5] == 0)
        if strange.any():
            notes["of numbers that are not in the class list, left out"] += int(strange.sum())
        found.add_image(size, rows_within(rows[~unknown].astype(np.float64), size, notes))
    return found


def _mindrecord_rows(file: Path) -> Iterable[tuple[bytes, np.ndarray]]:
    # Imported late: MindSpore's import takes seconds.
    import mindspore.dataset as ds

    data = ds.MindDataset(
        str(file), columns_list=["image", "annotation"], num_parallel_workers=1, shuffle=False
    )
    for row in data.create_dict_iterator(num_epochs=1, output_numpy=True):
        yield row["image"].tobytes(), row["annotation"]
