"""A YOLO folder: its classes, and the images of each split.

Both come from data.yaml (https://docs.ultralytics.com/datasets/detect), or darknet's obj.data and
lists of images, or a list of classes and the names of the folders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Optional, Tuple

import yaml

from src.data.image_check import SUFFIXES
from src.data.labels.files import (
    FileIndex,
    as_path,
    files_below,
    folders_of,
    folders_with,
    plain_path,
    read_text,
    split_of,
)
from src.data.labels.source import Notes, image_paths, usual_names
from src.errors import UserError
from src.model_utils.config import yaml_documents

DATA = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MOST_CLASSES = 10_000
NAMES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")


KeyPoints = Optional[Tuple[int, int]]  # kpt_shape: points, and values per point (2 or 3)


@dataclass
class YoloFolder:
    """The description of a YOLO folder.

    Attributes:
        names: the class names; "" for a number without one.
        key_points: kpt_shape; None if missing.
        images: the images below the folder.
        places: the places of each split's images.
        said_by: the file with this description, or the folder.
    """

    names: list[str]
    key_points: KeyPoints
    images: FileIndex
    places: Places
    said_by: Path


def read_folder(folder: Path, notes: Notes) -> YoloFolder:
    """Read the description of `folder`, without its labels.

    Raises:
        UserError: the folder or the class names are missing, or data.yaml is invalid.
    """
    if not folder.is_dir():
        raise UserError(f"--source {folder}: no such folder; give the one with data.yaml in it")
    data = _data_of(folder)
    content = _read_data(data) if data else _darknet_data(folder)
    key_points = _key_points(content.get("kpt_shape"), data)
    names = _names_of_data(content["names"], data) if data else _names_of_text(folder, content)
    images = FileIndex(folder, image_paths(folder, notes))
    places = Places(images, notes)
    if data:
        places.add_data(content, data)
    else:
        places.add_lists(content)
    return YoloFolder(names, key_points, images, places, data or folder)


def _data_of(folder: Path) -> Path | None:
    """Return the data.yaml of a folder, whatever its name.

    Raises:
        UserError: several files match, or there is none here and one below.
    """
    known = next((folder / name for name in DATA if (folder / name).is_file()), None)
    if known:
        return known
    others = [
        path
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))
        if re.search(r"^names\s*:", read_text(path, "the data set"), re.MULTILINE)
    ]
    if len(others) > 1:
        raise UserError(
            f"--source {folder}: {others[0].name} and {others[1].name} both have names; rename the "
            "right one to data.yaml"
        )
    below = [] if others or _name_files(folder) else list(folders_with(folder, (*DATA, *NAMES)))
    if below:
        raise UserError(
            f"--source {folder}: neither data.yaml nor classes.txt, {below[0]} has; give "
            f"--source={below[0]}"
        )
    return others[0] if others else None


def _read_data(path: Path) -> dict[str, Any]:
    text = read_text(path, "the data set")
    try:
        documents = yaml_documents(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UserError(
            f"{path}: expected lines of the form key: value, names and train among them"
        )
    return {"names": None, **documents[0]}


def _key_points(shape: Any, path: Path | None) -> KeyPoints:
    if shape is None:
        return None
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not is_shape or shape[0] < 1 or shape[1] not in (2, 3):
        raise UserError(f"{path}: kpt_shape is {shape!r:.60}, expected like [17, 3]")
    return shape[0], shape[1]


def _darknet_data(folder: Path) -> dict[str, Any]:
    """Return the lines `key = value` of obj.data; {} if it is missing."""
    found = sorted((*folder.glob("*.data"), *folder.glob("data/*.data")))
    lines = read_text(found[0], "the data set").splitlines() if found else []
    pairs = (line.partition("=") for line in lines if line.strip()[:1] != "#")
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _name_files(folder: Path) -> list[Path]:
    """Return the class lists in a folder, or in its subfolders that are not data sets."""
    found = [path for name in NAMES for path in [folder / name] if path.is_file()]
    found = found or sorted(folder.glob("*.names"))
    if found:
        return found[:1]
    places = {path.parent for path in files_below(folder, NAMES) if path.name in NAMES}
    places |= {path.parent for path in files_below(folder / "data", (".names",))}
    return [
        path
        for place in sorted(places)
        if _is_inside(place.relative_to(folder))
        for path in sorted(place.iterdir())
        if path.name in NAMES or path.suffix == ".names"
    ]


def _is_inside(place: Path) -> bool:
    """Return whether a subfolder is part of the data set, not a data set of its own."""
    inside = folders_of(PurePosixPath(place) / "x")
    return all(part == "data" or split_of([part]) for part in inside)


def _names_of_text(folder: Path, darknet: dict[str, Any]) -> list[str]:
    """Return the classes, one per line; an empty line is an unnamed class and keeps its number."""
    said = as_path(darknet.get("names", "")).name
    found = [folder / said] if said and (folder / said).is_file() else _name_files(folder)
    if not found:
        raise UserError(
            f"--source {folder}: neither data.yaml nor classes.txt, so it is not known what class "
            f"0 is; {_above(folder) or 'write the names into classes.txt, one a line'}"
        )
    lists = {path: _stripped(read_text(path, "the list of classes")) for path in found}
    first, names = next(iter(lists.items()))
    other = next((path for path, these in lists.items() if these != names), None)
    if other:
        raise UserError(
            f"{first} and {other} differ; remove one, or write {folder / 'classes.txt'}"
        )
    if not names or not names[0]:
        raise UserError(
            f"{first}: {'begins with an empty line' if names else 'is empty'}, so it is not known "
            "what class 0 is; write the names, one a line"
        )
    return names


def _above(folder: Path) -> str:
    """Return where the class list is, if the given folder is too far down."""
    for place in list(folder.parents)[:2]:
        if any((place / name).is_file() for name in (*DATA, *NAMES)):
            return f"give --source={place}, which has them"
    return ""


def _stripped(text: str) -> list[str]:
    """Return the lines of a text, without the empty ones at its end."""
    return [line.strip() for line in text.rstrip().splitlines()]


def _names_of_data(names: Any, path: Path) -> list[str]:
    """Return the names of a list, or of a mapping of numbers; a missing number has no name."""
    if isinstance(names, dict):
        names = _names_by_number(names, path)
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names is {names!r:.60}, expected a list of the classes' names")
    odd = next(
        (one for one in names if isinstance(one, bool) or not isinstance(one, (str, int))), None
    )
    if odd is not None:
        raise UserError(f"{path}: names has {odd!r}, expected text; put the name in quotes")
    return [str(name).strip() for name in names]


def _names_by_number(names: dict[Any, Any], path: Path) -> list[Any]:
    """Return the names by their numbers, which may begin with 1 or have gaps, as COCO's do."""
    known = {str(number): number for number in range(MOST_CLASSES)}
    numbers = {known[str(key)]: name for key, name in names.items() if str(key) in known}
    odd = next((repr(key) for key in names if str(key) not in known), "")
    if odd or len(numbers) < len(names):
        raise UserError(
            f"{path}: names has {odd or 'a number twice'}, expected a number for each name, like "
            "0: cell"
        )
    return [numbers.get(number, "") for number in range(max(numbers, default=-1) + 1)]


