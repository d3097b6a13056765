"""Measure the suite on this machine.

  python tools/benchmark.py sync                     two silos, two servers, the full detector
  python tools/benchmark.py sync --json              one JSON object on standard output
  python tools/benchmark.py sync --servers=2 --clients=8 --only=ours
  python tools/benchmark.py sync --only=ours --rounds=30     the servers' memory over 30 rounds

sync: a real Redis, scheduler and servers; clients that only synchronise the detector's weights.
The engine's own client, this suite's, and one that does no work (its rounds are the servers' own
share) take their turns; seconds per phase, memory and the ratios are printed. Everything that it
starts has ended when it ends, also after Ctrl-C. A busy machine gives higher figures.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.benchmarks import sync
from src.errors import run_command
from src.model_utils.config import parse_known

# name: a module with add_flags(parser) and run(args) -> exit code.
COMMANDS = {"sync": sync}


def main() -> int:
    """Parse, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_flags(commands.add_parser(name, help=module.__doc__.splitlines()[0]))
    args = parse_known(parser)
    # A shell that starts this in the background leaves Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return COMMANDS[args.command].run(args)


if __name__ == "__main__":
    run_command(main)
