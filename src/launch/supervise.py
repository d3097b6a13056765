"""Supervise one role as a small process: write the role's log and see it to its end.

The engine blocks its whole Python process and never ends by itself. So each role runs as the child
of a supervisor, which filters its output into the log, passes signals on, kills it when it would
outlive its supervisor, and ends servers and scheduler when the job is done.

Started by the launchers: python src/launch/supervise.py SPEC.json
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from src.files import write_whole
from src.job.job_record import STOPPED_BY, is_done, write_json
from src.job.log_files import RotatingLog, stamp
from src.launch.job_end import JobEnd, job_end_from
from src.printing import printable

_NATIVE = re.compile(
    r"^\[(?P<level>INFO|WARNING|ERROR|CRITICAL)\] (?P<module>[A-Z_]+)\((?P<pid>\d+)?"
    r"(?:.*?\[(?P<source>[^\]]*):\d+\] )?"
)
# Prefix of a line that continues the engine's line above it.
PART = "  | "
# Set for a process whose Python writes to standard output alone.
SUPERVISED = "CROSS_SILO_SUPERVISED"

_SHOWN = (
    "Server started successfully.",
    "Scheduler started successfully.",
    "Start http server!",
    "Ev http register handle of:",
    "Receive signal message",
)

# Printed on every healthy run, or said better by this suite's own lines.
_HARMLESS = (
    "LoadDynamicLib]",
    "Running status in distributed cache is empty",
    "instance name is empty",
    "IntToSize] The int value(-1)",
    "The cluster is still in safemode",
    "Send node is not in collective received data",
    "Not find operator information for Custom operator",
    "methods may not be supported in later version",
    "Client connected end of file",
    "moving_mean",
    "moving_variance",
    "is not in the parameter_dict",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
    # For an epoch that --resume leaves out; an empty data set is refused at the start.
    "] No records available.",
)


_PATHS = "Ev http register handle of:"
# A path begins with the job's secret prefix, where it has one.
_PREFIX = re.compile(r"/[\w-]+(?=/)")


class LogFilter:
    """Filter line by line, remembering lines shown so that 16 threads report a thing once.

    Args:
        engine: the process whose engine alone writes these lines, after the first that it begins;
            0 where other processes write among them.
    """

    def __init__(self, engine: int = 0) -> None:
        self._engine = engine
        self._begun = False  # the engine has written a line
        self._seen: set[tuple[str | None, str | None]] = set()

    def shown(self, line: str) -> str:
        """Return what goes to the log, without line end and secret path; "" for nothing."""
        native = _NATIVE.match(line)
        # A peer that forges a whole engine line does not know the process id.
        genuine = not self._engine or (native and native["pid"] == str(self._engine))
        before = PART if self._begun and not genuine else ""
        self._begun = self._begun or bool(self._engine and genuine)
        if not self._passes(line, native):
            return ""
        head, words, paths = line.partition(_PATHS)
        line = head + words + _PREFIX.sub("", paths)
        return before + printable(line.rstrip("\n"), keep="\t")

    def _passes(self, line: str, native: re.Match[str] | None) -> bool:
        if not native:
            return bool(line.strip())
        if any(text in line for text in _HARMLESS):
            return False
        if native["level"] != "INFO":
            return True
        text = next((text for text in _SHOWN if text in line), None)
        shown = (native["source"], text)
        if native["module"] != "FEDERATED" or text is None or shown in self._seen:
            return False
        self._seen.add(shown)
        return True


def filtered(output: IO[bytes], engine: int = 0) -> Iterator[str]:
    """Yield the lines of a process's output that go to the log, with line ends; see `LogFilter`."""
    log_filter = LogFilter(engine)
    # Only a line feed ends a line: a carriage return may come from a peer.
    for line in io.TextIOWrapper(output, "utf-8", errors="replace", newline="\n"):
        if shown := log_filter.shown(line):
            yield f"{shown}\n"


