"""Matrix products inside compiled kernels: the single-precision GEMM of MindSpore's own oneDNN.

MindSpore for CPUs includes this library and has it loaded. Its `dnnl_sgemm` is the fastest product
available here and, called from a kernel's thread, runs on that thread alone.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Callable

import mindspore
import numpy as np

from src.FasterRcnn.cpu.compiled import compiled, kernels_usable, run_split

try:
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic
except ImportError:
    numba = intrinsic = None

logger = logging.getLogger(__name__)

LIBRARY = "libdnnl.so.2"
PLAIN, TRANSPOSED = ord("N"), ord("T")


@cache
def sgemm_address() -> int:
    """Return the address of `dnnl_sgemm` in this process; 0 without one, which is logged once."""
    path = Path(mindspore.__file__).parent / "lib" / LIBRARY
    try:
        function = ctypes.CDLL(str(path)).dnnl_sgemm
    except (OSError, AttributeError) as error:
        logger.warning("library convolutions and products, slower (no dnnl_sgemm: %s)", error)
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def usable() -> bool:
    """Tell whether kernels that multiply can run here."""
    return kernels_usable() and sgemm_address() != 0


def _product(
    context, address, trans_a, trans_b, rows, columns, depth, a, lda, b, ldb, beta, c, ldc
):
    """Compute C = op(A) op(B) + beta C, row-major float32; return oneDNN's status, 0 for success.

    Args:
        address: see `sgemm_address`.
        trans_a, trans_b: PLAIN or TRANSPOSED.
        rows, columns: size of C; depth: terms of each sum.
        a, b, c: addresses of the matrices; lda, ldb, ldc: elements from one row to the next.
    """
    types = numba.types
    whole, real = types.int64, types.float32
    pointer = types.uintp
    signature = types.int32(
        *(whole,) * 6, pointer, whole, pointer, whole, real, pointer, whole
    )  # fmt: skip

    def generate(context, builder, signature, args):
        byte, long, single = ir.IntType(8), ir.IntType(64), ir.FloatType()
        memory = byte.as_pointer()
        kinds = [byte, byte, long, long, long, single, memory, long, memory, long, single, memory]
        function = ir.FunctionType(ir.IntType(32), [*kinds, long]).as_pointer()
        values = list(args[1:])
        values[0:2] = [builder.trunc(value, byte) for value in values[0:2]]
        for place in (5, 7, 10):
            values[place] = builder.inttoptr(values[place], memory)
        values.insert(5, ir.Constant(single, 1.0))
        return builder.call(builder.inttoptr(args[0], function), values)

    return signature, generate


sgemm: Callable = _product if numba is None else intrinsic(_product)


def products(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    orders: tuple[int, int],
    threads: int,
    onto: bool = False,
) -> None:
    """Compute out[k] = op(a[k]) op(b[k]) for all k, each on one thread.

    Args:
        a, b, out: (K, ., .) float32, contiguous.
        orders: PLAIN or TRANSPOSED, of a and of b.
        threads: the largest number of threads.
        onto: add to what `out` holds.
    """
    run_split(_multiply, len(out), threads, *_layout(a, b, out, orders), np.float32(onto))


def product(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, orders: tuple[int, int], threads: int
) -> None:
    """Compute out = op(a) op(b) of (., .) float32 arrays, rows of `out` split among threads."""
    layout = _layout(a[None], b[None], out[None], orders)
    run_split(_multiply_rows, len(out), threads, *layout)


def _layout(a: np.ndarray, b: np.ndarray, out: np.ndarray, orders: tuple[int, int]) -> tuple:
    """Return sgemm's address, orders, sizes, and the arrays' addresses and strides in bytes."""
    depth = a.shape[1] if orders[0] == TRANSPOSED else a.shape[2]
    sizes = (out.shape[1], out.shape[2], depth, a.shape[2], b.shape[2])
    starts = tuple(array.ctypes.data for array in (a, b, out))
    strides = tuple(array.strides[0] for array in (a, b, out))
    return sgemm_address(), orders, sizes, starts, strides


@compiled
def _multiply(start, end, address, orders, sizes, starts, strides, beta):
    rows, columns, depth, lda, ldb = sizes
    for k in range(start, end):
        status = sgemm(
            address, orders[0], orders[1], rows, columns, depth,
            np.uint64(starts[0] + k * strides[0]), lda,
            np.uint64(starts[1] + k * strides[1]), ldb, beta,
            np.uint64(starts[2] + k * strides[2]), columns,
        )  # fmt: skip
        if status:
            raise RuntimeError("oneDNN refused a matrix product")


@compiled
def _multiply_rows(start, end, address, orders, sizes, starts, strides):
    _, columns, depth, lda, ldb = sizes
    skipped = 4 * start * (1 if orders[0] == TRANSPOSED else lda)
    status = sgemm(
        address, orders[0], orders[1], end - start, columns, depth,
        np.uint64(starts[0] + skipped), lda, np.uint64(starts[1]), ldb, np.float32(0),
        np.uint64(starts[2] + 4 * start * columns), columns,
    )  # fmt: skip
    if status:
        raise RuntimeError("oneDNN refused a matrix product")
