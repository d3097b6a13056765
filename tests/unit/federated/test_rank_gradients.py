"""Two ranks train as one process does with a batch of twice the size."""

import os
import subprocess
import sys

import numpy as np
import rank_training
from ports import free_ports

from src.model_utils.config import PROJECT_DIR


def test_the_ranks_weights_are_those_of_the_whole_batch(tmp_path):
    port = free_ports(1)[0]
    script = PROJECT_DIR / "tests" / "helpers" / "rank_training.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(port), str(tmp_path / f"{rank}.npz")],
            env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
        )
        for rank in range(2)
    ]
    expected = rank_training.trained(0, 2, None)
    for rank in ranks:
        assert rank.wait(120) == 0
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    assert list(first) == list(expected) and len(first) == 4
    for name, value in expected.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], value, rtol=2e-5, atol=2e-6)
