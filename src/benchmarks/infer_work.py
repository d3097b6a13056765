"""Detection in a process of its own: the detector with its first weights, on one drawn image."""

from __future__ import annotations

import time
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.benchmarks.calibration import Calibration
from src.benchmarks.infer import InferSpec
from src.benchmarks.measure import memory_gb
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.device_adapter import use_device


class InferWork:
    """One detecting process."""

    def __init__(self, spec: InferSpec):
        config = spec.setting.load()
        use_device(config.device_target, config.device_id, config.threads)
        ms.set_seed(config.seed)
        network = Faster_Rcnn_Resnet(config)
        scores = network.rcnn.cls_scores.weight
        scores.set_data(Tensor(scores.asnumpy() * np.float32(spec.score_scale)))
        self._infer = FasterRcnn_Infer(config, network)
        self._threshold = config.test_score_thr
        rng = np.random.default_rng(config.seed)
        size = (config.img_height, config.img_width)
        images = rng.standard_normal((config.batch_size, 3, *size), dtype=np.float32)
        metas = np.tile(np.array([*size, 1, 1], np.float32), (config.batch_size, 1))
        self._inputs = (Tensor(images), Tensor(metas))
        self._calibration: Calibration | None = None

    def steps(self, count: int) -> dict[str, Any]:
        """Detect `count` times.

        Returns:
            `seconds` of each; of the last, `candidates` (boxes of all classes), `above` (those of
            them that score above the threshold, which suppression compares), `detections`.
        """
        seconds = []
        for _ in range(count):
            start = time.monotonic()
            boxes, _, mask = (out.asnumpy() for out in self._infer(*self._inputs))
            seconds.append(time.monotonic() - start)
        scores = boxes[:, :, 4]
        return {
            "seconds": seconds,
            "candidates": scores.size,
            "above": int((scores > self._threshold).sum()),
            "detections": int(mask.sum()),
        }

    def calibrate(self) -> dict[str, float]:
        """See `Calibration.measure`."""
        self._calibration = self._calibration or Calibration()
        return self._calibration.measure()

    def peak_gb(self) -> float:
        """Peak resident memory so far, in 10**9 bytes."""
        return memory_gb("VmHWM")
