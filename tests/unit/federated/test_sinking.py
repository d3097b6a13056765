"""A data set that sinks into the device: callbacks once an epoch, synchronisations as on a CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import yaml
from engine import federation
from mindspore import nn
from mindspore.train.callback import LambdaCallback, RunContext
from mindspore.train.callback._callback import InternalCallbackParam

from src.federated import worker
from src.federated.rounds import Round
from src.job.job_config import load_job
from src.job.job_record import StatusFile, read_status
from src.model_utils.config import load_config
from src.training import DetectorTask

STEPS = 4  # in an epoch
ITERATIONS = 3
WORKER_FLAGS = {
    "http_server_address": "127.0.0.1:1",
    "server_num": 1,
    "user_id": 0,
    "silo_name": "here",
    "join_timeout": 1.0,
    "request_timeout": 1.0,
    "wait_timeout": 1.0,
}


class RecordingSilo:
    """Stands in for `Silo`: joins, and notes after which training step it sends."""

    def __init__(self):
        self.joined, self.iteration, self.controls, self.data_size = False, 1, {}, 1
        self.rounds: list[Round] = []
        self.steps: list[int] = []
        self.now = 0
        self.client = SimpleNamespace(close=lambda: None)

    @property
    def finished(self) -> bool:
        return self.iteration > ITERATIONS

    def join(self) -> None:
        if not self.joined and not self.finished:
            self.joined = True
            self.began = self.now

    def exchange(self, features, step=0, epsilon=None) -> Round:
        assert self.joined
        self.steps.append(self.now)
        self.rounds.append(Round(self.iteration))
        self.iteration, self.joined = self.iteration + 1, False
        return self.rounds[-1]


def train(callbacks: list, silo: RecordingSilo, sinks: bool, epochs: int) -> None:
    """Call the callbacks as `Model.train` does, once a step or once a sunk epoch."""
    params = InternalCallbackParam()
    params.dataset_sink_mode, params.batch_num, params.cur_step_num = sinks, STEPS, 0
    params.net_outputs = ms.Tensor(np.ones(1, np.float32))
    context = RunContext(params)
    for epoch in range(1, epochs + 1):
        params.cur_epoch_num = epoch
        for callback in callbacks:
            callback.on_train_epoch_begin(context)
        for _ in range(1 if sinks else STEPS):
            params.cur_step_num += STEPS if sinks else 1
            for callback in callbacks:
                callback.on_train_step_begin(context)
            silo.now = params.cur_step_num
            for callback in callbacks:
                callback.on_train_step_end(context)
            if context.get_stop_requested():
                return
        for callback in callbacks:
            callback.on_train_epoch_end(context)


def run(folder: Path, device: str, **keys) -> SimpleNamespace:
    """A worker's callbacks over a whole run of one device."""
    folder.mkdir()
    path = folder / "job.yaml"
    values = federation("Sinks", "127.0.0.1:1", 1, ITERATIONS, (60, 60, 60), 1.0)
    path.write_text(yaml.safe_dump(values))
    job = load_job(path)
    config = load_config(dataset_sink_mode=True, device_target=device, **keys)
    for key, value in {**WORKER_FLAGS, "output_dir": folder}.items():
        setattr(config, key, value)
    task = SimpleNamespace(steps_per_epoch=STEPS, images=8, network=nn.Dense(2, 1), aspects={})
    task._config, task._rank, task._skipped = config, 0, 0
    status = StatusFile(folder / "status.json")
    steps = worker.steps_per_iteration(config, STEPS)
    manager = worker.make_manager(job, config, task, steps, status)
    silo = manager._silo = RecordingSilo()
    rates = np.arange(1, steps * ITERATIONS + 1, dtype=np.float32)
    callbacks = DetectorTask.callbacks(task, "worker_0", folder, status, rates, 0)
    saved: list[tuple[int, int]] = []
    keeper = SimpleNamespace(save=lambda iteration: saved.append((iteration, silo.now)))
    evaluated: list[tuple[int, int]] = []
    journal = SimpleNamespace(after=lambda iteration: evaluated.append((iteration, silo.now)))
    callbacks += [manager, worker.KeepAfterRound(manager, keeper, journal, None)]
    left: list[int] = []
    callbacks.insert(0, LambdaCallback(on_train_step_end=lambda _: left.append(manager.steps_left)))
    train(callbacks, silo, worker.sinks_data(config), steps * ITERATIONS // STEPS)
    lines = (folder / "loss_0.log").read_text().splitlines()
    return SimpleNamespace(
        steps=silo.steps,
        saved=saved,
        evaluated=evaluated,
        losses=[line.split(" | ")[1] for line in lines],
        step=read_status(folder / "status.json")["step"],
        left=[*left, manager.steps_left],
    )


@pytest.mark.parametrize(
    ("keys", "sent_after"),
    [
        ({"sync_frequency": 1}, [4, 8, 12]),
        ({"sync_frequency": 3}, [12, 24, 36]),
        ({"client_epoch_num": 2}, [8, 16, 24]),
    ],
)
def test_synchronisations_fall_on_the_same_steps_as_on_a_cpu(tmp_path, keys, sent_after):
    cpu = run(tmp_path / "cpu", "CPU", **keys)
    device = run(tmp_path / "device", "GPU", **keys)
    assert cpu.steps == device.steps == sent_after
    assert cpu.saved == device.saved == list(zip((1, 2, 3), sent_after))
    assert cpu.evaluated == device.evaluated == cpu.saved
    assert cpu.step == device.step == sent_after[-1]


def test_the_log_has_the_last_step_of_each_epoch_with_its_learning_rate(tmp_path):
    cpu, device = (run(tmp_path / name, name, sync_frequency=1) for name in ("CPU", "Ascend"))
    expected = [
        f"epoch: {epoch} step: 4 total_loss: 1.00000  lr: {4.0 * epoch:.6f}" for epoch in (1, 2, 3)
    ]
    assert cpu.losses == device.losses == expected


def test_the_steps_left_fall_to_zero_at_the_jobs_end(tmp_path):
    cpu, device = (run(tmp_path / name, name, sync_frequency=1) for name in ("CPU", "GPU"))
    assert cpu.left == [*range(STEPS * ITERATIONS - 1, -1, -1), 0]
    assert device.left == [*range(ITERATIONS - 1, -1, -1), 0]  # epochs
