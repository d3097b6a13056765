"""Draw ground truth and detections side by side, from a COCO JSON and a COCO result JSON."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import math
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from src.data.coco import image_folder, image_folders, read_coco, size_of
from src.data.image_check import MAX_PIXELS, BrokenImageError, image_header, peek, rgb_image
from src.data.image_names import ImageFolder, is_image_file
from src.errors import UserError, user_path
from src.files import write_whole
from src.model_utils.config import load_config
from src.reporting.plots import any_language, colour

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class Box:
    """Describe one box.

    Attributes:
        category: index in the json's list of categories; chooses the colour.
        name: name of the category.
        corner: x, y of its upper left corner in pixels.
        size: width, height in pixels.
        score: 0 to 1; None for ground truth.
        crowd: the box is a group of objects (COCO's iscrowd).
    """

    category: int
    name: str
    corner: tuple[float, float]
    size: tuple[float, float]
    score: float | None = None
    crowd: bool = False


@dataclass
class LabelledPicture:
    """Describe an image file, its ground truth (None: unlabelled) and detections, best first.

    With `turned` the boxes are on the image as rotated by EXIF.
    """

    image_id: Any
    path: Path
    truth: list[Box] | None = field(default_factory=list)
    detections: list[Box] = field(default_factory=list)
    turned: bool = False


def read_pictures(
    json_path: Path,
    results_path: Path,
    image_dir: str,
    score: float,
    count: int,
    image_ids: Sequence[object] = (),
) -> list[LabelledPicture]:
    """Read the images to draw, with their boxes.

    Args:
        json_path: COCO json of the images and the ground truth.
        results_path: COCO result json: a list of image_id, category_id, bbox (x, y, width,
            height), score.
            image_dir: folder of the images; "" looks for them around the JSON.
            score: detections below it are left out.
            count: number of images, evenly spread over those that the results cover.
            image_ids: draw these images instead of `count`: their ids, as numbers or as text.

    Raises:
        UserError: a file is missing or not such a JSON, the two do not belong together, an image
            to be drawn is unknown or missing.
    """
    json_path = user_path(json_path).absolute()
    coco = read_coco(json_path)
    results = _read_results(user_path(results_path).absolute(), coco, json_path)
    evaluated = {entry["image_id"] for entry in results}
    pictures = _chosen(coco, json_path, count, image_ids, evaluated)
    folder = image_folder(coco, _folders(json_path, coco.get("info"), image_dir), json_path)
    finder = ImageFolder(folder)
    names = {entry["id"]: str(entry["file_name"]) for entry in coco["images"]}
    files = {id_: _file_of(finder, names[id_]) for id_ in pictures}
    found = {id_: LabelledPicture(id_, files[id_]) for id_ in pictures}
    _require_files(list(found.values()))
    for entry in coco["images"]:
        header = peek(files[entry["id"]]) if entry["id"] in found else None
        if header is not None:
            found[entry["id"]].turned = header.drawn_as_shown(size_of(entry))
    _add_boxes(found, coco, results, score)
    return list(found.values())


def _file_of(finder: ImageFolder, name: str) -> Path:
    found = finder.find(name)
    return found.path if found else finder.path / name


def _folders(json_path: Path, info: Any, image_dir: str) -> list[Path]:
    """Return folders where images may be; first by the JSON: val2017 for instances_val2017.

    File names alone are not enough: training and evaluation data may use the same ones.
    """
    config = load_config(image_dir=image_dir)
    found = [f for train in (True, False) for f in image_folders(config, json_path, info, train)]
    named = json_path.stem.rsplit("_", 1)[-1]
    return sorted(dict.fromkeys(found), key=lambda folder: folder.name != named)


def _read_results(path: Path, coco: dict[str, Any], json_path: Path) -> list[dict[str, Any]]:
    try:
        results = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(
            f"--results {path}: no such file; tools/evaluate.py --results writes one"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--results {path}: cannot be read as json: {error}") from error
    if not isinstance(results, list):
        raise UserError(
            f"--results {path}: a {type(results).__name__} where COCO's result format is a list "
            f"of objects with {', '.join(RESULT_KEYS)}"
        )
    for number, entry in enumerate(results):
        _check_result(entry, f"--results {path}: entry {number}")
    _require_known(results, coco, "image_id", "images", path, json_path)
    _require_known(results, coco, "category_id", "categories", path, json_path)
    return results


def _check_result(entry: Any, where: str) -> None:
    lacks = [k for k in RESULT_KEYS if not isinstance(entry, dict) or k not in entry]
    if lacks:
        raise UserError(f"{where}: has no '{lacks[0]}', expected {', '.join(RESULT_KEYS)}")
    if not _box_numbers(entry["bbox"]):
        raise UserError(f"{where}: bbox is {entry['bbox']!r:.60}, expected four finite numbers")
    if not _finite(entry["score"]):
        raise UserError(f"{where}: score is {entry['score']!r:.60}, expected a number")


def _require_known(
    results: list, coco: dict[str, Any], key: str, group: str, path: Path, json_path: Path
) -> None:
    """Raise a UserError where results have an id that the JSON does not have."""
    known = {entry["id"] for entry in coco[group]}
    odd = [entry[key] for entry in results if not _is_in(entry[key], known)]
    if odd:
        raise UserError(
            f"--results {path}: {len(odd)} of {len(results)} detections have another {key} than "
            f"the {group} of {json_path}, first {odd[0]!r:.60}; give the json that was "
            "evaluated"
        )


def _chosen(
    coco: dict[str, Any], json_path: Path, count: int, image_ids: Sequence[object], evaluated: set
) -> list[Any]:
    """Return the ids of the images to draw, in the requested order or that of the JSON.

    Images after the last one with a detection may not have been evaluated: they are not chosen.
    """
    ids = [entry["id"] for entry in coco["images"]]
    if image_ids:
        by_text: dict[str, list[Any]] = {}
        for id_ in ids:
            by_text.setdefault(str(id_), []).append(id_)
        unknown = [id_ for id_ in image_ids if str(id_) not in by_text]
        if unknown:
            raise UserError(
                f"--image_ids: {json_path} has no image with id {unknown[0]}; its {len(ids)} ids "
                f"begin with {', '.join(map(str, ids[:5]))}"
            )
        return list(dict.fromkeys(id_ for one in image_ids for id_ in by_text[str(one)]))
    ids = ids[: max((n for n, id_ in enumerate(ids, 1) if id_ in evaluated), default=len(ids))]
    count = min(count, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _require_files(pictures: list[LabelledPicture]) -> None:
    missing = [p for p in pictures if not is_image_file(p.path)]
    if missing:
        raise UserError(
            f"{missing[0].path}: no such image ({len(missing)} of the {len(pictures)} to draw are "
            "missing); set --image_dir to the folder that has them"
        )


def _add_boxes(
    found: dict[Any, LabelledPicture], coco: dict[str, Any], results: list, score: float
) -> None:
    index = {entry["id"]: number for number, entry in enumerate(coco["categories"])}
    names = {entry["id"]: str(entry["name"]) for entry in coco["categories"]}

    def box(entry: dict[str, Any], **more: Any) -> Box:
        x, y, width, height = (float(value) for value in entry["bbox"])
        id_ = entry["category_id"]
        return Box(index[id_], names[id_], (x, y), (width, height), **more)

    for entry in coco["annotations"]:
        usable = entry.get("category_id") in names and _box_numbers(entry.get("bbox"))
        truth = found[entry["image_id"]].truth if entry["image_id"] in found and usable else None
        if truth is not None:
            truth.append(box(entry, crowd=entry.get("iscrowd") in (1, True)))
    for entry in sorted(results, key=lambda entry: -entry["score"]):
        if entry["image_id"] in found and entry["score"] >= score:
            detections = found[entry["image_id"]].detections
            detections.append(box(entry, score=float(entry["score"])))


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _box_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_finite, bbox))


def _is_in(value: Any, known: set) -> bool:
    """Return whether a JSON value, which may be a list or an object, is in `known`."""
    return isinstance(value, (int, float, str)) and value in known


PANEL_INCHES = 5.0  # the longer side of an image in the figure
DPI = 120
SHEET = "contact_sheet.png"
PART_BYTES = 90  # length limit for a name, which may have 255
SHEET_WIDTH = 1800  # pixels
SHEET_COLUMNS = 2
MOST_BOXES = 40  # of one kind on an image; more would hide each other
TITLE_INCHES = 0.45
LARGEST = 2 * MAX_PIXELS  # as in Pillow: an image of this many pixels takes 0.5 GB


def draw_pictures(
    pictures: Sequence[LabelledPicture], out: Path, score: float, overlay: bool = False
) -> list[Path]:
    """Write a PNG for each picture, named by its image file and id, and contact_sheet.png.

    Args:
        pictures: at least one.
        score: the threshold of the detections, named in the titles.
        overlay: draw both kinds of boxes on one image; otherwise side by side.

    Raises:
        UserError: an image cannot be decoded.
    """
    names = PictureNames()
    paths, drawn = [], []
    for picture in pictures:
        image = picture_of(picture, score, overlay)
        paths.append(out / names.name_of(picture))
        save_picture(image, paths[-1])
        drawn.append(image)
    paths.append(out / SHEET)
    save_picture(contact_sheet(drawn), paths[-1])
    return paths


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG, completely or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


class PictureNames:
    """Give unique names to the pictures of one folder, whatever the ids are."""

    def __init__(self) -> None:
        self._taken = {SHEET.casefold()}

    def name_of(self, picture: LabelledPicture) -> str:
        """Return a name from the file name and image id, with a number where it is taken."""
        stem = _file_part(picture.path.stem, r"[^\w.-]+")
        id_ = _file_part(str(picture.image_id), r"[^\w-]+")
        name = f"{stem}_{id_}"
        numbers = itertools.count(2)
        free = f"{name}.png"
        while free.casefold() in self._taken:
            free = f"{name}_{next(numbers)}.png"
        self._taken.add(free.casefold())
        return free


def picture_of(picture: LabelledPicture, score: float, overlay: bool = False) -> Image.Image:
    """Return one image with its boxes, RGB.

    Raises:
        UserError: it cannot be decoded.
    """
    image = _read_image(picture.path, picture.turned)
    with mpl.rc_context(any_language()):
        return _as_image(_figure_of(picture, image, score, overlay))


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange all images, scaled to the same width, in two columns on white."""
    columns = min(SHEET_COLUMNS, len(images))
    width = SHEET_WIDTH // SHEET_COLUMNS
    scaled = [im.resize((width, max(1, im.height * width // im.width))) for im in images]
    rows = [scaled[i : i + columns] for i in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    y = 0
    for row, height in zip(rows, heights):
        for column, image in enumerate(row):
            sheet.paste(image, (column * width, y))
        y += height
    return sheet


def _figure_of(picture: LabelledPicture, image: Image.Image, score: float, overlay: bool) -> Figure:
    scale = PANEL_INCHES / max(image.size)
    panels = 1 if overlay or picture.truth is None else 2
    width, height = image.width * scale, image.height * scale
    figure = Figure(figsize=(panels * width, height + TITLE_INCHES))
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    # The images fill the figure below the lines of the titles.
    top = height / (height + TITLE_INCHES)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=top, wspace=0.02)
    for axes, title in zip(all_axes, _titles(picture, score, overlay)):
        axes.imshow(image, extent=(0, image.width, image.height, 0))
        axes.set_axis_off()
        axes.set_title(title, fontsize=9, parse_math=False)
    for box in (picture.truth or [])[:MOST_BOXES]:
        _draw_box(all_axes[0], box)
    for box in reversed(picture.detections[:MOST_BOXES]):
        _draw_box(all_axes[-1], box)
    return figure


def _file_part(text: str, odd: str) -> str:
    """Return `text` without what matches `odd`, short enough for a file system."""
    return re.sub(odd, "_", text).encode()[:PART_BYTES].decode(errors="ignore")


def _titles(picture: LabelledPicture, score: float, overlay: bool) -> list[str]:
    name = textwrap.shorten(picture.path.name, 50, placeholder=" ...")
    found = f"{_counted(len(picture.detections))} detected, score ≥ {score:g} (dashed)"
    if picture.truth is None:
        return [f"{name}\n{found}"]
    truth = f"{_counted(len(picture.truth))} labelled (solid)"
    return [f"{name}\n{truth}; {found}"] if overlay else [f"{name}\n{truth}", f"\n{found}"]


def _counted(count: int) -> str:
    return f"{count} ({MOST_BOXES} drawn)" if count > MOST_BOXES else f"{count}"


def _read_image(path: Path, turned: bool) -> Image.Image:
    """Read an image as RGB as the detector sees it, rotated by EXIF where its boxes are."""
    try:
        data = path.read_bytes()
        width, height = image_header(data, sys.maxsize).size
        if width * height > LARGEST:
            raise BrokenImageError(f"{width}x{height} pixels, and at most {LARGEST:,} are drawn")
        return rgb_image(data, turned)
    except (OSError, BrokenImageError) as error:
        raise UserError(f"{path}: cannot be read as a JPEG or PNG: {error}") from error


def _draw_box(axes: Axes, box: Box) -> None:
    """Draw a frame with a white rim, and its class in a field of the same colour."""
    style: Any = "solid" if box.score is None else (0, (4, 2))
    shape: dict[str, Any] = {"fill": False, "linestyle": style}
    axes.add_patch(Rectangle(box.corner, *box.size, edgecolor="white", linewidth=3.2, **shape))
    tone = colour(box.category)
    axes.add_patch(Rectangle(box.corner, *box.size, edgecolor=tone, linewidth=1.8, **shape))
    text = box.name if box.score is None else f"{box.name} {box.score:.2f}"
    x, y, horizontal, vertical = _label_place(axes, box)
    axes.text(
        x,
        y,
        f"{text} (crowd)" if box.crowd else text,
        fontsize=7,
        color=_readable_on(tone),
        horizontalalignment=horizontal,
        verticalalignment=vertical,
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": tone, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
    )


def _label_place(axes: Axes, box: Box) -> tuple[float, float, str, str]:
    """Return x, y, alignment: above ground truth, below a detection, inside at the image's edge."""
    left, right = sorted(axes.get_xlim())
    top, bottom = sorted(axes.get_ylim())
    line = (right - left + bottom - top) * 0.03
    x, to_right = box.corner[0], box.corner[0] > left + 0.75 * (right - left)
    x = min(x + box.size[0], right) if to_right else max(x, left)
    horizontal = "right" if to_right else "left"
    if box.score is None:
        y = min(max(box.corner[1], top), bottom)
        return x, y, horizontal, "bottom" if y - top > line else "top"
    y = min(max(box.corner[1] + box.size[1], top), bottom)
    return x, y, horizontal, "top" if bottom - y > line else "bottom"


def _readable_on(tone: str) -> str:
    """Return black or white, by the luminance of `tone` (ITU-R BT.709)."""
    red, green, blue = to_rgb(tone)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


def _as_image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=DPI)
    if any("missing from font" in str(warning.message) for warning in caught):
        _note_missing_font()
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


@functools.cache
def _note_missing_font() -> None:
    """Report once that names cannot be shown as they are written."""
    logging.getLogger(__name__).warning(
        "note: no installed font has all characters of the names, empty frames stand for them; "
        "install one (Debian: fonts-noto-cjk)"
    )
