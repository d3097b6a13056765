"""Compile the detector's kernels, so that no training has to wait for it. Part of make install.

  python tools/compile_kernels.py

It trains a tiny detector for one step and detects once with it, as a worker and an evaluation do.
The machine code stays next to the sources for every later process on this machine; a changed source
is compiled again at its next use. Success: one line with the seconds that it took.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages()

from src.benchmarks.infer import InferSpec
from src.benchmarks.measure import Setting
from src.benchmarks.workloads import InferWork, StepWork
from src.model_utils.config import PROJECT_DIR, parse_known, script_parser
from src.printing import print

TINY = str(PROJECT_DIR / "configs" / "tiny" / "default_config.yaml")


def main() -> int:
    """Run each kernel once."""
    parser = script_parser(__doc__)
    parse_known(parser)
    begin = time.monotonic()
    setting = Setting(TINY, {}, threads=1)
    StepWork(setting).steps(1)
    InferWork(InferSpec(setting, score_scale=1.0)).steps(1)
    print(f"the detector's kernels are compiled ({time.monotonic() - begin:.0f} s)")
    return 0


if __name__ == "__main__":
    run_command(main)
