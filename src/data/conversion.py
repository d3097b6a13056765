"""Labelled images into a MindRecord file, broken ones left out and counted."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.data.coco_boxes import some
from src.data.coco_json import NO_BOX, LabelledImage, Labels, load_labels
from src.data.image_check import BrokenImageError, decode_fully, image_size
from src.data.mindrecord_file import locked_folder, row, write_rows
from src.data.text_labels import load_text_labels
from src.errors import UserError
from src.model_utils.config import setting
from src.progress import progress

BATCH_BYTES = 4 * 2**20


@dataclass
class Summary:
    """What a conversion wrote and what it left out; `unknown` as in `Labels`."""

    path: Path
    images: int = 0
    boxes: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For the user: one line of what was written, and one for each kind of trouble."""
        rate = self.images / self.seconds if self.seconds else 0.0
        text = [
            f"{self.path}: {self.images} images, {self.boxes} boxes, {len(self.skipped)} images "
            f"skipped, {self.seconds:.1f} s ({rate:.0f} images/s)"
        ]
        if self.skipped:
            path, reason = self.skipped[0]
            text.append(f"  skipped {len(self.skipped)} broken images, first {path}: {reason}")
        if self.unknown:
            text.append(
                f"  {len(self.unknown)} categories not in coco_classes: {some(self.unknown)}"
            )
        if self.notes:
            text.append("  boxes " + "; ".join(f"{n} {what}" for what, n in self.notes.items()))
        return text


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
        config: as `load_labels` takes it, and mindrecord_dir, strict; for "other" image_dir and
            anno_path.
        dataset: "coco" (a COCO json) or "other" (a text file).
        is_training: which of train_set and val_set, and which data type, is meant.
        prefix: base name of the file; with more than one, 0, 1, ... is appended.
        file_num: number of files.
        verify: decode each image.

    Raises:
        UserError: bad labels or images, a folder that another process writes, too little disk.
    """
    labels = load_dataset_labels(config, dataset, is_training)
    folder = Path(config.mindrecord_dir).expanduser()
    with locked_folder(folder):
        return convert(labels, folder / prefix, setting(config, "strict"), verify, file_num)


def load_dataset_labels(config: Any, dataset: str, is_training: bool) -> Labels:
    """The labels of either kind of data set.

    Raises:
        UserError: as the loader, or an unknown kind.
    """
    if dataset == "coco":
        return load_labels(config, is_training)
    if dataset == "other":
        return load_text_labels(config.image_dir, config.anno_path, config.coco_classes)
    raise UserError(f"dataset {dataset!r}, expected 'coco' or 'other'")


def convert(
    labels: Labels, target: Path, strict: bool = False, verify: bool = False, file_num: int = 1
) -> Summary:
    """Write `labels` as the MindRecord `target` in a folder that `locked_folder` holds.

    Args:
        strict: a broken image or an unusable box is an error; a category that coco_classes does
            not list is not.
        verify: decode each image, in place of looking at its header and end marker only.
        file_num: number of MindRecord files.

    Raises:
        UserError: too little disk, no whole image at all, or what `strict` refuses.
    """
    start = time.monotonic()
    summary = Summary(target, notes=Counter(labels.notes), unknown=labels.unknown)
    if strict:
        _refuse_notes(labels.source, summary.notes)
    sizes = [image.path.stat().st_size for image in labels.images]
    _check_disk(target.parent, sum(sizes))
    rows = _whole_rows(
        progress(labels.images, target.parent.name, "image"), summary, strict, verify
    )
    batches = _batches(rows, labels.source, summary, strict)
    write_rows(target, batches, file_num, max(sizes), labels.classes)
    summary.seconds = time.monotonic() - start
    return summary


def _refuse_notes(source: Path, notes: Counter) -> None:
    bad = [f"{n} {what}" for what, n in notes.items() if not what.startswith("of category")]
    if bad:
        raise UserError(
            f"{source}: boxes {'; '.join(bad)} (an error because of strict): mend them, or leave "
            "strict away"
        )


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    needed += needed // 50 + 2**25
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**20:.0f} MiB of disk are free, the MindRecord file needs "
            f"{needed / 2**20:.0f}; make room or choose another mindrecord_dir"
        )


def _whole_rows(
    images: Iterable[LabelledImage], summary: Summary, strict: bool, verify: bool
) -> Iterator[dict[str, Any]]:
    """A row for each image that is whole; `summary` counts."""
    for image in images:
        try:
            data = image.path.read_bytes()
            size = image_size(data)
            if verify:
                decode_fully(data)
        except (OSError, BrokenImageError) as error:
            if strict:
                raise UserError(
                    f"{image.path}: {error}; mend or remove it, or leave strict away to skip it"
                ) from error
            summary.skipped.append((image.path, str(error)))
            continue
        boxes = _boxes_within(image, size, summary)
        summary.images += 1
        summary.boxes += len(boxes)
        yield row(data, boxes if len(boxes) else NO_BOX)


def _boxes_within(image: LabelledImage, size: tuple[int, int], summary: Summary) -> np.ndarray:
    """The boxes, (n, 6), clipped to the file's own size where the labels did not know it."""
    boxes = image.boxes[: image.box_count]
    if image.size is not None:
        if image.size != size and image.box_count:
            summary.notes["in images of another size than the json says"] += image.box_count
        return boxes
    clipped = boxes.copy()
    clipped[:, :4] = np.clip(clipped[:, :4], 0, np.array([*size, *size]))
    inside = (clipped[:, 0] < clipped[:, 2]) & (clipped[:, 1] < clipped[:, 3])
    changed = (clipped != boxes).any(axis=1)
    for what, count in (
        ("outside the image, dropped", (changed & ~inside).sum()),
        ("partly outside the image, clipped", (changed & inside).sum()),
    ):
        if count:
            summary.notes[what] += int(count)
    return clipped[inside | ~changed]


def _batches(
    rows: Iterator[dict[str, Any]], source: Path, summary: Summary, strict: bool
) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of a few megabytes, so that memory stays flat.

    Raises:
        UserError: there was no row, or the images showed boxes that `strict` refuses.
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
        raise UserError(f"{source}: none of its images is a whole JPEG or PNG")
    if strict:
        _refuse_notes(source, summary.notes)
    if batch:
        yield batch
