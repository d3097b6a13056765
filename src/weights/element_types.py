"""Numbers as files of other frameworks hold them, to float32 arrays."""

from __future__ import annotations

import numpy as np

# Little-endian; bfloat16 has no numpy type and is the upper half of a float32.
ELEMENT_TYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "<i1",
    "uint8": "<u1",
    "bool": "<u1",
}


def element_bytes(kind: str) -> int:
    """Bytes of one number of type `kind`, a key of `ELEMENT_TYPES`."""
    return np.dtype(ELEMENT_TYPES[kind]).itemsize


def decode(data: bytes, kind: str) -> np.ndarray:
    """The numbers in `data`, 1-D float32.

    Args:
        data: whole numbers of type `kind`, little-endian.
        kind: a key of `ELEMENT_TYPES`.
    """
    values = np.frombuffer(data, ELEMENT_TYPES[kind])
    if kind == "bfloat16":
        return (values.astype("<u4") << 16).view("<f4").astype(np.float32)
    # A value beyond float32's range becomes infinite, which the conversion refuses by name.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
