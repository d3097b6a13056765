"""Any checkpoint of the detector into a network: a worker's, the servers', an upstream one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import nn

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, differing, fingerprint
from src.model_utils.config import Config
from src.pretrained import load_pretrained, read_checkpoint
from src.training import shared_aspects


def load_detector(
    net: nn.Cell, config: Config, checkpoint: Path, frozen_from: Path | None = None
) -> str:
    """Give `net` all the weights of a trained detector.

    Args:
        net: a `Faster_Rcnn` of `config`.
        config: what the detector was trained with.
        checkpoint: of the whole detector, or a recovery file of the servers, which holds only what
            is trained.
        frozen_from: checkpoint of the whole detector to take the frozen tensors from.

    Returns:
        A line that says what came from where.

    Raises:
        UserError: the files do not make a whole detector, are another one's, or do not belong
            together.
    """
    frozen = {p.name for p in net.get_parameters() if not p.requires_grad}
    content = read_checkpoint(checkpoint)
    held = set(content)
    own = {p.name for p in net.get_parameters()}
    _require_detector(checkpoint, held, own, frozen, frozen_from)
    said = ""
    if frozen_from is not None:
        missing = frozen - held - set(load_pretrained(net, frozen_from).loaded)
        if missing:
            raise UserError(
                f"--frozen_from {frozen_from}: lacks {len(missing)} of the {len(frozen)} frozen "
                f"tensors, first {min(missing)}; give a worker's checkpoint, or the servers' "
                "..._initial.ckpt"
            )
        said = f", {len(frozen - held)} frozen ones from {frozen_from}"
    loaded = len(load_pretrained(net, checkpoint).loaded)
    if FEATURE_NAME in content:
        _require_same_job(net, config, checkpoint, content[FEATURE_NAME].asnumpy())
    return f"{checkpoint}: {loaded} of {len(own)} tensors{said}"


def _require_detector(
    checkpoint: Path, held: set[str], own: set[str], frozen: set[str], frozen_from: Path | None
) -> None:
    """Whether the names in a checkpoint are those of a trained detector.

    Raises:
        UserError: how many are, and what to give.
    """
    missing = own - held - (frozen if frozen_from else set())
    if not missing:
        return
    found = f"{checkpoint}: {len(held & own)} of its {len(held)} names match"
    found += f", and the detector has {len(own)} tensors"
    if missing <= frozen:
        beside = sorted(checkpoint.parent.glob("*_initial.ckpt"))
        example = beside[0] if beside else "the ..._initial.ckpt beside it"
        raise UserError(
            f"{found}; the {len(missing)} that are missing are frozen and not kept by servers: "
            f"give a whole detector to take them from, --frozen_from={example}"
        )
    raise UserError(
        f"{found} (missing {len(missing)}, first {min(missing)}): not a trained detector of this "
        "configuration; give the checkpoint of one, and its --config_path"
    )


def _require_same_job(net: nn.Cell, config: Config, checkpoint: Path, theirs: np.ndarray) -> None:
    """Whether configuration and frozen tensors are those that the servers' file was trained with.

    Raises:
        UserError: names what differs.
    """
    aspects = shared_aspects(config, net)
    unlike = differing(list(aspects), fingerprint(aspects), theirs)
    if unlike:
        raise UserError(
            f"{checkpoint}: was trained with other values of: {', '.join(unlike)}; give the job's "
            "own --config_path and --frozen_from"
        )
