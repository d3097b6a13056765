"""Run the demo: the tutorial's commands on generated data in sequence, with a progress display."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from src.errors import StartError
from src.job.addresses import free_ports, listens
from src.job.job_record import JobRecord, exit_states, read_record, read_status, status_path
from src.launch.processes import fresh_folder, record_process
from src.launch.redis_store import redis_command
from src.model_utils.config import PROJECT_DIR
from src.printing import print

LOSS = re.compile(r"\]epoch: \d+ step: \d+ total_loss: (\S+)")


def report(folder: Path, silos: int, iterations: int) -> None:
    """Print the mean losses of each silo, the global model's metrics, and where the files are."""
    print()
    print(f"{'silo':10}{'first iteration':>17}{'last iteration':>17}   mean loss")
    for number in range(silos):
        log = folder / f"worker_{number}" / "worker.log"
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        losses = [float(value) for value in LOSS.findall(text)]
        steps = len(losses) // iterations or 1
        first, last = _mean(losses[:steps]), _mean(losses[-steps:])
        print(f"worker_{number:<3}{first:17.3f}{last:17.3f}")
    _report_figures(folder)
    print()
    print(f"logs        {folder}/worker_0/worker.log and next to it")
    print(f"models      {folder}/worker_0/ckpt/mindrecord_0/")
    print(f"rounds      {folder}/worker_0/rounds.jsonl")


def _report_figures(folder: Path) -> None:
    """Print the AP of the global model for each evaluated iteration."""
    path = folder / "worker_0" / "metrics.jsonl"
    if not path.exists():
        return
    print()
    print(f"{'iteration':10}{'AP':>8}{'AP50':>8}   of the global model, on held-out images")
    for line in path.read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        ap, ap50 = (float("nan") if figures[k] is None else figures[k] for k in ("AP", "AP50"))
        print(f"{figures['iteration']:<10}{ap:8.3f}{ap50:8.3f}")


def _mean(values: list[float]) -> float:
    """Return the mean, or NaN for an empty list."""
    return sum(values) / len(values) if values else float("nan")


STALL_TIMEOUT_S = 300.0


def follow(folder: Path, silos: int) -> None:
    """Show step and loss of each silo until the last step of the last iteration.

    Args:
        folder: the folder that the job was started from.

    Raises:
        StartError: nothing has moved for STALL_TIMEOUT_S.
    """
    show = bars if sys.stderr.isatty() else lines
    labels = [f"worker_{number}" for number in range(silos)]
    show(labels, _statuses(folder, labels))


def _statuses(folder: Path, labels: list[str]) -> Iterator[list[dict]]:
    """Yield the workers' status files twice a second, until all are done or one has ended."""
    last: list[tuple] = []
    changed = time.monotonic()
    while True:
        statuses = [read_status(status_path(folder, label)) for label in labels]
        yield statuses
        if all(s.get("phase") in ("finished", "failed") for s in statuses):
            return
        if not (read_record(folder) or JobRecord()).running("worker"):
            return
        seen = [(s.get("phase"), s.get("step")) for s in statuses]
        if seen != last:
            last, changed = seen, time.monotonic()
        if time.monotonic() - changed > STALL_TIMEOUT_S:
            raise StartError(f"no progress for {STALL_TIMEOUT_S:.0f} s: {seen}", 1)
        time.sleep(0.5)


def bars(labels: list[str], statuses: Iterator[list[dict]]) -> None:
    """Show a progress bar for each silo, on a terminal."""
    shown = [tqdm(desc=label, unit="step", position=i) for i, label in enumerate(labels)]
    try:
        for current in statuses:
            for bar, status in zip(shown, current):
                bar.total = status.get("steps")
                bar.n = status.get("step", 0)
                bar.set_postfix_str(describe(status))
    finally:
        for bar in shown:
            bar.close()


def lines(labels: list[str], statuses: Iterator[list[dict]]) -> None:
    """Print a line for each silo every ten seconds, for output to a file."""
    next_line = 0.0
    for current in statuses:
        if time.monotonic() < next_line:
            continue
        next_line = time.monotonic() + 10
        for label, status in zip(labels, current):
            step, steps = status.get("step", 0), status.get("steps", 0)
            print(f"{label}: step {step} of {steps}, {describe(status)}", flush=True)


