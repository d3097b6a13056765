"""Profile a step by operator: the library's primitives and our own kernels."""

from __future__ import annotations

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from src.benchmarks.children import Child
from src.benchmarks.measure import Setting, describe, machine, machine_line, say

WORK = "src.benchmarks.workloads:ProfiledWork"
STEPS = 3
# Lines that the measured process writes between those of the matrix library.
BEGIN, END = "benchmark: steps begin", "benchmark: steps end"
ENTER, LEAVE = "benchmark: kernel begins", "benchmark: kernel ends"
DIRECTIONS = {
    "forward_training": "forward",
    "forward_inference": "forward",
    "backward_data": "data gradient",
    "backward_weights": "weight gradient",
    "backward": "gradient",
}


class ProfileSpec(NamedTuple):
    """Describe the workload: "module:Class" with a method `steps`, and the class's argument."""

    work: str
    spec: Any


class Call(NamedTuple):
    """Describe one execution of a primitive."""

    kind: str
    direction: str
    milliseconds: float
    flops: int
    inside_kernel: bool


def profile(work: str, spec: Any, setting: Setting, steps: int = STEPS) -> dict[str, Any]:
    """Run a workload in its own process, which writes the time of each primitive.

    Args:
        work: "module:Class" with a method `steps`.
        spec: its argument.
        setting: the detector and its threads.
        steps: number to measure, after one that compiles.

    Returns:
        What `describe` and `machine` return, and `step_ms`, `steps`, `rows`: for each kind of
        operator `name`, `direction`, `calls`, `ms`, `share`, `gflops` (operations a second, None
        where they are not counted) of one step.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        env = {"DNNL_VERBOSE": "1"}
        with Child(WORK, ProfileSpec(work, spec), setting.threads, env, output) as child:
            child.ready()
            say("profile: compiling")
            child.call("steps", count=1)
            answer = child.call("steps", count=steps)
            say(f"profile: {steps} steps measured")
        output.seek(0)
        calls = list(parse_verbose(last_steps(output)))
    return {
        **describe(setting.load(), setting.threads),
        **table(calls, answer["kernels"], sum(answer["seconds"]), steps),
        **machine(),
    }


def last_steps(lines: Iterable[str]) -> list[str]:
    """Return the lines between the last two marks of begin and end."""
    found: list[str] = []
    result: list[str] = []
    for line in lines:
        if line.startswith(BEGIN):
            found = []
        elif line.startswith(END):
            result = found
        else:
            found.append(line)
    return result


def parse_verbose(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the executed primitives; skip other lines.

    A line of oneDNN 2.2 is dnnl_verbose, exec, engine, primitive, implementation, propagation,
    memory, attributes, auxiliary, problem, milliseconds, separated by commas.
    """
    inside = 0
    for line in lines:
        inside += line.startswith(ENTER) - line.startswith(LEAVE)
        fields = line.strip().split(",")
        if fields[:2] != ["dnnl_verbose", "exec"] or len(fields) < 11:
            continue
        kind, problem = fields[3], fields[-2]
        milliseconds = _number(fields[-1])
        if milliseconds is None:
            continue
        name, flops = _problem(kind, problem)
        direction = DIRECTIONS.get(fields[5], "")
        # Only kernels call the library's plain product, perhaps on several threads.
        yield Call(name, direction, milliseconds, flops, inside > 0 or kind == "gemm_api")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _problem(kind: str, problem: str) -> tuple[str, int]:
    """Return name and operations of a primitive; 0 where they are not counted."""
    if kind == "convolution":
        size = {key: int(value) for key, value in re.findall(r"([a-z]+)(\d+)", problem)}
        if {"mb", "ic", "oc", "oh", "ow", "kh", "kw"} <= set(size):
            keys = ("mb", "ic", "oc", "oh", "ow", "kh", "kw")
            flops = 2 * math.prod(size[key] for key in keys) // size.get("g", 1)
            return f"convolution {size['kh']}x{size['kw']}", flops
    if kind == "matmul" and re.fullmatch(r"\d+x\d+:\d+x\d+:\d+x\d+", problem):
        first, _, result = (list(map(int, part.split("x"))) for part in problem.split(":"))
        return "matrix product", 2 * math.prod(result) * first[1]
    return kind, 0


def table(
    calls: list[Call], kernels: dict[str, list[float]], seconds: float, steps: int
) -> dict[str, Any]:
    """Return `step_ms`, `steps` and `rows` of `profile`.

    Args:
        calls: the library's primitives.
        kernels: calls, seconds and operations by name.
        seconds: seconds of all steps.
        steps: number of steps.
    """
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0])
    for call in calls:
        if not call.inside_kernel:
            entry = sums[(call.kind, call.direction)]
            entry[0] += 1
            entry[1] += call.milliseconds
            entry[2] += call.flops
    for name, (count, kernel_seconds, flops) in kernels.items():
        sums[(f"kernel {name}", "")] = [count, kernel_seconds * 1e3, flops]
    total = seconds * 1e3
    rows = [
        _row(*key, count / steps, milliseconds / steps, flops / steps, total / steps)
        for key, (count, milliseconds, flops) in sums.items()
    ]
    rows.sort(key=lambda row: -row["ms"])
    rest = (total - sum(milliseconds for _, milliseconds, _ in sums.values())) / steps
    rows.append(_row("all the rest", "", 0, rest, 0, total / steps))
    return {"step_ms": round(total / steps, 2), "steps": steps, "rows": rows}


def _row(
    name: str, direction: str, calls: float, milliseconds: float, flops: float, step_ms: float
) -> dict[str, Any]:
    return {
        "name": name,
        "direction": direction,
        "calls": round(calls, 1),
        "ms": round(milliseconds, 2),
        "share": round(milliseconds / step_ms, 4),
        "gflops": round(flops / milliseconds / 1e6, 1) if flops and milliseconds else None,
    }


def profile_text(result: dict[str, Any]) -> str:
    """Format the table for people."""
    lines = [
        machine_line(result),
        f"{result['image']}, batch {result['batch']}, {result['threads']} thread(s): a step of "
        f"{result['step_ms']:.0f} ms, mean of {result['steps']}; of one step:",
        f"{'operator':50} {'direction':16} {'calls':>6} {'ms':>9} {'share':>7} {'GFLOP/s':>8}",
    ]
    for row in result["rows"]:
        rate = "" if row["gflops"] is None else f"{row['gflops']:.0f}"
        lines.append(
            f"{row['name']:50} {row['direction']:16} {row['calls']:6.0f} {row['ms']:9.1f} "
            f"{row['share']:7.1%} {rate:>8}"
        )
    lines.append(
        "all the rest: operators without a line of their own, and the passing on between operators;"
    )
    lines.append("it is negative where operators ran at the same time.")
    return "\n".join(lines)
