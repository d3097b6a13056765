"""Run a silo in its own process, to be killed wherever a test wants it.

    with SiloProcess(engine, "a", images=30, change=1.0, halt="train") as silo:
        silo.await_line("train")
        silo.kill()

It joins, trains (adds `change` to every weight) and exchanges, `rounds` times, and prints its
current phase; at `halt` it stays forever: "train" is before the upload, "half" within it, "wait"
after it. As a program (`python tests/helpers/silo_process.py <json>`) it is that silo.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

PROJECT_DIR = Path(__file__).resolve().parents[2]


class SiloProcess:
    """Run a silo's process; it is killed at the end of a `with` block."""

    def __init__(self, engine, name: str, images: int, change: float, halt: str = "", **more):
        values = {
            "addresses": engine.addresses,
            "fl_name": engine.fl_name,
            "prefix": engine.prefix,
            "name": name,
            "images": images,
            "change": change,
            "halt": halt,
            "rounds": 1,
            **more,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), json.dumps(values)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=engine.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_DIR), *sys.path])},
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._queue.put(line.strip())

    def __enter__(self) -> SiloProcess:
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def await_line(self, words: str, seconds: float = 30) -> str:
        """Return the next line that contains `words`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self.lines.append(self._queue.get(timeout=0.1))
                if words in self.lines[-1]:
                    return self.lines[-1]
        raise TimeoutError(f"{words!r} is not in {self.lines}")

    def kill(self) -> None:
        """Send kill -9."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def end(self, seconds: float = 40) -> int:
        """Return its exit code, once it has ended by itself."""
        return self._process.wait(seconds)


def main() -> None:
    """Run the silo that the command line describes."""
    from members import Member

    from src.federated import messages

    values = json.loads(sys.argv[1])
    halt = values["halt"]

    def stay(phase: str, iteration: int = 0) -> None:
        print(f"{phase} {iteration}", flush=True)
        if phase == halt:
            time.sleep(3600)

    def pieces_with_halt(body):
        pieces = whole(body)
        yield next(pieces)
        if body.length > len(body._head):
            stay("half")
        yield from pieces

    whole = messages.WeightsBody.__iter__
    messages.WeightsBody.__iter__ = pieces_with_halt
    servers = SimpleNamespace(**{key: values[key] for key in ("addresses", "fl_name", "prefix")})
    silo = Member(servers, values["name"], values["images"], on_phase=stay)
    for _ in range(values["rounds"]):
        silo.join()
        record = silo.exchange(silo.train(values["change"]))
        print(f"{record.result} {record.iteration}", flush=True)


if __name__ == "__main__":
    main()
