"""Labels of YOLO: a text file for each image, `class x y width height` as parts of the image.

Format: https://docs.ultralytics.com/datasets/detect. x, y are the middle of the box; the image is
taken as it is shown, turned by its EXIF orientation. A polygon becomes the box around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from src.model_utils.config import read_yaml_documents
from src.progress import progress

DATA = ("data.yaml", "data.yml", "dataset.yaml")
NAMES = ("classes.txt", "labels/classes.txt", "obj.names")
SPLITS = ("train", "val", "test")
BEYOND = 0.01  # rounding of the programs that write the files
EXPECTED = "expected: class x y width height, each part between 0 and 1"


def read_yolo(folder: Path, splits: str = "") -> Source:
    """The labels of a YOLO folder: data.yaml, or classes.txt with images and labels.

    Args:
        folder: with data.yaml (names, train, val, test) in it; without one, with classes.txt, the
            images in images, or in images/train and images/val, and the labels likewise in labels
            or beside the images.
        splits: names with commas; "" takes train, val and test where they are there. Without
            splits all images are the split "all".

    Raises:
        UserError: no such folder, no names of classes, no image, or a file that is not YOLO's.
    """
    if not folder.is_dir():
        raise UserError(f"--source {folder}: no such folder; give the one with data.yaml in it")
    source = Source()
    data = next((folder / name for name in DATA if (folder / name).is_file()), None)
    if data is None:
        source.names = _names_of_text(folder)
        places = _places_without_data(folder)
    else:
        content = read_yaml_documents(data)[0]
        source.names = _names_of_data(content.get("names"), data)
        places = _places_of_data(content, data)
    for name in chosen_splits(list(places), splits, (*SPLITS, "all"), data or folder):
        paths = [path for place in places[name] for path in _images_at(place, source)]
        source.splits[name] = _read(paths, name, folder, source)
    if not any(source.splits.values()):
        raise UserError(f"--source {folder}: no JPEG or PNG in it")
    return source


def _names_of_text(folder: Path) -> list[str]:
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"--source {folder}: neither data.yaml nor classes.txt, so nobody knows what class 0 is"
        )
    lines = read_text(path, "the list of classes").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _names_of_data(names: Any, path: Path) -> list[str]:
    """A list, or a mapping of 0, 1, ... to names."""
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names is {names!r:.60}, expected a list of the classes' names")
    odd = next(
        (one for one in names if isinstance(one, bool) or not isinstance(one, (str, int))), None
    )
    if odd is not None:
        raise UserError(f"{path}: names has {odd!r}, expected text; put the name in quotes")
    return [str(name).strip() for name in names]


def _places_without_data(folder: Path) -> dict[str, list[Path]]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    parts = {name: [images / name] for name in SPLITS if (images / name).is_dir()}
    return parts or {"all": [images]}


def _places_of_data(content: dict[str, Any], path: Path) -> dict[str, list[Path]]:
    """split -> its folders or lists of images."""
    places = {}
    for name in SPLITS:
        given = content.get(name)
        entries = given if isinstance(given, list) else [given] if given else []
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{path}: {name} is {given!r:.60}, expected a folder or a list of them")
        if entries:
            root = content.get("path")
            places[name] = [_place(entry, root, path) for entry in entries]
    if not places:
        raise UserError(f"{path}: none of train, val, test is in it, expected folders of images")
    return places


def _place(entry: str, root: Any, path: Path) -> Path:
    """A folder or list of images, looked up below `root`, then below the folder of data.yaml.

    Some exports write ../train/images for train/images beside data.yaml.
    """
    here = path.parent
    bases = [here / str(root)] if root else []
    bases += [here]
    plain = entry[3:] if entry.startswith("../") else entry
    tried = [base / name for name in (entry, plain) for base in bases]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        listed = " nor ".join(dict.fromkeys(map(str, tried)))
        raise UserError(f"{path}: {entry}: no such folder or list of images ({listed})")
    return found


def _images_at(place: Path, source: Source) -> list[Path]:
    """The images of a folder, or of a text file with one a line."""
    if place.is_dir():
        return image_paths(place, source.notes)
    lines = read_text(place, "the list of images").splitlines()
    return [place.parent / line.strip() for line in lines if line.strip()]


def _read(paths: list[Path], split: str, folder: Path, source: Source) -> list[SourceImage]:
    found = []
    for path in progress(paths, split, "image"):
        frame = frame_of(path)
        if frame is None:
            what = "broken images" if path.is_file() else "images that are listed and not there"
            source.notes.add(f"{what}, left out", path)
            continue
        if frame.orientation != 1:
            source.notes.add("images that EXIF turns, their boxes turned back", path)
        labels = _labels_of(path, folder)
        if labels is None:
            source.notes.add("images without a label file, taken as images without a box", path)
        boxes = [] if labels is None else _boxes(labels, frame, source.names)
        found.append(SourceImage(path, frame.size, boxes))
    return found


def _labels_of(image: Path, folder: Path) -> Path | None:
    """The label file of an image: labels in place of the last images in its path, or beside it."""
    parts = list(image.parts)
    places = [image.with_suffix(".txt"), folder / "labels" / f"{image.stem}.txt"]
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return next((place for place in places if place.is_file()), None)


def _boxes(path: Path, frame: Frame, names: list[str]) -> list[NamedBox]:
    boxes = []
    for number, line in enumerate(read_text(path, "the labels").splitlines(), 1):
        if line.strip():
            boxes.append(_box(line.split(), frame, names, f"{path}, line {number}"))
    return boxes


def _box(words: list[str], frame: Frame, names: list[str], where: str) -> NamedBox:
    try:
        index, *parts = (float(word) for word in words)
    except ValueError as error:
        raise UserError(f"{where}: {' '.join(words)!r:.60}, {EXPECTED}") from error
    is_polygon = len(parts) >= 6 and len(parts) % 2 == 0
    if not (len(parts) == 4 or is_polygon):
        raise UserError(f"{where}: {len(words)} numbers, {EXPECTED}")
    if index not in range(len(names)):
        raise UserError(f"{where}: class {words[0]}, expected 0 to {len(names) - 1}, as names has")
    if not all(-BEYOND <= part <= 1 + BEYOND for part in parts):
        odd = next(part for part in parts if not -BEYOND <= part <= 1 + BEYOND)
        raise UserError(f"{where}: {odd:g}, {EXPECTED}; are these pixels?")
    if is_polygon:
        edges = (min(parts[::2]), min(parts[1::2]), max(parts[::2]), max(parts[1::2]))
    else:
        x, y, w, h = parts
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    width, height = frame.shown
    left, top, right, bottom = edges
    corners = (left * width, top * height, right * width, bottom * height)
    return NamedBox(frame.stored(corners), names[int(index)])
