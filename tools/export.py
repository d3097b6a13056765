"""Write a trained detector as one file for other programs, and check the file.

  python tools/export.py --checkpoint=worker_0/ckpt/mindrecord_0/best.ckpt --file_format=ONNX
  python tools/export.py --file_name=out/detector --file_format=MINDIR \\
         --checkpoint=fl_ckpt/FasterRCNN_recovery_iteration_3_20261122_080000.ckpt \\
         --frozen_from=fl_ckpt/FasterRCNN_initial.ckpt --images val2017

Give the --config_path that the detector was trained with; each of its scalar keys is a flag
(--test_score_thr, --test_batch_size ...). Success: the file is written, and the last lines say how
far its boxes are from the detector's, on --images or on generated ones. If they differ by more than
rounding explains, nothing is written and the exit code is 1. docs/export.md describes the inputs
and outputs of the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command

require_packages("mindspore", "mindspore_federated", "onnx", "onnxruntime")

from src.model_utils.config import Config, get_config, script_parser


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="of a detector, or of servers (or --ckpt_file)"
    )
    parser.add_argument(
        "--frozen_from",
        type=Path,
        help="a whole detector, for what servers' checkpoints lack (fl_ckpt/..._initial.ckpt)",
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[],
        help="files and folders to check the file on (default: drawn images)",
    )  # fmt: skip
    return parser


def read_command_line() -> Config:
    """Return the configuration, overridden by the flags.

    Raises:
        UserError: no checkpoint, or two.
    """
    config = get_config(parser=build_parser())
    # --checkpoint overrides the file's ckpt_file: upstream's files name one that does not exist.
    both = config.checkpoint and "ckpt_file" in config.given_flags
    if both or not (config.checkpoint or config.ckpt_file):
        raise UserError("give one checkpoint: --checkpoint=FILE.ckpt (or --ckpt_file)")
    config.checkpoint = config.checkpoint or Path(config.ckpt_file)
    return config


def main() -> int:
    config = read_command_line()
    # Imported late, so that --help and a wrong flag do not wait for MindSpore.
    from src.commands.export import export

    return export(config)


if __name__ == "__main__":
    run_command(main)
