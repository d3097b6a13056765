"""Labels of Pascal VOC: an XML file for each image, lists of images in ImageSets/Main.

Format: M. Everingham, J. Winn, The PASCAL Visual Object Classes Challenge 2012 Development Kit,
section 4. Pixels count from 1 and xmax, ymax are inside the box.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from src.data.image_check import SUFFIXES, ImageHeader
from src.data.labels.files import (
    FileIndex,
    as_path,
    files_below,
    folders_with,
    read_text,
    split_of,
)
from src.data.labels.source import (
    NamedBox,
    Source,
    SourceImage,
    chosen_splits,
    header_or_note,
    image_paths,
    usual_names,
)
from src.data.labels.voc_xml import Annotation, read_annotation
from src.errors import UserError
from src.progress import progress

DIFFICULT = ("ignore", "keep", "drop")
ANNOTATIONS, IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images")
LISTS = ("ImageSets/Main", "ImageSets", ".")
# After a name in a list: 1, 0 or -1 in the lists of one class, or the name of the XML file.
COLUMN = re.compile(r"\s+(?:-?[01]|\S+\.xml)\s*$", re.IGNORECASE)


def read_voc(
    folder: Path, splits: str = "", difficult: str = "ignore", first_pixel: int = 1
) -> Source:
    """Read the labels of a VOC folder: Annotations, JPEGImages, ImageSets/Main, or all in one.

    Args:
        folder: a folder like VOCdevkit/VOC2012.
        splits: names in ImageSets/Main, separated by commas; "" selects train, val and test if they
            exist. Without lists, the folders of these names are the splits, else all images are the
            split "all".
        difficult: what to do with objects marked difficult: "ignore" makes them crowds, which are
            neither trained on nor counted, as in VOC; "keep"; "drop".
        first_pixel: 1 as in VOC; 0 for programs that write VOC's XML but count from 0.

    Raises:
        UserError: the folder or a split is missing, there is no image, or files are not VOC's
            (lists all).
    """
    if not folder.is_dir():
        raise UserError(f"--source {folder}: no such folder; give the one with Annotations in it")
    _require_the_folder_itself(folder)
    reader = _Reader(folder, difficult, first_pixel)
    reader.require_met()
    source = reader.source
    lists = _lists_of(folder)
    if lists:
        reader.read_lists(lists, splits)
    else:
        reader.read_folders(splits)
    reader.images.note_respelled(source.notes)
    source.require_sound()
    if not any(source.splits.values()):
        odd = "; ".join(source.notes.lines())
        raise UserError(
            f"--source {folder}: no JPEG or PNG that its lists or XML files name"
            + (f": {odd}" if odd else "")
        )
    return source


def _require_the_folder_itself(folder: Path) -> None:
    """Raise a UserError if the data set is in a folder below or above."""
    parts = ("Annotations", "annotations", "JPEGImages", "ImageSets")
    if any((folder / part).is_dir() for part in parts):
        return
    above = [folder.parent / part for part in ("Annotations", "JPEGImages")]
    if folder in above and all(part.is_dir() for part in above):
        raise UserError(f"--source {folder}: a part of the data set; give --source={folder.parent}")
    below = [
        place
        for place in folders_with(folder, ("Annotations", "ImageSets"))
        if not split_of(place.relative_to(folder).parts)
    ]
    if below:
        more = f" ({len(below)} such folders: convert one after the other)" if below[1:] else ""
        raise UserError(
            f"--source {folder}: it has no Annotations, {below[0]} has; give --source={below[0]}"
            f"{more}"
        )


def _lists_of(folder: Path) -> list[Path]:
    """Return the lists of images; in the folder itself only those named like a split."""
    for place in LISTS:
        found = sorted((folder / place).glob("*.txt"))
        if place == ".":
            images = {path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
            found = [p for p in found if split_of([p.stem]) and p.stem not in images]
        if found:
            return found
    return []


class _Reader:
    """Reads the images of one folder into `source`."""

    def __init__(self, folder: Path, difficult: str, first_pixel: int):
        self.source = Source()
        self.folder = folder
        annotations = _first_folder(folder, *ANNOTATIONS)
        images = _first_folder(folder, *IMAGES)
        self.images = FileIndex(images, image_paths(images, self.source.notes))
        self.xmls = FileIndex(annotations, files_below(annotations, (".xml",)))
        self._difficult = difficult
        self._first_pixel = first_pixel
        self._unclear: dict[Path, str] = {}  # image -> why its labels are ambiguous
        self._orphans: list[Annotation] = []
        self._of_xml, self._of_image = self._matched()

    def _matched(self) -> tuple[dict[Path, Path], dict[Path, Annotation]]:
        """Return XML file -> its image, and image -> its annotation."""
        claims: dict[Path, list[Annotation]] = {}
        for path in progress(self.xmls.paths, "reading labels", "file"):
            annotation = read_annotation(path)
            images = self._image_of(annotation)
            for image in images:
                claims.setdefault(image, []).append(annotation)
            if not images:
                self._orphans.append(annotation)
        self._give_back(claims)
        of_image: dict[Path, Annotation] = {}
        for image, claimants in claims.items():
            first, *others = sorted(claimants, key=lambda one: not self._is_own(one, image))
            of_image[image] = first
            if self._own(first) and not self._is_own(first, image):
                words = "XML files whose <filename> is another image than their own, taken for it"
                self.source.notes.add(words, first.path)
            for other in others:
                if (other.objects, other.faults) == (first.objects, first.faults):
                    self.source.notes.add("XML files with the same boxes as another of the same "
                                          "image, left out", other.path)  # fmt: skip
                else:
                    self._unclear[image] = (
                        f"{image}: {first.path} and {other.path} are both its labels, by their "
                        "names or <filename>, with other boxes; remove or correct one"
                    )
        return {one.path: image for image, both in claims.items() for one in both}, of_image

    def require_met(self) -> None:
        """Raise a UserError if there are XML files and images, and no XML file is of an image."""
        faulty = any(annotation.faults for annotation in self._orphans)
        if self._of_image or not self._orphans or not self.images.paths or faulty:
            return
        first, image = self._orphans[0].path, self.images.paths[0]
        how = "rename them alike, or write the images' names into <filename>"
        stems = {path.stem: path for path in self.images.paths}
        for xml in (annotation.path for annotation in self._orphans):
            if xml.stem in stems:
                first, image = xml, stems[xml.stem]
                above = Path(os.path.commonpath([first.parent, image.parent]))
                how = "move them to folders Annotations and JPEGImages of one folder"
                if above != self.folder and _meet(above, first, image):
                    how = f"give --source={above}"
                break
        raise UserError(
            f"--source {self.folder}: none of its {len(self.xmls.paths)} XML files belongs to one "
            f"of its {len(self.images.paths)} images, by name and folder (such as {first} and "
            f"{image}); {how}"
        )

    def _image_of(self, annotation: Annotation) -> list[Path]:
        """Return the image of an XML file, by its <filename> if that exists, else its own name."""
        own = self._own(annotation)
        named = self._named(annotation)
        if len(named) > 1:
            named = [path for path in named if path in own] or named
        if not named:
            named = own
        if len(named) > 1:
            for path in named:
                self._unclear[path] = (
                    f"{annotation.path}: it may be of {named[0]} or {named[1]}; write which into "
                    "<filename>, with its folder"
                )
        return named

    def _own(self, annotation: Annotation) -> list[Path]:
        place = PurePosixPath(annotation.path.relative_to(self.xmls.folder)).with_suffix("")
        found = self.images.named(place) if is_image(place) else []
        found = found or self.images.with_stem(place)
        if not found and (is_image(place) or place.suffix.lower() == ".xml"):
            found = self.images.with_stem(place.with_suffix(""))  # as in a.xml.xml, a.jpg.xml
        return found or self.images.spelt(place)

    def _is_own(self, annotation: Annotation, image: Path) -> bool:
        return image in self._own(annotation)

    def _named(self, annotation: Annotation) -> list[Path]:
        """Return the images that <filename> can refer to: near the XML file, then by its path."""
        said = as_path(annotation.filename)
        if not said.name:
            return []
        place = PurePosixPath(annotation.path.relative_to(self.xmls.folder)).parent
        near, anywhere = place / said.name, self.xmls.folders[annotation.path]
        several: list[Path] = []
        for look in (self.images.named, self.images.with_stem, self.images.spelt):
            if look == self.images.with_stem and is_image(said):
                continue
            for name in (near, said):
                found = look(name)
                if len(found) == 1:
                    return found
                several = several or found
        found = self.images.anywhere(said.name, anywhere)
        return several or (found if len(found) == 1 else [])

    def _give_back(self, claims: dict[Path, list[Annotation]]) -> None:
        """Assign images named by several XML files: each file gets that of its own name, if any.

        Rotated or cropped copies of images often keep the <filename> of the original.
        """
        for image in [image for image, claimants in claims.items() if len(claimants) > 1]:
            for annotation in list(claims[image]):
                own = self._own(annotation)
                if image not in own and len(own) == 1 and own[0] not in claims:
                    words = "XML files with the <filename> of another, taken for their own image"
                    self.source.notes.add(words, annotation.path)
                    claims[image].remove(annotation)
                    claims[own[0]] = [annotation]
            if not claims[image]:
                del claims[image]

    def read_folders(self, splits: str) -> None:
        """Read the splits that are folders, else all images."""
        entries: dict[str, list[Path]] = {}
        for image in self.images.paths:
            entries.setdefault(split_of(self.images.folders[image]) or "all", []).append(image)
        if splits and set(entries) <= {"all"} and splits != "all":
            raise UserError(f"--splits {splits}: {self.folder / LISTS[0]} has no lists of images")
        self._note_orphans()
        if not entries:
            return
        chosen = chosen_splits(list(entries), splits, self.images.folder)
        for name in chosen:
            self.source.splits[name] = self._read(entries[name], name)
        if not splits:
            for image in entries["all"] if "all" in entries and "all" not in chosen else ():
                self.source.notes.add("images in no folder of a split, left out", image)

    def _note_orphans(self) -> None:
        """Note the XML files without an image; an unreadable one may have hidden its name."""
        for annotation in self._orphans:
            self.source.notes.add("XML files without an image, left out", annotation.path)
            self.source.faults += annotation.faults

    def read_lists(self, lists: list[Path], splits: str) -> None:
        """Read the splits that are lists of images."""
        usual = usual_names([path.stem for path in lists])
        by_stem = {path.stem: path for path in lists}
        chosen = chosen_splits(list(usual), splits, lists[0].parent)
        taken: set[Path] = set()
        for name in chosen:
            entries = self._listed(by_stem[usual[name]], is_asked=bool(splits) or name != "test")
            taken |= set(entries)
            self.source.splits[name] = self._read(entries, name)
        if splits:
            return
        self._note_orphans()
        for name in [name for name in usual if name not in chosen]:
            path = by_stem[usual[name]]
            more = {image for image in map(self._entry, _lines_of(path)) if image} - taken
            if more:
                words = (
                    f"lists that are not taken, with images that are in no other; --splits={name}"
                )
                self.source.notes.add(f"{words} takes it", f"{path}, {len(more)} images")
                taken |= more
        for image in self.images.paths:
            if image not in taken:
                self.source.notes.add("images in no list, left out", image)

    def _listed(self, path: Path, is_asked: bool) -> list[Path]:
        """Return the images of a list, each once; note missing ones.

        Raises:
            UserError: none exists, and the user asked for the list.
        """
        lines = _lines_of(path)
        missing, found = [], {}
        for line in lines:
            image = self._entry(line)
            if image is None:
                missing.append(line)
            elif image in found:
                self.source.notes.add("images that a list names again", f"{path}: {line}")
            else:
                found[image] = line
        if missing and not found and is_asked:
            raise UserError(
                f"none of the {len(lines)} images in {path} is there, first {missing[0]}, looked "
                f"for below {self.images.folder}{self.images.hint(as_path(missing[0]))}"
            )
        for line in missing:
            hint = self.images.hint(as_path(line))
            self.source.notes.add(
                "images that are listed and not there, left out", f"{path}: {line}{hint}"
            )
        return list(found)

    def _entry(self, line: str) -> Path | None:
        """Return the image of a line: the name is the whole line, or the text before columns."""
        text, longer = line, ""
        while text != longer:
            name = as_path(text)
            text, longer = COLUMN.sub("", text), text
            if not name.name:
                continue
            known = self.images.named(name)
            is_xml = name.suffix.lower() == ".xml"
            xmls = self.xmls.named(name) if is_xml else []
            for one in (name, name.with_suffix("")) if is_image(name) or is_xml else (name,):
                xmls = xmls or [x for x in self.xmls.with_stem(one) if x in self._of_xml]
                known = known or [self._of_xml[x] for x in xmls if x in self._of_xml]
                known = known or self.images.with_stem(one) or self.images.spelt(one)
            if known:
                if len(known) > 1:
                    self._unclear[known[0]] = (
                        f"{line}, a name in a list, may be {known[0]} or {known[1]}; write it with "
                        "its suffix or folder"
                    )
                return known[0]
        return None

    def _read(self, paths: list[Path], split: str) -> list[SourceImage]:
        """Return these images with their boxes; count what cannot be read."""
        notes, found = self.source.notes, []
        for path in progress(paths, split, "image"):
            if path in self._unclear:
                self.source.faults.append(self._unclear[path])
                continue
            annotation = self._of_image.get(path)
            self.source.faults += annotation.faults if annotation else []
            header = header_or_note(path, notes)
            if header is None:
                continue
            if annotation is None:
                notes.add("images without an XML file, taken as images without a box", path)
            boxes = list(self._boxes(annotation, header)) if annotation else []
            found.append(SourceImage(path, header.size, boxes))
        return found

    def _boxes(self, annotation: Annotation, header: ImageHeader) -> Iterator[NamedBox]:
        notes, xml = self.source.notes, annotation.path
        turn = header.drawn_as_shown(annotation.size)
        if turn:
            notes.add("images that EXIF turns, their boxes turned back", xml)
        elif 0 not in annotation.size and annotation.size != header.size:
            notes.add("images of another size than their XML file says", xml)
        for one in annotation.objects:
            is_difficult = "difficult" in one.flags
            x1, y1, x2, y2 = one.bounds
            # Pixel n, counted from 1, ends at n. Programs that count from 0 write x + width.
            corners = (x1 - self._first_pixel, y1 - self._first_pixel, x2, y2)
            if corners[0] >= corners[2] or corners[1] >= corners[3]:
                notes.add("boxes without an extent (xmin beyond xmax, or ymin), left out", xml)
            elif is_difficult and self._difficult == "drop":
                notes.add("difficult boxes, dropped", xml)
            else:
                crowd = is_difficult and self._difficult == "ignore"
                if crowd:
                    notes.add("difficult boxes, marked iscrowd: no objects to training", xml)
                flags = {key: 1 for key in one.flags}
                yield NamedBox(header.stored(corners) if turn else corners, one.name, crowd, flags)


def _meet(folder: Path, xml: Path, image: Path) -> bool:
    """Return whether an XML file and an image of its name are found together in `folder`."""
    annotations = _first_folder(folder, *ANNOTATIONS)
    images = _first_folder(folder, *IMAGES)
    if annotations not in xml.parents or images not in image.parents:
        return False
    place = PurePosixPath(xml.relative_to(annotations)).with_suffix("")
    return bool(FileIndex(images, [image]).with_stem(place))


def _first_folder(folder: Path, *names: str) -> Path:
    """Return the first of these that exists in `folder`, else `folder` itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _lines_of(path: Path) -> list[str]:
    lines = read_text(path, "the list of images").splitlines()
    return [line.strip() for line in lines if line.strip()]


def is_image(name: PurePosixPath) -> bool:
    """Return whether a name has an image's extension."""
    return name.suffix.lower() in SUFFIXES
