"""Run the ranks of a silo on this machine: start them and keep their output.

It does for CPUs what mpirun does for other devices: the output of rank 1 goes to
<folder>/log_output/1/rank.1/stdout, and when one rank fails the others are ended. Its own output
has its own lines and those of the first rank here.

Started by the launcher:
python src/launch/rank_runner.py FOLDER FIRST COUNT LOG_MAX_BYTES LOG_FILES_KEPT COMMAND...
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

from src.files import Lossy
from src.job.job_record import DONE
from src.job.log_files import RotatingLog
from src.launch.supervise import die_with_parent, filtered
from src.printing import print

POLL_S = 0.2
# A rank notices within moments that another one has gone, and then reports it.
GRACE_S = 20.0


class RankProcess:
    """Run one rank, and the thread that keeps its output.

    Args:
        rank: its number.
        argv: its command.
        log: file for its output.
        rotation: of that file, see `RotatingLog`.
        echoed: whether its output also goes to this process's output.
    """

    def __init__(
        self, rank: int, argv: list[str], log: Path, echoed: bool, rotation: tuple[int, int]
    ):
        self.rank = rank
        self.error = ""
        self._done = False
        self._echoed = echoed
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        args = (self.process.stdout, RotatingLog(log, *rotation))
        self._reader = threading.Thread(target=self._copy, args=args)
        self._reader.start()

    def finish_reading(self) -> None:
        """Wait for the last line of a rank that has ended."""
        self._reader.join(timeout=5)

    def failed(self) -> bool:
        """Return whether it has failed; a signal after it was finished is no failure."""
        if not self.process.poll():
            return False
        self.finish_reading()
        return not (self._done and self.process.returncode < 0)

    def end(self) -> str:
        """Return how it failed, in words; "" if it did not."""
        if not self.failed():
            return ""
        code = self.process.returncode
        if code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-code).name}"
        return f"rank {self.rank} failed: {self.error or f'exit code {code}'}"

    def _copy(self, output: IO[bytes], log: RotatingLog) -> None:
        kept = Lossy(f"output of rank {self.rank}", partial(print, flush=True))
        for line in filtered(output):
            kept.do(partial(log.write, line))
            self._done = self._done or f"] {DONE}: " in line
            if line.startswith("error: "):
                self.error = line[len("error: ") :].strip()
            elif self._echoed:
                print(line.rstrip("\n"), flush=True)
        log.close()


def run_ranks(
    folder: Path, ranks: range, argv: list[str], rotation: tuple[int, int] = (0, 0)
) -> int:
    """Run the ranks to their end; return the exit code of the silo.

    Args:
        folder: folder for the silo's output.
        ranks: their numbers.
        argv: the command of each, without its number.
        rotation: of their logs, see `RotatingLog`.
    """
    started: list[RankProcess] = []

    def stop(number: int, _frame: Any) -> None:
        for rank in started:
            rank.process.terminate()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    for rank in ranks:
        log = folder / "log_output" / "1" / f"rank.{rank}" / "stdout"
        # Its status stands for the silo's status on this machine.
        own = [] if rank == ranks[0] else ["--status_file="]
        command = [*argv, f"--rank={rank}", *own]
        started.append(RankProcess(rank, command, log, rank == ranks[0], rotation))
    failed = _until_the_end(started)
    for process in started:
        process.finish_reading()
    if failed is None:
        return 0
    # Others may have ended a moment before the one whose error the user can fix.
    failed = next((rank for rank in started if rank.process.returncode == 2), failed)
    others = [r.end() for r in started if r is not failed and r.failed()]
    for words in others:
        print(f"after that, {words}", flush=True)
    print(f"error: {failed.end()}", flush=True)
    return 2 if failed.process.returncode == 2 else 1


def _until_the_end(started: list[RankProcess]) -> RankProcess | None:
    """Wait; return the rank that failed first, or None where all have succeeded."""
    failed, deadline = None, 0.0
    while any(rank.process.poll() is None for rank in started):
        first = next((rank for rank in started if rank.failed()), None)
        if failed is None and first is not None:
            failed, deadline = first, time.monotonic() + GRACE_S
            print(f"{first.end()}; the silo's other ranks end too", flush=True)
        if failed is not None and time.monotonic() > deadline:
            for rank in started:
                rank.process.kill()
        time.sleep(POLL_S)
    return failed or next((rank for rank in started if rank.failed()), None)


def main() -> int:
    """Run what the command line describes."""
    folder, *numbers = sys.argv[1:6]
    first, count, max_bytes, kept = map(int, numbers)
    return run_ranks(Path(folder), range(first, first + count), sys.argv[6:], (max_bytes, kept))


if __name__ == "__main__":
    sys.exit(main())
