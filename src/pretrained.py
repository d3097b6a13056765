"""Load a checkpoint into the detector: a ResNet-50 trained for classification, or a whole one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.checkpoint_names import map_name
from src.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What a checkpoint brought: names of the network's parameters, loaded and not found."""

    path: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        text = f"{self.path}: loaded {len(self.loaded)} of the network's {total} parameters"
        if not self.missing:
            return text
        groups: dict[str, int] = {}
        for name in self.missing:
            group = name.split(".")[0]
            groups[group] = groups.get(group, 0) + 1
        listed = ", ".join(f"{count} of {group}" for group, count in groups.items())
        return f"{text}; not found in it: {listed}"


def load_pretrained(net: nn.Cell, path: str | Path) -> LoadReport:
    """Load what `path` holds for `net`, cast to float32; the rest of `net` stays as it is.

    Names that are the network's own are taken first, so that a checkpoint of the whole detector
    loads as it is; all others are mapped as those of a classifier.

    Returns:
        What was loaded and what was not found; also written to the log.

    Raises:
        UserError: no such file, not a checkpoint, no parameter of this network in it, or one of
            another shape. `net` is then unchanged.
    """
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    found: dict[str, np.ndarray] = {}
    for name, value in read_checkpoint(path).items():
        target = name if name in parameters else map_name(name)
        if target is not None and target in parameters:
            found[target] = value.asnumpy().astype(np.float32)
    if not found:
        raise UserError(
            f"{path}: no parameter of this detector in it; expected a ResNet-50 or Faster R-CNN "
            "ResNet-50 FPN checkpoint"
        )
    for name, values in found.items():
        if values.shape != parameters[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(values.shape)}, this detector's has "
                f"{list(parameters[name].shape)}; the checkpoint is of another model or of "
                "other classes"
            )
    for name, values in found.items():
        parameters[name].set_data(Tensor(values))
    report = LoadReport(str(path), sorted(found), [n for n in parameters if n not in found])
    logger.info("%s", report)
    return report


def read_checkpoint(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a MindSpore checkpoint by name.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a MindSpore checkpoint (.ckpt)")
    if path.suffix != ".ckpt":
        raise UserError(
            f"{path}: a MindSpore checkpoint ends in .ckpt; rename the file if it is one"
        )
    try:
        return mindspore.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a MindSpore checkpoint, or cut short: {str(error).splitlines()[0]}"
        ) from error
