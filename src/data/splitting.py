"""A COCO json in disjoint shards, one for each silo: at random, or skewed by category."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.files import reason, write_whole
from src.progress import progress

NO_CATEGORY = -1  # stands for the images without a box when shards are skewed


def split_evenly(count: int, shards: int, seed: int) -> list[np.ndarray]:
    """`count` images dealt at random into shards whose sizes differ by one at most.

    Returns:
        For each shard the ascending indexes of its images; every index is in one shard.

    Raises:
        UserError: fewer images than shards.
    """
    _check_count(count, shards)
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, shards)]


def split_by_category(
    categories: np.ndarray, shards: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Images dealt so that each shard has its own mixture of categories.

    For each category a Dirichlet(alpha) draw says which share of its images each shard gets (Hsu
    et al. 2019, "Measuring the effects of non-identical data distribution"): 0.1 is strongly
    skewed, 100 nearly even. An empty shard takes an image from the largest.

    Args:
        categories: (n,) the category that stands for each image.
        shards: number of shards.
        alpha: concentration, more than 0.
        seed: of the generator.

    Returns:
        As `split_evenly`.

    Raises:
        UserError: fewer images than shards, or alpha not positive.
    """
    _check_count(len(categories), shards)
    if not 0 < alpha < float("inf"):
        raise UserError(f"--alpha {alpha}: expected more than 0, for example 0.5")
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(shards)]
    for category in np.unique(categories):
        members = rng.permutation(np.flatnonzero(categories == category))
        shares = rng.dirichlet(np.full(shards, alpha))
        ends = np.floor(np.cumsum(shares)[:-1] * len(members) + 0.5).astype(int)
        for part, piece in zip(parts, np.split(members, ends)):
            part.extend(piece.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part)) for part in parts]


def _check_count(count: int, shards: int) -> None:
    if not 1 <= shards <= count:
        raise UserError(
            f"--num_shards {shards}: expected 1 to {count}, the number of images; none may be empty"
        )


def dominant_categories(coco: dict[str, Any]) -> np.ndarray:
    """(images,) int64: the category index with the most boxes in each image, the first on a tie."""
    index = {entry["id"]: number for number, entry in enumerate(coco["categories"])}
    counts: dict[Any, Counter] = {entry["id"]: Counter() for entry in coco["images"]}
    for annotation in coco["annotations"]:
        category = index.get(annotation.get("category_id"))
        if annotation["image_id"] in counts and category is not None:
            counts[annotation["image_id"]][category] += 1
    return np.array(
        [
            min(c, key=lambda category: (-c[category], category)) if c else NO_CATEGORY
            for c in counts.values()
        ]
    )


def shard_jsons(
    coco: dict[str, Any], parts: list[np.ndarray], image_dir: str
) -> list[dict[str, Any]]:
    """The json of each shard: its images and their annotations, in the order of the original.

    Args:
        coco: the whole json; everything but images and annotations is kept in each shard.
        parts: the image indexes of each shard.
        image_dir: where the images lie, relative to the shards' folder; recorded in `info`.
    """
    info = coco["info"] if isinstance(coco.get("info"), dict) else {}
    common = {**coco, "info": {**info, "image_dir": image_dir}}
    shard_of = {
        coco["images"][index]["id"]: number for number, part in enumerate(parts) for index in part
    }
    annotations: list[list[dict]] = [[] for _ in parts]
    for annotation in coco["annotations"]:
        number = shard_of.get(annotation["image_id"])
        if number is not None:
            annotations[number].append(annotation)
    return [
        {**common, "images": [coco["images"][i] for i in part], "annotations": annotations[number]}
        for number, part in enumerate(parts)
    ]


def write_shards(shards: list[dict[str, Any]], folder: Path, overwrite: bool = False) -> list[Path]:
    """Write train_0.json, train_1.json, ... into `folder`, in full before the first gets its name.

    Raises:
        UserError: shards are there already and are not to be overwritten, or the disk refuses.
    """
    there = sorted(folder.glob("train_*.json"))
    if there and not overwrite:
        raise UserError(f"{there[0]}: already there; choose another --out or give --overwrite")
    return write_jsons({f"train_{number}.json": one for number, one in enumerate(shards)}, folder)


def write_jsons(contents: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Write files of these names into `folder`, all in full before the first gets its name.

    Raises:
        UserError: the disk refuses.
    """
    temporary = folder / f".writing.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, content in progress(list(contents.items()), "writing", "file"):
            write_whole(temporary / name, json.dumps(content))
        return [(temporary / name).replace(folder / name) for name in contents]
    except OSError as error:
        raise UserError(f"{folder}: jsons cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def table(shards: list[dict[str, Any]], limit: int = 20) -> list[str]:
    """A line for each shard, the first `limit`: images, boxes, and its commonest categories."""
    lines = ["shard  images   boxes  commonest categories"]
    for number, shard in enumerate(shards[:limit]):
        names = {entry["id"]: entry["name"] for entry in shard["categories"]}
        counts = Counter(names.get(a.get("category_id"), "?") for a in shard["annotations"])
        common = ", ".join(f"{name} {count}" for name, count in counts.most_common(4))
        lines.append(
            f"{number:5d} {len(shard['images']):7d} {len(shard['annotations']):7d}  {common}"
        )
    sizes = [len(shard["images"]) for shard in shards]
    if len(shards) > limit:
        lines.append(f"  ... {len(shards) - limit} more")
    lines.append(
        f"{len(shards)} shards of {min(sizes)} to {max(sizes)} images, {sum(sizes)} in all"
    )
    return lines
