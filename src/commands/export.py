"""Run tools/export.py after its command line is read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import cv2
import mindspore as ms
import numpy as np
import onnx
import onnxruntime
from mindspore import Tensor, nn

from src.commands.load_detector import load_detector
from src.data.synthetic_coco import DrawingPlan, draw_image
from src.errors import UserError, user_path
from src.evaluation.detect import detect, prepare
from src.evaluation.image_files import ImageReader, find_images
from src.export.onnx_model import detector_model
from src.FasterRcnn.cpu.compiled import library_operators
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.files import reason, whole_file
from src.model_utils.config import Config, setting
from src.model_utils.device_adapter import use_device
from src.printing import print


def write_mindir(network: nn.Cell, config: Any, path: Path) -> None:
    """Write `path`, which ends in .mindir.

    The file takes `config.test_batch_size` images, and their img_metas unless `restore_bbox` is
    set; it gives what `FasterRcnn_Infer` gives. It holds the library's operators alone: our
    compiled kernels are code of this suite and cannot go into a file.

    Args:
        network: a `Faster_Rcnn` of `config` with the weights to write.
    """
    with library_operators():
        twin = Faster_Rcnn_Resnet(config)
    weights = {p.name: p for p in network.get_parameters()}
    for parameter in twin.get_parameters():
        parameter.set_data(weights[parameter.name].data)
    infer = FasterRcnn_Infer(config, twin)
    size = config.test_batch_size
    image = Tensor(np.zeros((size, 3, config.img_height, config.img_width), np.float32))
    metas = Tensor(np.ones((size, 4), np.float32))
    inputs = [image] if setting(config, "restore_bbox") else [image, metas]
    ms.export(infer, *inputs, file_name=str(path.with_suffix("")), file_format="MINDIR")


def load_mindir(path: Path) -> nn.GraphCell:
    """Return a cell that computes what the file does.

    Raises:
        UserError: not a MindIR file.
    """
    try:
        return nn.GraphCell(ms.load(str(path)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a MindIR file: {str(error).splitlines()[0]}") from error


# Both compute in float32, with sums in another order; coordinates reach 2000 pixels.
LARGEST_PIXELS = 0.1
LARGEST_SCORE = 1e-3
# Rounding may also decide a tie: an IoU or a score at its threshold, or the last place. Then a
# box is there on one side only.
LARGEST_SHARE = 0.01

Detections = tuple[np.ndarray, np.ndarray]


@dataclass
class Agreement:
    """Describe how well two detectors agree.

    Attributes:
        images: number of images compared.
        boxes: number of boxes that the detector found on them.
        pixels: largest difference of a coordinate, in pixels of the original.
        score: largest difference of a score.
        alone: number of boxes that only one of the two has.
    """

    images: int = 0
    boxes: int = 0
    pixels: float = 0.0
    score: float = 0.0
    alone: int = 0

    def __bool__(self) -> bool:
        return self.alone <= LARGEST_SHARE * max(self.boxes, 1)

    def __str__(self) -> str:
        return (
            f"{self.boxes} boxes on {self.images} images: largest difference {self.pixels:.1e} "
            f"pixels, {self.score:.1e} of a score; {self.alone} boxes on one side only"
        )


def agreement(one: Iterable[Detections], other: Iterable[Detections]) -> Agreement:
    """Compare detections (n, 5) and labels (n,) of the same images.

    A box of `one` and one of `other` are the same where label, coordinates and score agree within
    LARGEST_PIXELS and LARGEST_SCORE.
    """
    total = Agreement()
    for (boxes, labels), (others, other_labels) in zip(one, other):
        total.images += 1
        total.boxes += len(boxes)
        free = np.ones(len(others), bool)
        for box, label in zip(boxes, labels):
            pixels = np.abs(others[:, :4] - box[:4]).max(axis=1)
            score = np.abs(others[:, 4] - box[4])
            same = free & (other_labels == label)
            same &= (pixels <= LARGEST_PIXELS) & (score <= LARGEST_SCORE)
            if not same.any():
                total.alone += 1
                continue
            place = int(np.argmin(np.where(same, pixels, np.inf)))
            free[place] = False
            total.pixels = max(total.pixels, float(pixels[place]))
            total.score = max(total.score, float(score[place]))
        total.alone += int(free.sum())
    return total


def onnx_detections(
    session: onnxruntime.InferenceSession, config: Any, images: Iterable[tuple[str, bytes]]
) -> Iterator[Detections]:
    """Return detections as `detect` does, of an exported ONNX model."""
    for _, encoded in images:
        image, shape = prepare(encoded, config)
        inputs = {"image": image[None], "image_shape": shape[None]}
        boxes, scores, labels = session.run(None, inputs)
        yield np.concatenate([boxes, scores[:, None]], axis=1), labels


ENDINGS = {"MINDIR": ".mindir", "ONNX": ".onnx"}
DRAWN = 8

Images = list[tuple[str, bytes]]


def export(config: Config) -> int:
    """Write the detector of `config.checkpoint` in `config.file_format`, and check the file.

    The file appears under its name when the check has passed; otherwise nothing is left.

    Returns:
        The exit code: 1 where the file does not find what the detector finds.

    Raises:
        UserError: checkpoint, images, format or configuration is unusable.
    """
    kind, path = target(config)
    use_device(config.device_target, config.device_id, config.threads)
    images = check_images(config)
    network = Faster_Rcnn_Resnet(config)
    print(load_detector(network, config, config.checkpoint, config.frozen_from), flush=True)
    try:
        with whole_file(path) as partial:
            found = _checked(kind, network, config, partial, images)
    except OSError as error:
        raise UserError(f"--file_name {path}: cannot be written: {reason(error)}") from error
    except UnlikeError as error:
        print(error)
        print("the file does not find what the detector finds; it was removed")
        return 1
    _report(found, path)
    return 0


class UnlikeError(Exception):
    """Report a file that does not find what the detector finds."""


def _checked(kind: str, network: nn.Cell, config: Config, path: Path, images: Images) -> Agreement:
    """Write the file; return how well it agrees with the detector.

    Raises:
        UnlikeError: it does not.
    """
    begin = time.monotonic()
    exported = _written(kind, network, config, path)
    size, seconds = path.stat().st_size / 1e6, time.monotonic() - begin
    print(f"{size:.1f} MB in {seconds:.1f} s; checking the file", flush=True)
    reference = _seen(FasterRcnn_Infer(config, network), config)
    found = agreement(detect(reference, config, images), exported(images))
    if not found:
        raise UnlikeError(found)
    return found


def target(config: Config) -> tuple[str, Path]:
    """Return the format and file that the configuration asks for.

    Raises:
        UserError: an unknown format, one that needs another device, or no such folder.
    """
    kind = config.file_format.upper()
    if kind == "AIR":
        raise UserError(
            "--file_format AIR: MindSpore writes it on an Ascend alone, and this suite has not "
            "been run on one; export MINDIR and convert it there"
        )
    if kind not in ENDINGS:
        raise UserError(f"--file_format {config.file_format}: expected MINDIR or ONNX")
    if kind == "ONNX" and setting(config, "restore_bbox"):
        raise UserError(
            "--restore_bbox is of MINDIR: an ONNX file always takes image_shape, which says the "
            "size of the original"
        )
    path = user_path(config.file_name).absolute()
    if path.suffix.lower() != ENDINGS[kind]:
        path = path.with_name(path.name + ENDINGS[kind])
    if not path.parent.is_dir():
        raise UserError(f"--file_name {path}: its folder does not exist; make it first")
    return kind, path


def check_images(config: Config) -> Images:
    """Return name and content of the images to compare: `config.images`, or generated ones.

    Raises:
        UserError: none of them can be read.
    """
    if config.images:
        reader = ImageReader(
            find_images(config.images, "--images"), setting(config, "max_image_pixels")
        )
        return [(str(path), encoded) for path, encoded in reader]
    plan = DrawingPlan(width=max(config.img_width, 64), height=max(config.img_height, 64))
    drawn = (draw_image(plan, 1, number)[0] for number in range(1, DRAWN + 1))
    return [
        (f"drawn image {number}", cv2.imencode(".png", image)[1].tobytes())
        for number, image in enumerate(drawn, 1)
    ]


def _written(
    kind: str, network: nn.Cell, config: Config, path: Path
) -> Callable[[Images], list[Detections]]:
    """Write the file; return a function that detects with it."""
    if kind == "MINDIR":
        write_mindir(network, config, path)
        cell = _seen(load_mindir(path), config)
        return lambda images: list(detect(cell, config, images))
    weights = {p.name: p.asnumpy() for p in network.get_parameters()}
    onnx.save(detector_model(weights, config), str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda images: list(onnx_detections(session, config, images))


def _seen(cell: nn.Cell, config: Config) -> Callable:
    """Wrap `cell` as `detect` calls it; with restore_bbox it takes the image alone."""
    return (lambda images, metas: cell(images)) if setting(config, "restore_bbox") else cell


def _report(found: Agreement, path: Path) -> None:
    print(found)
    if not found.boxes:
        print(
            "warning: the detector finds nothing on these images, so nothing was compared; give "
            "--images of the kind that it was trained on"
        )
    print(f"written to {path}")
