"""Draw images with their ground truth and detections, so that errors show without colours.

Lines and text have the size that fits the drawn image. Every box is drawn. A tag with class and
score is left out where it would hide other boxes; colours, explained below the picture, tell then.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from src.data.image_check import MAX_PIXELS, BrokenImageError, image_header, rgb_image
from src.errors import UserError
from src.files import write_whole
from src.reporting.detections import FALSE, FOUND, MISSED, Box, LabelledPicture
from src.reporting.picture_tags import Area, place_tags
from src.reporting.plots import any_language, colour

SIDES = (800, 1600)  # pixels of a drawn image's longer side, least and most
DPI = 100
POINTS = 72 / DPI  # of a pixel
GAP = 8  # pixels between the drawn images
SHEET = "contact_sheet.png"
PART_BYTES = 90  # length limit for a name, which may have 255
SHEET_WIDTH = 2400  # pixels
SHEET_COLUMNS = 2
MOST_BOXES = 300  # of one kind on an image
LARGEST = 2 * MAX_PIXELS  # as in Pillow: an image of this many pixels takes 0.5 GB
CROWDED = 12  # more boxes have smaller tags
NUMEROUS = 6  # of more of a class only the unusual ones are named
TITLE_WIDTH = 26  # in heights of text
KEY = ("thick, ○: missed", "thick, ×: false detection", "thin: found")
MARKERS = {MISSED: ("o", 0.8), FALSE: ("X", 1.1)}  # and size, in heights of text


@dataclass(frozen=True)
class Panel:
    """Hold one drawn image of a picture and what stands above it."""

    image: Image.Image
    titles: tuple[str, ...]


def draw_pictures(
    pictures: Sequence[LabelledPicture], out: Path, score: float, overlay: bool = False
) -> list[Path]:
    """Write a PNG for each picture, named by its image file and id, and contact_sheet.png.

    Args:
        pictures: at least one.
        score: the threshold of the detections, named in the titles.
        overlay: draw both kinds of boxes on one image; otherwise next to each other.

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


def _file_part(text: str, odd: str) -> str:
    """Return `text` without what matches `odd`, short enough for a file system."""
    return re.sub(odd, "_", text).encode()[:PART_BYTES].decode(errors="ignore")


def picture_of(picture: LabelledPicture, score: float, overlay: bool = False) -> Image.Image:
    """Return one image with its boxes and what they mean, RGB.

    Raises:
        UserError: it cannot be decoded.
    """
    panels = panels_of(picture, score, overlay)
    width, height = panels[0].image.size
    font = _font_pixels(panels[0].image.size)
    # The text needs room, whatever the shape of the image.
    column = max(width, round(TITLE_WIDTH * font))
    whole = len(panels) * (column + GAP) - GAP
    name = textwrap.shorten(picture.path.name, int(whole / font), placeholder=" ...")
    legend = [(colour(number), text) for number, text in class_lines(picture)]
    key = [("", text) for text in KEY] if picture.truth is not None else []
    with _drawing():
        top = _text_strip(whole, font, [[("", name)]])
        above = [_text_strip(column, font, [[("", t) for t in p.titles]]) for p in panels]
        below = _text_strip(whole, font, [legend, key])
    begin = top.height + max(strip.height for strip in above)
    sheet = Image.new("RGB", (whole, begin + height + below.height), "white")
    sheet.paste(top, (0, 0))
    for number, (panel, strip) in enumerate(zip(panels, above)):
        x = number * (column + GAP)
        sheet.paste(strip, (x, top.height))
        sheet.paste(panel.image, (x, begin))
    sheet.paste(below, (0, begin + height))
    return sheet


def panels_of(picture: LabelledPicture, score: float, overlay: bool = False) -> list[Panel]:
    """Return the drawn images of a picture: ground truth and detections, or both on one.

    Raises:
        UserError: it cannot be decoded.
    """
    image = _read_image(picture.path, picture.turned)
    truth, found = picture.truth or [], picture.detections
    labelled, detected = _titles(picture, score)
    with _drawing():
        if picture.truth is None:
            return [Panel(_drawn(image, found), (detected,))]
        if overlay:
            # A found object has the tag of its detection.
            quiet = frozenset(id(box) for box in truth if box.outcome == FOUND)
            both = _drawn(image, [*truth, *found], quiet)
            return [Panel(both, (f"solid: {labelled}", f"dashed: {detected}"))]
        return [Panel(_drawn(image, truth), (labelled,)), Panel(_drawn(image, found), (detected,))]


