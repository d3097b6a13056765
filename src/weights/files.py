"""Read a file of weights as names and float32 arrays: MindSpore, PyTorch or safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize  # type: ignore[attr-defined]  # no stubs

from src.errors import UserError
from src.weights.torch_file import decode, is_torch_file, read_torch_file

SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# Prefixes of DataParallel and AveragedModel, of torch.compile, and of a network inside another.
WRAPPERS = ("module.", "_orig_mod.", "model.")
AVERAGED = "n_averaged"


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors in `path` by name, float32, without the prefixes that wrappers add.

    Raises:
        UserError: no such file, none of the three kinds, corrupt, or a value that is NaN or
            infinite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected .ckpt, .pth, .pt or .safetensors")
    if path.suffix == ".safetensors":
        values = _read_safetensors(path)
    elif is_torch_file(path):
        values = read_torch_file(path)
    elif path.suffix == ".ckpt":
        values = _read_mindspore(path)
    else:
        raise UserError(
            f"{path}: neither a file of torch.save, nor named .ckpt (MindSpore) or .safetensors"
        )
    values = _without_wrapper(values)
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} has values that are infinite or not a number")
    return values


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the package's plain bytes, since numpy lacks bfloat16, one of the format's types."""
    try:
        rows = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    values = {}
    for name, row in rows:
        kind = SAFETENSORS_TYPES.get(row["dtype"])
        if kind is None:
            known = ", ".join(SAFETENSORS_TYPES)
            raise UserError(f"{path}: {name} is of type {row['dtype']}, expected one of {known}")
        try:
            values[name] = decode(bytes(row["data"]), kind).reshape(row["shape"])
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: {name} has no shape of a tensor: {error}") from error
    return values


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    # Imported here, since the other kinds of files need no MindSpore.
    from src.weights.pretrained import read_checkpoint

    content = read_checkpoint(path)
    return {name: np.asarray(value.asnumpy()).astype(np.float32) for name, value in content.items()}


def _without_wrapper(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove the prefixes that wrappers add to every name, and AveragedModel's own tensor."""
    values = {name: value for name, value in values.items() if name != AVERAGED}
    while values:
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in values)), None)
        if prefix is None:
            break
        values = {name[len(prefix) :]: value for name, value in values.items()}
    return values
