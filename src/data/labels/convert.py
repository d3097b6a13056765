"""Writes labels of other formats as COCO jsons, and the class list for the configuration."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.data.coco_boxes import (
    class_words,
    dropped_words,
    plain_name,
    require_same_spelling,
    some,
)
from src.data.labels.files import read_text
from src.data.labels.source import SHOWN, FaultyLabelsError, NamedBox, Source, SourceImage
from src.data.splitting import write_jsons
from src.data.stratification import group_keys, hold_out, part_lines
from src.errors import UserError
from src.files import reason, write_whole
from src.model_utils.config import read_yaml_documents

NOTES = "label_notes.txt"  # lists every case of what the screen only counts
WHOLE = 0.01  # pixels; more than the rounding error of six decimals of an image's width


def class_names(source: Source, given: Sequence[str]) -> list[str]:
    """Return the names of the classes, without the background.

    Args:
        given: the names that the user wants. If empty, the source's list is used, in its order,
            else the sorted names of its boxes.

    Raises:
        UserError: no box has any of them, or one is empty, duplicated, or the background's.
    """
    boxes = [b for images in source.splits.values() for i in images for b in i.boxes]
    used = {box.name for box in boxes}
    names = list(given or [name for name in source.names if name] or sorted(used))
    for name, times in Counter(names).items():
        if times > 1 or not name or name == "background":
            raise UserError(
                f"the class name {name!r} stands there {times} times: expected names that are not "
                "empty, once each, without the background"
            )
    odd = "; ".join(source.notes.lines())
    if not boxes:
        count = sum(map(len, source.splits.values()))
        raise UserError(
            f"no box in the labels of {count} images: {odd or 'there is no object in their files'}"
        )
    require_same_spelling(sorted(used - set(names)), names, "--classes")
    if not used & set(names):
        raise UserError(
            f"--classes: no box is of a class in it: it has {some(names)}, and the boxes are of "
            f"{some(sorted(used))}"
        )
    if all(box.crowd for box in boxes if box.name in names):
        raise UserError(
            f"all {len(boxes)} boxes are marked difficult, so there is nothing to train on; give "
            "--difficult=keep if they are to be learnt"
        )
    return names


def read_class_list(path: Path) -> list[str]:
    """Read names from a file: YAML with coco_classes or names, else text with one per line.

    Raises:
        UserError: the file is missing, or has no list.
    """
    if path.suffix not in (".yaml", ".yml"):
        lines = read_text(path, "the class list").splitlines()
        names: Any = [line.strip() for line in lines if line.strip()]
    else:
        content = read_yaml_documents(path)[0]
        names = content.get("coco_classes", content.get("names"))
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"--classes {path}: expected names, one a line, or YAML with coco_classes")
    return names[1:] if names[0] == "background" else names


def coco_content(images: list[SourceImage], names: list[str], folder: Path) -> dict[str, Any]:
    """Return a COCO json of `images`, for a file in `folder`; skip boxes with other names."""
    root = _root(images)
    number = {name: place for place, name in enumerate(names, 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (image, file_name) in enumerate(zip(images, file_names(images)), 1):
        width, height = image.size
        entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in image.boxes:
            if box.name in number:
                ids = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**ids, "category_id": number[box.name], **_shape(box)})
    image_dir = os.path.relpath(root.resolve(), folder.resolve())
    return {
        "info": {"image_dir": Path(image_dir).as_posix()},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": place, "name": name} for name, place in number.items()],
    }


def _shape(box: NamedBox) -> dict[str, Any]:
    """Return bbox, area, iscrowd and the flags. Round what is nearly a whole pixel.

    The conversion to MindRecord truncates fractions, so 29.9999 for 30 would lose a pixel.
    """
    x1, y1, x2, y2 = (
        float(round(v)) if abs(v - round(v)) < WHOLE else round(v, 4) for v in box.corners
    )
    width, height = round(x2 - x1, 4), round(y2 - y1, 4)
    return {
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": int(box.crowd),
        **box.flags,
    }


def hold_out_images(
    source: Source, names: Sequence[str], share: float, pattern: str, seed: int
) -> list[str]:
    """Divide the source's only split into train and val; keep a test split as it is.

    Args:
        source: the labels; its splits are replaced.
        names: the class list without the background; other boxes do not count.
        share: see `hold_out`.
        pattern: see `group_keys`.
        seed: see `hold_out`.

    Returns:
        Lines that describe the parts.

    Raises:
        UserError: there are several splits, or see `group_keys` and `hold_out`.
    """
    there = [name for name, images in source.splits.items() if images and name != "test"]
    if len(there) != 1:
        raise UserError(
            f"--val {share:g}: the labels have the splits {', '.join(there)} already; leave --val "
            f"out, or give the split to divide, like --splits={there[0]}"
            if there
            else f"--val {share:g}: the labels only have a test split, nothing to divide"
        )
    images = source.splits.pop(there[0])
    number = {name: place for place, name in enumerate(names, 1)}
    counts = [
        Counter(number[b.name] for b in image.boxes if b.name in number and not b.crowd)
        for image in images
    ]
    held = hold_out(counts, group_keys(file_names(images), pattern), share, seed)
    parts = {"train": ~held, "val": held}
    chosen = {name: [images[n] for n in np.flatnonzero(part)] for name, part in parts.items()}
    source.splits = {**chosen, **source.splits}
    return part_lines(counts, held, {place: name for name, place in number.items()})


def file_names(images: Sequence[SourceImage]) -> list[str]:
    """Return the names of images relative to the folder that all of them are in."""
    root = _root(images)
    return [image.path.absolute().relative_to(root).as_posix() for image in images]


def _root(images: Sequence[SourceImage]) -> Path:
    return Path(os.path.commonpath([str(image.path.absolute().parent) for image in images]))


def next_lines(source: Source, out: Path, classes: Path | None) -> list[str]:
    """Return the commands that come next, quoted for a shell.

    Args:
        source: the converted labels.
        out: the folder of the jsons.
        classes: the file with the class list; one that is a configuration is named.
    """
    splits = [name for name, images in source.splits.items() if images]
    measured = [name for name in splits if name in ("val", "test")]
    trained = [name for name in splits if name not in measured] or measured
    config = str(classes.resolve()) if classes and _is_configuration(classes) else "our_config.yaml"
    lines = []
    for number, name in enumerate(trained):
        flags = {
            "config_path": config,
            "instance_set": str(out / f"{name}.json"),
            "mindrecord_dir": str(out / f"mindrecord_{number}"),
        }
        words = [f"--{flag}={shlex.quote(value)}" for flag, value in flags.items()]
        lines.append(f"next: python generate_mindrecord.py {' '.join(words)}")
    for name in measured if trained != measured else []:
        lines.append(f"to evaluate on: --val_set={shlex.quote(str(out / f'{name}.json'))}")
    return lines


def _is_configuration(path: Path) -> bool:
    is_yaml = path.suffix in (".yaml", ".yml")
    return is_yaml and "coco_classes" in read_yaml_documents(path)[0]


def convert_labels(source: Source, names: list[str], out: Path, overwrite: bool) -> list[str]:
    """Write `out`/<split>.json for each split; return lines that describe the result.

    Raises:
        UserError: a file exists and must not be overwritten, or a file cannot be written.
    """
    splits = {name: images for name, images in source.splits.items() if images}
    there = next((out / f"{name}.json" for name in splits if (out / f"{name}.json").exists()), None)
    if there and not overwrite:
        raise UserError(f"{there}: already there; choose another --out or give --overwrite")
    contents = {f"{name}.json": coco_content(images, names, out) for name, images in splits.items()}
    lines = []
    for path, content in zip(write_jsons(contents, out), contents.values()):
        boxed = {entry["image_id"] for entry in content["annotations"]}
        objects = Counter(e["category_id"] for e in content["annotations"] if not e["iscrowd"])
        lines += [
            f"{path}: {len(content['images'])} images, {len(content['images']) - len(boxed)} of "
            f"them without a box, {len(content['annotations'])} boxes",
            f"  {class_words(objects, ['background', *names])}",
        ]
    notes, cases = source.notes.lines(), source.notes.cases()
    written = write_notes(cases, out) if len(cases) > len(notes) else ""
    if not written:
        (out / NOTES).unlink(missing_ok=True)
    notes += [f"no image in the split {name}: no {name}.json" for name in source.splits
              if name not in splits]  # fmt: skip
    notes += [*_oddities(splits, names), *([f"all of these: {written}"] if written else [])]
    return [*lines, *(f"  {line}" for line in notes)]


def write_notes(lines: Sequence[str], out: Path) -> str:
    """Write notes that are too long for the screen to `out`/label_notes.txt; return its name.

    Raises:
        UserError: the file cannot be written.
    """
    path = out / NOTES
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
    return str(path)


def name_all(error: FaultyLabelsError, out: Path) -> UserError:
    """Return the error; write its faults to a file if they are too many for the screen."""
    if len(error.faults) <= SHOWN:
        return error
    return UserError(f"{error}; all of them: {write_notes(error.faults, out)}")


def _oddities(splits: dict[str, list[SourceImage]], names: list[str]) -> Iterable[str]:
    boxes = Counter(box.name for images in splits.values() for i in images for box in i.boxes)
    dropped = {name: count for name, count in boxes.items() if name not in names}
    if dropped:
        lost = sum(dropped.values())
        yield f"{lost} boxes of other classes, left out: {some(sorted(dropped))}"
        words = dropped_words(lost, sum(boxes.values()) - lost)
        yield from [f"WARNING: {words}; is the class list right?"] if words else []
    spellings: dict[str, list[str]] = {}
    for name in sorted(boxes):
        spellings.setdefault(plain_name(name), []).append(f"{name!r} ({boxes[name]} boxes)")
    for alike in spellings.values():
        if alike[1:]:
            yield f"WARNING: classes that differ in case or spaces only: {some(alike)}"
    unused = [name for name in names if name not in boxes]
    if unused:
        yield f"{len(unused)} classes without a box here: {some(unused)}"
    times = Counter(path for images in splits.values() for path in {i.path for i in images})
    twice = sorted(str(path) for path, count in times.items() if count > 1)
    if twice:
        yield f"{len(twice)} images are in more than one split, first {twice[0]}"


def configuration_lines(names: list[str]) -> str:
    """Return the required configuration lines as YAML."""
    values = {"num_classes": len(names) + 1, "coco_classes": ["background", *names]}
    # YAML has escapes for characters that cannot be printed.
    readable = all(name.isprintable() for name in names)
    return yaml.safe_dump(
        values, default_flow_style=None, sort_keys=False, width=96, allow_unicode=readable
    ).rstrip()