class Places:
    """The places of each split's images: folders, lists, or folders named like a split.

    Args:
        index: the images below the given folder.
        notes: record what is skipped.
    """

    def __init__(self, index: FileIndex, notes: Notes):
        self._index = index
        self._notes = notes
        self.of_split: dict[str, list[Any]] = {}
        self._data: Optional[Path] = None
        self._root: Any = None
        self._taken: set[Path] = set()

    def add_data(self, content: dict[str, Any], path: Path) -> None:
        """Add the splits of data.yaml.

        Raises:
            UserError: it has none, or one is not a folder or list.
        """
        self._data, self._root = path, content.get("path")
        usual = usual_names(
            [key for key in content if isinstance(key, str) and split_of([key]) and content[key]]
        )
        for name, key in usual.items():
            given = content[key]
            entries = given if isinstance(given, list) else [given] if given else []
            if not all(isinstance(entry, str) for entry in entries):
                raise UserError(
                    f"{path}: {key} is {given!r:.60}, expected a folder or a list of them"
                )
            if entries:
                self.of_split[name] = entries
        if not self.of_split:
            raise UserError(
                f"{path}: none of train, val, test is in it, expected folders of images"
            )

    def add_lists(self, darknet: dict[str, Any]) -> None:
        """Add the splits without data.yaml: lists of images, else folders by name, else all."""
        folder = self._index.folder
        said = {key: as_path(darknet[key]).name for key in darknet if split_of([key])}
        found = {
            key: place / name
            for key, name in said.items()
            for place in (folder / "data", folder)
            if (place / name).is_file()
        }
        stems = {path.stem for path in self._index.paths if path.parent == folder}
        for path in () if found else (*sorted(folder.glob("*.txt")), *folder.glob("data/*.txt")):
            if split_of([path.stem]) and path.stem not in stems:
                found.setdefault(path.stem, path)
        for name, key in usual_names(list(found)).items():
            self.of_split[name] = [found[key]]
        if not found:
            for path in self._index.paths:
                name = split_of(self._index.folders[path]) or "all"
                self.of_split.setdefault(name, []).append(path)

    def images(self, name: str, is_asked: bool) -> list[Path]:
        """Return the images of a split, each once.

        Raises:
            UserError: a folder or list of it is missing, or all of a list's images.
        """
        found: dict[Path, None] = {}
        for entry in self.of_split[name]:
            try:
                found.update(dict.fromkeys(self._images_at(entry)))
            except UserError as error:
                if is_asked or name != "test":
                    more = "" if is_asked else f"; to leave {name} out, list the others in --splits"
                    raise UserError(f"{error}{more}") from error
                self._notes.add("folder or list of the split test that is not there, left out",
                                str(error))  # fmt: skip
        self._taken |= set(found)
        return list(found)

    def note_others(self, splits: str) -> None:
        """Note the images in no split, by their folder, unless the user chose splits."""
        for path in () if splits else self._index.paths:
            if path not in self._taken:
                place = path.parent.relative_to(self._index.folder)
                self._notes.add(f"images in {place}/, which no split has, left out", path)

    def _images_at(self, entry: Any) -> list[Path]:
        """Return the images of a folder, of a text file with one per line, or an image itself."""
        place = entry if isinstance(entry, Path) else self._place(entry)
        if place.is_dir():
            folder = self._index.folder
            inside = place == folder or folder in place.parents
            if inside:
                return [p for p in self._index.paths if p == place or place in p.parents]
            return image_paths(place, self._notes)
        return [place] if place.suffix.lower() in SUFFIXES else self._listed(place)

    def _place(self, entry: str) -> Path:
        """Find a folder or list of images below `path`, then below data.yaml's folder.

        Some exports write ../train/images for train/images next to data.yaml, others a path on the
        exporting machine.
        """
        assert self._data is not None
        here = self._data.parent
        slashed = entry.strip().replace("\\", "/")
        bases = [here / str(self._root).replace("\\", "/")] if self._root else []
        bases += [here]
        plain = slashed[3:] if slashed.startswith("../") else slashed
        tried = [base / name for name in (slashed, plain) for base in bases]
        parts = as_path(slashed).parts
        moved = [here.joinpath(*parts[count:]) for count in range(1, len(parts))]
        for place in (*tried, *moved):
            if place.exists():
                if place in moved:
                    self._notes.add(f"path of another machine, {slashed}: taken as the one here",
                                    place)  # fmt: skip
                return plain_path(place)
        listed = " nor ".join(dict.fromkeys(str(place) for place in tried))
        raise UserError(f"{self._data}: {entry}: no such folder or list of images ({listed})")

    def _listed(self, path: Path) -> list[Path]:
        lines = [line.strip() for line in read_text(path, "the list of images").splitlines()]
        lines = [line for line in lines if line]
        found, missing = [], []
        for line in lines:
            image = self._listed_image(line, path)
            if image:
                found.append(image)
            else:
                missing.append(line)
        if missing and not found:
            raise UserError(
                f"none of the {len(lines)} images in {path} is there, first {missing[0]}, looked "
                f"for below {self._index.folder}{self._index.hint(as_path(missing[0]))}"
            )
        for line in missing:
            hint = self._index.hint(as_path(line))
            words = "images that are listed and not there, left out"
            self._notes.add(words, f"{path}: {line}{hint}")
        return found

    def _listed_image(self, line: str, path: Path) -> Path | None:
        """Return the image of a line: relative to the list, absolute, or by the end of its path."""
        slashed = line.replace("\\", "/")
        here = path.parent / slashed
        if here.is_file():
            return plain_path(here)
        found = self._index.named(as_path(line)) or self._index.spelt(as_path(line))
        return found[0] if len(found) == 1 else None
