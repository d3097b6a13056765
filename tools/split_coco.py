"""Split one COCO JSON into disjoint shards, one for each silo, and a validation part.

  python tools/split_coco.py --json=instances_train2017.json --image_dir=train2017 --num_shards=100
  python tools/split_coco.py --json=... --num_shards=10 --alpha=0.5     skewed by category
  python tools/split_coco.py --json=mine.json --val=0.15            one silo, 15 % held out
  python tools/split_coco.py --json=mine.json --val=0.15 --group='^(patient\\d+)_'
  python generate_mindrecord.py --shards=0-99                       what comes next

Success: a table of the shards, and <out>/split_100/train_0.json to train_99.json. Every image is in
one shard with all its annotations. No image is copied: each shard records the image folder,
relative to itself, and generate_mindrecord.py finds the images there from any current folder.
Annotations of images that the JSON does not list are dropped; a note says how many.

--val writes <out>/split_1/val.json too, for val_set, and shows images and boxes by class of both
parts. Each class is in the validation part in proportion (iterative stratification). --group keeps
images together, those of one patient for example, that would make the measured quality too good if
they were in both parts: a regular expression whose group, in parentheses, is the same in the file
names of images that belong together.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.data.coco import image_folder, image_folders, name_parts
from src.data.splitting import (
    VALIDATION,
    CocoSource,
    deal,
    dominant_categories,
    object_counts,
    read_source,
    refuse_existing,
    shards_without_objects,
    split_by_category,
    split_evenly,
    table,
    write_shards,
)
from src.data.stratification import (
    add_hold_out_flags,
    group_keys,
    hold_out,
    part_lines,
    require_hold_out_flags,
)
from src.model_utils.config import load_config, parse_known, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--json", required=True, type=Path, help="the COCO json to split")
    parser.add_argument("--num_shards", type=int, help="number of silos; with --val 1 by default")
    parser.add_argument("--out", type=Path, default=Path("datasets/coco_split"), help="%(default)s")
    parser.add_argument(
        "--image_dir", default="", help="the images; looked for around the json when left out"
    )
    parser.add_argument("--seed", type=int, default=1, help="%(default)s")
    parser.add_argument(
        "--alpha", type=float, help="Dirichlet concentration of the category skew; none: even"
    )
    add_hold_out_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier split")
    return parser


def shard_count(args: argparse.Namespace) -> int:
    """Return the number of shards."""
    if args.num_shards is not None:
        return args.num_shards
    if args.val is None:
        raise UserError("--num_shards is missing: give the number of silos, or --val=0.15 for one")
    return 1


def held_out(source: CocoSource, args: argparse.Namespace) -> np.ndarray:
    """Return whether each image is in the validation part; print a table of both parts."""
    images = source.rest["images"]
    if args.val is None:
        return np.zeros(len(images), bool)
    names = ["/".join(name_parts(entry["file_name"])) for entry in images]
    counts = object_counts(source)
    held = hold_out(counts, group_keys(names, args.group), args.val, args.seed)
    categories = {entry["id"]: str(entry["name"]) for entry in source.rest["categories"]}
    print(*part_lines(counts, held, categories), sep="\n")
    return held


def main() -> None:
    args = parse_known(build_parser())
    require_hold_out_flags(args)
    json_path, count = user_path(args.json).absolute(), shard_count(args)
    folder = user_path(args.out).absolute() / f"split_{count}"
    if not args.overwrite:
        refuse_existing(folder)
    source = read_source(json_path)
    folders = image_folders(
        load_config(image_dir=args.image_dir), json_path, source.rest.get("info")
    )
    image_dir = image_folder(source.rest, folders, json_path)
    held = held_out(source, args)
    training = np.flatnonzero(~held)
    if args.alpha is None:
        parts = split_evenly(len(training), count, args.seed)
    else:
        categories = dominant_categories(source)[training]
        parts = split_by_category(categories, count, args.alpha, args.seed)
    *shards, validation = deal(source, [training[p] for p in parts] + [np.flatnonzero(held)])
    relative = Path(os.path.relpath(image_dir.resolve(), folder.resolve())).as_posix()
    write_shards(source, shards, relative, folder, validation if held.any() else None)
    print(*table(source, shards), sep="\n")
    for note in [*source.notes, *shards_without_objects(source, shards)]:
        print(f"note: {note}")
    print(f"written to {folder}; images in {image_dir}")
    if held.any():
        print(f"to evaluate on: --val_set={shlex.quote(str(folder / VALIDATION))}")
    for stale in sorted(folder.glob("mindrecord_*/*.mindrecord"))[:1]:
        print(f"{stale} is of an earlier split: run generate_mindrecord.py with --overwrite")


if __name__ == "__main__":
    run_command(main)
