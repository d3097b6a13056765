"""Turn weights of another origin into a checkpoint that --pre_trained takes.

  python -m src.convert_checkpoint --ckpt_file=resnet50.ckpt
  python src/convert_checkpoint.py --ckpt_file=resnet50.pth --out=resnet50.ckpt
  python src/convert_checkpoint.py --ckpt_file=fasterrcnn_resnet50_fpn_coco.pth

It reads ResNet-50 classifiers of MindSpore's ModelZoo and MindCV (.ckpt), of torchvision and timm
(.pth, .pt, .safetensors), torchvision's fasterrcnn_resnet50_fpn, and upstream's MindSpore
detectors. PyTorch need not be installed, and nothing in a file is executed. It says what it
recognised, what was left out and what stays different, and writes backbone.ckpt, or detector.ckpt
for a whole detector, in the current folder. Give that to the servers and to all workers as
--pre_trained.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

if not __package__:
    # As a script: Python would search src/ itself, where modules must not be found by short names.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.files import reason, whole_file
from src.model_utils.config import BACKBONES, load_config, parse_known, script_parser
from src.printing import print
from src.weights.conversion import DETECTOR_EPS, Converted, convert
from src.weights.parameter_shapes import parameter_shapes
from src.weights.source import RECORD_NAME, V1, V1_5


def load_weights(model_path: str | Path, use_fp16_weight: bool) -> list[dict[str, Any]]:
    """Return weights of another origin in the form that `mindspore.save_checkpoint` takes.

    Args:
        model_path: a file of a kind that the module's docstring lists.
        use_fp16_weight: return float16 instead of float32.

    Returns:
        A row for each tensor: "name", the detector's name for it, and "data", a Tensor.

    Raises:
        UserError: the file is of none of these kinds.
    """
    from mindspore import Tensor

    values = convert(Path(model_path), parameter_shapes(load_config())).values
    dtype = "float16" if use_fp16_weight else "float32"
    return [{"name": n, "data": Tensor(value.astype(dtype))} for n, value in values.items()]


def write(converted: Converted, out: Path) -> None:
    """Write values and record as a MindSpore checkpoint, completely or not at all."""
    from mindspore import Tensor, save_checkpoint

    rows = [{"name": name, "data": Tensor(value)} for name, value in converted.values.items()]
    rows.append({"name": RECORD_NAME, "data": Tensor(converted.source.packed())})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # MindSpore writes only to this file extension.
        with whole_file(out, partial=out.with_name(f".partial.{out.name}.ckpt")) as partial:
            save_checkpoint(rows, str(partial))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {reason(error)}") from error


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = script_parser(__doc__)
    parser.add_argument("--ckpt_file", type=Path, required=True, help="the weights to convert")
    parser.add_argument(
        "--out", type=Path, help="where to write (default backbone.ckpt or detector.ckpt)"
    )
    parser.add_argument(
        "--backbone",
        choices=tuple(BACKBONES),
        help="the key backbone of the detector that they are for: how deep the ResNet is, and "
        f"whether it strides on the 3x3 or, {V1}, on the 1x1, which files do not tell (default: "
        f"what is usual for their kind, {V1_5})",
    )
    parser.add_argument(
        "--bn_eps",
        type=float,
        help="epsilon of BatchNorm in their training (default: that of their kind)",
    )
    parser.add_argument(
        "--classes",
        help="a whole detector's class names in its order, with commas between them and the "
        "background first (default: COCO's for a head of 91 or of 81)",
    )
    return parser


def main() -> None:
    """Parse the flags, convert, write, and report."""
    args = parse_known(build_parser())
    if args.bn_eps is not None and not 0 <= args.bn_eps <= 1 or math.isnan(args.bn_eps or 0):
        raise UserError(f"--bn_eps is {args.bn_eps}, expected 0 to 1")
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    path = user_path(args.ckpt_file)
    shapes = parameter_shapes(load_config(backbone=args.backbone or V1_5))
    converted = convert(path, shapes, args.backbone, args.bn_eps, classes)
    default = Path("detector.ckpt" if converted.kind.whole else "backbone.ckpt")
    out = user_path(args.out or default)
    if out.suffix != ".ckpt" or out.absolute() == path.absolute():
        raise UserError(f"--out {out}: expected a name that ends in .ckpt, and not the source's")
    write(converted, out)
    print(*words(converted, path, out), sep="\n")


def words(converted: Converted, path: Path, out: Path) -> list[str]:
    """Return lines that describe what was done."""
    kind, source, values = converted.kind, converted.source, converted.values
    eps = f"BatchNorm epsilon {source.bn_eps:g}"
    if source.bn_eps != DETECTOR_EPS:
        gammas = f" and {converted.rescaled} gammas" if converted.rescaled else ""
        eps += f", worked into the stored variances{gammas} for the detector's {DETECTOR_EPS:g}"
    lines = [f"{path}: {kind.title}"]
    lines.append(f"{out}: {len(values)} tensors; backbone {source.backbone}; {eps}")
    lines += [f"assumed: {converted.assumed}"] if converted.assumed else []
    if source.classes:
        listed = ", ".join(source.classes[:3]) + f" ... {source.classes[-1]}"
        lines.append(f"{len(source.classes)} classes: {listed}")
    if converted.left_out:
        names = sorted({name for name in converted.left_out if "num_batches" not in name})
        counters = len(converted.left_out) - len(names)
        listed = ", ".join([*names, *([f"{counters} counters of batches"] if counters else [])])
        lines.append(f"left out: {listed}")
    if converted.head_left_out:
        lines.append(
            f"left out, since the names of their classes are not known (--classes): "
            f"{', '.join(converted.head_left_out)}"
        )
    lines += [f"stays different: {line}" for line in kind.differs]
    lines.append(
        f"use it: --pre_trained={out} at servers and workers, with backbone: {source.backbone}"
    )
    return lines


if __name__ == "__main__":
    run_command(main)
