"""Initial weights of the detector: random per parameter, from the seed and the parameter's name.

The order of construction and the state of other random generators have no influence.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from mindspore import Parameter, Tensor, nn

# A residual branch that ends in a small gamma keeps a fresh deep network near the identity
# (Goyal et al., 2017, section 5.1). Frozen branches never learn, so theirs must not be zero.
LAST_GAMMA_FROZEN = 0.2
HEAD_STD = 0.01


def init_parameters(net: nn.Cell, seed: int) -> None:
    """Set every parameter of `net`, a detector or a part of one.

    Backbone convolutions: normal, variance 2 / fan-in (He et al., 2015). Pyramid and hidden dense
    layers: uniform, variance 2 / (fan-in + fan-out) (Glorot and Bengio, 2010). Region proposal
    network and the two outputs of the box head: normal, standard deviation 0.01. Biases 0;
    normalisation the identity, except the last one of each residual branch.

    Args:
        net: the cell.
        seed: the same seed and names give the same weights.
    """
    for parameter in net.get_parameters():
        rng = np.random.default_rng([seed, zlib.crc32(parameter.name.encode())])
        values = _initial(parameter, rng).astype(np.float32)
        parameter.set_data(Tensor(values))


def _initial(parameter: Parameter, rng: np.random.Generator) -> np.ndarray:
    name, shape = parameter.name, parameter.shape
    if name.endswith(("bias", "beta", "moving_mean")):
        return np.zeros(shape)
    if name.endswith(("gamma", "moving_variance")):
        return np.full(shape, _norm_scale(parameter))
    fan_in, fan_out = _fans(shape)
    if any(part in name for part in ("rpn_convs_list", "cls_scores", "reg_scores")):
        return HEAD_STD * rng.standard_normal(shape, dtype=np.float32)
    if any(part in name for part in ("lateral_convs_list", "fpn_convs_list", "shared_fc")):
        bound = math.sqrt(6 / (fan_in + fan_out))
        return bound * (2 * rng.random(shape, dtype=np.float32) - 1)
    return math.sqrt(2 / fan_in) * rng.standard_normal(shape, dtype=np.float32)


def _norm_scale(parameter: Parameter) -> float:
    if not parameter.name.endswith("bn3.gamma"):
        return 1.0
    return 0.0 if parameter.requires_grad else LAST_GAMMA_FROZEN


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return fan-in and fan-out; dense weights are (in, out), convolutions (out, in, ..)."""
    if len(shape) == 2:
        return shape
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window
