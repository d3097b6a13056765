"""Load any checkpoint of the detector into a network: a worker's, the servers', upstream's."""

from __future__ import annotations

from pathlib import Path

from mindspore import Parameter, nn

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, key_aspects, same_mark, unlike_aspects
from src.model_utils.config import Config, setting
from src.training import shared_aspects
from src.weights.local_params import local_names
from src.weights.pretrained import load_pretrained, read_checkpoint, require_same_classes


def load_detector(
    net: nn.Cell, config: Config, checkpoint: Path, frozen_from: Path | None = None
) -> str:
    """Load all the weights of a trained detector into `net`.

    Args:
        net: a `Faster_Rcnn` of `config`.
        config: what the detector was trained with; local_params are not in the servers' files.
        checkpoint: the whole detector, or a recovery file of the servers, which holds only what
            is trained and federated.
        frozen_from: checkpoint of the whole detector to take the frozen tensors and local parts
            from.

    Returns:
        A line that says what came from which file.

    Raises:
        UserError: the files do not make a whole detector, are of another one, or do not belong
            together.
    """
    names = [p.name for p in net.trainable_params()]
    local = set(local_names(names, setting(config, "local_params")))
    frozen = {p.name for p in net.get_parameters() if not p.requires_grad}
    content = read_checkpoint(checkpoint)
    held = set(content)
    own = {p.name for p in net.get_parameters()}
    _require_same_keys(config, checkpoint, content)
    _require_detector(checkpoint, held, own, frozen, local, frozen_from)
    require_same_classes(checkpoint, content, config.coco_classes)
    said = ""
    if frozen_from is not None:
        kept = frozen | local
        _require_same_keys(config, frozen_from, read_checkpoint(frozen_from))
        missing = kept - held - set(load_pretrained(net, frozen_from).loaded)
        if missing:
            other = "" if local else ", or the servers' ..._initial.ckpt"
            raise UserError(
                f"--frozen_from {frozen_from}: lacks {len(missing)} of the {len(kept)} tensors "
                f"that servers do not hold, first {min(missing)}; give a worker's checkpoint{other}"
            )
        said = f", {len(frozen - held)} frozen ones from {frozen_from}"
        if local - held:
            said += f", and {len(local - held)} of the silo's own (local_params)"
    loaded = len(load_pretrained(net, checkpoint).loaded)
    if not own <= held:
        # The frozen tensors and local_params, which the file lacks, came from elsewhere.
        fix = "the job's own --config_path and --frozen_from"
        _require_alike(shared_aspects(config, net), checkpoint, content, fix)
    return f"{checkpoint}: {loaded} of {len(own)} tensors{said}"


def _require_detector(
    checkpoint: Path,
    held: set[str],
    own: set[str],
    frozen: set[str],
    local: set[str],
    frozen_from: Path | None,
) -> None:
    """Check that the names in a checkpoint are those of a trained detector.

    Raises:
        UserError: they are not; says how many are, and what to give.
    """
    missing = own - held - (frozen | local if frozen_from else set())
    if not missing:
        return
    found = f"{checkpoint}: {len(held & own)} of its {len(held)} names match"
    found += f", and the detector has {len(own)} tensors"
    if missing <= frozen:
        example = _whole_detector_of(checkpoint)
        raise UserError(
            f"{found}; the {len(missing)} that are missing are frozen and not kept by servers: "
            f"give a whole detector to take them from, --frozen_from={example}"
        )
    if missing <= frozen | local:
        raise UserError(
            f"{found}; the {len(missing)} that are missing are frozen, or the silos' own "
            f"({len(missing & local)} of local_params): give a worker's checkpoint to take them "
            "from, --frozen_from=worker_0/ckpt/..."
        )
    if FEATURE_NAME in held and not frozen & held:
        raise UserError(
            f"{found} (missing {len(missing - frozen)} trained ones, first "
            f"{min(missing - frozen)}): servers hold no parts that a job keeps in its silos; give "
            "the job's own --config_path and --local_params"
        )
    raise UserError(
        f"{found} (missing {len(missing)}, first {min(missing)}): not a trained detector of this "
        "configuration; give the checkpoint of one, and its --config_path"
    )


def _whole_detector_of(checkpoint: Path) -> str:
    """Return an example of what to take the frozen tensors of a servers' checkpoint from.

    Where silos started from their own checkpoint, it is not the initial model next to it.
    """
    mark = read_checkpoint(checkpoint).get(FEATURE_NAME)
    for path in sorted(checkpoint.parent.glob("*_initial.ckpt")):
        theirs = read_checkpoint(path).get(FEATURE_NAME)
        if mark is None or theirs is None or same_mark(mark.asnumpy(), theirs.asnumpy()):
            return str(path)
    return "worker_0/ckpt/..."


def _require_same_keys(config: Config, path: Path, content: dict[str, Parameter]) -> None:
    """Check that a checkpoint that records its configuration was trained with these keys.

    Raises:
        UserError: names the keys that differ.
    """
    fix = "the configuration that it was trained with, --config_path=<its file> and the same flags"
    _require_alike(key_aspects(config), path, content, fix)


def _require_alike(
    aspects: dict[str, object], path: Path, content: dict[str, Parameter], fix: str
) -> None:
    """Check that a checkpoint that records its aspects was trained with these.

    Args:
        fix: what to give where it was not.

    Raises:
        UserError: names the aspects that differ.
    """
    if FEATURE_NAME not in content:
        return
    unlike = unlike_aspects(aspects, content[FEATURE_NAME].asnumpy())
    if unlike:
        raise UserError(
            f"{path}: was trained with other values of: {', '.join(unlike)}; give {fix}"
        )
