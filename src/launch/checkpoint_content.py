"""Read the content of a MindSpore checkpoint by name and shape, without loading MindSpore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, digest, require_trainable
from src.job.recovery_files import ORIGIN_NAME, InitialOrigin, unpack_origin
from src.weights.ckpt_file import read_messages
from src.weights.head_classes import SCORES, other_classes
from src.weights.parameter_shapes import Shape, parameter_shapes, trained_shapes
from src.weights.resnet_names import map_name
from src.weights.source import CONVERT, RECORD_NAME, Source, require_backbone, unpack

# Messages about --pre_trained begin with this.
KEY = "pre_trained: "
NUMPY_TYPES = {"Float16": np.float16, "Float32": np.float32, "Float64": np.float64}


def checkpoint_shapes(path: Path) -> dict[str, Shape]:
    """Return the shape of every parameter in a checkpoint by name.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    return _shapes(_content(path))


def _shapes(content: Any) -> dict[str, Shape]:
    return {value.tag: tuple(value.tensor.dims) for value in content.value}


def _content(path: Path) -> Any:
    """Return the parsed message of a checkpoint file; raise as `checkpoint_shapes` does."""
    if not path.is_file():
        raise UserError(
            f"pre_trained: {path.absolute()} is not there; give the path of a .ckpt file, or "
            '"" to start from the seed'
        )
    if path.suffix != ".ckpt":
        raise UserError(
            f"pre_trained: {path}: a MindSpore checkpoint ends in .ckpt; rename it if it is one. "
            f"One of PyTorch or safetensors becomes one with {CONVERT.format(path)}"
        )
    try:
        return read_messages(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"pre_trained: {path}: not a MindSpore checkpoint, or cut short: {error}"
        ) from error


def source_of(path: Path) -> Source | None:
    """Return the origin of a converted checkpoint, or None; raise as `checkpoint_shapes`."""
    return _source(_content(path), path)


def _source(content: Any, path: Path) -> Source | None:
    record = next((v.tensor.tensor_content for v in content.value if v.tag == RECORD_NAME), None)
    return unpack(record, f"pre_trained: {path}")


def mark_of(path: Path) -> np.ndarray | None:
    """Return the job fingerprint in a checkpoint, or None; raise as `checkpoint_shapes` does."""
    return _mark(_content(path))


def _mark(content: Any) -> np.ndarray | None:
    for value in content.value:
        if value.tag == FEATURE_NAME and value.tensor.tensor_type == "Float32":
            return np.frombuffer(value.tensor.tensor_content, np.float32)
    return None


def origin_of(path: Path) -> InitialOrigin | None:
    """Return what this suite's initial model was made from; None for any other file."""
    try:
        content = _content(path)
    except UserError:
        return None
    entries = (v.tensor.tensor_content for v in content.value if v.tag == ORIGIN_NAME)
    return unpack_origin(next(entries, None))


def frozen_aspect(path: Path, config: Any) -> str | None:
    """Return the aspect of the frozen weights that a detector gets from a checkpoint.

    Return None where the checkpoint does not have them all, so that some are initialized from the
    seed, or where it cannot be read.
    """
    shapes, trained = parameter_shapes(config), trained_shapes(config)
    found = {}
    try:
        content = _content(path)
    except UserError:
        return None
    for value in content.value:
        name = value.tag if value.tag in shapes else map_name(value.tag)
        if name in shapes and name not in trained:
            kind = NUMPY_TYPES.get(value.tensor.tensor_type)
            if kind is None or tuple(value.tensor.dims) != shapes[name]:
                return None
            array = np.frombuffer(value.tensor.tensor_content, kind)
            found[name] = array.astype(np.float32).reshape(shapes[name])
    return digest(found) if len(found) == len(shapes) - len(trained) else None


def matching_names(path: Path, config: Any) -> tuple[int, int]:
    """Count the detector's parameters that a checkpoint has, and all that the detector has.

    A box head for other classes is not counted and is no error: it is initialized again.

    Raises:
        UserError: not a checkpoint, none of them in it, one of another shape, a backbone that
            strides elsewhere, or as many classes of other names.
    """
    wanted = parameter_shapes(config)
    content = _content(path)
    shapes = _shapes(content)
    require_backbone(_source(content, path), shapes, config.backbone, path, KEY)
    classes = shapes.get(SCORES[1], (None,))[0]
    require_trainable(config, _mark(content), classes, path, KEY)
    found = 0
    for name, shape in shapes.items():
        target = name if name in wanted else map_name(name)
        if target not in wanted or other_classes(target, shape, wanted[target]):
            continue
        found += 1
        if shape != wanted[target]:
            raise UserError(
                f"pre_trained: {path}: {target} has shape {list(shape)}, this detector's has "
                f"{list(wanted[target])}; the checkpoint is of another model or of other classes"
            )
    if not found:
        raise UserError(
            f"pre_trained: {path}: no parameter of this detector in it; expected a ResNet-50 or "
            "Faster R-CNN ResNet-50 FPN checkpoint"
        )
    return found, len(wanted)
