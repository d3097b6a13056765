"""Splits a COCO json into disjoint shards, one for each silo: at random, or skewed by category.

COCO's annotations are half a gigabyte as json and three as Python objects. So they are read one by
one, and kept as text until they are written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.data.coco import check_coco, check_entry, read_coco, shared_files
from src.data.coco_boxes import plain_id, some
from src.data.json_stream import read_json
from src.errors import UserError
from src.files import reason, whole_file
from src.progress import progress

VALIDATION = "val.json"
NO_CATEGORY = -1  # category of images without a box in skewed shards
OBJECT, CROWD, SHAPELESS, STRAY = range(4)  # kinds of annotations
UNUSABLE = {
    CROWD: "are crowds (iscrowd 1)",
    SHAPELESS: "have neither bbox nor segmentation",
    STRAY: "have an image_id that is not in 'images'",
}


class Annotations:
    """Annotations as json text, with what the split needs to know about each.

    Args:
        path: the annotations' file, for messages.

    Attributes:
        texts: the json of each, ASCII.
        image_ids: the image id of each.
        category_ids: the category id of each; None if it has none.
        kinds: OBJECT, CROWD or SHAPELESS for each; STRAY if its image is not in the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self.texts: list[bytes] = []
        self.image_ids: list[Any] = []
        self.category_ids: list[Any] = []
        self.kinds = bytearray()

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, entry: Any) -> None:
        """Check and keep the next annotation.

        Raises:
            UserError: it is not a COCO annotation.
        """
        check_entry("annotations", len(self.texts), entry, self._path)
        self.texts.append(json.dumps(entry).encode())
        self.image_ids.append(entry["image_id"])
        self.category_ids.append(entry.get("category_id"))
        shape = entry.get("bbox") or entry.get("segmentation")
        crowd = CROWD if entry.get("iscrowd") in (1, True) else OBJECT
        self.kinds.append(crowd if shape else SHAPELESS)

    def set_id(self, number: int, key: str, id_: Any) -> None:
        """Change the `image_id` or `category_id` of an annotation."""
        (self.image_ids if key == "image_id" else self.category_ids)[number] = id_
        self.texts[number] = json.dumps({**json.loads(self.texts[number]), key: id_}).encode()


@dataclass
class CocoSource:
    """A COCO json to split.

    Attributes:
        rest: its content with an empty list in place of the annotations.
        annotations: the annotations.
        notes: what was changed or will be dropped, one line each.
    """

    rest: dict[str, Any]
    annotations: Annotations
    notes: list[str] = field(default_factory=list)


@dataclass
class Shard:
    """The entries of a shard's images, and the indexes of their annotations in the whole json."""

    images: list[dict[str, Any]]
    annotations: list[int] = field(default_factory=list)


