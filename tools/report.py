"""Write one HTML page about a run: its configuration, learning curves, costs and failures.

  python tools/report.py demo_run                          writes demo_run/report.html
  python tools/report.py demo_run --results=results.json --json=instances_val2017.json

The folder is the one that the run_* scripts were called from; a run that is still training can be
reported too. Success: the path of the page, one file without outside references, for any browser:
AP of the global model by class with a confusion table, sample detections (with --results, as
tools/evaluate.py writes it, and --json), worst image first, loss curves, configuration, seconds of
each round, memory, warnings and faults in time order.
The page says which of these a run does not have.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import UserError, require_packages, run_command, user_path, writable_folder, writing

require_packages("jinja2", "matplotlib", "PIL", "pycocotools", "yaml")

from src.files import write_whole
from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.detections import read_pictures
from src.reporting.html_report import Samples, build_page
from src.reporting.run_folder import read_run


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("run_folder", type=Path, help="where the run_* scripts were called")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")
    parser.add_argument("--metrics", type=Path, help="AP lines of tools/evaluate.py --watch")
    parser.add_argument("--results", type=Path, help="COCO result json of the last global model")
    parser.add_argument("--json", type=Path, help="COCO json that was evaluated")
    parser.add_argument(
        "--image_dir", default="", help="its images; looked for around it when left out"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="least score of a detection that counts (%(default)s)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=6,
        help="sample images, those with the most errors (%(default)s)",
    )
    return parser


def samples_of(args: argparse.Namespace) -> Samples | None:
    """Return the sample detections that the flags ask for."""
    if args.results is None and args.json is None:
        return None
    if args.results is None or args.json is None:
        absent = "--results" if args.results is None else "--json"
        raise UserError(f"{absent} is missing: sample detections need both --results and --json")
    if args.images < 1:
        raise UserError(f"--images {args.images}: expected 1 or more")
    pictures = read_pictures(args.json, args.results, args.image_dir, args.score, args.images)
    source = f"{args.results.absolute()} on {args.json.absolute()}"
    return Samples(pictures, args.score, source)


def main() -> None:
    args = parse_known(build_parser())
    run = read_run(args.run_folder, args.metrics)
    page = build_page(run, samples_of(args))
    path = user_path(args.out or run.folder / "report.html").absolute()
    writable_folder(path.parent, "--out")
    with writing(path, "--out"):
        write_whole(path, page)
    print(path)


if __name__ == "__main__":
    run_command(main)