def class_lines(picture: LabelledPicture) -> list[tuple[int, str]]:
    """Return each class of a picture and its line: "RBC: 14 found, 3 missed, 2 false"."""
    counts = Counter((box.category, box.outcome, box.score is None) for box in picture.boxes)
    lines = []
    for number, name in sorted({(box.category, box.name) for box in picture.boxes}):
        if picture.truth is None:
            lines.append((number, f"{name}: {counts[number, '', False]} detected"))
            continue
        found, missed = counts[number, FOUND, True], counts[number, MISSED, True]
        false = counts[number, FALSE, False]
        lines.append((number, f"{name}: {found} found, {missed} missed, {false} false"))
    return lines


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange all images, scaled to the same longer side, in two columns on white."""
    columns = min(SHEET_COLUMNS, len(images))
    width = SHEET_WIDTH // SHEET_COLUMNS
    scaled = [_resized(image, width) for image in images]
    rows = [scaled[i : i + columns] for i in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    y = 0
    for row, height in zip(rows, heights):
        for column, image in enumerate(row):
            sheet.paste(image, (column * width, y))
        y += height
    return sheet


def _resized(image: Image.Image, longer: int) -> Image.Image:
    width, height = image.size
    most = max(image.size)
    return image.resize((max(1, width * longer // most), max(1, height * longer // most)))


def _titles(picture: LabelledPicture, score: float) -> tuple[str, str]:
    """Return a line about the labelled objects and one about the detections."""
    outcomes = Counter((box.outcome, box.score is None) for box in picture.boxes)
    truth, found = len(picture.truth or []), len(picture.detections)
    labelled = f"{truth} labelled: {outcomes[FOUND, True]} found, {outcomes[MISSED, True]} missed"
    detected = f"{found} detected, score ≥ {score:g}"
    if picture.truth is not None:
        detected += f": {outcomes[FOUND, False]} right, {outcomes[FALSE, False]} false"
    limits = [f", {MOST_BOXES} drawn" if count > MOST_BOXES else "" for count in (truth, found)]
    return labelled + limits[0], detected + limits[1]


def _drawn(
    image: Image.Image, boxes: Sequence[Box], quiet: frozenset[int] = frozenset()
) -> Image.Image:
    """Return an image with its boxes, errors on top; of each kind as many as are drawn at most.

    Args:
        quiet: ids of boxes that get no tag.
    """
    longer = max(image.size)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # One unit of the axes is a pixel of the drawn image.
    axes.imshow(image, extent=(0, size[0], size[1], 0), aspect="auto")
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    errors_first = sorted(boxes, key=lambda box: box.outcome not in MARKERS)
    kinds = [[box for box in errors_first if (box.score is None) is kind] for kind in (True, False)]
    chosen = [(box, _area(box, scale)) for kind in kinds for box in kind[:MOST_BOXES]]
    chosen.sort(key=lambda pair: pair[0].outcome not in MARKERS)
    line = max(size) / 450
    for box, area in reversed(chosen):
        _draw_frame(axes, box, area, line)
    font = _font_pixels(size) * (1.0 if len(chosen) <= CROWDED else 0.85)
    marks = [mark for box, area in chosen for mark in _draw_mark(axes, box, area, font)]
    tagged = [pair for pair in chosen if id(pair[0]) not in quiet]
    numerous = _numerous([box for box, _ in chosen])
    _draw_tags(
        axes, tagged, [_texts(box, box.category in numerous) for box, _ in tagged], marks, font
    )
    return _as_image(figure)


def _area(box: Box, scale: float) -> Area:
    (x, y), (width, height) = box.corner, box.size
    return Area(x * scale, y * scale, (x + width) * scale, (y + height) * scale)


def _font_pixels(size: tuple[int, int]) -> float:
    """Return the height of text on a drawn image of this size."""
    return max(12.0, min(0.02 * max(size), 0.05 * min(size)))


def _draw_frame(axes: Axes, box: Box, area: Area, line: float) -> None:
    """Draw a frame with a white rim: solid or, for a detection, dashed; thick for an error."""
    width, height = area.right - area.left, area.bottom - area.top
    line = line * (2 if box.outcome in MARKERS else 1)
    # On small objects a thick line would hide what it surrounds. Whole pixels are crisp.
    line = max(1, round(min(line, 0.1 * min(width, height))))
    dashes: Any = "solid" if box.score is None else (0, (4, 2))
    rim = line + 2 * max(1, round(0.5 * line))
    for tone, style, pixels in (("white", "solid", rim), (colour(box.category), dashes, line)):
        frame = Rectangle(
            (area.left, area.top), width, height, fill=False, edgecolor=tone, linestyle=style,
            linewidth=pixels * POINTS,
        )  # fmt: skip
        axes.add_patch(frame)


def _draw_mark(axes: Axes, box: Box, area: Area, font: float) -> Iterator[Area]:
    """Draw the mark of an error on the upper left corner of its frame; yield its place."""
    if box.outcome not in MARKERS:
        return
    marker, part = MARKERS[box.outcome]
    size = part * font
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    x = min(max(area.left, size / 2), right - size / 2)
    y = min(max(area.top, size / 2), bottom - size / 2)
    axes.plot(
        [x], [y], marker=marker, markersize=size * POINTS, linestyle="none",
        markerfacecolor="white", markeredgecolor="black", markeredgewidth=0.1 * font * POINTS,
    )  # fmt: skip
    yield Area(x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def _draw_tags(
    axes: Axes,
    boxes: Sequence[tuple[Box, Area]],
    texts: Sequence[Sequence[str]],
    taken: Sequence[Area],
    font: float,
) -> None:
    """Write one of its texts next to each frame, as far as there is room."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    whole = Area(0, 0, right, bottom)
    seen = [_clipped(area, whole) for _, area in boxes]
    renderer = RendererAgg(1, 1, DPI)
    fonts = FontProperties(size=font * POINTS)
    pad = 0.15 * font

    def size_of(text: str) -> tuple[float, float]:
        width, _, _ = renderer.get_text_width_height_descent(text, fonts, False)
        return width + 2 * pad, 1.1 * font + 2 * pad

    for number, tag in place_tags(seen, texts, size_of, whole, taken):
        tone = colour(boxes[number][0].category)
        place = tag.area
        size = (place.right - place.left, place.bottom - place.top)
        axes.add_patch(Rectangle((place.left, place.top), *size, facecolor=tone, edgecolor="none"))
        axes.text(
            place.left + pad, place.bottom - 0.3 * font - pad, tag.text, fontproperties=fonts,
            color=_readable_on(tone), verticalalignment="baseline", parse_math=False,
        )  # fmt: skip


