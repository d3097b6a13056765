"""Measure the time and memory of synchronising the detector's weights.

Redis, a scheduler, servers and clients are real processes on this machine; the clients do nothing
but synchronise. Three kinds take their turns on the same servers: the engine's own client, this
suite's, and a null client that does no work, whose rounds are the servers' own share.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from src.benchmarks.measure import say, show
from src.benchmarks.sync_clients import ClientSpec, run_client
from src.errors import StartError, UserError
from src.job.addresses import free_ports, listens
from src.job.job_config import JobConfig, load_job
from src.job.recovery_files import list_recovery_files
from src.launch.command_line import DEFAULT_JOB
from src.launch.redis_store import redis_command
from src.launch.supervise import die_with_parent
from src.model_utils.config import DEFAULT_CONFIG, PROJECT_DIR, find_config_file

HOST = "127.0.0.1"
START_SECONDS = 120.0
# An iteration that takes longer has failed, and the servers end it.
WINDOW_MS = 300_000
LAST_LINES = 8


class Cluster:
    """Start everything on entering and kill it on leaving; it also dies with this process.

    Args:
        folder: folder for logs and checkpoints.
        servers: number of servers.
        silos: number of uploads that make an iteration.
        iterations: number of iterations of the job.
        config_path: detector whose weights the servers start from.

    Attributes:
        yaml_path: the federation's file, for the clients.
        addresses: "ip:port" of each server.
        checkpoint: the servers' initial model, which holds the federated parameters.
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
        """Return the servers' initial model, all that is federated, as a MindSpore checkpoint."""
        return list_recovery_files(self._folder / "fl_ckpt", self.job.name)[-1].path

    def stop(self) -> None:
        """Kill everything that was started."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def check(self) -> None:
        """Raise StartError with the end of the log of a process that has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StartError(f"{name} ended: {self._last_lines(name)}", 1)

    def resident_gb(self) -> list[float]:
        """Return the resident memory of each server now, in 10**9 bytes."""
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
    """Return the end of a log file, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])


READY_SECONDS = 120.0
ROUND_SECONDS = 180.0
# Peak resident memory of one process with the full detector, for the check before the start.
NEEDS_GB = {"engine": 4.9, "ours": 1.4, "null": 1.4}
SERVER_NEEDS_GB = 3.2
MOST_ENGINE_CLIENTS = 3

Results = list[list[dict[str, Any]]]  # of each round, of each client


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py sync`."""
    parser.add_argument("--servers", type=int, choices=(1, 2, 4), default=2)
    parser.add_argument("--clients", type=int, default=2, help="default 2")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--only", choices=("ours", "engine"), help="one kind of client")
    parser.add_argument("--config_path", default=DEFAULT_CONFIG, help="the detector")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: flags that do not go together, or too little memory.
        StartError: a process failed.
    """
    kinds = kinds_of(args)
    config_path = find_config_file(args.config_path)
    if args.config_path == DEFAULT_CONFIG:
        require_memory(kinds, args.servers, args.clients)
    iterations = args.rounds * len(kinds) + 1  # one more, so that the job does not end within it
    measured: dict[str, Results] = {}
    servers_gb: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark_sync_") as folder:
        say("making the detector's weights, starting Redis, scheduler and servers")
        with Cluster(Path(folder), args.servers, args.clients, iterations, config_path) as cluster:
            size = cluster.checkpoint.stat().st_size
            say(f"{size / 1e6:.1f} MB a model; {args.servers} server(s), {args.clients} client(s)")
            for kind in kinds:
                measured[kind] = _rounds_of(kind, cluster, args, Path(folder), servers_gb)
    result = summary(measured, servers_gb)
    return show(args, result, lambda summed: report(summed, measured))


def kinds_of(args: argparse.Namespace) -> list[str]:
    """Return the kinds of clients to measure, in turn; the null client comes with this suite's.

    Raises:
        UserError: numbers below 1, or the engine's own client with too many of them.
    """
    if args.clients < 1 or args.rounds < 2:
        raise UserError(
            f"--clients {args.clients} --rounds {args.rounds}: expected at least 1 client and 2 "
            "rounds; medians leave the first round out"
        )
    if args.only == "engine" and args.clients > MOST_ENGINE_CLIENTS:
        raise UserError(
            f"--only engine with --clients {args.clients}: the engine's own client takes 4.7 GB; "
            f"give {MOST_ENGINE_CLIENTS} clients at most"
        )
    if args.only == "engine":
        return ["engine"]
    both = args.only is None and args.clients <= MOST_ENGINE_CLIENTS
    return ["engine", "ours", "null"] if both else ["ours", "null"]


def require_memory(kinds: list[str], servers: int, clients: int) -> None:
    """Raise a UserError where the machine lacks the memory for the full detector."""
    needed = SERVER_NEEDS_GB * servers + clients * max(NEEDS_GB[kind] for kind in kinds)
    there = psutil.virtual_memory().available / 1e9
    if there < needed:
        raise UserError(
            f"sync needs about {needed:.0f} GB of memory and {there:.0f} GB are available; give "
            "fewer --clients or --servers, or --only ours"
        )


def _rounds_of(
    kind: str,
    cluster: Cluster,
    args: argparse.Namespace,
    folder: Path,
    servers_gb: list[list[float]],
) -> Results:
    """Measure all rounds of one kind of clients; append the servers' memory to `servers_gb`."""
    say(f"{kind}: {args.clients} client(s) start")
    with _Clients(kind, cluster, args.clients, folder) as clients:
        clients.gather(READY_SECONDS)
        results = []
        for number in range(args.rounds):
            clients.tell("round")
            results.append(clients.gather(ROUND_SECONDS))
            servers_gb.append(cluster.resident_gb())
            say(f"{kind}: round {number + 1} of {args.rounds}: {round_seconds(results[-1]):.2f} s")
        clients.tell(None)
    return results


