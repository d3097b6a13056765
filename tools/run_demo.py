"""Train one detector on two silos together: the whole suite on this machine, in minutes.

  python tools/run_demo.py            (or: make demo)

It generates a small data set, splits it between two silos, writes their MindRecords, starts Redis,
the scheduler, two servers and two workers with the scripts that a user runs, shows the training,
and ends with each silo's mean loss in the first and last iteration and the global model's AP on
images that no silo has. All files are in demo_run/; an earlier run's folder is renamed to
demo_run.1. Ctrl-C stops everything.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.launch.demo import DEMO_CONFIG, Demo, DemoPlan
from src.model_utils.config import parse_known, script_parser


def main() -> int:
    """Parse the command line and run the demo."""
    parser = script_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo_run"), help="where it runs")
    plan = DemoPlan(DEMO_CONFIG)
    for name, text in (
        ("iterations", "of the federation"),
        ("steps", "of training in an iteration; 0 is an epoch"),
        ("images", "to draw for training, both silos"),
        ("val_images", "to draw for evaluation; 0 evaluates nothing"),
        ("interval", "iterations between two evaluations"),
    ):
        default = getattr(plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    parser.add_argument(
        "--config_path",
        type=Path,
        default=DEMO_CONFIG,
        help="detector and training (default configs/demo/default_config.yaml)",
    )
    args = parse_known(parser)
    plan = DemoPlan(
        args.config_path,
        args.iterations,
        args.images,
        args.val_images,
        args.interval,
        steps=args.steps,
    )
    return Demo(args.folder.absolute(), plan).run()


if __name__ == "__main__":
    run_command(main)
