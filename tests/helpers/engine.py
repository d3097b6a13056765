"""Run a real engine for tests: Redis and server processes with a handful of tiny weights.

    with Engine(weights, folder, silos=2) as engine:
        client = Client(engine.addresses, engine.fl_name)

Everything is in a temporary folder, on free ports, and ends when the block does. As a program
(`python tests/helpers/engine.py yaml address checkpoint_dir weights.npz`) it is one server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from certificate_files import passwords_of, write_tls_job
from ports import free_ports
from tls_front import TlsFront

from src.launch.processes import SUPERVISOR
from src.launch.redis_store import redis_command
from src.launch.supervise import SuperviseSpec

PROJECT_DIR = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 10.0


def wait_for(condition, seconds: float, what: str, pause: float = 0.05) -> None:
    """Poll `condition` until it is true; raise TimeoutError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


def listens(address: str) -> bool:
    """Return whether something accepts connections at "host:port"."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((host, int(port))) == 0


class Engine:
    """Run Redis and `servers` engine servers; `silos` uploads make an iteration.

    Args:
        weights: the servers' initial model, name -> float32 array.
        folder: where the YAML, the logs and the checkpoints go.
        windows: seconds of the start, update and global window.
        tls: folder of `make_certificates`; encrypts all connections, Redis' by a TLS front.
        prefix: client.http_url_prefix of the job.
    """

    def __init__(
        self,
        weights: dict[str, np.ndarray],
        folder: Path,
        silos: int = 2,
        servers: int = 1,
        iterations: int = 30,
        windows: tuple[int, int, int] = (60, 60, 120),
        ratio: float = 1.0,
        log_level: int = 2,
        tls: Path | None = None,
        prefix: str = "",
    ):
        self.folder = Path(folder)
        self.fl_name = "Tiny"
        self.log_level = log_level
        redis_port, *ports = free_ports(1 + servers)
        self.redis_address = f"127.0.0.1:{redis_port}"
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.yaml_path = self.folder / "federation.yaml"
        self.processes: dict[str, subprocess.Popen] = {}
        np.savez(self.folder / "weights.npz", **weights)
        settings = federation(self.fl_name, self.redis_address, silos, iterations, windows, ratio)
        self.tls, self.prefix = tls, prefix
        if prefix:
            settings["client"] = {"http_url_prefix": prefix}
        self._front = None
        if tls is not None:
            self._front = TlsFront(self.redis_address, tls / "redis.crt", tls / "redis.key")
            settings["distributed_cache"]["address"] = self._front.address
        self.yaml_path.write_text(yaml.safe_dump(settings))
        if tls is not None:
            write_tls_job(self.yaml_path, tls)

    def __enter__(self) -> Engine:
        try:
            self.start_redis()
            for number in range(len(self.addresses)):
                self.start_server(number, wait=False)
            for number in range(len(self.addresses)):
                self.wait_for_server(number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start_redis(self) -> None:
        port = self.redis_address.rsplit(":", 1)[1]
        self._start("redis", redis_command(int(port)))
        wait_for(lambda: listens(self.redis_address), START_SECONDS, "redis-server")

    def start_server(self, number: int, wait: bool = True) -> None:
        self._start(f"server_{number}", self.server_command(number))
        if wait:
            self.wait_for_server(number)

    def server_command(self, number: int) -> list[str]:
        # One for all servers, as in the launcher: only one of them writes an iteration's model.
        checkpoints = self.folder / "ckpt"
        checkpoints.mkdir(exist_ok=True)
        return [
            sys.executable,
            str(Path(__file__).resolve()),
            str(self.yaml_path),
            self.addresses[number],
            str(checkpoints),
            str(self.folder / "weights.npz"),
        ]

    def supervise_server(self, number: int) -> None:
        """Start it as launchers do, under a supervisor that ends it with the job."""
        label, redis_port = f"server_{number}", int(self.redis_address.rsplit(":", 1)[1])
        spec = SuperviseSpec(
            label=label,
            argv=self.server_command(number),
            log=str(self.folder / f"{label}.log"),
            exit_file=str(self.folder / f"{label}.exit.json"),
            job_end={
                "redis": ["127.0.0.1", redis_port],
                "fl_name": self.fl_name,
                "http_port": int(self.addresses[number].rsplit(":", 1)[1]),
                "fetch_timeout_s": START_SECONDS,
                "tls": {},
                "metrics": str(self.folder / "metrics.json"),
            },
        )
        path = self.folder / f"{label}.json"
        path.write_text(json.dumps(asdict(spec)))
        self._start(label, [sys.executable, str(SUPERVISOR), str(path)])
        self.wait_for_server(number)

    def wait_for_server(self, number: int) -> None:
        def ready() -> bool:
            process = self.processes[f"server_{number}"]
            if process.poll() is not None:
                raise RuntimeError(f"server ended: {self.log(f'server_{number}')[-2000:]}")
            return listens(self.addresses[number])

        wait_for(ready, START_SECONDS, f"server {number}")

    def kill(self, name: str) -> None:
        """Send kill -9 to "redis" or "server_<number>"."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_SECONDS)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait(STOP_SECONDS)
        self.processes.clear()
        if self._front is not None:
            self._front.close()

    def _start(self, name: str, command: list[str]) -> None:
        environment = {
            **os.environ,
            "GLOG_v": str(self.log_level),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(PROJECT_DIR), str(PROJECT_DIR / "tests" / "helpers")]
            ),
            **(passwords_of(self.tls) if self.tls else {}),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )


def federation(
    fl_name: str,
    redis_address: str,
    silos: int,
    iterations: int,
    windows: tuple[int, int, int],
    ratio: float,
) -> dict:
    """Return the settings that server and worker load, as the engine's YAML has them."""
    start, update, whole = (seconds * 1000 for seconds in windows)
    return {
        "fl_name": fl_name,
        "fl_iteration_num": iterations,
        "server_mode": "CLOUD_TRAINING",
        "enable_ssl": False,
        "distributed_cache": {"type": "redis", "address": redis_address},
        "round": {
            "start_fl_job_threshold": silos,
            "start_fl_job_time_window": start,
            "update_model_ratio": ratio,
            "update_model_time_window": update,
            "global_iteration_time_window": whole,
        },
        "summary": {
            "metrics_file": "metrics.json",
            "failure_event_file": "event.txt",
            "data_rate_dir": "",
        },
    }


def main() -> None:
    yaml_path, address, checkpoint_dir, weights = sys.argv[1:]
    from src.federated.server import ServerJob
    from src.federated.tls import engine_tls
    from src.job.job_config import load_job
    from src.launch.redis_store import JobStore
    from src.model_utils.config import default_values

    job_file = load_job(yaml_path)
    tls = engine_tls(job_file, "server", address)
    senders = JobStore(job_file.redis_address, job_file.name, tls=job_file.tls).uploaded
    limit = default_values()["max_model_change"]
    with np.load(weights) as arrays:
        features = {name: arrays[name] for name in arrays.files}
    job = ServerJob(
        address,
        yaml_path,
        address,
        "127.0.0.1",
        checkpoint_dir,
        tls=tls,
        max_change=limit,
        senders=senders,
        metrics=Path(job_file["summary.metrics_file"]),
    )
    job.run(features)


if __name__ == "__main__":
    main()
