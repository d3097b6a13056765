"""Split one COCO JSON into disjoint shards, one for each silo.

  python tools/split_coco.py --json=instances_train2017.json --image_dir=train2017 --num_shards=100
  python tools/split_coco.py --json=... --num_shards=10 --alpha=0.5     skewed by category
  python generate_mindrecord.py --shards=0-99                       what comes next

Success: a table of the shards, and <out>/split_100/train_0.json to train_99.json. Every image is in
one shard with all its annotations. No image is copied: each shard records the image folder,
relative to itself, and generate_mindrecord.py finds the images there from any current folder.
Annotations of images that the JSON does not list are dropped; a note says how many.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.data.coco import image_folder, image_folders
from src.data.splitting import (
    deal,
    dominant_categories,
    read_source,
    refuse_existing,
    shards_without_objects,
    split_by_category,
    split_evenly,
    table,
    write_shards,
)
from src.model_utils.config import load_config, parse_known, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--json", required=True, type=Path, help="the COCO json to split")
    parser.add_argument("--num_shards", required=True, type=int, help="number of silos")
    parser.add_argument("--out", type=Path, default=Path("datasets/coco_split"), help="%(default)s")
    parser.add_argument(
        "--image_dir", default="", help="the images; looked for around the json when left out"
    )
    parser.add_argument("--seed", type=int, default=1, help="%(default)s")
    parser.add_argument(
        "--alpha", type=float, help="Dirichlet concentration of the category skew; none: even"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier split")
    return parser


def main() -> None:
    args = parse_known(build_parser())
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    json_path = user_path(args.json).absolute()
    folder = user_path(args.out).absolute() / f"split_{args.num_shards}"
    if not args.overwrite:
        refuse_existing(folder)
    source = read_source(json_path)
    images = source.rest["images"]
    folders = image_folders(
        load_config(image_dir=args.image_dir), json_path, source.rest.get("info")
    )
    image_dir = image_folder(source.rest, folders, json_path)
    if args.alpha is None:
        parts = split_evenly(len(images), args.num_shards, args.seed)
    else:
        categories = dominant_categories(source)
        parts = split_by_category(categories, args.num_shards, args.alpha, args.seed)
    shards = deal(source, parts)
    relative = os.path.relpath(image_dir.resolve(), folder.resolve())
    write_shards(source, shards, Path(relative).as_posix(), folder)
    print(*table(source, shards), sep="\n")
    for note in [*source.notes, *shards_without_objects(source, shards)]:
        print(f"note: {note}")
    print(f"written to {folder}; images in {image_dir}")
    for stale in sorted(folder.glob("mindrecord_*/*.mindrecord"))[:1]:
        print(f"{stale} is of an earlier split: run generate_mindrecord.py with --overwrite")


if __name__ == "__main__":
    run_command(main)
