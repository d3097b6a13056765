"""Learning rates against the recorded list."""

import numpy as np
import pytest

from src.lr_schedule import dynamic_lr
from src.model_utils.config import load_config


@pytest.mark.parametrize("setting", ["a", "b"])
def test_dynamic_lr(golden, setting):
    recorded = np.load(golden.folder / "lr.npz")
    base_lr, warmup_step, warmup_ratio, epochs, steps = recorded[f"{setting}_settings"].tolist()
    config = load_config(
        base_lr=base_lr,
        warmup_step=int(warmup_step),
        warmup_ratio=warmup_ratio,
        epoch_size=int(epochs),
    )
    rates = dynamic_lr(config, int(steps))
    np.testing.assert_allclose(rates, recorded[f"{setting}_lr64"], rtol=1e-12)
    np.testing.assert_allclose(np.float32(rates), recorded[f"{setting}_lr32"], rtol=1e-7)
