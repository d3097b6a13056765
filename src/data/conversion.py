"""Writes labelled images into a MindRecord file; skips and counts broken ones."""

from __future__ import annotations

import copy
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.data.coco import NO_BOX, LabelledImage, Labels, load_labels
from src.data.coco_boxes import (
    CROWDS,
    FIXES,
    REMARKS,
    as_stored,
    class_words,
    crowded_words,
    dropped_words,
    fit_as_corners,
    rows_within,
    some,
)
from src.data.image_check import (
    MAX_PIXELS,
    BrokenImageError,
    ImageHeader,
    decode_fully,
    eight_bits,
    image_header,
)
from src.data.image_names import OUTSIDE
from src.data.labels.text import load_text_labels
from src.data.mindrecord import (
    LARGEST_ROW,
    class_counts,
    locked_folder,
    row,
    shard_number,
    write_rows,
)
from src.errors import UserError, user_path
from src.files import reason, write_whole
from src.model_utils.config import setting
from src.progress import progress

MOST_BOXES = 100_000  # boxes of one image
BATCH_BYTES = 4 * 2**20
SHOWN = 4  # kinds of skipped images that are printed
SKIPPED_FILE = "skipped_images.txt"

# Notes that are counted for images. A rule covers these, see `_boxes_within`, `eight_bits`:
AS_SHOWN = "that EXIF turns: boxes taken as drawn on the image as shown, and turned back"
AS_STORED = "that EXIF turns: boxes kept, the labels have the size of the stored image"
BITS = "of 16 bits, scaled to 8 by their own range"
IMAGE_REMARKS = (AS_SHOWN, AS_STORED, BITS, OUTSIDE)
OTHER_SIZE = "of another size than the labels say: boxes clipped to the file's own"


