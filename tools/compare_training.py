"""Does training together pay? Two silos together, one of them alone, all images in one place.

  python tools/compare_training.py            about half an hour on two cores

Runs the demo five times on the same drawn images, with equal numbers of training steps in every
silo: on an even split and on one that is skewed by category. Every run goes through the real
scheduler, servers and Redis. Success: a table of the last iteration's AP and learning.svg with AP
per iteration, both below --folder. Started again it goes on after the last finished run.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.launch.comparison import compare, table
from src.launch.demo import DEMO_CONFIG, DemoPlan
from src.model_utils.config import parse_known
from src.reporting.output import writing
from src.reporting.round_plots import comparison_figure


def main() -> int:
    """Parse, run, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    plan = DemoPlan(DEMO_CONFIG)
    parser.add_argument("--folder", type=Path, default=Path("compare_run"), help="%(default)s")
    for name, text in (
        ("iterations", "of each run"),
        ("steps", "of training in an iteration"),
        ("images", "to draw for training"),
        ("seed", "of the split and of the first weights"),
    ):
        default = getattr(plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--config_path", type=Path, default=DEMO_CONFIG, help="%(default)s")
    args = parse_known(parser)
    plan = DemoPlan(
        config=args.config_path,
        iterations=args.iterations,
        steps=args.steps,
        images=args.images,
        interval=2,
        seed=args.seed,
    )
    folder = args.folder.expanduser().absolute()
    results = compare(plan, folder)
    figure = folder / "learning.svg"
    with writing(figure, "--folder"):
        comparison_figure(results).savefig(figure)
    print(f"\n{table(results)}\n\ndrawn: {figure}")
    return 0


if __name__ == "__main__":
    run_command(main)
