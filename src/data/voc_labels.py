"""Labels of Pascal VOC: an XML file for each image, lists of images in ImageSets/Main.

Format: M. Everingham, J. Winn, The PASCAL Visual Object Classes Challenge 2012 Development Kit,
section 4. Pixels count from 1 and xmax, ymax are inside the box.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from src.data.image_check import SUFFIXES
from src.data.label_source import (
    Frame,
    NamedBox,
    Source,
    SourceImage,
    chosen_splits,
    frame_of,
    image_paths,
    read_text,
)
from src.errors import UserError
from src.progress import progress

LARGEST = 10 * 2**20  # bytes of an XML file
DIFFICULT = ("ignore", "keep", "drop")


def read_voc(
    folder: Path, splits: str = "", difficult: str = "ignore", first_pixel: int = 1
) -> Source:
    """The labels of a VOC folder: Annotations, JPEGImages, ImageSets/Main, or all in one.

    Args:
        folder: like VOCdevkit/VOC2012.
        splits: names in ImageSets/Main with commas; "" takes train, val and test where they are
            there. Without ImageSets/Main all images are the split "all".
        difficult: what objects become that are marked so: "ignore" a crowd, that is neither
            trained on nor counted, as VOC does; "keep"; "drop".
        first_pixel: 1 as VOC counts; 0 for programs that write VOC's XML but count from 0.

    Raises:
        UserError: no such folder or split, no image, or a file that is not VOC's.
    """
    if not folder.is_dir():
        raise UserError(f"--source {folder}: no such folder; give the one with Annotations in it")
    reader = _Reader(folder, difficult, first_pixel)
    lists = folder / "ImageSets" / "Main"
    there = sorted(path.stem for path in lists.glob("*.txt"))
    if not there:
        if splits:
            raise UserError(f"--splits {splits}: {lists} has no lists of images")
        found = reader.annotations.rglob("*.xml")
        everything = {_name_in(reader.annotations, path) for path in found} | set(reader.images)
        reader.source.splits["all"] = reader.read(sorted(everything), "all")
    for name in chosen_splits(there, splits, ("train", "val", "test"), lists) if there else ():
        listed = read_text(lists / f"{name}.txt", "the list of images").splitlines()
        # Lists of one class have 1, 0 or -1 behind the name.
        names = [re.sub(r"\s+-?[01]\s*$", "", line).strip() for line in listed if line.strip()]
        reader.source.splits[name] = reader.read(names, name)
    if not any(reader.source.splits.values()):
        raise UserError(f"--source {folder}: no JPEG or PNG that its lists or XML files name")
    return reader.source


class _Reader:
    """Reads the images of one folder; `source` gathers."""

    def __init__(self, folder: Path, difficult: str, first_pixel: int):
        self.source = Source()
        self.annotations = _first_folder(folder, "Annotations", "annotations")
        self._folder = _first_folder(folder, "JPEGImages", "images", "Images")
        found = image_paths(self._folder, self.source.notes)
        self.images = {_name_in(self._folder, path): path for path in found}
        self._difficult = difficult
        self._first_pixel = first_pixel

    def read(self, names: list[str], split: str) -> list[SourceImage]:
        """The images of these names; what is missing or broken is counted."""
        notes, found = self.source.notes, []
        for name in progress(names, split, "image"):
            xml = self.annotations / f"{name}.xml"
            root = read_xml(xml) if xml.is_file() else None
            path = self._image(name, root)
            frame = frame_of(path) if path else None
            if path is None:
                notes.add("images that are listed and not there, left out", xml)
            elif frame is None:
                notes.add("broken images, left out", path)
            else:
                if root is None:
                    notes.add("images without an XML file, taken as images without a box", path)
                boxes = [] if root is None else list(self._boxes(root, xml, frame, path))
                found.append(SourceImage(path, frame.size, boxes))
        return found

    def _image(self, name: str, root: Element | None) -> Path | None:
        """The image of an entry: by the name in the list, else by that in the XML file."""
        if name in self.images:
            return self.images[name]
        said = "" if root is None else (root.findtext("filename") or "").strip()
        named = [self._folder / f"{name}{end}" for end in SUFFIXES]
        if said.lower().endswith(SUFFIXES):
            named.append(self._folder / Path(said).name)
        return next((path for path in named if path.is_file()), None)

    def _boxes(self, root: Element, xml: Path, frame: Frame, path: Path) -> Iterator[NamedBox]:
        said = tuple(_side(root, side) for side in ("width", "height"))
        turn = _is_as_shown(said, frame)
        if turn:
            self.source.notes.add("images that EXIF turns, their boxes turned back", path)
        elif 0 not in said and said != frame.size:
            self.source.notes.add("images of another size than their XML file says", path)
        for number, entry in enumerate(root.findall("object"), 1):
            box = self._box(entry, f"{xml}: object {number}")
            if box is None:
                self.source.notes.add("difficult boxes, dropped", xml)
                continue
            if box.crowd:
                self.source.notes.add("difficult boxes, marked iscrowd: not trained on", xml)
            yield box._replace(corners=frame.stored(box.corners)) if turn else box

    def _box(self, entry: Element, where: str) -> NamedBox | None:
        """The box of one <object>; None of one that is to be dropped."""
        name = (entry.findtext("name") or "").strip()
        bounds = entry.find("bndbox")
        if not name or bounds is None:
            raise UserError(f"{where} has no {'name' if not name else 'bndbox'}, expected both")
        x1, y1, x2, y2 = (_number(bounds, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        first = self._first_pixel
        # Pixel n, counted from 1, ends at n. From 0 such programs write x + width.
        corners = (x1 - first, y1 - first, x2, y2)
        flags = {key: 1 for key in ("difficult", "truncated") if _flag(entry, key)}
        if "difficult" in flags and self._difficult == "drop":
            return None
        crowd = "difficult" in flags and self._difficult == "ignore"
        return NamedBox(corners, name, crowd, flags)


def _first_folder(folder: Path, *names: str) -> Path:
    """The first of these in `folder` that is there, else `folder` itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _name_in(folder: Path, path: Path) -> str:
    """The name of an entry: its path in `folder`, without the suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _is_as_shown(said: tuple[int, ...], frame: Frame) -> bool:
    """Whether the boxes count in the image as it is shown: unless the size says the contrary."""
    return frame.orientation != 1 and not (said == frame.size != frame.shown)


def _side(root: Element, side: str) -> int:
    text = root.findtext(f"size/{side}") or "0"
    return int(text) if text.strip().isdecimal() else 0


def _number(bounds: Element, key: str, where: str) -> float:
    text = bounds.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {key} is {text!r}, expected a number of pixels")
    return value


def _flag(entry: Element, key: str) -> bool:
    return (entry.findtext(key) or "0").strip() not in ("", "0")


def read_xml(path: Path) -> Element:
    """The root of an XML file. A document type, and so any entity of its own, is refused unread.

    Raises:
        UserError: it cannot be read, is too large, declares a type, or is no XML.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> int:
        raise UserError(
            f"{path}: declares a document type or entities, which labels have no need of; remove "
            "the declaration"
        )

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name, attributes)
    parser.EndElementHandler = lambda name: builder.end(name)
    parser.CharacterDataHandler = lambda text: builder.data(text)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: more than {LARGEST // 2**20} MiB, no labels of one image")
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not valid XML: {error}") from error
    return builder.close()