@dataclass
class Summary:
    """What a conversion wrote and what it skipped.

    Attributes:
        path: the MindRecord file.
        images, boxes: how many it holds; crowds count as boxes.
        crowds: number of boxes that cover a group of objects.
        skipped: images that were skipped, with the reason, and the number of their boxes.
        notes, image_notes, unknown: see `Labels`.
        as_corners: number of boxes that may be x1, y1, x2, y2, and of those that look like it.
        objects: number of objects, without crowds -> number of images with so many.
        per_class: class number -> number of objects, without crowds.
        classes: the class list.
        num_gts: maximum number of an image's objects in a batch; 0 for no limit.
        seconds: duration of the conversion.
    """

    path: Path
    images: int = 0
    boxes: int = 0
    crowds: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    skipped_boxes: int = 0
    notes: Counter = field(default_factory=Counter)
    image_notes: Counter = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    as_corners: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)
    per_class: Counter = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)
    num_gts: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Return lines for the user: one on what was written, and one for each kind of problem."""
        rate = self.images / self.seconds if self.seconds else 0.0
        text = [
            f"{self.path}: {self.images} images, {self.boxes} boxes, {len(self.skipped)} images "
            f"skipped, {self.seconds:.1f} s ({rate:.0f} images/s)"
        ]
        text.append(f"  {class_words(self.per_class, self.classes)}")
        kinds = Counter(why for _, why in self.skipped)
        for why, count in kinds.most_common(SHOWN):
            first = next(path for path, other in self.skipped if other == why)
            text.append(f"  skipped {first}: {why}" + (f" (and {count - 1} more)" * (count > 1)))
        if self.skipped:
            text.append(f"  all skipped images: {self.path.with_name(SKIPPED_FILE)}")
        if self.unknown:
            text.append(
                f"  {len(self.unknown)} categories not in coco_classes: {some(self.unknown)}"
            )
        if self.notes:
            text.append("  boxes " + "; ".join(f"{n} {what}" for what, n in self.notes.items()))
        if self.crowds:
            text.append(
                f"  {self.crowds} of the boxes are crowds: they are trained on as background"
            )
        text += [f"  {n} images {what}" for what, n in self.image_notes.items()]
        crowded = crowded_words(self.objects, self.num_gts)
        text += [f"  {crowded}"] if crowded else []
        lost = sum(n for what, n in self.notes.items() if what.endswith("dropped"))
        dropped = dropped_words(lost + self.skipped_boxes, self.boxes)
        return [*text, f"  WARNING: {dropped}: see above why"] if dropped else text


def data_to_mindrecord_byte_image(
    config: Any,
    dataset: str = "coco",
    is_training: bool = True,
    prefix: str = "fasterrcnn.mindrecord",
    file_num: int = 8,
    verify: bool = False,
) -> Summary:
    """Write the configured images and labels as MindRecord files `prefix` in `mindrecord_dir`.

    Args:
        config: the keys of `load_labels`, and mindrecord_dir, strict, num_gts, max_image_pixels;
            for "other" image_dir and anno_path.
        dataset: "coco" (a COCO json) or "other" (a text file).
        is_training: selects train_set or val_set, and the data type.
        prefix: base name of the file; with several files, 0, 1, ... is appended.
        file_num: number of files.
        verify: whether to decode each image.

    Raises:
        UserError: labels or images are bad, another process writes to the folder, or the disk is
            too small.
    """
    labels = load_dataset_labels(config, dataset, is_training)
    folder = user_path(config.mindrecord_dir)
    with locked_folder(folder):
        return convert(
            labels,
            folder / prefix,
            strict=setting(config, "strict"),
            verify=verify,
            file_num=file_num,
            num_gts=setting(config, "num_gts"),
            max_pixels=setting(config, "max_image_pixels"),
        )


def load_dataset_labels(config: Any, dataset: str, is_training: bool) -> Labels:
    """Load the labels of either kind of data set.

    Raises:
        UserError: see the loaders; or the kind is unknown.
    """
    if dataset == "coco":
        return load_labels(config, is_training)
    if dataset == "other":
        return load_text_labels(config.image_dir, config.anno_path, config.coco_classes)
    raise UserError(f"dataset {dataset!r}, expected 'coco' or 'other'")


def convert(
    labels: Labels,
    target: Path,
    strict: bool = False,
    verify: bool = False,
    file_num: int = 1,
    num_gts: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Summary:
    """Write `labels` as the MindRecord `target` in a folder locked by `locked_folder`.

    A list of skipped images, if any, is written next to it.

    Args:
        strict: whether the first broken image or unusable box is an error; a category that
            coco_classes does not list is not.
        verify: decode each image, instead of checking only its header and end marker.
        file_num: number of MindRecord files.
        num_gts: maximum number of an image's objects in a batch; 0 for no limit.
        max_pixels: images with more pixels are skipped.

    Raises:
        UserError: the disk is too small, there is no intact image or no box to train on, or
            `strict` refuses a fault.
    """
    start = time.monotonic()
    summary = Summary(
        target,
        notes=Counter(labels.notes),
        image_notes=Counter(labels.image_notes),
        unknown=labels.unknown,
        classes=labels.classes,
        num_gts=num_gts,
    )
    if strict:
        _refuse_notes(str(labels.source), summary)
    _refuse_crowded(labels)
    if not any((image.boxes[:, 5] == 0).any() for image in labels.images):
        raise _nothing_left(labels, summary)
    sizes = [size for size in map(_file_size, labels.images) if size <= LARGEST_ROW]
    _check_disk(target.parent, sum(sizes))
    rows = _whole_rows(labels, summary, strict, verify, max_pixels)
    batches = _batches(rows, labels, summary)
    # A 16-bit image may become slightly larger as an 8-bit one.
    largest = min(max(sizes, default=0) * 5 // 4, LARGEST_ROW)
    write_rows(target, batches, file_num, largest, labels.classes)
    _list_skipped(summary)
    summary.seconds = time.monotonic() - start
    return summary


def _refuse_crowded(labels: Labels) -> None:
    """Raise a UserError that names an image with an impossible number of boxes."""
    for image in labels.images:
        if len(image.boxes) > MOST_BOXES:
            raise UserError(
                f"{labels.source}: {len(image.boxes)} boxes in {image.path.name}, expected at most "
                f"{MOST_BOXES} in an image; look whether their image_id is right"
            )


def _file_size(image: LabelledImage) -> int:
    return image.path.stat().st_size


def _refuse_notes(where: str, summary: Summary) -> None:
    """Raise a UserError if `summary` counts anything that is more than a remark."""
    bad = [f"boxes {n} {what}" for what, n in summary.notes.items() if not what.startswith(REMARKS)]
    bad += [f"{n} images {what}" for what, n in summary.image_notes.items() if _is_odd(what)]
    bad += filter(None, [crowded_words(summary.objects, summary.num_gts)])
    if bad:
        raise UserError(
            f"{where}: {'; '.join(bad)} (an error because of strict): fix them, or leave strict out"
        )


def _is_odd(image_note: str) -> bool:
    """Return whether a note on images is a fault of the images or the labels."""
    return not image_note.startswith(IMAGE_REMARKS)


def _nothing_left(labels: Labels, summary: Summary) -> UserError:
    """Return an error: why there is no box to train on, and what to do."""
    crowds = sum(int((image.boxes[:, 5] == 1).sum()) for image in labels.images)
    counts = Counter({what: n for what, n in summary.notes.items() if what.endswith("dropped")})
    counts += Counter({CROWDS: crowds})
    counts += Counter({"in images that were skipped": summary.skipped_boxes})
    causes = [f"{n} boxes {what}" for what, n in counts.most_common(4)]
    causes += [f"{n} images {what}" for what, n in summary.image_notes.items() if _is_odd(what)]
    causes = [labels.cause] if labels.cause else causes
    most = counts.most_common(1)[0][0] if counts else ""
    fixes = (fix for begin, fix in FIXES.items() if most.startswith(begin))
    fix = next(fixes, "correct the labels, or export them again")
    return UserError(
        f"{labels.source}: no box to train on in its {len(labels.images)} images: "
        f"{'; '.join(causes) or 'it has none'}; {fix}"
    )


def _list_skipped(summary: Summary) -> None:
    """Write the skipped images with reasons next to the MindRecord, or remove an old list."""
    path = summary.path.with_name(SKIPPED_FILE)
    try:
        if summary.skipped:
            write_whole(path, "".join(f"{image}: {why}\n" for image, why in summary.skipped))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    needed += needed // 50 + 2**25
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**20:.0f} MiB of disk are free, the MindRecord file needs "
            f"{needed / 2**20:.0f}; make room or choose another mindrecord_dir"
        )


def _whole_rows(
    labels: Labels, summary: Summary, strict: bool, verify: bool, max_pixels: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each intact image; count in `summary`."""
    for image in progress(labels.images, summary.path.parent.name, "image"):
        try:
            data = image.path.read_bytes()
            header = image_header(data, max_pixels)
            if verify:
                decode_fully(data)
            data = eight_bits(data)
            if len(data) > LARGEST_ROW:
                raise BrokenImageError(f"{len(data)} bytes, a MindRecord takes {LARGEST_ROW}")
        except (OSError, BrokenImageError) as error:
            why = str(getattr(error, "strerror", None) or error)
            if strict:
                raise UserError(
                    f"{image.path}: {why}; fix or remove it, or leave strict out to skip it"
                ) from error
            summary.skipped.append((image.path, why))
            summary.skipped_boxes += len(image.boxes)
            continue
        if header.bits > 8:
            _count(summary, BITS, image)
        boxes = _boxes_within(image, header, labels.as_xywh, summary)
        summary.images += 1
        summary.boxes += len(boxes)
        counts = class_counts(boxes)
        objects = sum(counts.values())
        summary.per_class.update(counts)
        summary.crowds += len(boxes) - objects
        summary.objects[objects] += 1
        if strict:
            _refuse_notes(str(image.path), summary)
        dropped = image.unusable + len(image.boxes) - len(boxes)
        yield row(data, boxes if len(boxes) else NO_BOX, dropped)


