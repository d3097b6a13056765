"""Check the data of a machine's silos: MindRecords and validation sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from src.data.coco_boxes import class_words
from src.data.mindrecord import (
    check_mindrecord,
    indexed_objects,
    odd_objects,
    require_objects,
)
from src.errors import UserError
from src.evaluation.validation_set import open_validation
from src.job.checks import WARN, Finding

MOST_CLASSES = 4  # that are listed


def require_shards(
    data: Path,
    numbers: Iterable[int],
    file_name: str,
    batch_size: int,
    classes: Sequence[str] | None = None,
) -> str:
    """Describe the shards of workers `numbers` and their images in words.

    Raises:
        UserError: one is missing, incomplete, smaller than a batch, or of another class list.
    """
    folders = [data / f"mindrecord_{number}" for number in numbers]
    missing = [f for f in folders for end in ("", ".db") if not (f / f"{file_name}{end}").is_file()]
    if not missing:
        counts = [check_mindrecord(folder / file_name, batch_size, classes) for folder in folders]
        pairs = zip(folders, counts)
        return f"{data}: " + ", ".join(f"{f.name} {count} images" for f, count in pairs)
    names = ", ".join(dict.fromkeys(folder.name for folder in missing))
    there = sorted(p.parent.name for p in data.glob(f"mindrecord_*/{file_name}"))
    raise UserError(
        f"--dataset_path {data}: no complete {file_name} with its .db in {names} "
        f"(found: {', '.join(there[:8]) or 'no shard'}); {len(folders)} worker(s) need one shard "
        "each: make them with generate_mindrecord.py or start fewer (--local_worker_num)"
    )


def objects_there(files: Iterable[Path], num_gts: int, classes: Sequence[str]) -> str | Finding:
    """Check that checked MindRecords have objects, and a batch has room for those of each image.

    Raises:
        UserError: one has no object.
    """
    known, unknown = {}, []
    for file in files:
        objects = indexed_objects(file)
        if objects is None:
            unknown.append(file.parent.name)
        else:
            require_objects(file, objects)
            known[file.parent.name] = objects
    odd = [f"{name}: {word}" for name, one in known.items() for word in odd_objects(one, num_gts)]
    most = max((max(one.per_image) for one in known.values()), default=0)
    texts = odd or ([f"up to {most} in an image, num_gts {num_gts} holds all"] if known else [])
    texts += [
        f"{name}: {class_words(one.per_class, classes)}"
        for name, one in known.items()
        if one.per_class is not None
    ]
    if unknown:
        names = ", ".join(unknown)
        texts.append(f"the index of {names} does not say: the worker counts at its start")
    return Finding(WARN, "objects", "; ".join(texts)) if odd else "; ".join(texts)


def validation_sets(config: Any, numbers: Iterable[int]) -> str | Finding:
    """Describe what workers `numbers` evaluate their models on.

    Raises:
        UserError: a set is not there, cannot be read, or has no box of the detector's classes.
    """
    names = config.coco_classes
    texts, odd = [], False
    for number in numbers if "{worker}" in config.val_set else list(numbers)[:1]:
        opened = open_validation(config, number)
        labelled = {truth["category_id"] for truth in opened.truths}
        lacking = [name for place, name in enumerate(names) if place and place not in labelled]
        odd = odd or any("not in coco_classes" in note for note in +opened.notes)
        text = str(opened)
        if lacking:
            more = ", ..." * (len(lacking) > MOST_CLASSES)
            text += f"; without a box of {', '.join(lacking[:MOST_CLASSES])}{more}"
        texts.append(text)
    text = "; ".join(texts)
    return Finding(WARN, "val_set", text) if odd else text
