"""Propose a configuration from a silo's labels, or from the summaries of several silos.

  python tools/propose_config.py --source=datasets/mine/train.json --out=our_config.yaml
  python tools/propose_config.py --source=VOC2012 --summary=hospital_a.json     in each silo, then
  python tools/propose_config.py --merge hospital_a.json hospital_b.json --out=our_config.yaml

It reads a COCO json, a folder of Pascal VOC or YOLO labels, or a MindRecord. Success: a YAML file
with classes, image size, anchors, numbers of objects and regions, batch and learning rate, each
part with its reasons, which it prints too. Give this file to every command as --config_path, and
--fl_iteration_num, which it prints, to the launchers. Silos do not share images: with --summary a
silo writes counts and histograms of its boxes, without file names and coordinates, and whoever
coordinates merges these (docs/privacy.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path

require_packages()

import psutil

from src.commands.propose_config import (
    Inputs,
    Machine,
    iterations_of,
    propose,
    write_configuration,
)
from src.data.coco_boxes import some
from src.data.label_statistics import FORMATS, LabelStatistics, merged, read_statistics
from src.data.label_summary import read_summary, write_summary
from src.data.labels.voc import DIFFICULT
from src.data.labels.yolo import COLUMNS
from src.launch.preflight.machine import worker_bytes
from src.model_utils.config import parse_known, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--source", type=Path, help="the labels of one silo")
    parser.add_argument(
        "--from", dest="format", choices=FORMATS, default="",
        help="their format; default: what they look like",
    )  # fmt: skip
    parser.add_argument("--merge", type=Path, nargs="+", help="in their place: silos' summaries")
    parser.add_argument("--summary", type=Path, help="write this summary and no configuration")
    parser.add_argument("--out", type=Path, default=Path("our_config.yaml"), help="%(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier file")
    parser.add_argument(
        "--memory_gb", type=float,
        help="memory for one worker, on the smallest machine, in 10**9 bytes; default: half of "
        "what is free here",
    )  # fmt: skip
    parser.add_argument(
        "--hours", type=float, default=8.0, help="for the whole training (default %(default)g)"
    )
    parser.add_argument("--cores", type=int, help="of one worker; default: those of this machine")
    parser.add_argument(
        "--splits", default="", help="VOC and YOLO: those to read; default: train, or all images"
    )
    parser.add_argument(
        "--image_dir", default="", help="COCO: the images, where the json lacks their sizes"
    )
    parser.add_argument(
        "--difficult", choices=DIFFICULT, default="ignore",
        help="VOC: what objects marked difficult are, see convert_labels.py (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", choices=COLUMNS, default="auto",
        help="YOLO: what more than four numbers are, see convert_labels.py (default %(default)s)",
    )  # fmt: skip
    return parser


def main() -> None:
    args = parse_known(build_parser())
    machine = machine_of(args)
    if (args.source is None) == (args.merge is None):
        raise UserError("give either --source=LABELS or --merge A.json B.json ...")
    if args.summary:
        if args.merge:
            raise UserError("--summary is of the labels of one silo: give --source, not --merge")
        write_one(args)
        return
    silos = [read_labels(args)] if args.source else [read(path) for path in args.merge]
    labels = merged(silos)
    parts = propose(Inputs(labels, [silo.images for silo in silos], machine))
    out = user_path(args.out).absolute()
    write_configuration(parts, out, args.overwrite)
    for part in parts:
        print(f"{part.title}:")
        values = [f"{key} {value}" for key, value in part.values.items() if key != "coco_classes"]
        print(*(f"  {text}" for text in [*part.why, ", ".join(values)]), sep="\n")
    flag = iterations_of(parts)
    print(f"{out} written; next: python tools/preflight.py --config_path={out} {flag}")


def machine_of(args: argparse.Namespace) -> Machine:
    """Return what training may use.

    Raises:
        UserError: a flag is out of its range.
    """
    free = psutil.virtual_memory().available / 2e9
    memory = free if args.memory_gb is None else args.memory_gb
    cores = args.cores if args.cores is not None else os.cpu_count() or 1
    for name, value, most in (
        ("memory_gb", memory, 1e6),
        ("hours", args.hours, 1e5),
        ("cores", cores, 1e4),
    ):
        if not 0 < value <= most:
            raise UserError(f"--{name} {value:g}: expected more than 0, and at most {most:g}")
    return Machine(memory * 1e9, args.hours, cores, worker_bytes)


def read_labels(args: argparse.Namespace) -> LabelStatistics:
    """Read the labels of --source, and print what is unusual about them."""
    source = user_path(args.source)
    labels, notes = read_statistics(
        source, args.format, args.splits, args.image_dir, args.difficult, args.columns
    )
    print(*[f"{source}: {labels.images} images", *(f"  {note}" for note in notes)], sep="\n")
    return labels


def read(path: Path) -> LabelStatistics:
    """Read a summary, and print what it is of."""
    labels = read_summary(user_path(path))
    print(f"{path}: {labels.images} images, classes {some(labels.classes, 20)}")
    return labels


def write_one(args: argparse.Namespace) -> None:
    """Write the summary of the labels of --source.

    Raises:
        UserError: the file exists and must not be overwritten, or cannot be written.
    """
    path = user_path(args.summary).absolute()
    if path.exists() and not args.overwrite:
        raise UserError(f"{path}: already there; choose another --summary or give --overwrite")
    labels = read_labels(args)
    write_summary(labels, path)
    print(f"{path} written, counts and histograms of {sum(labels.boxes.values())} objects")
    print("next: read it, give it to the coordinator, who calls this with --merge and those of all")


if __name__ == "__main__":
    run_command(main)
