"""Estimate the time of a job from measured steps, and remember the measurement for the launcher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.data.mindrecord import BASE_NAME, check_mindrecord
from src.federated.rounds import steps_per_iteration
from src.job.disk_room import data_folder
from src.job.job_config import JobConfig
from src.job.job_record import FOLDER, read_status, state_folder, write_json
from src.launch.status_view import duration
from src.reporting.run_folder import number_in
from src.weights.parameter_shapes import FLOAT_BYTES, count_values, federated_shapes, model_bytes

FILE = "step.json"
# What a round takes for each byte of the model without the line between machines: 4.1 s for 166 MB,
# see docs/synchronisation.md.
SYNC_S_PER_BYTE = 25e-9


@dataclass(frozen=True)
class StepCost:
    """What training steps of this machine's workers cost, measured side by side.

    Attributes:
        step_s: seconds of a step.
        first_s: seconds of the first one, which compiles.
        line_s: seconds that the weights take to the servers; 0 where none answered.
    """

    step_s: float
    first_s: float
    line_s: float = 0.0


def remember(base: Path, config: Any, cost: StepCost) -> None:
    """Keep a measurement for the launcher of workers in the folder `base`."""
    write_json(state_folder(base) / FILE, {"of": _measured(config), **asdict(cost)})


def remembered(base: Path, config: Any) -> StepCost | None:
    """Return the measurement of steps like those of `config`; None where there is none."""
    values = read_status(base / FOLDER / FILE)
    numbers = [number_in(values.get(key)) for key in ("step_s", "first_s", "line_s")]
    if values.get("of") != _measured(config) or not all(number >= 0 for number in numbers):
        return None
    return StepCost(*numbers)


def _measured(config: Any) -> dict[str, Any]:
    """Return what the seconds of a step depend on."""
    keys = ("img_width", "img_height", "batch_size", "num_gts", "device_target", "threads")
    values = {key: getattr(config, key) for key in keys}
    rois = {key: getattr(config, key) for key in ("rpn_proposal_max_num", "num_bboxes_stage2")}
    return {**values, **rois, "model": model_bytes(config), "workers": config.local_worker_num}


def job_time(job: JobConfig, config: Any, numbers: Iterable[int], cost: StepCost) -> str:
    """Describe how long the job takes here, without evaluation and waits for slower silos.

    Args:
        numbers: the workers; the one with the most steps counts.

    Raises:
        UserError: a MindRecord is not there.
    """
    data, name = data_folder(config).absolute(), config.prefix or BASE_NAME
    images = max(check_mindrecord(data / f"mindrecord_{number}" / name) for number in numbers)
    # An epoch has whole batches only.
    epoch = images // config.batch_size
    steps = steps_per_iteration(config, epoch)
    size = FLOAT_BYTES * count_values(federated_shapes(config))
    sync_s = SYNC_S_PER_BYTE * size + 2 * cost.line_s
    total = cost.first_s + job.iterations * (steps * cost.step_s + sync_s)
    more = " and the evaluations of run_eval" if config.run_eval else ""
    return (
        f"{cost.step_s:.3g} s a step, {steps} steps and about {sync_s:.0f} s of synchronisation in "
        f"an iteration, {job.iterations} iterations: about {duration(total)}"
        f"{more}; slower silos make it longer"
    )
