"""Measure the suite on this machine.

  python tools/benchmark.py step                     the training step, 320x192, batch 2
  python tools/benchmark.py step --full              1280x768, batch 1
  python tools/benchmark.py step --workers=2         two processes next to one with all cores
  python tools/benchmark.py step --profile           where the time of a step goes
  python tools/benchmark.py compile                  fresh process to the end of the first step
  python tools/benchmark.py data                     images to MindRecord, MindRecord to batches
  python tools/benchmark.py infer                    detection, 1280x768
  python tools/benchmark.py all --write=docs/performance.md      these, and their table in a page
  python tools/benchmark.py sync                     two silos, two servers, the full detector
  python tools/benchmark.py sync --servers=2 --clients=8 --only=ours
  python tools/benchmark.py sync --only=ours --rounds=30     the servers' memory over 30 rounds

Each command prints a few lines to standard output, or one JSON object with --json; progress goes
to standard error. docs/performance.md explains how to read the results, and what "the mathematics"
(the FLOP bound) is. Weights and images are generated, nothing is downloaded.

sync: a real Redis, scheduler and servers; clients that only synchronise the detector's weights.
The engine's own client, this suite's, and one that does no work (its rounds are the servers' own
share) take turns; seconds per phase, memory and the ratios are printed.

Everything that a measurement starts has ended when it ends, also after Ctrl-C. A busy machine
gives higher times.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.benchmarks import compilation, data, infer, page, step, sync
from src.errors import run_command
from src.model_utils.config import parse_known, script_parser

# name: a module with add_flags(parser) and run(args) -> exit code.
COMMANDS = {
    "step": step,
    "compile": compilation,
    "data": data,
    "infer": infer,
    "all": page,
    "sync": sync,
}


def main() -> int:
    """Parse the command line and measure."""
    words = sys.argv[1:]
    parser = script_parser(__doc__)
    parser.add_argument("command", choices=COMMANDS, help="--help behind it lists its flags")
    command = parse_known(parser, words[:1]).command
    module = COMMANDS[command]
    own = script_parser(module.__doc__, f"{parser.prog} {command}")
    module.add_flags(own)
    args = parse_known(own, words[1:])
    # A shell that starts this in the background leaves Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return module.run(args)


if __name__ == "__main__":
    run_command(main)
