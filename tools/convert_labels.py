"""Convert Pascal VOC or YOLO labels to COCO JSON files, which generate_mindrecord.py takes.

  python tools/convert_labels.py --from=voc  --source=VOCdevkit/VOC2012 --out=datasets/mine
  python tools/convert_labels.py --from=yolo --source=my_yolo           --out=datasets/mine
  python tools/convert_labels.py --from=voc  --source=... --classes=our_config.yaml
  python tools/convert_labels.py --from=voc  --source=... --val=0.15 --group='^(patient\\d+)_'

Success: a line for each split, <out>/train.json, <out>/val.json, ... (<out>/all.json without
splits), its objects by class, and the lines num_classes and coco_classes for the configuration:
every silo of a federation needs the same ones, so agree on one list and give it with --classes. No
image is copied; each JSON records where they are. Images without a box are kept. Unusual labels are
counted; where there are more than the screen shows, <out>/label_notes.txt lists every case.

--val divides labels without a val split, or the one that --splits names, into train.json and
val.json, as tools/split_coco.py does; so does --group.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import require_packages, run_command, user_path

require_packages()

from src.data.labels.convert import (
    class_names,
    configuration_lines,
    convert_labels,
    hold_out_images,
    name_all,
    next_lines,
    read_class_list,
)
from src.data.labels.source import FaultyLabelsError
from src.data.labels.voc import DIFFICULT, read_voc
from src.data.labels.yolo import COLUMNS, read_yolo
from src.data.stratification import add_hold_out_flags, require_hold_out_flags
from src.model_utils.config import parse_known, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--from", dest="format", required=True, choices=("voc", "yolo"))
    parser.add_argument("--source", required=True, type=Path, help="the folder of the labels")
    parser.add_argument("--out", type=Path, default=Path("datasets"), help="(default %(default)s)")
    parser.add_argument(
        "--splits", default="", help="like train,val; default: train, val, test where they are"
    )
    parser.add_argument(
        "--classes", type=Path, help="the federation's class list: a configuration, or a text file "
        "with a name a line; default: the labels' own"
    )  # fmt: skip
    parser.add_argument(
        "--difficult", choices=DIFFICULT, default="ignore",
        help="VOC: objects marked difficult are neither trained on nor counted (ignore, default), "
        "kept like others, or dropped"
    )  # fmt: skip
    parser.add_argument(
        "--first_pixel", type=int, choices=(0, 1), default=1,
        help="VOC: the number of the first pixel; 1 (default), or 0 where a program counts so"
    )  # fmt: skip
    parser.add_argument(
        "--columns", choices=COLUMNS, default="auto",
        help="YOLO: what more than four numbers behind the class are: a box with other columns "
        "(confidence, track, key points), which are ignored, or the corners of a polygon; "
        "default: what they look like, if that is clear"
    )  # fmt: skip
    add_hold_out_flags(parser)
    parser.add_argument("--seed", type=int, default=1, help="of --val (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier jsons")
    return parser


def main() -> None:
    args = parse_known(build_parser())
    require_hold_out_flags(args)
    folder, out = (user_path(path).resolve() for path in (args.source, args.out))
    given = read_class_list(user_path(args.classes)) if args.classes else []
    try:
        if args.format == "voc":
            source = read_voc(folder, args.splits, args.difficult, args.first_pixel)
        else:
            source = read_yolo(folder, args.splits, args.columns)
    except FaultyLabelsError as error:
        raise name_all(error, out) from error
    names = class_names(source, given)
    if args.val is not None:
        parts = hold_out_images(source, names, args.val, args.group, args.seed)
        print(*parts, sep="\n")
    print(*convert_labels(source, names, out, args.overwrite), sep="\n")
    print("for the configuration, the same in every silo:")
    print(*configuration_lines(names).split("\n"), sep="\n")
    classes = user_path(args.classes) if args.classes else None
    print(*next_lines(source, out, classes), sep="\n")


if __name__ == "__main__":
    run_command(main)
