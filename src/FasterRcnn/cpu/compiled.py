"""Compile the detector's own kernels with numba and run them in CPU graphs, on several threads.

A graph for another device, or a machine without numba, uses the library's operators instead. Only
`kernels_usable` decides this, when a part of the detector is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from typing import Any, Callable

import mindspore as ms
from mindspore import ops
from mindspore.ops import CustomRegOp, DataType

try:
    import numba
except ImportError:
    numba = None

logger = logging.getLogger(__name__)

_library_only: ContextVar[bool] = ContextVar("library_only", default=False)

FORMATS = {
    ms.float32: DataType.F32_Default,
    ms.int32: DataType.I32_Default,
    ms.bool_: DataType.BOOL_Default,
}


def kernels_usable() -> bool:
    """Tell whether the detector's own kernels run in its graphs; log it once per process."""
    if _library_only.get():
        return False
    return _decide(ms.get_context("device_target"), numba is not None)


@contextlib.contextmanager
def library_operators() -> Iterator[None]:
    """Build detectors inside this context with library operators only, as an exported file needs.

    Their parameters, and their results except for rounding, are the same. Detectors made before or
    after, or at the same time by another thread, are not affected.
    """
    token = _library_only.set(True)
    try:
        yield
    finally:
        _library_only.reset(token)


@cache
def _decide(device_target: str, has_numba: bool) -> bool:
    if device_target == "CPU" and has_numba:
        logger.info("the detector's own kernels: compiled by numba %s", numba.__version__)
        return True
    level = logging.INFO if has_numba else logging.WARNING
    reason = f"device is {device_target}" if has_numba else "numba is not installed"
    logger.log(
        level, "library operators in place of the detector's own kernels, slower (%s)", reason
    )
    return False


def compiled(function: Callable) -> Callable:
    """Compile `function` at its first call; without numba return it unchanged.

    The machine code is cached next to the source or in the user's cache folder, for the next
    process. Where neither can be written, each process compiles for itself.
    """
    if numba is None:
        return function
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        logger.debug("no folder to keep the compiled code of %s", function.__name__)
        return numba.njit(**options)(function)


def graph_operator(
    function: Callable,
    out_shape: Callable,
    inputs: list,
    outputs: list,
    bprop: Callable | None = None,
) -> ops.Custom:
    """Make an operator of a CPU graph that calls `function` with arrays and returns its arrays.

    Args:
        function: takes one array per input; returns an array, or a tuple for several outputs.
        out_shape: takes the inputs' shapes; returns the shape or a tuple of shapes.
        inputs: type of each input: float32, int32 or bool_.
        outputs: type of each output.
        bprop: takes the inputs, the output and its gradient; returns the inputs' gradients. None:
            no gradient.
    """
    # Registered, or the library logs a warning for each operator of each graph.
    entry = CustomRegOp(function.__name__)
    for i in range(len(inputs)):
        entry.input(i, f"input{i}")
    for i in range(len(outputs)):
        entry.output(i, f"output{i}")
    entry.dtype_format(*(FORMATS[kind] for kind in inputs + outputs)).target("CPU")
    out_dtype = tuple(outputs) if len(outputs) > 1 else outputs[0]
    info = entry.get_op_info()
    return ops.Custom(function, out_shape, out_dtype, "pyfunc", bprop=bprop, reg_info=info)


def thread_count() -> int:
    """Return the threads for a kernel: MindSpore's, but at most this process's cores."""
    return min(ms.get_context("runtime_num_threads"), len(os.sched_getaffinity(0)))


def run_parallel(kernel: Callable, jobs: list[tuple[Any, ...]], threads: int) -> None:
    """Call `kernel(*job)` for each job on `threads` threads, wait, and raise what failed."""
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            kernel(*job)
        return
    for future in [_pool(threads).submit(kernel, *job) for job in jobs]:
        future.result()


def run_split(kernel: Callable, length: int, threads: int, *arguments: Any) -> None:
    """Call `kernel(start, end, *arguments)` over `range(length)`, a part on each thread."""
    jobs = [(*part, *arguments) for part in split_range(length, -(-length // threads))]
    run_parallel(kernel, jobs, threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


def split_range(length: int, step: int) -> list[tuple[int, int]]:
    """Split `range(length)` into [start, end) pieces of `step`, the last one maybe shorter."""
    return [(start, min(start + step, length)) for start in range(0, length, step)]
