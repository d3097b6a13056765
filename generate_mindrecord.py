"""Convert a COCO JSON and its images to the MindRecord file that a worker trains on.

  python generate_mindrecord.py                  what default_config.yaml says
  python generate_mindrecord.py --mindrecord_dir=./datasets/coco_split/split_100/mindrecord_0 \\
         --instance_set=./datasets/coco_split/split_100/train_0.json
  python generate_mindrecord.py --shards=0-99    a hundred silos in one call: the numbers in
                                                 mindrecord_dir and instance_set are replaced

Success: for each silo a line with images, boxes, seconds and the path of FasterRcnn.mindrecord;
its index FasterRcnn.mindrecord.db is next to it. An existing file is kept. Unusual labels and
images are counted in separate lines; images that cannot be used are left out and listed with the
reason in skipped_images.txt next to the MindRecord. Without a box to train on, it fails.
docs/data.md has a table of what happens with which input.

Where the images are looked up: in image_dir, when that is set; else in coco_root/train_data_type,
when coco_root is set; else in the first of these that holds one of the JSON's first ten images:
the folder that the JSON records (tools/split_coco.py writes it), the folder next to the JSON that
has its name without .json, the JSON's own folder, images/ and train2017/ in that folder, and
train2017/ next to that folder. instance_set is looked up in coco_root, when set, then in the
current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from src.errors import UserError, require_packages, run_command, user_path

require_packages()

from src.data.coco import find_json
from src.data.conversion import data_to_mindrecord_byte_image, for_shard, parse_shards
from src.data.mindrecord import BASE_NAME, check_mindrecord, is_whole, shard_number
from src.model_utils.config import Config, get_config, parse_bool, script_parser
from src.printing import print


def build_parser() -> argparse.ArgumentParser:
    """Return the flags of this script alone."""
    parser = script_parser(__doc__)
    parser.add_argument("--shards", help="numbers of the silos, like 0-99 or 0,2,5-7")
    parser.add_argument("--overwrite", action="store_true", help="write existing files again")
    parser.add_argument("--verify", action="store_true", help="decode each image, which is slower")
    parser.add_argument(
        "--strict",
        nargs="?",
        const=True,
        type=parse_bool,
        help="the first image or box that is broken, odd or too many is an error",
    )
    return parser


def generate_coco_mindrecord(
    config: Config | None = None, overwrite: bool = False, verify: bool = False
) -> list[str]:
    """Write the MindRecord of one silo, unless it exists; return the lines that say what happened.

    Args:
        config: configuration of the silo; None reads the command line.
        overwrite: write it even if it exists.
        verify: decode each image.

    Raises:
        UserError: mindrecord_dir is not named mindrecord_<number>, labels or images are bad, or
            the existing file has another class list.
    """
    config = config or get_config(parser=build_parser())
    shard_number(config.mindrecord_dir)
    name = config.prefix or BASE_NAME
    if Path(name).name != name:
        raise UserError(f"prefix {name}: expected the name of a file, without a folder")
    target = user_path(config.mindrecord_dir) / name
    if not overwrite and is_whole(target):
        return _kept(config, target)
    return data_to_mindrecord_byte_image(config, config.dataset, True, name, 1, verify).lines()


def _kept(config: Config, target: Path) -> list[str]:
    images = check_mindrecord(target, classes=config.coco_classes)
    lines = [f"{target}: {images} images, kept as it is (--overwrite redoes it)"]
    if config.dataset == "coco":
        source = find_json(config)
        if source.stat().st_mtime > target.stat().st_mtime:
            lines.append(f"  {source} is newer than that; if it changed, give --overwrite")
    return lines


def main() -> None:
    """Parse the command line, look for every JSON, convert one after the other."""
    config = get_config(parser=build_parser())
    shards = parse_shards(config.shards) if config.shards else []
    configs = [for_shard(config, number) for number in shards] or [config]
    if config.dataset == "coco":
        for one in configs:
            find_json(one)
    for one in configs:
        for line in generate_coco_mindrecord(one, config.overwrite, config.verify):
            print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
