"""Labels of YOLO: a text file for each image, `class x y width height` as parts of the image.

Format: https://docs.ultralytics.com/datasets/detect. x, y are the middle of the box; the image is
taken as it is shown, turned by its EXIF orientation. A polygon becomes the box around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from src.data.image_check import OTHER_SUFFIXES, Corners, ImageHeader
from src.data.label_files import alike, files_below, folders_of, read_text
from src.data.label_source import (
    NamedBox,
    Source,
    SourceImage,
    chosen_splits,
    header_or_note,
)
from src.data.yolo_folder import NAMES, YoloFolder, read_folder
from src.data.yolo_lines import Line, LineKinds, edges_of, parse_line
from src.errors import UserError
from src.progress import progress

SEEN_PIXELS = 0.5  # what is cut off a box at the image's edge and is counted
NUMBERS = re.compile(r"\s*\d+(\.0*)?(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE | re.MULTILINE)


def read_yolo(folder: Path, splits: str = "", columns: str = "auto") -> Source:
    """The labels of a YOLO folder: data.yaml, or a list of classes with images and labels.

    Args:
        folder: with data.yaml (names, train, val, test) in it; without one, with classes.txt or
            obj.names, and as splits the lists train.txt, valid.txt or the folders of such names.
        splits: names with commas; "" takes train, val and test where they are there. Without
            splits all images are the split "all".
        columns: "box": every line begins with x y width height, what follows is ignored;
            "polygon": what is more than a box is corners; "auto": by how the lines look.

    Raises:
        UserError: no such folder, no names of classes, no image, or files that are not YOLO's, all
            of them.
    """
    source = Source()
    found = read_folder(folder, source.notes)
    source.names, places = found.names, found.places
    labels = _Labels(found, source, columns)
    there = list(places.of_split)
    for name in chosen_splits(there, splits, found.said_by) if there else ():
        labels.add(name, places.images(name, is_asked=bool(splits)))
    places.note_others(splits)
    found.images.note_respelled(source.notes)
    labels.read()
    source.require_sound()
    if not any(source.splits.values()):
        odd = "; ".join(source.notes.lines())
        raise UserError(f"--source {folder}: no JPEG or PNG in it{': ' + odd if odd else ''}")
    return source


class _Labels:
    """Reads the labels of images: all lines first, then, knowing what they are, the boxes."""

    def __init__(self, folder: YoloFolder, source: Source, columns: str):
        self._folder = folder.images.folder
        self._source = source
        self._key_points = folder.key_points
        self._kinds = LineKinds(folder.key_points, columns)
        self._texts: dict[tuple, list[Path]] = {}
        for path in files_below(self._folder, (".txt",)):
            if path.name not in NAMES:
                self._texts.setdefault(self._key(path), []).append(path)
        self._stems = Counter(path.stem for path in folder.images.paths)
        there = (*folder.images.paths, *files_below(self._folder, OTHER_SUFFIXES))
        self._known = {self._key(path) for path in there}
        self._images: dict[str, list[tuple[SourceImage, ImageHeader, list[Line]]]] = {}
        self._used: dict[Path, Path] = {}

    def add(self, split: str, paths: Sequence[Path]) -> None:
        """Read the lines of a split's images."""
        found = self._images[split] = []
        for path in progress(paths, split, "image"):
            header = header_or_note(path, self._source.notes)
            if header is None:
                continue
            if header.orientation != 1:
                self._source.notes.add("images that EXIF turns, their boxes turned back", path)
            text = self._of_image(path)
            if text is None:
                words = "images without a label file, taken as images without a box"
                self._source.notes.add(words, path)
            elif self._used.setdefault(text, path) != path:
                self._source.faults.append(
                    f"{text}: it may be of {self._used[text]} or of {path}; rename or remove one"
                )
            lines = self._lines(text) if text else []
            found.append((SourceImage(path, header.size, []), header, lines))

    def _of_image(self, image: Path) -> Path | None:
        """The label file of an image: labels in place of images in its path, beside it, or by its
        name in a folder that is of the same split."""
        parts = list(image.parts)
        places = [image.with_suffix(".txt"), image.with_name(f"{image.name}.txt")]
        for kind in ("JPEGImages", "images"):
            if kind in parts[:-1]:
                last = len(parts) - 1 - parts[::-1].index(kind)
                other = Path(*parts[:last], "labels", *parts[last + 1 :])
                places.insert(0, other.with_suffix(".txt"))
        if self._stems[image.stem] == 1:
            places.append(self._folder / "labels" / f"{image.stem}.txt")
        found = next((place for place in places if place.is_file()), None)
        if found is None and self._folder in image.parents:
            same = self._texts.get(self._key(image), [])
            found = same[0] if len(same) == 1 else None
        return found

    def _key(self, path: Path) -> tuple:
        return (folders_of(PurePosixPath(path.relative_to(self._folder))), alike(path.stem))

    def _lines(self, path: Path) -> list[Line]:
        found = []
        try:
            text = read_text(path, "the labels")
        except UserError as error:
            self._source.faults.append(str(error))
            return []
        for number, words in enumerate(map(str.split, text.splitlines()), 1):
            try:
                if words:
                    where = f"{path}, line {number}"
                    line, parts = parse_line(words, len(self._source.names), where)
                    self._kinds.add(line, parts)
                    found.append(line)
            except UserError as error:
                self._source.faults.append(str(error))
        return found

    def read(self) -> None:
        """Make boxes of the lines of all splits."""
        boxes, faults = self._kinds.decide(self._source.notes)
        self._source.faults += faults
        for split, images in self._images.items():
            for image, header, lines in images:
                image.boxes = [] if faults else list(self._boxes(lines, header, boxes))
            self._source.splits[split] = [image for image, *_ in images]
        self._note_orphans()

    def _boxes(
        self, lines: list[Line], header: ImageHeader, kinds: set[int] | None
    ) -> Iterator[NamedBox]:
        names, notes = self._source.names, self._source.notes
        width, height = header.shown
        for line in lines:
            try:
                edges = edges_of(line, kinds, self._key_points)
                if not names[line.kind]:
                    raise UserError(
                        f"{line.where}: class {line.kind}, which has no name in the list of "
                        "classes; write it there"
                    )
            except UserError as error:
                self._source.faults.append(str(error))
                continue
            whole = tuple(v * side for v, side in zip(edges, (width, height, width, height)))
            corners = _clipped(whole, width, height)
            if max(abs(a - b) for a, b in zip(whole, corners)) >= SEEN_PIXELS:
                notes.add("boxes that reach beyond the image, clipped", line.where)
            if corners[0] >= corners[2] or corners[1] >= corners[3]:
                notes.add("boxes without an extent, left out", line.where)
                continue
            yield NamedBox(header.stored(corners), names[line.kind])

    def _note_orphans(self) -> None:
        """Count label files of images that are not there, in the folders whose labels were used."""
        places = {path.parent for path in self._used} | {
            path.parent
            for paths in self._texts.values()
            for path in paths
            if "labels" in path.relative_to(self._folder).parts[:-1] or not self._used
        }
        orphans = []
        for path in sorted(path for paths in self._texts.values() for path in paths):
            if path in self._used or path.parent not in places or self._key(path) in self._known:
                continue
            text = path.read_bytes()[:1000].decode("utf-8", "replace").lstrip("\ufeff")
            if not text.strip() or NUMBERS.match(text):
                orphans.append(path)
                self._source.notes.add("label files without an image, left out", path)
        first = next((one.path for images in self._images.values() for one, *_ in images), None)
        if orphans and first and not self._used:
            self._source.faults.append(
                f"no label file is of an image: the first is {orphans[0]}, the first image "
                f"{first}; expected the same name, next to each other or in folders named labels "
                "and images"
            )


def _clipped(corners: Sequence[float], width: int, height: int) -> Corners:
    x1, y1, x2, y2 = corners
    return (
        min(max(x1, 0.0), width), min(max(y1, 0.0), height),
        min(max(x2, 0.0), width), min(max(y2, 0.0), height),
    )  # fmt: skip