def _count(summary: Summary, what: str, image: LabelledImage, detail: str = "") -> None:
    """Count an image, and name the first of its kind."""
    same = [key for key in summary.image_notes if key.startswith(what)]
    summary.image_notes[same[0] if same else f"{what}, first {image.path}{detail}"] += 1


def _boxes_within(
    image: LabelledImage, header: ImageHeader, as_xywh: bool, summary: Summary
) -> np.ndarray:
    """Return the boxes in stored pixels, (n, 6), clipped to the file's own size.

    They are assumed to be drawn on the image as EXIF rotates it, which labelling programs show,
    unless the labels give the size of the stored image and the two sizes differ.
    """
    boxes, said = image.boxes, image.size
    if not len(boxes):
        return boxes.astype(np.int32)
    turn = header.drawn_as_shown(said)
    drawn_on = header.shown if turn else header.size
    if header.orientation != 1:
        _count(summary, AS_SHOWN if turn else AS_STORED, image)
    if said is not None and said != drawn_on:
        sizes = f" ({drawn_on[0]}x{drawn_on[1]}, the labels say {said[0]}x{said[1]})"
        _count(summary, OTHER_SIZE, image, sizes)
    beyond = None
    if as_xywh:
        fit, beyond = fit_as_corners(boxes, said or drawn_on)
        summary.as_corners.update(boxes=len(boxes), fit=int(fit.sum()), beyond=int(beyond.sum()))
    if turn:
        boxes = np.concatenate([as_stored(boxes[:, :4], header), boxes[:, 4:]], axis=1)
    return rows_within(boxes, header.size, summary.notes, beyond)


