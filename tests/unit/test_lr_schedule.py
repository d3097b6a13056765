"""Schedules of a whole federated run."""

import numpy as np
import pytest
from mindspore import Tensor

from src.lr_schedule import RunSchedule, multistep_lr, run_lr
from src.model_utils.config import load_config


def config(**changes):
    return load_config(**{"base_lr": 0.1, "warmup_step": 10, "warmup_ratio": 0.25, **changes})


def test_cosine_covers_the_run():
    rates = run_lr(config(), steps_per_iteration=7, iterations=20, steps_per_epoch=7)
    assert rates.shape == (140,) and rates.dtype == np.float32
    assert rates[0] == pytest.approx(0.025)
    assert rates[10] == rates.max() == pytest.approx(0.1)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 1e-4


def test_a_short_run_leaves_the_warmup():
    rates = run_lr(config(warmup_step=500), 3, 5, 3)
    assert rates.argmax() == 5 and rates.max() == pytest.approx(0.1)


def test_one_step_has_the_whole_rate():
    np.testing.assert_allclose(run_lr(config(), 1, 1, 1), [0.1])


def test_steps_of_ten_at_the_given_epochs():
    """Two epochs of five steps an iteration; drops at epochs 4 and 6."""
    rates = run_lr(config(lr_type="step", sgd_step=[4, 6]), 10, 4, 5)
    assert len(rates) == 40
    np.testing.assert_allclose(rates[10:20], 0.1)
    np.testing.assert_allclose(rates[20:30], 0.01)
    np.testing.assert_allclose(rates[30:], 0.001)


def test_multistep_drops_at_milestones_and_has_no_warmup():
    """As ModelZoo's: in a run, and as the list that upstream's function gives."""
    settings = config(lr_type="multistep", milestones=[2, 3], epoch_size=4, warmup_step=2)
    expected = [0.1] * 10 + [0.01] * 5 + [0.001] * 5
    np.testing.assert_allclose(multistep_lr(settings, 5), expected)
    np.testing.assert_allclose(run_lr(settings, 5, 4, 5), expected)


def test_beyond_the_end_the_last_rate_holds():
    schedule = RunSchedule(np.array([0.3, 0.2, 0.1]))
    found = [float(schedule(Tensor([step])).asnumpy()) for step in (0, 2, 3, 1000)]
    np.testing.assert_allclose(found, [0.3, 0.1, 0.1, 0.1])
