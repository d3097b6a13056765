"""Train a small network as one rank of a silo; test_rank_gradients.py starts it as a program.

python tests/helpers/rank_training.py RANK SIZE PORT OUTPUT.npz
"""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.federated.rank_gradients import share_gradients
from src.federated.ranks import Ranks
from src.network_define import TrainOneStepCell

STEPS, BATCH, FEATURES = 5, 4, 6


class Net(nn.Cell):
    """Take five inputs as the detector has, two layers, a mean squared error (1,)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dense(FEATURES, 8), nn.Dense(8, 3)

    def construct(self, x, shape, box, label, valid):
        out = self.second(ops.relu(self.first(x)))
        return ops.reshape(ops.reduce_mean(ops.square(out - label)), (1,))


def batch(step: int, rank: int, size: int, whole: bool) -> list[Tensor]:
    """Return a rank's part of a step's images, or all of them, in the order of the ranks."""
    random = np.random.default_rng(step)
    x = random.normal(size=(size, BATCH, FEATURES)).astype(np.float32)
    label = random.normal(size=(size, BATCH, 3)).astype(np.float32)
    if whole:
        x, label = x.reshape(-1, FEATURES), label.reshape(-1, 3)
    else:
        x, label = x[rank], label[rank]
    rest = Tensor(np.zeros(1, np.float32))
    return [Tensor(x), rest, rest, Tensor(label), rest]


def trained(rank: int, size: int, ranks: Ranks | None) -> dict[str, np.ndarray]:
    """Return the weights after STEPS steps; without `ranks`, on the whole batches."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    ms.set_seed(1)
    net = Net()
    optimizer = nn.SGD(net.trainable_params(), 0.1, momentum=0.9, weight_decay=1e-3)
    step = TrainOneStepCell(net, optimizer, grad_clip=True, clip_norm=0.5)
    if ranks is not None:
        share_gradients(step, ranks)
    step.set_train()
    for number in range(STEPS):
        step(*batch(number, rank, size, whole=ranks is None)).asnumpy()
        if ranks is not None:
            ranks.check()
    return {param.name: param.asnumpy() for param in net.trainable_params()}


def main() -> None:
    """Train as one rank, and write its weights."""
    rank, size, port = map(int, sys.argv[1:4])
    ranks = Ranks(rank, size, ("127.0.0.1", port), "bank", 60.0, 60.0)
    np.savez(sys.argv[4], **trained(rank, size, ranks))


if __name__ == "__main__":
    main()
