"""Generate a small data set in COCO's format: coloured shapes on noise, four COCO categories.

  python tools/make_demo_coco.py --out=datasets/demo_coco --images=150 --val_images=60
  python tools/split_coco.py --json=datasets/demo_coco/annotations/instances_train2017.json \\
         --num_shards=2                                             what comes next

Success: a line for each part, and the layout of COCO: <out>/train2017/*.jpg, <out>/val2017/*.jpg,
<out>/annotations/instances_train2017.json and instances_val2017.json. The same seed gives the same
bytes. Some images have no box, some have a crowd.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.data.synthetic_coco import DrawingPlan, draw_part
from src.files import reason
from src.model_utils.config import parse_known, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    plan = DrawingPlan()
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("datasets/demo_coco"), help="%(default)s")
    for name, default in (
        ("images", 150), ("val_images", 60), ("seed", plan.seed), ("width", plan.width),
        ("height", plan.height), ("max_shapes", plan.max_shapes),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help="%(default)s")
    parser.add_argument("--crowd_share", type=float, default=plan.crowd_share, help="%(default)s")
    parser.add_argument("--empty_share", type=float, default=plan.empty_share, help="%(default)s")
    parser.add_argument("--hue_spread", type=float, default=plan.hue_spread, help="%(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier data set")
    return parser


def main() -> None:
    args = parse_known(build_parser())
    names = ("seed", "width", "height", "max_shapes", "crowd_share", "empty_share", "hue_spread")
    plan = DrawingPlan(**{name: getattr(args, name) for name in names})
    plan.check()
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
            coco = draw_part(plan, temporary, name, part, count)
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
