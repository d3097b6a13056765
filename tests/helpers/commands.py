"""Call the suite's scripts as a user does, in their own folder, with the tiny detector."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import psutil
from ports import free_port_range

from src.job.addresses import listens
from src.launch.redis_store import redis_binary
from src.model_utils.config import PROJECT_DIR

TINY = PROJECT_DIR / "configs" / "tiny" / "default_config.yaml"
SCHED = "run_cross_silo_fasterrcnn_sched.py"
SERVER = "run_cross_silo_fasterrcnn_server.py"
WORKER = "run_cross_silo_fasterrcnn_worker.py"
DISTRIBUTED = "run_cross_silo_fasterrcnn_worker_distributed.py"
FINISH = "finish_cross_silo_fasterrcnn.py"


def run(
    folder: Path, script: str, *flags: str, timeout: float = 120, through: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Call a script from `folder`, after the words `through`; return its exit code and output."""
    return subprocess.run(
        [*through, sys.executable, str(PROJECT_DIR / script), *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(
    folder: Path, script: str, *flags: str, timeout: float = 120, through: Sequence[str] = ()
) -> str:
    """Call a script that must succeed, and return what it printed."""
    result = run(folder, script, *flags, timeout=timeout, through=through)
    assert result.returncode == 0, f"{script}: {result.stdout}\n{result.stderr}"
    return result.stdout


def refused(folder: Path, script: str, *flags: str) -> str:
    """Call a script that must refuse its input, with exit code 2 and one line; return the line."""
    result = run(folder, script, *flags)
    assert result.returncode == 2, f"{result.returncode}: {result.stdout}\n{result.stderr}"
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def make_shards(folder: Path, images: int = 12, silos: int = 2, config: Path = TINY) -> Path:
    """Generate images, split them and write MindRecords; return the folder of the shards."""
    succeed(folder, "tools/make_demo_coco.py", "--out=coco", f"--images={images}", "--val_images=2")
    succeed(
        folder,
        "tools/split_coco.py",
        "--json=coco/annotations/instances_train2017.json",
        f"--num_shards={silos}",
        "--out=datasets/coco_split",
    )
    shards = folder / "datasets" / "coco_split" / f"split_{silos}"
    succeed(
        folder,
        "generate_mindrecord.py",
        f"--config_path={config}",
        f"--instance_set={shards / 'train_0.json'}",
        f"--mindrecord_dir={shards / 'mindrecord_0'}",
        f"--shards=0-{silos - 1}",
    )
    return shards


def start_redis(folder: Path, port: int, *flags: str) -> subprocess.Popen:
    """Start the tutorial's redis-server line, without its terminal."""
    with (folder / "redis.log").open("a") as log:
        command = [redis_binary(), "--port", str(port), "--save", "", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_for(lambda: listens("127.0.0.1", port), 20, f"Redis at port {port}")
    except BaseException:
        end(process)
        raise
    return process


@contextlib.contextmanager
def running_redis(folder: Path, *flags: str) -> Iterator[int]:
    """Run a Redis for the block; yield its port, where seven more ports after it are free."""
    port = free_port_range(8)
    process = start_redis(folder, port, *flags)
    try:
        yield port
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Send kill -9 to what a test has started; do nothing where it has ended by itself."""
    process.kill()
    process.wait(20)


def write_job(folder: Path, redis_port: int, iterations: int, **values: object) -> Path:
    """Write the default federation file with this Redis and number of iterations."""
    text = (PROJECT_DIR / "default_yaml_config.yaml").read_text()
    text = text.replace("127.0.0.1:2345", f"127.0.0.1:{redis_port}")
    values = {"fl_iteration_num": iterations, **values}
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^(\s*{key}:) \S+", rf"\1 {value}", text)
        assert count == 1, key
    path = folder / "default_yaml_config.yaml"
    path.write_text(text)
    return path


def wait_for(
    condition: Callable[[], object], timeout: float = 60, what: str | Callable[[], str] = ""
) -> None:
    """Wait until `condition()` is true; `what` names who is missing, or is called at the end."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            missing = what() if callable(what) else what or str(condition)
            raise AssertionError(f"not within {timeout:g} s: {missing}")
        time.sleep(0.05)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return every process on this machine with `folder` in its command line or as its cwd."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(folder) in " ".join(process.cmdline()) or process.cwd() == str(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
