"""Generate a small data set in COCO's format: coloured shapes on noise, or microscope cells.

  python tools/make_demo_coco.py --out=datasets/demo_coco --images=150 --val_images=60
  python tools/split_coco.py --json=datasets/demo_coco/annotations/instances_train2017.json \\
         --num_shards=2                                             what comes next
  python tools/make_demo_coco.py --kind=cells --out=datasets/cells --images=40 --val_images=0

Success: a line for each part, and the layout of COCO: <out>/train2017/*.jpg, <out>/val2017/*.jpg,
<out>/annotations/instances_train2017.json and instances_val2017.json. The same seed gives the same
bytes. Some images have no box, some have a crowd.

--kind=shapes has four of COCO's categories, so that default_config.yaml takes them. --kind=cells
has classes of its own, RBC, WBC and Platelets (red and white blood cells), up to --max_shapes cells
in an image that may overlap, and no crowds. Its file names begin with the slide that eight images
share, which --group='^(slide\\d+)_' of tools/split_coco.py keeps together.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.data.synthetic_cells import CELLS
from src.data.synthetic_coco import SHAPES, DrawingPlan, Kind, draw_part
from src.files import reason
from src.model_utils.config import parse_known, script_parser
from src.printing import print

KINDS = {"shapes": SHAPES, "cells": CELLS}
PARAMETERS = (
    "seed", "width", "height", "max_shapes", "crowd_share", "empty_share", "hue_spread",
)  # fmt: skip
SHAPES_ONLY = ("crowd_share", "hue_spread")


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--kind", choices=sorted(KINDS), default="shapes", help="%(default)s")
    parser.add_argument("--out", type=Path, default=Path("datasets/demo_coco"), help="%(default)s")
    for name, default in (("images", 150), ("val_images", 60)):
        parser.add_argument(f"--{name}", type=int, default=default, help="%(default)s")
    for name in PARAMETERS:
        default, cells = getattr(SHAPES.plan, name), getattr(CELLS.plan, name)
        words = f"{default}" + (f"; {cells} with --kind=cells" if cells != default else "")
        if name in SHAPES_ONLY:
            words = f"{default}; not with --kind=cells"
        parser.add_argument(f"--{name}", type=type(default), help=words)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier data set")
    return parser


def plan_of(args: argparse.Namespace, kind: Kind) -> DrawingPlan:
    """Return the checked parameters: those given, else those of the kind."""
    given = {name: getattr(args, name) for name in PARAMETERS if getattr(args, name) is not None}
    useless = [name for name in SHAPES_ONLY if name in given and kind is not SHAPES]
    if useless:
        raise UserError(f"--{useless[0]}: has no effect with --kind={args.kind}; leave it out")
    plan = replace(kind.plan, **given)
    plan.check()
    return plan


def main() -> None:
    args = parse_known(build_parser())
    kind = KINDS[args.kind]
    plan = plan_of(args, kind)
    if args.images < 1 or args.val_images < 0:
        raise UserError("--images must be 1 or more, --val_images 0 or more")
    out = user_path(args.out).absolute()
    parts = [("train2017", args.images), ("val2017", args.val_images)]
    folders = [out / "annotations", *(out / name for name, _ in parts)]
    there = next((folder for folder in folders if folder.exists()), None)
    if there and not args.overwrite:
        raise UserError(f"{there}: already there; choose another --out or give --overwrite")
    temporary = out / f".drawing.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for part, (name, count) in enumerate(parts):
            coco = draw_part(plan, temporary, name, part, count, kind)
            boxes = len(coco["annotations"])
            print(f"{out / name}: {count} images of {plan.width}x{plan.height}, {boxes} boxes")
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            (temporary / folder.name).replace(folder)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)
