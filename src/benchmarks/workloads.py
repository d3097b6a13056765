"""Run the training step in its own process: the detector, one synthetic batch, its seconds."""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.benchmarks.infer import InferSpec
from src.benchmarks.measure import Setting, memory_gb
from src.benchmarks.profiling import BEGIN, END, ENTER, LEAVE, ProfileSpec
from src.data.conversion import data_to_mindrecord_byte_image
from src.data.mindrecord import BASE_NAME
from src.dataset import create_fasterrcnn_dataset
from src.FasterRcnn.cpu import compiled
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.config import Config
from src.model_utils.device_adapter import use_device
from src.network_define import train_cell

SIDE = 2048
CHANNELS, HEIGHT, WIDTH = 256, 96, 160
MATMUL_FLOPS = 2 * SIDE**3
CONV_FLOPS = 2 * HEIGHT * WIDTH * CHANNELS**2 * 9


class _MatMul(nn.Cell):
    """Compute one product, as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul()

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.matmul(x, y)


class _Conv(nn.Cell):
    """Compute one 3x3 convolution, as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ops.Conv2D(CHANNELS, 3, pad_mode="pad", pad=1)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.conv(x, weight)


class Calibration:
    """Compile once; `measure` can be called repeatedly between pieces of a workload."""

    def __init__(self) -> None:
        self._matmul = _MatMul()
        self._conv = _Conv()

    def measure(self, repeats: int = 5) -> dict[str, float]:
        """Return the best rate of `repeats`, in 10**9 operations a second.

        Returns:
            `matmul_gflops` of 2048 x 2048 x 2048 and `conv_gflops` of 256 channels at 96 x 160,
            float32.
        """
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Tensor:
            return Tensor(rng.standard_normal(shape, dtype=np.float32), ms.float32)

        matmul = (draw(SIDE, SIDE), draw(SIDE, SIDE))
        conv = (draw(1, CHANNELS, HEIGHT, WIDTH), draw(CHANNELS, CHANNELS, 3, 3))
        return {
            "matmul_gflops": MATMUL_FLOPS / _best(lambda: self._matmul(*matmul), repeats) / 1e9,
            "conv_gflops": CONV_FLOPS / _best(lambda: self._conv(*conv), repeats) / 1e9,
        }


def _best(run: Callable[[], Tensor], repeats: int) -> float:
    """Return the fewest seconds of `repeats` runs; one run before them compiles."""
    run().asnumpy()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().asnumpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


BOXES = 7  # per image; COCO's images have 7.3 on average
RATE = 1e-4  # small, so that the loss stays finite on noise however many steps are taken


class StepWork:
    """Train in one process.

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
        """Return `Calibration.measure`."""
        self._calibration = self._calibration or Calibration()
        return self._calibration.measure()

    def peak_gb(self) -> float:
        """Return the peak resident memory so far, in 10**9 bytes."""
        return memory_gb("VmHWM")


def synthetic_batch(config: Config) -> list[np.ndarray]:
    """Generate a training batch from `config.seed`.

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


class InferWork:
    """Detect in one process."""

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
            `seconds` of each; of the last, `candidates` (boxes of all classes), `above` (those
            above the threshold, which NMS compares), `detections`.
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
        """Return `Calibration.measure`."""
        self._calibration = self._calibration or Calibration()
        return self._calibration.measure()

    def peak_gb(self) -> float:
        """Return the peak resident memory so far, in 10**9 bytes."""
        return memory_gb("VmHWM")


EPOCHS = 3


class DataWork:
    """Convert or read data.

    Args:
        setting: its configuration is overridden with the keys of the data.
    """

    def __init__(self, setting: Setting):
        self._config = setting.load()
        ms.set_seed(self._config.seed)

    def convert(self) -> dict[str, float]:
        """Write the MindRecord; return `seconds`, `peak_gb` of the process and its `added_gb`."""
        before, start = memory_gb("VmRSS"), time.monotonic()
        data_to_mindrecord_byte_image(self._config, self._config.dataset, True, BASE_NAME, 1)
        seconds = time.monotonic() - start
        peak = memory_gb("VmHWM")
        return {"seconds": seconds, "peak_gb": peak, "added_gb": peak - before}

    def read(self) -> dict[str, Any]:
        """Iterate over all batches, `EPOCHS` times.

        Returns:
            `images` and `seconds` from the first batch to the last one, `first_batch_s`, `peak_gb`.
        """
        start = time.monotonic()
        data = create_fasterrcnn_dataset(
            self._config,
            Path(self._config.mindrecord_dir) / BASE_NAME,
            batch_size=self._config.batch_size,
            num_parallel_workers=self._config.num_parallel_workers,
            python_multiprocessing=self._config.python_multiprocessing,
        )
        batches = data.create_tuple_iterator(num_epochs=EPOCHS)
        arrived = [time.monotonic() for _ in range(EPOCHS) for _ in batches]
        return {
            "images": (len(arrived) - 1) * self._config.batch_size,
            "seconds": arrived[-1] - arrived[0],
            "first_batch_s": arrived[0] - start,
            "peak_gb": memory_gb("VmHWM"),
        }


class ProfiledWork:
    """Wrap the workload's kernels before anything imports them."""

    def __init__(self, spec: ProfileSpec):
        self._kernels: dict[str, list[float]] = {}
        original = compiled.graph_operator

        def graph_operator(function: Callable, *rest: Any, **more: Any) -> Any:
            return original(self._timed(function), *rest, **more)

        compiled.graph_operator = graph_operator
        module, name = spec.work.split(":")
        self._work = getattr(importlib.import_module(module), name)(spec.spec)

    def steps(self, count: int) -> dict[str, Any]:
        """Return `seconds` of each step, and `kernels`: name to [calls, seconds, operations]."""
        self._kernels.clear()
        _mark(BEGIN)
        seconds = self._work.steps(count)["seconds"]
        _mark(END)
        return {"seconds": seconds, "kernels": self._kernels}

    def _timed(self, function: Callable) -> Callable:
        name = function.__qualname__.replace(".<locals>", "")

        @functools.wraps(function)
        def timed(*arrays: Any) -> Any:
            _mark(ENTER)
            start = time.perf_counter()
            result = function(*arrays)
            entry = self._kernels.setdefault(name, [0, 0.0, 0])
            entry[0] += 1
            entry[1] += time.perf_counter() - start
            entry[2] += convolution_flops(arrays, result)
            _mark(LEAVE)
            return result

        return timed


def convolution_flops(arrays: Sequence[Any], result: Any) -> int:
    """Return the operations of a convolution kernel on arrays (., ., h, w); 0 for other kernels.

    A kernel of two maps, or of a map and a weight, is a convolution of stride 1 or one of its
    gradients. Its weight is the second array, or the result where both arrays are maps.
    """
    if len(arrays) != 2 or any(array.ndim != 4 for array in arrays):
        return 0
    maps, other = arrays
    weight = result if maps.shape[2:] == other.shape[2:] else other
    return 2 * weight.size * maps.shape[0] * math.prod(maps.shape[2:])


def _mark(word: str) -> None:
    """Write a line to standard output, in order with those of the matrix library."""
    ctypes.CDLL(None).fflush(None)
    os.write(1, f"{word}\n".encode())
