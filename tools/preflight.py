"""Check what a launcher needs: one line per check, PASS, WARN or FAIL, with how to fix it.

  python tools/preflight.py                          everything on this machine, default flags
  python tools/preflight.py --role=server --local_server_num=2 --checkpoint_dir=fl_ckpt
  python tools/preflight.py --role=worker --dataset_path=datasets/coco_split/split_100 \\
         --pre_trained=resnet50.ckpt --http_server_address=192.168.1.5:6668
  python tools/preflight.py --measure_step           and how long the job takes on this machine
  python tools/preflight.py --json

It takes the flags of the run_* scripts and starts nothing. It checks Python and packages, both YAML
files, Redis and whose keys are in it, ports, MindRecord with its count, with run_eval the val_set,
the pre-trained file and how many names match, certificates, device, memory against the number of
processes, and disk space for the checkpoints. The launchers make the same checks, print each WARN
and stop at the first FAIL. With --measure_step it trains some steps of the workers side by side;
the launcher of workers that is called from the same folder later repeats the estimate of the time.
Exit code: 0 without a FAIL, otherwise 2. Memory is estimated, so it is never a FAIL.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

# Whether the engine is there is one of the checks.
require_packages("yaml", "psutil", "redis", "numpy", "tqdm", "google.protobuf", "cryptography")

from src.job.checks import FAIL, LEVELS
from src.launch.preflight.command import preflight
from src.launch.preflight.cost import StepCost
from src.model_utils.config import Config
from src.printing import print, print_json


def measured(config: Config) -> StepCost:
    """Train some steps as this machine's workers would."""
    # Imported late, since it needs packages that are checked here.
    from src.benchmarks.step import cost_of_steps

    return cost_of_steps(config)


def main() -> int:
    """Run the checks, print them and count."""
    as_json = "--json" in sys.argv[1:]
    found = []
    for finding in preflight(__doc__, sys.argv[1:], measured):
        found.append(finding)
        if not as_json:
            print(finding, flush=True)
    counts = Counter(finding.level for finding in found)
    code = 2 if counts[FAIL] else 0
    if as_json:
        print_json({"exit_code": code, "findings": [vars(f) for f in found]})
    else:
        print(", ".join(f"{counts[level]} {level}" for level in LEVELS))
    return code


if __name__ == "__main__":
    run_command(main)
