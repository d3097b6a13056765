"""Draw ground truth and detections on images.

  python tools/show_detections.py --json=val.json --results=results.json --out=pictures
  python tools/show_detections.py --json=... --results=... --image_ids 139 285 --score=0.3 --overlay

--results is a JSON in COCO's result format, as tools/evaluate.py writes it. Success: the path of
each picture: labelled objects on the left (solid frames), detections on the right (dashed frames,
class and score), and contact_sheet.png with all of them. --overlay draws both on one image. Missed
objects and false detections (at --score and an IoU of 0.5) have thick frames with a mark; below a
picture they are counted by class. The images with the most errors come first. A class has the same
colour everywhere; where boxes are dense, tags are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, writable_folder, writing

require_packages("matplotlib", "PIL", "pycocotools", "yaml")

from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.detections import read_pictures
from src.reporting.pictures import draw_pictures


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--json", required=True, type=Path, help="COCO json with the ground truth")
    parser.add_argument("--results", required=True, type=Path, help="COCO result json")
    parser.add_argument(
        "--image_dir", default="", help="the images; looked for around the json when left out"
    )
    parser.add_argument("--out", type=Path, default=Path("detections"), help="%(default)s")
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="least score of a detection that counts (%(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=8, help="how many: those with the most errors (%(default)s)"
    )
    parser.add_argument(
        "--image_ids", nargs="+", default=[], help="these in place of --images; ids may be text"
    )
    parser.add_argument("--overlay", action="store_true", help="both kinds on one image")
    return parser


def main() -> None:
    args = parse_known(build_parser())
    if args.images < 1:
        raise UserError(f"--images {args.images}: expected 1 or more")
    if not 0 <= args.score <= 1:
        raise UserError(f"--score {args.score}: expected 0 to 1")
    pictures = read_pictures(
        args.json, args.results, args.image_dir, args.score, args.images, args.image_ids
    )
    out = writable_folder(args.out, "--out")
    with writing(out, "--out"):
        drawn = draw_pictures(pictures, out, args.score, args.overlay)
    print(*drawn, sep="\n")


if __name__ == "__main__":
    run_command(main)
