"""Write the models that a federation starts from: the servers' and the workers'.

  python tools/create_initial_checkpoint.py --checkpoint_dir=./fl_ckpt --pre_trained=resnet50.ckpt

It writes fl_ckpt/FasterRCNN_recovery_iteration_0_<date>_<time>.ckpt, the trainable parameters that
the servers hold, and fl_ckpt/FasterRCNN_initial.ckpt, the whole detector, which a worker takes as
--pre_trained. Without --pre_trained the weights are initialized from --seed. The server launcher
calls this by itself when its checkpoint_dir holds no model. Other keys of default_config.yaml are
flags.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.federated.aggregation import aggregation_of
from src.job.recovery_files import (
    initial_origin,
    list_recovery_files,
    recovery_name,
    require_names,
    whole_detector,
)
from src.launch.command_line import job_from, launcher_parser
from src.model_utils.config import get_config
from src.printing import print


def main() -> None:
    """Parse the command line, build and write the models."""
    parser = launcher_parser(__doc__)
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("fl_ckpt"))
    # Given by the server launcher alone, which may replace what it has made by itself.
    parser.add_argument("--for_launcher", action="store_true", help=argparse.SUPPRESS)
    config = get_config(parser=parser)
    job = job_from(config)
    name, aggregation = job.name, aggregation_of(job, config)
    if not config.pre_trained and not list_recovery_files(config.checkpoint_dir, name):
        require_names(config.checkpoint_dir, name)
    print("building the detector", flush=True)
    # Imported late, so that --help and a wrong flag do not wait for MindSpore.
    from src.training import build_detector, save_models

    net, origin = build_detector(config)
    config.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    servers = config.checkpoint_dir / recovery_name(name, 0)
    workers = whole_detector(config.checkpoint_dir, name)
    made_from = initial_origin(config, servers, config.for_launcher)
    count = save_models(net, config, servers, workers, aggregation, made_from)
    print(f"{servers}: {count} trainable parameters for the servers; {origin}")
    print(f"{workers}: the whole detector, for --pre_trained of a worker")


if __name__ == "__main__":
    run_command(main)