def _batches(
    rows: Iterator[dict[str, Any]], labels: Labels, summary: Summary
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in lists of a few megabytes, so that memory use stays constant.

    Raises:
        UserError: there was no row, no box to train on, or all boxes are corners.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for item in rows:
        batch.append(item)
        size += len(item["image"])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if not summary.images:
        kinds = Counter(why for _, why in summary.skipped).most_common(SHOWN)
        reasons = "; ".join(f"{count} times: {why}" for why, count in kinds)
        raise UserError(
            f"{labels.source}: none of its images is a whole JPEG or PNG, first "
            f"{summary.skipped[0][0]} ({reasons})"
        )
    if summary.boxes == summary.crowds:
        raise _nothing_left(labels, summary)
    found = summary.as_corners
    if found["fit"] == found["boxes"] and found["beyond"] * 2 >= found["boxes"] > 0:
        raise UserError(
            f"{labels.source}: bbox looks like x1, y1, x2, y2: {found['beyond']} of its "
            f"{found['boxes']} boxes reach far beyond their image as x, y, width, height, which is "
            "what COCO has, and all of them lie within it as corners; write widths and heights"
        )
    if batch:
        yield batch


def parse_shards(text: str) -> list[int]:
    """Parse a list like 0-99 or 0,2,5-7 into ascending, unique numbers.

    Raises:
        UserError: it has another form.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UserError(f"--shards {text}: {part!r} is no range, expected like 0-99 or 0,2,5-7")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def for_shard(config: Any, number: int) -> Any:
    """Return a copy of `config` with `number` in the names of mindrecord_dir and json.

    Raises:
        UserError: one of the names has no number to replace.
    """
    shard_number(config.mindrecord_dir)
    changed = copy.copy(config)
    folder = Path(config.mindrecord_dir)
    changed.mindrecord_dir = str(folder.with_name(f"mindrecord_{number}"))
    key = "train_set" if config.train_set else "instance_set"
    setattr(changed, key, _renumbered(key, getattr(config, key), number))
    return changed


def _renumbered(key: str, name: str, number: int) -> str:
    path = Path(name)
    stem, found = re.subn(r"_\d+$", f"_{number}", path.stem)
    if not found:
        raise UserError(
            f"{key} {name}: its name has no shard number to replace, expected like train_0.json"
        )
    return str(path.with_name(stem + path.suffix))
