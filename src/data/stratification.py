"""Holds images out for validation: each class in proportion, the images of a group on one side.

The method is iterative stratification: K. Sechidis, G. Tsoumakas, I. Vlahavas 2011, "On the
Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1. Again and again the class with the
fewest images not yet placed comes next, and each of its images goes to the part that still lacks
most boxes of this class. Rare classes are placed first, while there is still a choice. Two things
are more general here: an example is a group of images, and it counts with its number of boxes.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from src.data.coco_boxes import some
from src.errors import UserError

LISTED = 100  # classes in the table


def add_hold_out_flags(parser: argparse.ArgumentParser) -> None:
    """Add --val and --group; the parser needs --seed too."""
    parser.add_argument(
        "--val", type=float, help="share of the images to hold out for validation, like 0.15; "
        "default: none"
    )  # fmt: skip
    parser.add_argument(
        "--group", default="", help="with --val: a regular expression on the file name; images for "
        "which its (group) is the same, one patient's for example, stay together"
    )  # fmt: skip


def require_hold_out_flags(args: argparse.Namespace) -> None:
    """Raise a UserError if --val, --group or --seed makes no sense."""
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    if args.group and args.val is None:
        raise UserError("--group: only --val holds groups together; give it too, like --val=0.15")
    if args.val is not None and not 0 < args.val < 1:
        raise UserError(
            f"--val {args.val:g}: expected more than 0 and less than 1, for example 0.15"
        )


def group_keys(names: Sequence[str], pattern: str = "") -> list[Hashable]:
    """Return the group of each image: what the groups of `pattern` match in its file name.

    Args:
        names: file names, with folders.
        pattern: the value of --group; "" makes each file a group of its own.

    Raises:
        UserError: it is no regular expression, has no group, or does not match every name.
    """
    if not pattern:
        return list(names)
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--group {pattern}: not a regular expression: {error}") from error
    if not expression.groups:
        raise UserError(
            f"--group {pattern}: it has no group; put the part of the file name that the images "
            "of a group share in parentheses, for example --group='^(patient\\d+)_'"
        )
    found = [expression.search(name) for name in names]
    keys = [match.groups() if match else () for match in found]
    unmatched = [name for name, key in zip(names, keys) if None in key or not key]
    if unmatched:
        raise UserError(
            f"--group {pattern}: {len(unmatched)} of {len(names)} file names have no match, first "
            f"{unmatched[0]}; correct it so that every name has one"
        )
    return list(keys)


def hold_out(
    counts: Sequence[Mapping[Any, int]], keys: Sequence[Hashable], share: float, seed: int
) -> np.ndarray:
    """Choose the images of the validation part.

    Args:
        counts: for each image, class -> number of boxes.
        keys: the group of each image.
        share: the validation part's share of the images, and of the boxes of each class; 0 to 1.
        seed: seed of the order in which images are placed.

    Returns:
        (images,) bool, True for validation. The same arguments give the same result.

    Raises:
        UserError: a part would have no image, or no box.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    members = list(groups.values())
    order = np.random.default_rng(seed).permutation(len(members)).tolist()
    placed = _placed([_added(counts, images) for images in members], members, order, share)
    held = np.zeros(len(counts), bool)
    for images, is_held in zip(members, placed):
        held[images] = is_held
    _require_both(counts, held, len(members), share)
    return held


def _added(counts: Sequence[Mapping[Any, int]], images: list[int]) -> Mapping[Hashable, int]:
    """Return the counts of some images together."""
    if len(images) == 1:
        return counts[images[0]]
    total: Counter = Counter()
    for number in images:
        total.update(counts[number])
    return total


def _placed(
    boxes: Sequence[Mapping[Any, int]],
    members: Sequence[Sequence[int]],
    order: Sequence[int],
    share: float,
) -> list[bool]:
    """Return whether each group is in the validation part.

    Args:
        boxes: the boxes of each group by class.
        members: the images of each group.
        order: the order in which groups are placed.
        share: the validation part's share.
    """
    parts = (1 - share, share)
    having: dict[Hashable, list[int]] = {}
    for group in order:
        for kind, count in boxes[group].items():
            if count:
                having.setdefault(kind, []).append(group)
    totals = {kind: sum(boxes[group][kind] for group in groups) for kind, groups in having.items()}
    lacking = [{kind: part * total for kind, total in totals.items()} for part in parts]
    images = [part * sum(map(len, members)) for part in parts]
    unplaced = {kind: len(groups) for kind, groups in having.items()}
    side = [-1] * len(members)

    def place(group: int, training: float, validation: float) -> None:
        chosen = int((validation, images[1]) > (training, images[0]))
        side[group] = chosen
        images[chosen] -= len(members[group])
        for kind, count in boxes[group].items():
            if count:
                lacking[chosen][kind] -= count
                unplaced[kind] -= 1

    while unplaced:
        rarest = min(unplaced, key=unplaced.__getitem__)
        for group in having[rarest]:
            if side[group] < 0:
                place(group, lacking[0][rarest], lacking[1][rarest])
        del unplaced[rarest]
        unplaced = {kind: count for kind, count in unplaced.items() if count}
    for group in order:
        if side[group] < 0:
            place(group, 0, 0)
    return [chosen == 1 for chosen in side]


def _require_both(
    counts: Sequence[Mapping[Any, int]], held: np.ndarray, groups: int, share: float
) -> None:
    """Raise a UserError if one part has no image, or no box."""
    for part, chosen, fix in (("validation", held, "larger"), ("training", ~held, "smaller")):
        what = "image" if not chosen.any() else "box"
        if what == "image" or not any(any(counts[n].values()) for n in np.flatnonzero(chosen)):
            of = f"{len(held)} images" + (f" in {groups} groups" if groups < len(held) else "")
            raise UserError(
                f"--val {share:g}: of {of} the {part} part would have no {what}; give a {fix} "
                "share, or more labelled images"
            )


def part_lines(
    counts: Sequence[Mapping[Any, int]], held: np.ndarray, names: Mapping[Any, str]
) -> list[str]:
    """Return a table of both parts, images and boxes by class, and a warning if a class lacks.

    Args:
        counts: see `hold_out`.
        held: see there.
        names: class -> its name, in the order of the table.
    """
    sums: tuple[Counter, Counter] = (Counter(), Counter())
    for number, boxes in enumerate(counts):
        sums[bool(held[number])].update(boxes)
    rows = [("images", int((~held).sum()), int(held.sum()))]
    rows += [(name, sums[0][kind], sums[1][kind]) for kind, name in names.items()]
    width = max(len(name) for name, _, _ in rows[: LISTED + 1])
    lines = [f"{'':{width}}  training  validation"]
    lines += [f"{name:{width}}  {a:8d}  {b:10d}" for name, a, b in rows[: LISTED + 1]]
    if len(rows) > LISTED + 1:
        lines.append(f"  ... {len(rows) - LISTED - 1} more classes")
    lacking = [name for name, training, validation in rows[1:] if training and not validation]
    if lacking:
        lines.append(
            f"WARNING: no box in the validation part of {some(lacking)}: how well they are found "
            "cannot be measured; give a larger --val or another --seed"
        )
    return lines
