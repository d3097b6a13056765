"""Compute COCO's metrics (mean average precision etc.) of a checkpoint, or of a running job.

  python tools/evaluate.py --json=instances_val2017.json \\
         --checkpoint=worker_0/ckpt/mindrecord_0/best.ckpt
  python tools/evaluate.py --mindrecord=datasets/coco_split/split_100/mindrecord_0 \\
         --checkpoint=fl_ckpt/FasterRCNN_recovery_iteration_3_20261122_080000.ckpt \\
         --frozen_from=fl_ckpt/FasterRCNN_initial.ckpt
  python tools/evaluate.py --json=instances_val2017.json --watch=worker_0 --output=metrics.jsonl

Give the --config_path that the detector was trained with; each of its scalar keys is a flag
(--image_dir, --test_batch_size, --device_target ...). Success: a table of the twelve metrics, one
of the classes (AP, AP50; objects found and missed, false detections), and which class was detected
where an object of a class is labelled; these count at a score and an IoU of 0.5 or more. With
--watch it writes one line for each global checkpoint, existing and new, until the job has ended or
Ctrl-C is pressed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.model_utils.config import Config, get_config, script_parser


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of a detector, or of servers")
    parser.add_argument(
        "--watch", type=Path, help="in its place: a worker's folder, or the servers' checkpoint_dir"
    )
    parser.add_argument(
        "--frozen_from",
        type=Path,
        help="a whole detector, for what servers' checkpoints lack (fl_ckpt/..._initial.ckpt)",
    )
    parser.add_argument("--json", help="COCO json to evaluate on (default: the key val_set)")
    parser.add_argument("--mindrecord", help="in its place: a MindRecord file or its folder")
    parser.add_argument(
        "--limit", dest="eval_limit", type=int, default=argparse.SUPPRESS,
        help="the first so many images",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, help="JSON file for the detections, as COCO's are")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the figures; with --watch JSON lines"
    )
    return parser


def read_command_line() -> Config:
    """Return the configuration, overridden by the flags.

    Raises:
        UserError: flags that do not go together, or a missing one.
    """
    config = get_config(parser=build_parser())
    if (config.checkpoint is None) == (config.watch is None):
        raise UserError("give either --checkpoint=FILE.ckpt or --watch=FOLDER")
    if config.json and config.mindrecord:
        raise UserError("give either --json or --mindrecord, not both")
    if config.watch and config.results:
        raise UserError("--results is of one --checkpoint, not of --watch")
    config.val_set = config.json or config.mindrecord or config.val_set
    if not config.val_set:
        raise UserError("nothing to evaluate on: give --json=COCO.json or --mindrecord=FOLDER")
    if config.mindrecord and not user_path(config.mindrecord).exists():
        raise UserError(f"--mindrecord {config.mindrecord}: no such file or folder")
    return config


def main() -> int:
    config = read_command_line()
    # Imported late, so that --help and a wrong flag do not wait for MindSpore.
    from src.commands.evaluate import evaluate_checkpoint, watch

    return watch(config) if config.watch else evaluate_checkpoint(config)


if __name__ == "__main__":
    run_command(main)
