"""Compare how well silos learn, together and alone, and with each aggregation algorithm.

  python tools/compare_training.py silos          about half an hour on two cores
  python tools/compare_training.py aggregation    about an hour

`silos` runs the demo five times, with equal numbers of training steps in every silo: two silos
together, one of them alone, all images in one place, on an even split of the images and on one that
is skewed by category. `aggregation` runs two silos on the skewed split with FedAvg, FedProx,
Scaffold and FedNova, each with --seeds seeds, which determine the split, the initial weights and
the order of the images. Every run uses the real scheduler, servers and Redis. Success: a table of
AP on images that no silo has, and AP by iteration as learning.svg or aggregation.svg, in --folder;
with --write=docs/learning.md (docs/aggregation.md) also in that page and next to it. When started
again, it continues after the last finished run.
"""

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command, user_path, writing

require_packages()

from src.files import write_whole
from src.launch.comparison import (
    algorithm_plans,
    algorithm_table,
    mean_by_algorithm,
    run_all,
    silo_plans,
    silo_table,
)
from src.launch.demo import DEMO_CONFIG, DemoPlan
from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.marked_page import split_page, write_table
from src.reporting.plots import comparison_figure

# More than the demo's, for metrics that differ less between two generated sets.
VAL_IMAGES = 150
FIGURES = {"silos": "learning.svg", "aggregation": "aggregation.svg"}


def main() -> int:
    """Parse the command line, run and plot."""
    args = parse_known(make_parser())
    if args.write:
        split_page(args.write)
    base = DemoPlan(
        config=args.config_path,
        iterations=args.iterations,
        steps=args.steps,
        images=args.images,
        val_images=VAL_IMAGES,
        interval=2,
        seed=args.seed,
    )
    folder = user_path(args.folder).absolute() / args.what
    if args.what == "silos":
        curves = run_all(silo_plans(base), folder)
        text = silo_table(curves)
    else:
        seeds = range(args.seed, args.seed + args.seeds)
        curves = mean_by_algorithm(run_all(algorithm_plans(base, seeds), folder))
        text = algorithm_table(curves)
    print("", *text.split("\n"), "", sep="\n")
    places = [(folder, "--folder")]
    if args.write:
        write_table(args.write, text)
        places.append((args.write.parent, "--write"))
    for place, flag in places:
        target = place / FIGURES[args.what]
        with writing(target, flag):
            buffer = io.BytesIO()
            comparison_figure(curves).savefig(buffer, format=target.suffix[1:])
            write_whole(target, buffer.getvalue())
        print(f"drawn: {target}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the tool's flags; defaults are the demo's."""
    parser = script_parser(__doc__)
    parser.add_argument("what", choices=FIGURES)
    parser.add_argument("--folder", type=Path, default=Path("compare_run"), help="%(default)s")
    plan = DemoPlan(DEMO_CONFIG)
    for name, text in (
        ("iterations", "of each run"),
        ("steps", "of training in an iteration"),
        ("images", "to draw for training"),
        ("seed", "of the split and of the first weights; with --seeds the first one"),
    ):
        default = getattr(plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of each algorithm (%(default)s)")
    parser.add_argument("--config_path", type=Path, default=DEMO_CONFIG, help="%(default)s")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this file")
    return parser


if __name__ == "__main__":
    run_command(main)