def read_source(path: Path) -> CocoSource:
    """Read and check a COCO json; match ids that differ only in their type.

    Raises:
        UserError: the file is missing, not json or not COCO, or has no annotation to train on.
    """
    try:
        content = read_json(path, {"annotations": lambda: Annotations(path)})
    except (OSError, UnicodeDecodeError):
        content = _read_whole(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a json file: {error}") from error
    annotations = content.get("annotations") if isinstance(content, dict) else None
    streamed = isinstance(annotations, Annotations)
    # Without annotations it is not COCO, and the check reports that.
    check_coco({**content, "annotations": []} if streamed else content, path)
    source = CocoSource({**content, "annotations": []}, content["annotations"])
    for key, name in (("image_id", "images"), ("category_id", "categories")):
        source.notes += _match_types(source, key, name)
    source.notes += _find_strays(source)
    if OBJECT not in source.annotations.kinds:
        raise UserError(
            f"{path}: {_why_nothing(source)}, so there is nothing to train on; give a json that "
            "has boxes of its images"
        )
    shared = shared_files(source.rest["images"])
    source.notes += [shared] if shared else []
    return source


def _read_whole(path: Path) -> dict[str, Any]:
    """Read what cannot be streamed: a file in another encoding; report a missing one."""
    content = read_coco(path, with_masks=True)
    annotations = Annotations(path)
    for entry in content["annotations"]:
        annotations.add(entry)
    return {**content, "annotations": annotations}


def _match_types(source: CocoSource, key: str, name: str) -> list[str]:
    """Replace annotations' ids that differ from the list `name` only in type; return notes."""
    annotations = source.annotations
    values = annotations.image_ids if key == "image_id" else annotations.category_ids
    ids = {entry["id"] for entry in source.rest[name]}
    strange = [number for number, id_ in enumerate(values) if id_ is not None and id_ not in ids]
    if not strange:
        return []
    alike: dict[Any, list[Any]] = {}
    for id_ in ids:
        alike.setdefault(plain_id(id_), []).append(id_)
    matches = {number: alike.get(plain_id(values[number]), []) for number in strange}
    matches = {number: found for number, found in matches.items() if len(found) == 1}
    if not matches:
        return []
    first = values[next(iter(matches))]
    for number, (id_,) in matches.items():
        annotations.set_id(number, key, id_)
    return [
        f"{key} of {len(matches)} annotations is of another type than the ids in '{name}': "
        f"matched, first {first!r:.60} with {values[next(iter(matches))]!r:.60}"
    ]


def _find_strays(source: CocoSource) -> list[str]:
    """Mark the annotations of missing images; return a note with their number."""
    annotations = source.annotations
    ids = {entry["id"] for entry in source.rest["images"]}
    strays = [number for number, id_ in enumerate(annotations.image_ids) if id_ not in ids]
    for number in strays:
        annotations.kinds[number] = STRAY
    if not strays:
        return []
    first = annotations.image_ids[strays[0]]
    return [f"{len(strays)} annotations {UNUSABLE[STRAY]}, first {first!r:.60}: dropped"]


def _why_nothing(source: CocoSource) -> str:
    """Return why none of the annotations is an object."""
    annotations = source.annotations
    if not annotations:
        return "its list 'annotations' is empty"
    counts = Counter(annotations.kinds)
    causes = [f"{count} {UNUSABLE[kind]}" for kind, count in counts.items()]
    if STRAY in counts:
        image_id = annotations.image_ids[annotations.kinds.index(STRAY)]
        there = source.rest["images"][0]["id"]
        causes.append(f"the first image_id is {image_id!r:.60}, the first id {there!r:.60}")
    return f"of its {len(annotations)} annotations {', '.join(causes)}"


def split_evenly(count: int, shards: int, seed: int) -> list[np.ndarray]:
    """Distribute `count` images at random into shards whose sizes differ by at most one.

    Returns:
        For each shard the ascending indexes of its images; every index is in exactly one shard.

    Raises:
        UserError: fewer images than shards.
    """
    _check_count(count, shards)
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, shards)]


