"""A COCO json as labels: read and checked, images found, boxes clipped and counted.

Format: https://cocodataset.org/#format-data, the lists `images`, `annotations`, `categories`.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.data.coco_boxes import (
    FROM_MASK,
    box_around,
    boxes_by_image,
    match_ids,
    rows_within,
    some,
    unknown_categories,
)
from src.data.image_names import files_of, folder_of
from src.errors import UserError, user_path
from src.model_utils.config import setting
from src.printing import print

NO_BOX = np.array([[0, 0, 0, 0, 0, 1]], np.int32)  # the row of an image without a usable box
LARGE = 50_000_000  # characters of json, whose parsing takes seconds
LISTS = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id", "name")}


@dataclass
class LabelledImage:
    """One image and its boxes.

    Attributes:
        path: the image file.
        size: (width, height) according to the labels; None if they do not say.
        boxes: (n, 6) float64 of x1, y1, x2, y2, class, iscrowd as in the labels: for the image as
            shown or as stored, not clipped.
        unusable: number of its boxes in the labels that are not in `boxes`.
    """

    path: Path
    size: tuple[int, int] | None
    boxes: np.ndarray
    unusable: int = 0


@dataclass
class Labels:
    """The checked content of a label file.

    Attributes:
        source: the file.
        images: its images, in the file's order.
        notes: counts of changed or dropped boxes.
        image_notes: counts of irregular images, each with an example.
        classes: the class list that the boxes' classes index.
        unknown: categories of the file that match no class of that list.
        as_xywh: whether the file's boxes have widths and heights, so that corners may be there by
            mistake.
        cause: why no box is left, as an error message; "" if the notes explain it.
    """

    source: Path
    images: list[LabelledImage]
    notes: Counter = field(default_factory=Counter)
    image_notes: Counter = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    as_xywh: bool = True
    cause: str = ""


def read_coco(path: Path, with_masks: bool = False) -> dict[str, Any]:
    """Read a COCO json and check its three lists.

    Args:
        path: the json file.
        with_masks: keep `segmentation`, which takes nine tenths of the memory and is not needed for
            boxes.

    Raises:
        UserError: the file is missing or not json, a list is missing, or an entry lacks a required
            key.
    """
    try:
        text = as_text(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such COCO json; give the path of one") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) >= LARGE:
        print(f"reading {path}, {len(text) / 1e6:.0f} MB", file=sys.stderr, flush=True)
    try:
        coco = json.loads(text, object_hook=None if with_masks else _without_mask)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a json file: {error}") from error
    check_coco(coco, path)
    return coco


def as_text(data: bytes, path: Path) -> str:
    """Decode a label file in UTF-8, or in UTF-16 or UTF-32 according to its first bytes.

    Raises:
        UserError: it has another encoding, or is not text; names the fix.
    """
    for start, what in ((b"\x1f\x8b", "gunzip"), (b"PK\x03\x04", "unzip"), (b"BZh", "bunzip2")):
        if data.startswith(start):
            raise UserError(f"{path}: is a compressed file; unpack it with {what}")
    try:
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = json.detect_encoding(data) if marked or b"\0" in data[:4] else "utf-8-sig"
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start} is not {error.encoding.upper()}"
        raise UserError(
            f"{path}: cannot be read as text: {found}; save the file as UTF-8, for example from "
            f"GBK with iconv -f GBK -t UTF-8 {path.name} > utf8_{path.name}"
        ) from error


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """Return `entry` without its segmentation, which gives the bbox if `entry` has none."""
    mask = entry.pop("segmentation", None)
    if mask and not entry.get("bbox"):
        entry["bbox"] = box_around(mask)
        entry[FROM_MASK] = entry["bbox"] is not None
    return entry


def check_coco(coco: Any, path: Path) -> None:
    """Check that `coco`, read from `path`, has COCO's three lists with their keys and unique ids.

    Raises:
        UserError: names what is missing or duplicated.
    """
    if not isinstance(coco, dict):
        raise UserError(
            f"{path}: not COCO: a {type(coco).__name__} where an object with the lists "
            f"{', '.join(LISTS)} is expected"
        )
    for name in LISTS:
        if not isinstance(coco.get(name), list):
            found = "no" if name not in coco else f"a {type(coco[name]).__name__} in place of the"
            raise UserError(f"{path}: not COCO: {found} list '{name}'")
        for number, entry in enumerate(coco[name]):
            check_entry(name, number, entry, path)
    if not coco["images"]:
        raise UserError(f"{path}: its list 'images' is empty; expected at least one image")
    for name in ("images", "categories"):
        for id_, times in Counter(entry["id"] for entry in coco[name]).most_common(1):
            if times > 1:
                raise UserError(f"{path}: not COCO: id {id_} occurs {times} times in '{name}'")


def check_entry(name: str, number: int, entry: Any, path: Path) -> None:
    """Check entry `number` of the list `name`: its keys exist and are numbers or text.

    Raises:
        UserError: names what is missing or has the wrong type.
    """
    keys = LISTS[name]
    lacks = keys if not isinstance(entry, dict) else [k for k in keys if k not in entry]
    if lacks:
        raise UserError(f"{path}: not COCO: {name}[{number}] has no '{lacks[0]}'")
    if "segments_info" in entry and "bbox" not in entry:
        raise UserError(
            f"{path}: COCO's panoptic labels: {name}[{number}] has segments_info in place of a "
            "bbox; give the json with the instances"
        )
    scalar = (*keys, "category_id") if "category_id" in entry else keys
    odd = [key for key in scalar if not isinstance(entry[key], (int, float, str))]
    if odd:
        raise UserError(
            f"{path}: not COCO: {odd[0]!r} of {name}[{number}] is {entry[odd[0]]!r:.60}, "
            "expected a number or text"
        )


def find_json(config: Any, is_training: bool = True) -> Path:
    """Return the configured json: train_set or val_set, else instance_set.

    If `coco_root` is set, the json is looked up there first, then in the current folder. `{}` in
    the name becomes the data type (train2017); any other brace stays as it is.

    Raises:
        UserError: it is in neither place.
    """
    key = "train_set" if is_training else "val_set"
    key = key if setting(config, key) else "instance_set"
    given = getattr(config, key)
    if not given:
        raise UserError(f"{key} is empty, expected the path of a COCO json")
    data_type = config.train_data_type if is_training else config.val_data_type
    names = [given, given.replace("{}", data_type)]
    bases = [user_path(config.coco_root)] if config.coco_root else []
    places = [base / user_path(name) for base in [*bases, Path()] for name in names]
    for place in places:
        if place.is_file():
            return place.absolute()
    tried = " nor ".join(dict.fromkeys(str(p.absolute()) for p in places if "{}" not in p.name))
    raise UserError(f"{key} {given}: no such file ({tried or given}); give the path of a COCO json")


def image_folders(config: Any, json_path: Path, info: Any, is_training: bool = True) -> list[Path]:
    """Return the folders that may hold the images of `json_path`, best first.

    If `image_dir` is set, it is the only one; else, if `coco_root` is set, `coco_root`/data type.
    Otherwise: the folder that the json itself records (`info.image_dir`, relative to the json), the
    folder next to the json with its name without .json, the json's own folder, `images` and the
    data type in that folder, and the data type next to that folder.
    """
    data_type = config.train_data_type if is_training else config.val_data_type
    if config.image_dir:
        return [user_path(config.image_dir).absolute()]
    if config.coco_root:
        return [user_path(config.coco_root).absolute() / data_type]
    here = json_path.parent
    recorded = info.get("image_dir") if isinstance(info, dict) else None
    own = [json_path.resolve().parent / recorded] if isinstance(recorded, str) and recorded else []
    guesses = [here / json_path.stem, here, here / "images", here / data_type]
    return [*own, *guesses, here.parent / data_type]


def image_folder(coco: dict[str, Any], folders: list[Path], json_path: Path) -> Path:
    """Return the first of `folders` that holds any of the first few images of `coco`.

    Raises:
        UserError: none of them does; names the folders.
    """
    return folder_of(_names(coco), folders, json_path)


def image_files(
    coco: dict[str, Any], folder: Path, json_path: Path, notes: Counter | None = None
) -> list[Path]:
    """Return the file of each image of `coco`, all of them in `folder`.

    Args:
        notes: counts the images found by another spelling of their name.

    Raises:
        UserError: some are missing; names the first and how many.
    """
    return files_of(_names(coco), folder, json_path, Counter() if notes is None else notes)


def _names(coco: dict[str, Any]) -> list[str]:
    return [str(entry["file_name"]) for entry in coco["images"]]


def size_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return width and height in an image's entry, in pixels; None if missing or impossible."""
    size: tuple[Any, Any] = (entry.get("width"), entry.get("height"))
    sound = all(isinstance(side, (int, float)) and 1 <= side < 2**31 for side in size)
    return (int(size[0]), int(size[1])) if sound else None


