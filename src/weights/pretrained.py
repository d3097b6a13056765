"""Load a checkpoint into the detector: a ResNet-50 trained for classification, or a whole one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.errors import UserError
from src.weights.head_classes import CLASS_TENSORS, Refit, refit
from src.weights.resnet_names import map_name
from src.weights.source import (
    CONVERT,
    RECORD_NAME,
    V1,
    V1_5,
    Source,
    require_backbone,
    require_classes,
    unpack,
)

# Part of names in ModelZoo's ResNet-50, and in no converted checkpoint.
MODELZOO_PART = "down_sample_layer."


@dataclass
class LoadReport:
    """List the network's parameters that a checkpoint had, and those that were not found.

    Attributes:
        path: the checkpoint.
        loaded: names of parameters that were loaded.
        missing: names of parameters that the checkpoint does not have.
        refitted: class-dependent tensors of a head of other classes.
        hint: advice for the user, or "".
    """

    path: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refitted: Refit = field(default_factory=Refit)
    hint: str = ""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.refitted.tensors)
        text = f"{self.path}: loaded {len(self.loaded)} of the network's {total} parameters"
        if self.refitted.tensors:
            text += f"; initialized again for other classes: {', '.join(self.refitted.tensors)}"
        if self.refitted.carried:
            text += f", but for the columns of {', '.join(self.refitted.carried)}"
        return text + self._not_found() + (f"; {self.hint}" if self.hint else "")

    def _not_found(self) -> str:
        if not self.missing:
            return ""
        groups: dict[str, int] = {}
        for name in self.missing:
            group = name.split(".")[0]
            groups[group] = groups.get(group, 0) + 1
        listed = ", ".join(f"{count} of {group}" for group, count in groups.items())
        return f"; not found in it: {listed}"


def load_pretrained(
    net: nn.Cell,
    path: str | Path,
    fine_tune_for: Sequence[str] | None = None,
    content: dict[str, Parameter] | None = None,
) -> LoadReport:
    """Load what `path` has for `net`, cast to float32; the rest of `net` does not change.

    A name that the network has is used as it is, so that a checkpoint of the whole detector loads
    directly; any other name is mapped as one of a classifier.

    Args:
        fine_tune_for: the network's class names, to accept a box head of other classes: its
            class-dependent tensors stay as they are in `net`, except for columns of classes that a
            converted checkpoint names too. None refuses such a head.
        content: content of the file, where it has been read already.

    Returns:
        A report of what was loaded and what was not found; its `str` is a line for the user.

    Raises:
        UserError: no such file, not a checkpoint, no parameter of this network in it, a parameter
            of another shape, or a backbone with its stride elsewhere. `net` is then unchanged.
    """
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    content = read_checkpoint(path) if content is None else content
    found = _by_own_names(content, parameters)
    if not found:
        raise UserError(
            f"{path}: no parameter of this detector in it; expected a ResNet-50 or Faster R-CNN "
            "ResNet-50 FPN checkpoint"
        )
    source = _source(content, path)
    require_backbone(source, content, backbone_of(net), str(path))
    report = LoadReport(str(path), hint=_hint(content, path))
    if fine_tune_for is not None:
        own = {n: parameters[n].asnumpy() for n in CLASS_TENSORS if n in parameters}
        classes = None if source is None else source.classes
        report.refitted = refit(found, own, classes, fine_tune_for)
    _require_shapes(path, found, parameters)
    for name, values in found.items():
        parameters[name].set_data(Tensor(values))
    report.loaded = sorted(set(found) - set(report.refitted.tensors))
    report.missing = [name for name in parameters if name not in found]
    return report


def require_same_classes(path: str | Path, content: dict[str, Parameter], classes: list) -> None:
    """Refuse a converted detector that names other classes than `classes`.

    Args:
        content: as `read_checkpoint` returns it.

    Raises:
        UserError: names what differs.
    """
    require_classes(_source(content, path), classes, str(path))


def _source(content: dict[str, Parameter], path: str | Path) -> Source | None:
    """Return what a converted checkpoint says about its origin; None for others."""
    record = content.get(RECORD_NAME)
    return unpack(None if record is None else record.asnumpy().tobytes(), str(path))


def backbone_of(net: nn.Cell) -> str:
    """Return V1 or V1_5, by where the backbone of `net`, a detector, has its stride."""
    stride = net.backbone.layer2[0].conv1.stride
    return V1 if tuple(stride) == (2, 2) else V1_5


def _by_own_names(
    content: dict[str, Parameter], parameters: dict[str, Parameter]
) -> dict[str, np.ndarray]:
    """Return the values of a checkpoint that the network has, by the network's names, float32."""
    found = {}
    for name, value in content.items():
        target = name if name in parameters else map_name(name)
        if target is not None and target in parameters:
            found[target] = value.asnumpy().astype(np.float32)
    return found


def _require_shapes(
    path: str | Path, found: dict[str, np.ndarray], parameters: dict[str, Parameter]
) -> None:
    for name, values in found.items():
        if values.shape != parameters[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(values.shape)}, this detector's has "
                f"{list(parameters[name].shape)}; the checkpoint is of another model or of "
                "other classes"
            )


def _hint(content: dict[str, Parameter], path: str | Path) -> str:
    """Return advice to convert an unconverted ModelZoo file, or ""."""
    if not any(MODELZOO_PART in name for name in content):
        return ""
    command = CONVERT.format(path)
    return (
        "it is a ModelZoo ResNet-50 as trained, with BatchNorm's epsilon 1e-4 where the detector "
        f"has 1e-5: {command} makes up for that"
    )


def read_checkpoint(path: str | Path) -> dict[str, Parameter]:
    """Read the parameters of a MindSpore checkpoint by name.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a MindSpore checkpoint (.ckpt)")
    if path.suffix != ".ckpt":
        raise UserError(
            f"{path}: a MindSpore checkpoint ends in .ckpt; rename the file if it is one. One of "
            f"PyTorch or safetensors becomes one with {CONVERT.format(path)}"
        )
    try:
        return mindspore.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a MindSpore checkpoint, or cut short: {str(error).splitlines()[0]}"
        ) from error
