"""Images with their ground truth (solid) and detections (dashed) drawn on them."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from src.data.image_check import MAX_PIXELS, BrokenImageError, image_header, rgb_image
from src.errors import UserError
from src.files import write_whole
from src.reporting.detection_results import Box, LabelledPicture
from src.reporting.plot_style import any_language, colour

PANEL_INCHES = 5.0  # the longer side of an image on the figure
DPI = 120
SHEET = "contact_sheet.png"
PART_BYTES = 90  # of a name, which may have 255
SHEET_WIDTH = 1800  # pixels
SHEET_COLUMNS = 2
MOST_BOXES = 40  # of one kind on an image; more hide each other
TITLE_INCHES = 0.45
LARGEST = 2 * MAX_PIXELS  # as Pillow: an image of so many pixels takes 0.5 GB


def draw_pictures(
    pictures: Sequence[LabelledPicture], out: Path, score: float, overlay: bool = False
) -> list[Path]:
    """Write a PNG for each picture, named by its image file and id, and contact_sheet.png.

    Args:
        pictures: at least one.
        score: the threshold of the detections, named in the titles.
        overlay: both kinds of boxes on one image; otherwise side by side.

    Raises:
        UserError: an image does not decode.
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
    """A PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


class PictureNames:
    """Names for the pictures of one folder; no two are the same, whatever the ids are."""

    def __init__(self) -> None:
        self._taken = {SHEET.casefold()}

    def name_of(self, picture: LabelledPicture) -> str:
        """A name of the image file's name and the image's id, with a number where it is taken."""
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
    """One image with its boxes, RGB.

    Raises:
        UserError: it does not decode.
    """
    image = _read_image(picture.path, picture.turned)
    with mpl.rc_context(any_language()):
        return _as_image(_figure_of(picture, image, score, overlay))


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """All images, scaled to the same width, in two columns on white."""
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
    """`text` without what matches `odd`, short enough for a file system."""
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
    """RGB as the detector sees it, turned by EXIF where its boxes are."""
    try:
        data = path.read_bytes()
        width, height = image_header(data, sys.maxsize).size
        if width * height > LARGEST:
            raise BrokenImageError(f"{width}x{height} pixels, and at most {LARGEST:,} are drawn")
        return rgb_image(data, turned)
    except (OSError, BrokenImageError) as error:
        raise UserError(f"{path}: cannot be read as a JPEG or PNG: {error}") from error


def _draw_box(axes: Axes, box: Box) -> None:
    """A frame with a white rim, and its class in a field of the same colour."""
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
    """x, y and alignment: above a labelled object, below a detection, inside at the image's rim."""
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
    """Black or white, by the luminance of `tone` (ITU-R BT.709)."""
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
    """Say once that names cannot be shown as they are written."""
    logging.getLogger(__name__).warning(
        "note: no installed font has all characters of the names, empty frames stand for them; "
        "install one (Debian: fonts-noto-cjk)"
    )