def name_parts(file_name: object) -> tuple[str, ...]:
    """Return folders and name of a `file_name`; backslashes count as slashes."""
    parts = str(file_name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", "."))


def shared_files(images: list[dict[str, Any]]) -> str:
    """Describe the files that `images` lists under several ids; "" if there are none."""
    ids: dict[tuple[str, ...], list[str]] = {}
    for entry in images:
        ids.setdefault(name_parts(entry["file_name"]), []).append(str(entry["id"]))
    shared = {parts: found for parts, found in ids.items() if len(found) > 1}
    if not shared:
        return ""
    parts, found = next(iter(shared.items()))
    files = "1 file is" if len(shared) == 1 else f"{len(shared)} files are"
    return (
        f"{files} listed under several ids, first {'/'.join(parts)} (ids {some(found)}): each id "
        "counts as an image of its own"
    )


def load_labels(config: Any, is_training: bool = True) -> Labels:
    """Load the labelled images of the configured json.

    Args:
        config: the keys instance_set, train_set, val_set, coco_root, image_dir, the data types,
            coco_classes (class id = index in this list).

    Raises:
        UserError: the json is missing or not COCO, images are missing, or coco_classes lists none
            of its categories.
    """
    json_path = find_json(config, is_training)
    coco = read_coco(json_path)
    unknown = unknown_categories(coco, config.coco_classes, json_path)
    folders = image_folders(config, json_path, coco.get("info"), is_training)
    labels = Labels(json_path, [], classes=list(config.coco_classes), unknown=unknown)
    folder = image_folder(coco, folders, json_path)
    paths = image_files(coco, folder, json_path, labels.image_notes)
    match_ids(coco, labels.notes)
    labels.cause = _cause(coco)
    boxes = boxes_by_image(coco, config.coco_classes, labels.notes)
    annotated = Counter(annotation["image_id"] for annotation in coco["annotations"])
    for entry, path in zip(coco["images"], paths):
        array = np.array(boxes.pop(entry["id"]), np.float64).reshape(-1, 6)
        unusable = annotated[entry["id"]] - len(array)
        labels.images.append(LabelledImage(path, size_of(entry), array, unusable))
    twice = [path for path, times in Counter(paths).items() if times > 1]
    if twice:
        labels.image_notes[f"under several ids in the labels, first {twice[0]}"] = len(twice)
    return labels


def _cause(coco: dict[str, Any]) -> str:
    """Return why no box can be left, if the lists themselves show it; else ''."""
    if not coco["annotations"]:
        return "its list 'annotations' is empty"
    ids = {entry["id"] for entry in coco["images"]}
    if any(annotation["image_id"] in ids for annotation in coco["annotations"]):
        return ""
    theirs, given = coco["annotations"][0]["image_id"], coco["images"][0]["id"]
    return f"no image_id of its annotations (first {theirs!r}) is an id of its images ({given!r})"


def create_coco_label(is_training: bool, config: Any) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the image files in the json's order, and the boxes of each.

    Returns:
        Paths, and path -> (n, 6) int32 of x1, y1, x2, y2, class (index in coco_classes), iscrowd,
        clipped to the size in the json; the single row 0, 0, 0, 0, 0, 1 if an image has no usable
        box.

    Raises:
        UserError: the json is missing or not COCO, or images are missing.
    """
    labels = load_labels(config, is_training)
    rows = {str(i.path): rows_within(i.boxes, i.size, labels.notes) for i in labels.images}
    boxes = {path: found if len(found) else NO_BOX for path, found in rows.items()}
    return [str(i.path) for i in labels.images], boxes
