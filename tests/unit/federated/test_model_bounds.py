"""Which finished models are taken for honest training's, and which are not."""

import numpy as np
import pytest

from src.federated.model_bounds import RECENT, ModelBounds
from src.weights.ckpt_file import MARK

LIMIT = 10.0


def model(size: float, **more) -> dict[str, np.ndarray]:
    """Weights of the norm `size`."""
    return {"w": np.full(100, size / 10, np.float32), **more}


def bounds(*norms: float, limit: float = LIMIT) -> ModelBounds:
    """After good models of these norms."""
    made = ModelBounds(limit)
    for iteration, size in enumerate(norms):
        made.keep(model(size), iteration)
    return made


@pytest.mark.parametrize(
    ("norms", "honest", "corrupt"),
    [
        ([10], 109, 111),  # the first change: ten times the norm of the weights
        ([10, 9.9], 59, 60),  # small changes so far: five times the norm
        ([10, 15, 10], 59, 61),  # large ones so far: ten times the largest
    ],
)
def test_a_change_is_bounded_by_the_earlier_ones_and_by_the_model(norms, honest, corrupt):
    made = bounds(*norms)
    assert made.fault(model(honest), len(norms)) == ""
    assert "its weights changed by a norm of" in made.fault(model(corrupt), len(norms))
    # Over two iterations it is twice that; without a limit any change will do.
    assert made.fault(model(corrupt), len(norms) + 1) == ""
    assert bounds(*norms, limit=0).fault(model(corrupt), len(norms)) == ""


def test_old_changes_are_forgotten_and_failed_iterations_are_none():
    made = bounds(10, 20, 10, *[10.1, 10] * RECENT, *[10] * 9)
    assert "the largest of the last 5 was 0.1" in made.fault(model(65), made.iteration + 1)


def test_one_weight_of_any_size_and_one_that_is_no_number_are_seen():
    made = bounds(10)
    for value, words in ((1e30, "by a norm of inf"), (np.nan, "1 of the 100 values of w are NaN")):
        one = model(10)
        one["w"][77] = value
        assert words in made.fault(one, 1)
    assert made.fault(model(0), 1) == "all its weights are zero"


def test_what_an_algorithm_keeps_beside_the_weights_may_grow_from_zero():
    made = ModelBounds(LIMIT)
    names = ("control.w", "as_abs_grad.w", MARK)
    made.keep(model(1, **{name: np.zeros(100, np.float32) for name in names}), 0)
    assert made.fault(model(1, **{name: np.full(100, 9e9, np.float32) for name in names}), 1) == ""


def test_the_last_good_model_is_a_copy():
    made, given = ModelBounds(LIMIT), model(10)
    made.keep(given, 3)
    given["w"][:] = 0
    assert made.iteration == 3 and made.good["w"].all()
