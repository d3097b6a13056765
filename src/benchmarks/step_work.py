"""The training step in a process of its own: the detector, one synthetic batch, its seconds."""

from __future__ import annotations

import time
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.benchmarks.calibration import Calibration
from src.benchmarks.measure import Setting, memory_gb
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import Config
from src.model_utils.device_adapter import use_device
from src.network_define import train_cell

BOXES = 7  # of one image; COCO's images have 7.3 in the mean
RATE = 1e-4  # small, so that the loss stays finite on noise however many steps are taken


class StepWork:
    """One training process.

    Args:
        setting: the detector and its threads.
    """

    def __init__(self, setting: Setting):
        config = setting.load()
        use_device(config.device_target, config.device_id, config.threads)
        ms.set_seed(config.seed)
        network = Faster_Rcnn_Resnet(config)
        network.set_train()
        self._cell = train_cell(network, config, np.full(1000, RATE, np.float32))
        self._cell.set_train()
        self._inputs = [Tensor(array) for array in synthetic_batch(config)]
        self._calibration: Calibration | None = None

    def steps(self, count: int) -> dict[str, Any]:
        """Train `count` steps on the batch.

        Returns:
            `seconds` of each, `begin` and `end` of all (time.monotonic()), the last `loss`.
        """
        begin, seconds = time.monotonic(), []
        for _ in range(count):
            start = time.monotonic()
            loss = self._cell(*self._inputs).asnumpy()
            seconds.append(time.monotonic() - start)
        return {
            "seconds": seconds,
            "begin": begin,
            "end": time.monotonic(),
            "loss": loss.item(),
        }

    def calibrate(self) -> dict[str, float]:
        """See `Calibration.measure`."""
        self._calibration = self._calibration or Calibration()
        return self._calibration.measure()

    def peak_gb(self) -> float:
        """Peak resident memory so far, in 10**9 bytes."""
        return memory_gb("VmHWM")


def synthetic_batch(config: Config) -> list[np.ndarray]:
    """A batch for training, drawn from `config.seed`.

    Returns:
        image (B, 3, H, W) float32, image_shape (B, 3) float32, box (B, num_gts, 4) float32,
        label (B, num_gts) int32, valid (B, num_gts) bool.
    """
    rng = np.random.default_rng(config.seed)
    batch, height, width = config.batch_size, config.img_height, config.img_width
    images = rng.standard_normal((batch, 3, height, width), dtype=np.float32)
    shapes = np.tile(np.array([height, width, 1], np.float32), (batch, 1))
    boxes = np.zeros((batch, config.num_gts, 4), np.float32)
    labels = np.full((batch, config.num_gts), -1, np.int32)
    valid = np.zeros((batch, config.num_gts), bool)
    size = np.array([width, height])
    for image in range(batch):
        count = min(BOXES, config.num_gts)
        corner = rng.uniform(0, 0.8, (count, 2)) * size
        side = rng.uniform(0.1, 0.5, (count, 2)) * size
        boxes[image, :count] = np.hstack([corner, np.minimum(corner + side, size - 1)])
        labels[image, :count] = rng.integers(1, config.num_classes, count)
        valid[image, :count] = True
    return [images, shapes, boxes, labels, valid]
