"""Run a trained detector on images: write boxes as COCO JSON, and pictures.

  python tools/detect.py --checkpoint=worker_0/ckpt/mindrecord_0/best.ckpt --images photos
  python tools/detect.py --images a.jpg b.png --out=found --score=0.3 \\
         --checkpoint=fl_ckpt/FasterRCNN_recovery_iteration_3_20261122_080000.ckpt \\
         --frozen_from=fl_ckpt/FasterRCNN_initial.ckpt

Give the --config_path that the detector was trained with; each of its scalar keys is a flag
(--test_score_thr, --device_target ...). Success: detections.json in COCO's result format, with all
detections above test_score_thr; images.json with the names, sizes and ids of the images (from 1 in
the order of the files) and of the classes; a picture of each image with the detections of --score
or more, and contact_sheet.png of the first. Images that cannot be read are left out with a warning.
Boxes are on the image as a program shows it, rotated by EXIF; with --json, as the JSON has it.
tools/show_detections.py reads the two JSON files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command

require_packages()

from src.model_utils.config import get_config, script_parser


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of a detector, or of servers"
    )
    parser.add_argument(
        "--frozen_from",
        type=Path,
        help="a whole detector, for what servers' checkpoints lack (fl_ckpt/..._initial.ckpt)",
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="JPEG and PNG files, and folders"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="COCO json whose ids of images and classes the results get; an image is the one whose "
        "file_name shares the longest end with its path",
    )
    parser.add_argument("--out", type=Path, default=Path("detected"), help="folder (%(default)s)")
    parser.add_argument("--score", type=float, default=0.5, help="least score drawn (%(default)s)")
    parser.add_argument("--no_pictures", action="store_true", help="write the json files alone")
    return parser


def main() -> int:
    config = get_config(parser=build_parser())
    if not 0 <= config.score <= 1:
        raise UserError(f"--score {config.score}: expected 0 to 1")
    # Imported late, so that --help and a wrong flag do not wait for MindSpore.
    from src.commands.detect import detect_files

    return detect_files(config)


if __name__ == "__main__":
    run_command(main)