def describe(status: dict) -> str:
    """Return the iteration, loss and phase of a worker's status as text."""
    loss = f"loss {status['loss']:.3f}, " if "loss" in status else ""
    iteration = min(status.get("iteration", 0), status.get("iterations", 0))
    return f"iteration {iteration} of {status.get('iterations', 0)}, {loss}{status.get('phase')}"


DEMO_CONFIG = PROJECT_DIR / "configs" / "demo" / "default_config.yaml"
SERVERS = 2
IMAGE_SIZE = (192, 128)
# Covers what follows the last step: aggregation, checkpoints, and the exit of all processes.
END_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class DemoPlan:
    """Describe one run of the demo.

    Attributes:
        config: file with the settings of detector and training.
        iterations: number of federated iterations.
        images: number of images generated for training, for all shards together.
        val_images: number of images generated for evaluation; 0 turns evaluation off.
        interval: iterations between two evaluations.
        shards: number of parts that the training images are split into.
        silos: number of shards that train; the first ones do.
        alpha: skew of the split, see tools/split_coco.py; None splits evenly.
        steps: training steps in an iteration; 0 is one epoch of the shard.
        seed: seed of the split, of the first weights and of the order of the images.
        aggregation: the section of that name in the federation's file.
    """

    config: Path
    iterations: int = 8
    images: int = 160
    val_images: int = 60
    interval: int = 8
    shards: int = 2
    silos: int = 2
    alpha: float | None = None
    steps: int = 25
    seed: int = 1
    aggregation: Mapping[str, object] = field(
        default_factory=lambda: {"aggregation_type": "FedAvg"}
    )


