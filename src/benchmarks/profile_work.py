"""A workload whose operators tell what they take: see `profiling`.

The matrix library writes a line for each of its primitives to standard output when DNNL_VERBOSE is
set before it is loaded; the detector's own kernels are timed here, around each call. A mark in the
same output tells which primitives a kernel called itself, and which belong to the steps measured.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import os
import time
from collections.abc import Sequence
from typing import Any, Callable

from src.benchmarks.profiling import BEGIN, END, ENTER, LEAVE, ProfileSpec
from src.FasterRcnn.cpu import compiled


class ProfiledWork:
    """The workload, its kernels wrapped before anything takes hold of them."""

    def __init__(self, spec: ProfileSpec):
        self._kernels: dict[str, list[float]] = {}
        original = compiled.graph_operator

        def graph_operator(function: Callable, *rest: Any, **more: Any) -> Any:
            return original(self._timed(function), *rest, **more)

        compiled.graph_operator = graph_operator
        module, name = spec.work.split(":")
        self._work = getattr(importlib.import_module(module), name)(spec.spec)

    def steps(self, count: int) -> dict[str, Any]:
        """`seconds` of each step, and `kernels`: name to [calls, seconds, operations]."""
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
    """Operations of a kernel of two maps or a map and a weight, (., ., h, w) each; of others 0.

    A kernel of that kind is a convolution of stride 1 or one of its gradients. Its weight is the
    second array, or the result where both arrays are maps.
    """
    if len(arrays) != 2 or any(array.ndim != 4 for array in arrays):
        return 0
    maps, other = arrays
    weight = result if maps.shape[2:] == other.shape[2:] else other
    return 2 * weight.size * maps.shape[0] * math.prod(maps.shape[2:])


def _mark(word: str) -> None:
    """A line in standard output, in order with those of the matrix library."""
    ctypes.CDLL(None).fflush(None)
    os.write(1, f"{word}\n".encode())