def own_output() -> None:
    """Send what Python writes to standard output, in a process that a supervisor has started.

    Standard error then belongs to the engine alone, which writes words of others into its lines.
    """
    if os.environ.get(SUPERVISED) and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        sys.stderr = sys.stdout


POLL_S = 0.5
PR_SET_PDEATHSIG = 1
LAST_LOST = 20
RESERVE_BYTES = 2**16
GRACE_S = 20.0


@dataclass
class SuperviseSpec:
    """Describe what one supervisor runs.

    Attributes:
        label: server_0 and so on.
        argv: the role's command.
        log: file for the filtered output.
        exit_file: JSON file that gets {"code", "reason"} at the end.
        env: variables set for the role, over the inherited ones.
        job_end: arguments of `job_end_from`, or {} for a role that ends by itself.
        status_file: where a worker says that it is finished; "" for a role that keeps none.
        grace_s: seconds between SIGTERM and SIGKILL when the job has ended.
        log_max_bytes, log_files_kept: see `RotatingLog`.
        stop_grace_s: as grace_s, when the user stops it. A server may wait for another one's part
            of a sum, which it does for 20 s; whatever it has written is complete.
    """

    label: str
    argv: list[str]
    log: str
    exit_file: str
    env: dict[str, str] = field(default_factory=dict)
    job_end: dict[str, Any] = field(default_factory=dict)
    status_file: str = ""
    grace_s: float = GRACE_S
    stop_grace_s: float = 4.0
    log_max_bytes: int = 0
    log_files_kept: int = 0