def _numerous(boxes: Sequence[Box]) -> set[int]:
    """Return the classes with many boxes of a kind, where each class has a colour of its own."""
    counts = Counter((box.category, box.score is None) for box in boxes)
    classes = {category for category, _ in counts}
    if len({colour(category) for category in classes}) < len(classes):
        return set()
    return {category for (category, _), count in counts.items() if count > NUMEROUS}


def _texts(box: Box, short: bool) -> list[str]:
    """Return what the tag of a box may say, from the whole to the least.

    Args:
        short: where nothing is unusual about it, its colour tells the class.
    """
    usual = short and box.outcome not in MARKERS and not box.crowd
    name = f"{box.name} (crowd)" if box.crowd else box.name
    if box.score is None:
        full = [f"{name}, seen as {box.other}"] if box.other else []
        return [] if usual else [*full, name]
    score = f"{box.score:.2f}"
    full = [f"{name} {score}, is {box.other}"] if box.other else []
    return [score] if usual else [*full, f"{name} {score}", score]


def _clipped(area: Area, whole: Area) -> Area:
    """Return the part of a box that is on the image; at least its nearest pixel."""
    left, right = (min(max(x, 0.0), whole.right) for x in (area.left, area.right))
    top, bottom = (min(max(y, 0.0), whole.bottom) for y in (area.top, area.bottom))
    return Area(left, top, right, bottom)


def _text_strip(width: int, font: float, lines: Sequence[Sequence[tuple[str, str]]]) -> Image.Image:
    """Return lines of text on white, each of (colour, text) pairs that wrap; "" for no colour."""
    renderer = RendererAgg(1, 1, DPI)
    fonts = FontProperties(size=font * POINTS)
    placed: list[tuple[float, float, str, str]] = []
    y, gap, left = 0.3 * font, 1.5 * font, 0.3 * font
    for line in lines:
        x = left
        for tone, text in line:
            length = renderer.get_text_width_height_descent(text, fonts, False)[0]
            length += 1.1 * font if tone else 0
            if x > left and x + length > width:
                x, y = left, y + 1.4 * font
            placed.append((x, y, tone, text))
            x += length + gap
        y += 1.4 * font if line else 0
    height = max(1, round(y + 0.3 * font))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    for x, y, tone, text in placed:
        if tone:
            square = (x, y + 0.25 * font)
            axes.add_patch(Rectangle(square, 0.8 * font, 0.8 * font, facecolor=tone))
        start = x + 1.1 * font if tone else x
        axes.text(
            start,
            y + font,
            text,
            fontproperties=fonts,
            verticalalignment="baseline",
            parse_math=False,
        )
    return _as_image(figure)


def _readable_on(tone: str) -> str:
    """Return black or white, by the luminance of `tone` (ITU-R BT.709)."""
    red, green, blue = to_rgb(tone)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


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


def _as_image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Draw with fonts for any language, and say once where they lack characters."""
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(any_language()):
        warnings.simplefilter("always")
        yield
    if any("missing from font" in str(warning.message) for warning in caught):
        _note_missing_font()


@functools.cache
def _note_missing_font() -> None:
    """Report once that names cannot be shown as they are written."""
    logging.getLogger(__name__).warning(
        "note: no installed font has all characters of the names, empty frames stand for them; "
        "install one (Debian: fonts-noto-cjk)"
    )
