"""Watch two silos train one detector together: the whole suite on this machine, in minutes.

  python tools/run_demo.py            (or: make demo)

draws a small data set, splits it between two silos, writes their MindRecords, starts Redis, the
scheduler, two servers and two workers with the scripts that a user runs, shows the training, and
ends with each silo's mean loss in the first and last iteration. Everything lies in demo_run/; one
of an earlier run becomes demo_run.1. Ctrl-C stops all of it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.launch.demo import Demo
from src.model_utils.config import parse_known


def main() -> int:
    """Parse, run."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, default=Path("demo_run"), help="where it runs")
    parser.add_argument("--iterations", type=int, default=6, help="of the federation (default 6)")
    parser.add_argument("--images", type=int, default=80, help="to draw for training, both silos")
    parser.add_argument(
        "--config_path",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "configs" / "demo" / "default_config.yaml",
        help="detector and training (default configs/demo/default_config.yaml)",
    )
    args = parse_known(parser)
    return Demo(args.folder.absolute(), args.iterations, args.images, args.config_path).run()


if __name__ == "__main__":
    run_command(main)
