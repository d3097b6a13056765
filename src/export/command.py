"""What tools/export.py does after its command line is read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable

import cv2
import onnx
import onnxruntime
from mindspore import nn

from src.data.drawn_coco import DrawingPlan, draw_image
from src.errors import UserError, user_path
from src.evaluation.checkpoints import load_detector
from src.evaluation.detect import detect
from src.evaluation.image_files import ImageReader, find_images
from src.export.check import Agreement, Detections, agreement, onnx_detections
from src.export.mindir import load_mindir, write_mindir
from src.export.onnx_detector import detector_model
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.files import reason, whole_file
from src.model_utils.config import Config, setting
from src.model_utils.device_adapter import use_device
from src.printing import print

ENDINGS = {"MINDIR": ".mindir", "ONNX": ".onnx"}
DRAWN = 8

Images = list[tuple[str, bytes]]


def export(config: Config) -> int:
    """Write the detector of `config.checkpoint` in `config.file_format`, and check the file.

    The file appears under its name when the check has passed; else nothing is left.

    Returns:
        The exit code: 1 where the file does not find what the detector finds.

    Raises:
        UserError: checkpoint, images, format or configuration do not serve.
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
    """A file that does not find what the detector finds."""


def _checked(kind: str, network: nn.Cell, config: Config, path: Path, images: Images) -> Agreement:
    """Write the file; how far it agrees with the detector.

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
    """Format and file that the configuration asks for.

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
    """Name and content of the images to compare on: `config.images`, else drawn ones.

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
    """Write the file; gives what finds boxes with it."""
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
    """`cell` as `detect` calls it; with restore_bbox it takes the image alone."""
    return (lambda images, metas: cell(images)) if setting(config, "restore_bbox") else cell


def _report(found: Agreement, path: Path) -> None:
    print(found)
    if not found.boxes:
        print(
            "warning: the detector finds nothing on these images, so nothing was compared; give "
            "--images of the kind that it was trained on"
        )
    print(f"written to {path}")