class Demo:
    """Run the demo once.

    Args:
        folder: where it runs; an existing folder is renamed.
        plan: what it does.
    """

    def __init__(self, folder: Path, plan: DemoPlan):
        self._folder = folder
        self._plan = plan
        self._config = plan.config.absolute()
        self._redis_port, self._manage_port, self._http_port = free_ports(2 + SERVERS)[:3]
        self._begin = time.monotonic()

    def run(self) -> int:
        """Run everything; return exit code 0 when every process ended well."""
        fresh_folder(self._folder)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        try:
            self._make_data()
            self._start()
            print()
            print(f"training: {self._plan.iterations} iterations", flush=True)
            follow(self._folder, self._plan.silos)
            code = self._wait_for_the_end()
        finally:
            # The command inherits this: a second Ctrl-C must not leave processes half stopped.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._call("finish_cross_silo_fasterrcnn.py", f"--redis_port={self._redis_port}")
        report(self._folder, self._plan.silos, self._plan.iterations)
        print(f"took        {time.monotonic() - self._begin:.0f} s")
        return code

    def _make_data(self) -> None:
        plan = self._plan
        print(f"a federation of {plan.silos} silo(s) in {self._folder}", flush=True)
        self._call(
            "tools/make_demo_coco.py",
            "--out=datasets/demo_coco",
            f"--images={plan.images}",
            f"--val_images={plan.val_images}",
            f"--width={IMAGE_SIZE[0]}",
            f"--height={IMAGE_SIZE[1]}",
            "--crowd_share=0",
            "--empty_share=0",
            "--hue_spread=30",
        )
        skew = [] if plan.alpha is None else [f"--alpha={plan.alpha}"]
        self._call(
            "tools/split_coco.py",
            "--json=datasets/demo_coco/annotations/instances_train2017.json",
            f"--num_shards={plan.shards}",
            "--out=datasets/coco_split",
            f"--seed={plan.seed}",
            *skew,
        )
        self._call(
            "generate_mindrecord.py",
            f"--config_path={self._config}",
            f"--instance_set={self._shards / 'train_0.json'}",
            f"--mindrecord_dir={self._shards / 'mindrecord_0'}",
            f"--shards=0-{plan.silos - 1}",
        )

    @property
    def _shards(self) -> Path:
        return Path("datasets") / "coco_split" / f"split_{self._plan.shards}"

    def _start(self) -> None:
        self._start_redis()
        yaml = self._write_yaml()
        self._call(
            "run_cross_silo_fasterrcnn_sched.py",
            f"--yaml_config={yaml}",
            f"--scheduler_manage_address=127.0.0.1:{self._manage_port}",
        )
        address = f"--http_server_address=127.0.0.1:{self._http_port}"
        self._call(
            "run_cross_silo_fasterrcnn_server.py",
            f"--yaml_config={yaml}",
            f"--config_path={self._config}",
            f"--local_server_num={SERVERS}",
            f"--seed={self._plan.seed}",
            address,
        )
        self._call(
            "run_cross_silo_fasterrcnn_worker.py",
            f"--yaml_config={yaml}",
            f"--config_path={self._config}",
            f"--local_worker_num={self._plan.silos}",
            f"--dataset_path={self._shards}",
            f"--server_num={SERVERS}",
            f"--sync_frequency={self._plan.steps}",
            f"--seed={self._plan.seed}",
            *self._evaluation(),
            address,
        )

    def _evaluation(self) -> list[str]:
        """Return the worker's flags for evaluation."""
        if not self._plan.val_images:
            return []
        json_path = self._folder / "datasets/demo_coco/annotations/instances_val2017.json"
        return [f"--val_set={json_path}", "--run_eval=True", f"--interval={self._plan.interval}"]

    def _start_redis(self) -> None:
        command = redis_command(self._redis_port)
        print(f"$ {shlex.join(command)} &", flush=True)
        with (self._folder / "redis.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        address = f"127.0.0.1:{self._redis_port}"
        record_process(self._folder, "redis", 0, process.pid, self._folder, address)
        deadline = time.monotonic() + 10
        while not listens("127.0.0.1", self._redis_port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise StartError(f"Redis did not start: {self._folder / 'redis.log'}", 1)
            time.sleep(0.05)

    def _write_yaml(self) -> str:
        """Write the default federation file with this run's Redis, iterations and silos."""
        text = (PROJECT_DIR / "default_yaml_config.yaml").read_text(encoding="utf-8")
        text = text.replace("127.0.0.1:2345", f"127.0.0.1:{self._redis_port}")
        for key, value in (
            ("fl_iteration_num", self._plan.iterations),
            ("start_fl_job_threshold", self._plan.silos),
        ):
            text = re.sub(rf"{key}: \d+", f"{key}: {value}", text)
        section = "".join(f"\n  {key}: {value}" for key, value in self._plan.aggregation.items())
        text = re.sub(r"(?m)^aggregation:(\n[ #].*)+", f"aggregation:{section}", text)
        (self._folder / "default_yaml_config.yaml").write_text(text, encoding="utf-8")
        return "default_yaml_config.yaml"

    def _call(self, script: str, *flags: str) -> None:
        """Run one of the suite's scripts in the demo's folder, as a user would."""
        print(f"$ python {shlex.join([script, *flags])}", flush=True)
        command = [sys.executable, str(PROJECT_DIR / script), *flags]
        code = subprocess.run(command, cwd=self._folder, check=False).returncode
        if code:
            raise StartError(f"{script} ended with exit code {code}", code)

    def _wait_for_the_end(self) -> int:
        """Return 0 when every process ended by itself with exit code 0."""
        deadline = time.monotonic() + END_TIMEOUT_S
        roles = ("worker", "server", "scheduler")
        while any(self._record().running(role) for role in roles):
            if time.monotonic() > deadline:
                print(f"ERROR: not everything ended within {END_TIMEOUT_S:.0f} s")
                return 1
            time.sleep(0.2)
        started = [p.label for p in self._record().processes if p.role in roles]
        # A supervisor that was killed has not written one.
        ends = exit_states(self._folder)
        codes = {label: ends.get(label, {}).get("code", 1) for label in started}
        print()
        print("ended: " + ", ".join(f"{label} {code}" for label, code in codes.items()))
        return max(codes.values(), default=1)

    def _record(self) -> JobRecord:
        return read_record(self._folder) or JobRecord()
