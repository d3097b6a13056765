"""The state file: what a worker needs besides the global model to resume.

The servers have the federated weights. They lack the optimiser's momentum, the position in the
schedule and in the data, the local weights, and what the aggregation algorithm keeps. A worker
writes these after each synchronisation and reads them with --resume.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]  # no stubs
from safetensors.numpy import save_file

from src.data.mindrecord import BASE_NAME, check_mindrecord
from src.errors import UserError
from src.federated.aggregation import aggregation_of
from src.files import parsed_json, whole_file
from src.job.job_config import JobConfig
from src.model_utils.config import setting

FILE_NAME = "resume.safetensors"
# Configuration keys with another value of which the state would mean something else.
KEYS = (
    "backbone",
    "batch_size",
    "client_epoch_num",
    "sync_frequency",
    "dataset_sink_mode",
    "momentum",
    "weight_decay",
    "local_params",
    "seed",
)


@dataclass
class ResumeState:
    """A silo's state between two iterations.

    Attributes:
        iteration: the iteration to train next, from 1.
        steps: training steps done, which is the position in the schedule and in the data.
        numbers: scalars that the aggregation algorithm keeps.
        arrays: name -> 1-D float32 array: momentum, local weights, what the algorithm keeps.
    """

    iteration: int
    steps: int
    numbers: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def steps_at(self, iteration: int, steps: int) -> int:
        """Return the steps done when `iteration` begins, with `steps` in each since this state."""
        return max(0, self.steps + (iteration - self.iteration) * steps)


class BrokenStateError(Exception):
    """The file is not a state file, truncated or corrupt."""


def state_file(output_dir: Path, shard: Path) -> Path:
    """Return the path of the state of the worker whose output is in `output_dir`."""
    return output_dir / "ckpt" / shard.name / FILE_NAME


def terms_of_state(job: JobConfig, config: Any, shard: Path) -> dict[str, str]:
    """Return what must be unchanged for a state to be usable, by names that a user knows.

    Raises:
        UserError: no usable MindRecord in the folder `shard`.
    """
    images = check_mindrecord(shard / (config.prefix or BASE_NAME), config.batch_size)
    terms = {
        "fl_name": job.name,
        "shard": f"{shard.name} of {images} images",
        "aggregation": aggregation_of(job, config).words(),
        "ranks (--device_num)": getattr(config, "device_num", 1),
        **{key: setting(config, key) for key in KEYS},
    }
    return {name: str(value) for name, value in terms.items()}


def save_state(path: Path, state: ResumeState, terms: Mapping[str, str]) -> None:
    """Write `state`, replacing an earlier one.

    Raises:
        OSError: it could not be written; an earlier one is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {**asdict(state), "terms": dict(terms), "checksum": _checksum(state.arrays)}
    del told["arrays"]
    # The file is private: momentum and local parameters do not leave the silo.
    partial_path = path.with_name(f".partial.{path.name}")
    with whole_file(path, durable=True, partial=partial_path, private=True) as partial:
        try:
            save_file(state.arrays, str(partial), metadata={"state": json.dumps(told)})
        except SafetensorError as error:
            # The library reports a full disk as an error of its own.
            raise OSError(str(error)) from error


def describe_state(path: Path, terms: Mapping[str, str]) -> str:
    """Describe what --resume will do with the file, without reading its arrays.

    Raises:
        UserError: it belongs to another job, shard or configuration.
        BrokenStateError: it cannot be read.
    """
    if not path.is_file():
        return f"{path} is not there: the worker begins without momentum"
    told = head_of(path)
    _require_same(path, told["terms"], terms)
    return f"{path}: continues from iteration {told['iteration']}, after {told['steps']} steps"


def load_state(
    path: Path, terms: Mapping[str, str], log: Callable[[str], None]
) -> ResumeState | None:
    """Read the state in `path`; return None, and log a line, if none can be read.

    Raises:
        UserError: it belongs to another job, shard or configuration.
    """
    try:
        log(f"resume: {describe_state(path, terms)}")
        return _read(path) if path.is_file() else None
    except BrokenStateError as error:
        log(f"WARNING: resume: {error}; going on without momentum")
        return None


def _opened(path: Path) -> Any:
    return safe_open(str(path), framework="numpy")


def _read(path: Path) -> ResumeState:
    told = head_of(path)
    try:
        with _opened(path) as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BrokenStateError(f"{path} is cut short or corrupt: {error}") from error
    if _checksum(arrays) != told["checksum"]:
        raise BrokenStateError(f"{path} is corrupt: its checksum is not that of its content")
    return ResumeState(told["iteration"], told["steps"], told["numbers"], arrays)


def head_of(path: Path) -> dict[str, Any]:
    """Return the header of a state file.

    Raises:
        BrokenStateError: it cannot be read.
    """
    try:
        with _opened(path) as file:
            told = parsed_json((file.metadata() or {})["state"])
        if {"iteration", "steps", "numbers", "terms", "checksum"} <= set(told):
            return told
        raise KeyError("not all of the state is there")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BrokenStateError(f"{path} is cut short or no state of a worker: {error}") from error


def _require_same(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    unlike = [
        f"{name} is {theirs.get(name)!r} there and {value!r} here"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    if unlike:
        raise UserError(
            f"{path}: is of another job, shard or configuration: {'; '.join(unlike)}; give what it "
            "was made with, or start without --resume"
        )


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(
            np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), total)
        )
    return total