class Supervisor:
    """Run one role; `run` returns its exit code.

    Args:
        spec: the role.
        log: its log.
    """

    def __init__(self, spec: SuperviseSpec, log: RotatingLog):
        self._spec = spec
        self._log = log
        self._lock = threading.Lock()
        self._lost, self._why = 0, ""
        self._last_lost: deque[str] = deque(maxlen=LAST_LOST)
        self._reserve = Path(spec.exit_file).with_suffix(".reserve")
        self._done = ""  # why the job no longer needs the role
        self._stopped = ""  # the signal by which the user ends it
        self._killed = False
        self._child: subprocess.Popen | None = None
        self._end: JobEnd | None = job_end_from(spec.job_end) if spec.job_end else None

    def say(self, text: str) -> None:
        """Write one line of the supervisor's own to the role's log."""
        self._write(self._own_line(text))

    def _own_line(self, text: str) -> str:
        return f"{stamp(self._spec.label)} {printable(text)}\n"

    def run(self) -> int:
        """Start the role, wait for its end, write the exit file, return the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._keep_room()
        child = self._child = self._start()
        outputs = ((child.stdout, 0), (child.stderr, child.pid))
        readers = [threading.Thread(target=self._copy, args=o, daemon=True) for o in outputs]
        for reader in readers:
            reader.start()
        self._wait(child)
        for reader in readers:
            reader.join(timeout=5)
        self._free_room()
        code, reason = self._outcome(child.returncode)
        self.say(f"{reason}; exit code {code}")
        if self._folder_removed():
            return code
        # On a full disk the code is still this process's own.
        with contextlib.suppress(OSError):
            write_json(Path(self._spec.exit_file), {"code": code, "reason": reason})
        return code

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stopped = f"{STOPPED_BY} {signal.Signals(number).name}"
        if self._child is not None:
            self._child.terminate()

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self._spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self._spec.env, SUPERVISED: "1"},
            preexec_fn=die_with_parent,
        )

    def _copy(self, output: IO[bytes], engine: int) -> None:
        for line in filtered(output, engine):
            self._write(line)

    def _write(self, text: str) -> None:
        """Write to the log; on a full disk, drop lines, since a role with unread output would hang.

        When there is room again, write how many were lost, why, and the last of them.
        """
        with self._lock:
            try:
                self._log.write(self._about_lost_lines() + text)
                self._lost = 0
                self._last_lost.clear()
            except OSError as error:
                self._lost += 1
                self._last_lost.append(text)
                self._why = error.strerror or str(error)

    def _about_lost_lines(self) -> str:
        if not self._lost:
            return ""
        words = f"WARNING: {self._lost} line(s) found no room ({self._why}); the last of them:\n"
        return self._own_line(words.rstrip()) + "".join(self._last_lost)

    def _keep_room(self) -> None:
        """Reserve some disk, so that a role that a full one ends can still report it."""
        with contextlib.suppress(OSError):  # without it, only the last report may be lost
            self._reserve.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._reserve, bytes(RESERVE_BYTES))

    def _free_room(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def _wait(self, child: subprocess.Popen) -> None:
        """Wait until the child has ended, by itself, by the job's end or by a signal."""
        while child.poll() is None and not (self._done or self._stopped):
            self._done = self._folder_removed() or self._job_ended(child.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=POLL_S)
        if child.poll() is not None:
            return
        child.terminate()
        begin = time.monotonic()
        while child.poll() is None:
            # A signal while the job's end is waited for shortens the wait.
            grace_s = self._spec.stop_grace_s if self._stopped else self._spec.grace_s
            left = begin + grace_s - time.monotonic()
            if left <= 0:
                self.say(f"did not end within {grace_s:.0f} s of SIGTERM, killing it")
                self._killed = True
                child.kill()
                child.wait()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=min(left, POLL_S))

    @staticmethod
    def _folder_removed() -> str:
        """Return the reason to end where the folder that the job was started from is gone.

        Its record is gone with it: no command would find the role. A renamed folder still exists.
        """
        try:
            Path.cwd()
        except FileNotFoundError:
            return "the job's folder was removed"
        return ""

    def _job_ended(self, pid: int) -> str:
        if self._end is None:
            return ""
        reason = self._end.poll(pid)
        for line in self._end.take_notes():
            self.say(line)
        return reason

    def _outcome(self, returncode: int) -> tuple[int, str]:
        """Return exit code and reason: why the role ended decides, not how it died.

        With the job done it is a success, also where the engine had to be killed, unless too few
        of its iterations were aggregated; so is a worker that gets a signal after it has reported
        that it is finished.
        """
        signal_name = signal.Signals(-returncode).name if returncode < 0 else ""
        # A role that has no handler of its own dies of SIGTERM, or reports it by 128 + 15.
        as_asked = returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        if self._done:
            how = "had to be killed" if self._killed else f"ended with {as_exit_code(returncode)}"
            failed = self._end is not None and self._end.failed
            return int(failed), self._done if as_asked else f"{self._done} (it {how})"
        if (self._stopped or signal_name) and self._is_finished():
            return 0, f"finished, then {self._stopped or f'killed by {signal_name}'}"
        if self._killed:
            words = f"{self._stopped} and killed {self._spec.stop_grace_s:.0f} s later"
            return 128 - returncode, words
        if self._stopped:
            then = f", then killed by {signal_name}" if signal_name and not as_asked else ""
            return (0 if as_asked else as_exit_code(returncode)), self._stopped + then
        if signal_name:
            return as_exit_code(returncode), f"killed by {signal_name}"
        return returncode, "ended"

    def _is_finished(self) -> bool:
        path = self._spec.status_file
        return bool(path) and is_done(Path(path))


def as_exit_code(returncode: int) -> int:
    """Return the code as a shell does: 128 plus the number of the signal that ended a process."""
    return returncode if returncode >= 0 else 128 - returncode


def die_with_parent() -> None:
    """Kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG); called in the child."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the role that the JSON file on the command line describes."""
    spec = SuperviseSpec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    here = Path(spec.log)
    log = RotatingLog(here, spec.log_max_bytes, spec.log_files_kept, own_handles_of(here))
    return Supervisor(spec, log).run()


def own_handles_of(log: Path) -> tuple[int, ...]:
    """Return standard output and error where they are this file."""
    if not log.exists():
        return ()
    file = log.stat()
    return tuple(n for n in (1, 2) if os.path.samestat(os.fstat(n), file))


if __name__ == "__main__":
    sys.exit(main())