class _Clients:
    """Run the client processes of one kind; they are killed on leaving."""

    def __init__(self, kind: str, cluster: Cluster, count: int, folder: Path):
        self._cluster = cluster
        self._specs = [
            ClientSpec(
                kind,
                number,
                count,
                cluster.addresses,
                str(cluster.yaml_path),
                cluster.job.name,
                cluster.job.iterations,
                str(cluster.checkpoint),
                str(folder / f"{kind}_{number}.log"),
            )
            for number in range(count)
        ]
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> _Clients:
        context = multiprocessing.get_context("spawn")
        for spec in self._specs:
            mine, theirs = context.Pipe()
            process = context.Process(target=run_client, args=(theirs, spec), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(mine)
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        for process in self._processes:
            process.join(timeout=0 if error else 5)
            process.kill()
            process.join()

    def tell(self, word: str | None) -> None:
        """Send a word to every client."""
        for connection in self._connections:
            connection.send(word)

    def gather(self, seconds: float) -> list[Any]:
        """Return what each client sends next.

        Raises:
            StartError: one failed, a process of the cluster ended, or the time is up.
        """
        deadline = time.monotonic() + seconds
        answers: dict[int, Any] = {}
        while len(answers) < len(self._connections):
            missing = [c for n, c in enumerate(self._connections) if n not in answers]
            ready = wait(missing, timeout=1.0)
            for number in [n for n, c in enumerate(self._connections) if c in ready]:
                answers[number] = self._receive(number)
            self._cluster.check()
            if time.monotonic() > deadline:
                names = [s.number for n, s in enumerate(self._specs) if n not in answers]
                raise StartError(f"client(s) {names} did not answer within {seconds:.0f} s", 1)
        return [answers[number] for number in range(len(self._connections))]

    def _receive(self, number: int) -> Any:
        spec = self._specs[number]
        try:
            answer = self._connections[number].recv()
        except EOFError:
            answer = "ended"
        if isinstance(answer, str) and answer != "ready":
            for process in self._processes:
                process.kill()
            log = last_lines(Path(spec.log))
            raise StartError(f"{spec.kind} client {spec.number}: {answer}\n{log}", 1)
        return answer


def round_seconds(results: list[dict[str, Any]]) -> float:
    """Return the seconds from the first start request to the last decoded model."""
    return max(r["end"] for r in results) - min(r["begin"] for r in results)


def median(values: list[float]) -> float:
    """Return the median without the first, which opens connections and gets memory."""
    return statistics.median(values[1:])


def summary(measured: dict[str, Results], servers_gb: list[list[float]]) -> dict[str, Any]:
    """Return the result as one object.

    Returns:
        `ours`, `engine` (None where not measured), `null`: each `round_s`, `client_s` (the most of
        the clients) of every round, and `added_peak_gb` (the most of the clients); `ratio`: ours by
        engine, and `ratio_to_servers_share`: ours by null, medians without the first round;
        `servers_gb`: each server's resident memory after each round of all kinds, in order.
    """
    result: dict[str, Any] = {"ours": None, "engine": None, "ratio": None, "null": None}
    for kind, rounds in measured.items():
        result[kind] = {
            "round_s": [round(round_seconds(one), 3) for one in rounds],
            "client_s": [round(max(r["client_s"] for r in one), 3) for one in rounds],
            "added_peak_gb": round(max(r["added_gb"] for one in rounds for r in one), 3),
        }
    result["ratio"] = _ratio(result, "ours", "engine")
    result["ratio_to_servers_share"] = _ratio(result, "ours", "null")
    result["servers_gb"] = [[round(gb, 3) for gb in one] for one in servers_gb]
    return result


def _ratio(result: dict[str, Any], one: str, other: str) -> float | None:
    if not (result[one] and result[other]):
        return None
    return round(median(result[one]["round_s"]) / median(result[other]["round_s"]), 3)


TITLES = {"engine": "engine's own client", "ours": "this suite", "null": "servers' own share"}


def report(result: dict[str, Any], measured: dict[str, Results]) -> str:
    """Return the result in words: medians without the first round."""
    lines = []
    for kind, rounds in measured.items():
        values = result[kind]
        seconds = values["round_s"][1:]
        lines.append(
            f"{TITLES[kind]:20} round {median(values['round_s']):6.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f}), of it the client's own work "
            f"{median(values['client_s']):.2f} s; memory {_peak(rounds):.2f} GB at the peak, "
            f"{values['added_peak_gb']:.2f} GB of it added"
        )
        lines.append(f"{'':20} {_phases(rounds)}")
    if result["ratio"] is not None:
        lines.append(f"this suite by the engine's own client: {result['ratio']}")
    if result["ratio_to_servers_share"] is not None:
        lines.append(f"this suite by the servers' own share: {result['ratio_to_servers_share']}")
    memory = "; ".join(" ".join(f"{gb:.2f}" for gb in one) for one in result["servers_gb"])
    lines.append(f"servers' resident memory after each round, GB: {memory}")
    return "\n".join(lines)


def _peak(rounds: Results) -> float:
    return max(r["peak_gb"] for one in rounds for r in one)


def _phases(rounds: Results) -> str:
    """Return the median seconds of each phase over rounds and clients."""
    names = rounds[0][0]["phases"]
    parts = [
        f"{name} {statistics.median(r['phases'][name] for one in rounds[1:] for r in one):.2f} s"
        for name in names
    ]
    return ", ".join(parts)
