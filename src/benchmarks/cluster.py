"""A federation's coordination for a measurement: Redis, scheduler and servers in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from src.errors import StartError
from src.job.addresses import free_ports, listens
from src.job.job_config import JobConfig, load_job
from src.job.recovery_files import list_recovery_files
from src.launch.command_line import DEFAULT_JOB
from src.launch.redis_store import redis_command
from src.launch.supervise import die_with_parent
from src.model_utils.config import PROJECT_DIR

HOST = "127.0.0.1"
START_SECONDS = 120.0
# An iteration that takes longer has failed, and the servers end it.
WINDOW_MS = 300_000
LAST_LINES = 8


class Cluster:
    """Starts everything on entering and kills it on leaving; it dies with this process too.

    Args:
        folder: for logs and checkpoints.
        servers: how many.
        silos: uploads that make an iteration.
        iterations: of the job.
        config_path: detector whose weights the servers start from.

    Attributes:
        yaml_path: the federation's file, for the clients.
        addresses: "ip:port" of each server.
        checkpoint: the servers' initial model, which is what travels.
    """

    def __init__(self, folder: Path, servers: int, silos: int, iterations: int, config_path: Path):
        redis_port, manage_port, *ports = free_ports(2 + servers)
        self._folder = folder
        self._config_path = config_path
        self._manage_address = f"{HOST}:{manage_port}"
        self._redis_port = redis_port
        self._processes: dict[str, subprocess.Popen] = {}
        self.addresses = [f"{HOST}:{port}" for port in ports]
        self.job = self._write_job(silos, iterations)
        self.yaml_path = self.job.path

    def __enter__(self) -> Cluster:
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def checkpoint(self) -> Path:
        """The servers' initial model: all that travels, as a MindSpore checkpoint."""
        return list_recovery_files(self._folder / "fl_ckpt", self.job.name)[-1].path

    def stop(self) -> None:
        """Kill what was started."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def check(self) -> None:
        """Raise StartError with the end of its log where a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StartError(f"{name} ended: {self._last_lines(name)}", 1)

    def resident_gb(self) -> list[float]:
        """Resident memory of each server now, in 10**9 bytes."""
        pids = [p.pid for name, p in self._processes.items() if name.startswith("server")]
        return [psutil.Process(pid).memory_info().rss / 1e9 for pid in pids]

    def _write_job(self, silos: int, iterations: int) -> JobConfig:
        overrides = {
            "fl_name": "Benchmark",
            "fl_iteration_num": iterations,
            "distributed_cache.address": f"{HOST}:{self._redis_port}",
            "round.start_fl_job_threshold": silos,
            "round.start_fl_job_time_window": WINDOW_MS,
            "round.update_model_time_window": WINDOW_MS,
            "round.global_iteration_time_window": WINDOW_MS,
        }
        job = load_job(PROJECT_DIR / DEFAULT_JOB, overrides)
        return JobConfig(job.write(self._folder / "yaml_config.yaml"), job.values)

    def _start_all(self) -> None:
        self._start("redis", redis_command(self._redis_port))
        self._make_model()
        self._wait_for("redis", f"{HOST}:{self._redis_port}")
        manage = f"--scheduler_manage_address={self._manage_address}"
        self._start("scheduler", self._role("MS_SCHED", manage))
        checkpoints = f"--checkpoint_dir={self._folder / 'fl_ckpt'}"
        for number, address in enumerate(self.addresses):
            command = self._role("MS_SERVER", f"--http_server_address={address}", checkpoints)
            self._start(f"server_{number}", command)
        self._wait_for("scheduler", self._manage_address)
        for number, address in enumerate(self.addresses):
            self._wait_for(f"server_{number}", address)

    def _make_model(self) -> None:
        tool = str(PROJECT_DIR / "tools" / "create_initial_checkpoint.py")
        folder = self._folder / "fl_ckpt"
        command = [sys.executable, tool, f"--fl_name={self.job.name}", f"--checkpoint_dir={folder}"]
        self._start("model", [*command, f"--config_path={self._config_path}"])
        process = self._processes.pop("model")
        try:
            code = process.wait(START_SECONDS)
        finally:
            process.kill()
            process.wait()
        if code:
            raise StartError(f"no initial model: {self._last_lines('model')}", code)

    def _role(self, ms_role: str, *flags: str) -> list[str]:
        script = str(PROJECT_DIR / "test_fl_fasterrcnn.py")
        yaml = f"--yaml_config={self.yaml_path}"
        return [sys.executable, script, f"--ms_role={ms_role}", yaml, *flags]

    def _start(self, name: str, command: list[str]) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "GLOG_v": "2"},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _wait_for(self, name: str, address: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        host, port = address.rsplit(":", 1)
        while not listens(host, int(port)):
            self.check()
            if time.monotonic() > deadline:
                raise StartError(f"{name} does not listen on {address}", 1)
            time.sleep(0.05)

    def _last_lines(self, name: str) -> str:
        return last_lines(self._folder / f"{name}.log")


def last_lines(log: Path) -> str:
    """The end of a log file, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])
