"""What a worker says of its seconds: a line for each epoch, and the pace in its status file."""

from types import SimpleNamespace

import pytest

from src.federated.step_times import StepTimes
from src.job.job_record import StatusFile


class Training:
    """Steps of 2 s, the first of 10; data 1 s, other callbacks 5 s before a step and 50 behind."""

    def __init__(self, monkeypatch, epochs_done=0, steps=1000):
        self.said, self.now, self.done = [], 1000.0, 0
        self.rounds, self.steps = 0, steps
        self.status = StatusFile(None)
        self.params = SimpleNamespace(cur_step_num=0)
        self.context = SimpleNamespace(original_args=lambda: self.params)
        monkeypatch.setattr("src.federated.step_times.time.monotonic", lambda: self.now)
        self.times = StepTimes(self.said.append, self.status, self.place, epochs_done)

    def place(self):
        return self.rounds, self.steps - self.params.cur_step_num

    def step(self, ends_iteration=False):
        self.params.cur_step_num += 1
        self.now += 1
        self.times.before.on_train_step_begin(self.context)
        self.now += 5
        self.times.on_train_step_begin(self.context)
        self.now += 10 if self.params.cur_step_num == 1 else 2
        self.times.before.on_train_step_end(self.context)
        self.now += 50
        self.rounds += ends_iteration
        self.times.on_train_step_end(self.context)

    def epoch(self, steps):
        self.times.on_train_epoch_begin(self.context)
        for _ in range(steps):
            self.step()
        self.times.on_train_epoch_end(self.context)
        self.now += 7

    def pace(self):
        return {key: self.status.fields.get(key) for key in ("step_s", "sync_s", "steps_left")}


def test_each_epoch_says_its_seconds_without_those_of_the_rounds(monkeypatch):
    training = Training(monkeypatch)
    training.epoch(4)
    training.epoch(3)
    assert training.said == [
        "epoch 1: 4 steps in 20.0 s, 3.33 s per step after the first (10.0 s with compilation)",
        "epoch 2: 3 steps in 9.0 s, 3 s per step",
    ]


def test_epochs_that_resume_leaves_out_are_counted_and_not_said(monkeypatch):
    training = Training(monkeypatch, epochs_done=4)
    for steps in (0, 1, 1):
        training.epoch(steps)
    assert training.said == [
        "epoch 6: 1 step in 11.0 s with compilation",
        "epoch 7: 1 step in 3.0 s, 3 s per step",
    ]


def test_the_pace_is_that_of_steps_after_the_first_which_compiles(monkeypatch):
    training = Training(monkeypatch, steps=6)
    training.times.on_train_epoch_begin(training.context)
    training.step()
    assert training.pace() == {"step_s": None, "sync_s": None, "steps_left": 5}
    training.step()
    assert training.pace() == {"step_s": 3.0, "sync_s": None, "steps_left": 4}
    training.step(ends_iteration=True)
    # Three times 55 s in the other callbacks.
    assert training.pace() == {"step_s": 3.0, "sync_s": pytest.approx(165.0), "steps_left": 3}