def split_by_category(
    categories: np.ndarray, shards: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Distribute images so that each shard has its own mixture of categories.

    For each category a Dirichlet(alpha) draw determines the share of its images for each shard (Hsu
    et al. 2019, "Measuring the effects of non-identical data distribution"): 0.1 is strongly
    skewed, 100 nearly even. An empty shard gets an image from the largest.

    Args:
        categories: (n,) the category of each image.
        shards: number of shards.
        alpha: concentration, more than 0.
        seed: seed of the generator.

    Returns:
        See `split_evenly`.

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


def dominant_categories(source: CocoSource) -> np.ndarray:
    """Return each image's category index with most boxes, the first on a tie: (images,) int64."""
    index = {entry["id"]: number for number, entry in enumerate(source.rest["categories"])}
    counts: dict[Any, Counter] = {entry["id"]: Counter() for entry in source.rest["images"]}
    annotations = source.annotations
    for image_id, category_id in zip(annotations.image_ids, annotations.category_ids):
        if image_id in counts and category_id in index:
            counts[image_id][index[category_id]] += 1
    return np.array(
        [
            min(c, key=lambda category: (-c[category], category)) if c else NO_CATEGORY
            for c in counts.values()
        ]
    )


def object_counts(source: CocoSource) -> list[Counter]:
    """Return for each image, category id -> number of objects; crowds are none."""
    counts: dict[Any, Counter] = {entry["id"]: Counter() for entry in source.rest["images"]}
    known = {entry["id"] for entry in source.rest["categories"]}
    annotations = source.annotations
    for image_id, category_id, kind in zip(
        annotations.image_ids, annotations.category_ids, annotations.kinds
    ):
        if kind == OBJECT and category_id in known:
            counts[image_id][category_id] += 1
    return list(counts.values())


def deal(source: CocoSource, parts: Sequence[np.ndarray]) -> list[Shard]:
    """Make the shards whose image indexes are `parts`, in the order of the original."""
    images = source.rest["images"]
    shards = [Shard([images[index] for index in part]) for part in parts]
    shard_of = {entry["id"]: shard for shard in shards for entry in shard.images}
    for number, image_id in enumerate(source.annotations.image_ids):
        if image_id in shard_of:
            shard_of[image_id].annotations.append(number)
    return shards


def shard_text(source: CocoSource, shard: Shard, image_dir: str) -> Iterator[bytes]:
    """Yield a shard's json in pieces: its images and annotations, and the original's other keys.

    Args:
        source: the whole json.
        shard: the part of it.
        image_dir: the folder of the images, relative to the shard's folder; recorded in `info`.
    """
    info = source.rest["info"] if isinstance(source.rest.get("info"), dict) else {}
    changed = {"info": {**info, "image_dir": image_dir}, "images": shard.images}
    for place, (key, value) in enumerate({**source.rest, **changed}.items()):
        yield f"{', ' if place else '{'}{json.dumps(key)}: ".encode()
        if key == "annotations":
            for count, number in enumerate(shard.annotations):
                yield b", " if count else b"["
                yield source.annotations.texts[number]
            yield b"]" if shard.annotations else b"[]"
        else:
            yield json.dumps(value).encode()
    yield b"}"


def refuse_existing(folder: Path) -> None:
    """Raise a UserError if `folder` has shards already."""
    there = sorted([*folder.glob("train_*.json"), *folder.glob(VALIDATION)])
    if there:
        raise UserError(f"{there[0]}: already there; choose another --out or give --overwrite")


def write_shards(
    source: CocoSource,
    shards: Sequence[Shard],
    image_dir: str,
    folder: Path,
    held_out: Shard | None = None,
) -> list[Path]:
    """Write train_0.json, train_1.json, ... into `folder`; rename them only when all are complete.

    Args:
        source: the whole json.
        shards: the parts of it to train on.
        image_dir: see `shard_text`.
        folder: the folder of the jsons.
        held_out: the part to validate on, val.json. Without it, that of an earlier split is
            removed: its images are in the shards.

    Raises:
        UserError: a file cannot be written.
    """
    parts = {f"train_{number}.json": shard for number, shard in enumerate(shards)}
    if held_out is not None:
        parts[VALIDATION] = held_out
    texts = {name: shard_text(source, part, image_dir) for name, part in parts.items()}
    written = _write_texts(texts, folder)
    if held_out is None:
        (folder / VALIDATION).unlink(missing_ok=True)
    return written


def write_jsons(contents: Mapping[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Write files of these names into `folder`; rename them only when all are complete.

    Raises:
        UserError: a file cannot be written.
    """
    return _write_texts({name: _as_text(content) for name, content in contents.items()}, folder)


def _as_text(content: dict[str, Any]) -> Iterator[bytes]:
    yield json.dumps(content).encode()


def _write_texts(texts: Mapping[str, Iterable[bytes]], folder: Path) -> list[Path]:
    temporary = folder / f".writing.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, pieces in progress(list(texts.items()), "writing", "file"):
            with whole_file(temporary / name) as partial, partial.open("wb") as file:
                file.writelines(pieces)
        return [(temporary / name).replace(folder / name) for name in texts]
    except OSError as error:
        raise UserError(f"{folder}: jsons cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def table(source: CocoSource, shards: Sequence[Shard], limit: int = 20) -> list[str]:
    """Return a line for each of the first `limit` shards: images, boxes, most common categories."""
    lines = ["shard  images   boxes  commonest categories"]
    names = {entry["id"]: entry["name"] for entry in source.rest["categories"]}
    category_ids = source.annotations.category_ids
    for number, shard in enumerate(shards[:limit]):
        counts = Counter(names.get(category_ids[place], "?") for place in shard.annotations)
        common = ", ".join(f"{name} {count}" for name, count in counts.most_common(4))
        lines.append(f"{number:5d} {len(shard.images):7d} {len(shard.annotations):7d}  {common}")
    sizes = [len(shard.images) for shard in shards]
    if len(shards) > limit:
        lines.append(f"  ... {len(shards) - limit} more")
    lines.append(
        f"{len(shards)} shards of {min(sizes)} to {max(sizes)} images, {sum(sizes)} in all"
    )
    return lines


def shards_without_objects(source: CocoSource, shards: Sequence[Shard]) -> list[str]:
    """Return a line that names the shards without objects to train on; [] if there are none."""
    kinds = source.annotations.kinds
    empty = [
        f"train_{number}.json"
        for number, shard in enumerate(shards)
        if all(kinds[place] != OBJECT for place in shard.annotations)
    ]
    return [f"{len(empty)} shards have no box to train on: {some(empty)}"] if empty else []
