"""Run measured work in processes with their own memory, threads and MindSpore context.

A child makes one object and calls the methods that this process asks for. It is killed on leaving,
and dies with this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from src.errors import StartError, UserError
from src.launch.supervise import die_with_parent
from src.model_utils.config import PROJECT_DIR

READY_SECONDS = 600.0
ANSWER_SECONDS = 900.0


class Child:
    """Run one process with one object.

    Args:
        work: "module:Class" of the object.
        spec: its only argument.
        threads: cores for the process; see the worker's launcher.
        env: variables to add.
        stdout: where the process prints; None is this process's standard error.
    """

    def __init__(
        self,
        work: str,
        spec: Any,
        threads: int,
        env: dict[str, str] | None = None,
        stdout: IO[Any] | None = None,
    ):
        self._name = work.split(":")[1]
        self._connection, theirs = multiprocessing.Pipe()
        limits = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src.benchmarks.child_main", str(theirs.fileno()), work],
            cwd=PROJECT_DIR,
            env={**os.environ, **limits, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout or sys.stderr,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        theirs.close()
        self._connection.send(spec)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with everything that it started
        self._process.wait()
        self._connection.close()

    def ready(self) -> dict[str, float]:
        """Wait until the object is made; return time.monotonic() when `imported` and when `built`.

        Raises:
            UserError, StartError: as `answer`.
        """
        return self.answer(READY_SECONDS)

    def call(self, method: str, **arguments: Any) -> Any:
        """Return what a method of the object gives.

        Raises:
            UserError, StartError: as `answer`.
        """
        self.ask(method, **arguments)
        return self.answer()

    def ask(self, method: str, **arguments: Any) -> None:
        """Ask for a method call; `answer` returns the result."""
        self._connection.send((method, arguments))

    def answer(self, seconds: float = ANSWER_SECONDS) -> Any:
        """Return the next result.

        Raises:
            UserError: the child raised one.
            StartError: it ended, or did not answer in time.
        """
        if not self._connection.poll(seconds):
            raise StartError(f"{self._name} did not answer within {seconds:.0f} s", 1)
        try:
            kind, content = self._connection.recv()
        except EOFError:
            code = self._process.wait()
            raise StartError(f"{self._name} ended with exit code {code}", 1) from None
        if kind == "error":
            raise UserError(content)
        return content


@contextmanager
def children(work: str, specs: list[Any], threads: int) -> Iterator[list[Child]]:
    """Start one child for each of `specs` side by side, and yield them when ready."""
    with ExitStack() as stack:
        started = [stack.enter_context(Child(work, spec, threads)) for spec in specs]
        for child in started:
            child.ready()
        yield started
