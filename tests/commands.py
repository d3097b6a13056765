"""The suite's scripts as a user calls them, in a folder of their own, with the tiny detector."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from src.job.job_record import read_record
from src.launch.redis_store import redis_binary
from src.model_utils.config import PROJECT_DIR

TINY = PROJECT_DIR / "configs" / "tiny" / "default_config.yaml"


def run(
    folder: Path, script: str, *flags: str, timeout: float = 120, through: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Call a script from `folder`, behind the words `through`; its exit code and output."""
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
    """Call a script that has to succeed, and return what it printed."""
    result = run(folder, script, *flags, timeout=timeout, through=through)
    assert result.returncode == 0, f"{script}: {result.stdout}\n{result.stderr}"
    return result.stdout


def refused(folder: Path, script: str, *flags: str) -> str:
    """Call a script that has to refuse its input: exit code 2 and one line, which is returned."""
    result = run(folder, script, *flags)
    assert result.returncode == 2, f"{result.returncode}: {result.stdout}\n{result.stderr}"
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def make_shards(folder: Path, images: int = 12, silos: int = 2, config: Path = TINY) -> Path:
    """Draw images, split them and write MindRecords; returns the folder of the shards."""
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
    """The tutorial's redis-server line, without its terminal."""
    with (folder / "redis.log").open("w") as log:
        command = [redis_binary(), "--port", str(port), "--save", "", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise AssertionError("Redis did not start")


def write_job(folder: Path, redis_port: int, iterations: int, **values: object) -> Path:
    """The default federation file with this Redis and so many iterations."""
    text = (PROJECT_DIR / "default_yaml_config.yaml").read_text()
    text = text.replace("127.0.0.1:2345", f"127.0.0.1:{redis_port}")
    values = {"fl_iteration_num": iterations, **values}
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^(\s*{key}:) \S+", rf"\1 {value}", text)
        assert count == 1, key
    path = folder / "default_yaml_config.yaml"
    path.write_text(text)
    return path


def wait_for_end(folder: Path, timeout: float = 90) -> None:
    """Until every process of the folder's job has ended by itself."""
    deadline = time.monotonic() + timeout
    while running := read_record(folder).running():
        assert time.monotonic() < deadline, [process.label for process in running]
        time.sleep(0.1)


def wait_for(condition, timeout: float = 60, what: str = "") -> None:
    """Until `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.05)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process on this machine that has `folder` on its command line or as its own."""
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
