"""Plot the losses of a run from its logs, as in the tutorial's figures [1] to [4].

  python tools/plot_loss.py demo_run                       pictures go to demo_run/plots
  python tools/plot_loss.py . --out=pictures --per_epoch_steps
  python tools/plot_loss.py demo_run --tensorboard=tb      and then: tensorboard --logdir=tb

The folder is the one that the run_* scripts were called from; a run that is still training can be
plotted too. Success: the path of each plot, PNG and SVG: worker_0_step_loss (each step; with more
than 10,000 steps the mean, lowest and highest of several, and the plot says of how many) and
worker_0_epoch_loss (each epoch's mean) for every silo, and epoch_loss with all silos together. With
--tensorboard also event files, a folder for each silo, with losses, learning rates, seconds of the
rounds, memory, and AP where the run was evaluated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.errors import require_packages, run_command, writable_folder, writing

require_packages("matplotlib", "tensorboardX", "yaml")

from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.reporting.plots import draw_losses
from src.reporting.run_folder import read_run, require_losses
from src.reporting.tensorboard import write_events


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("run_folder", type=Path, help="where the run_* scripts were called")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: plots in it)")
    parser.add_argument("--tensorboard", type=Path, help="folder for TensorBoard's event files")
    parser.add_argument(
        "--per_epoch_steps", action="store_true", help="name epochs, not steps, below the losses"
    )
    return parser


def main() -> None:
    args = parse_known(build_parser())
    run = read_run(args.run_folder)
    silos = require_losses(run)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    out = writable_folder(args.out or run.folder / "plots", "--out")
    with writing(out, "--out"):
        drawn = draw_losses(silos, out, args.per_epoch_steps)
    print(*drawn, sep="\n")
    if args.tensorboard:
        target = writable_folder(args.tensorboard, "--tensorboard")
        with writing(target, "--tensorboard"):
            folders = write_events(silos, target)
        print(*folders, sep="\n")


if __name__ == "__main__":
    run_command(main)
