"""Entry point of MindSpore Hub: `create_network("faster_rcnn")` gives the detector.

  net = create_network("faster_rcnn", backbone="resnet_v1_50", num_classes=81)
  mindspore.load_param_into_net(net, mindspore.load_checkpoint("detector.ckpt"))

as MindSpore Hub does with the checkpoint that it fetched; `ckpt_file="detector.ckpt"` loads one of
this machine at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.errors import UserError
from src.evaluation.checkpoints import load_detector
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import Config, check_values, default_values, load_config, setting


def create_network(
    name: str, config: Config | str | Path | None = None, **kwargs: Any
) -> Faster_Rcnn_Resnet:
    """The detector by name.

    Args:
        name: "faster_rcnn", the only one.
        config: a configuration, or the path of a file of one; without it the defaults hold.
        kwargs: keys of the configuration with their values, laid over the file: `backbone`
            ("resnet_v1.5_50" or "resnet_v1_50"), `num_classes`, `coco_classes`; `ckpt_file` is a
            checkpoint of a whole detector to load.

    Raises:
        UserError: another name, an unknown key, a configuration that does not fit together, or a
            file that is no checkpoint of this detector.
    """
    if name != "faster_rcnn":
        raise UserError(f"create_network: no network {name!r} here, expected 'faster_rcnn'")
    if isinstance(config, Config):
        checked = check_values(kwargs, default_values(), "create_network")
        settled = Config({**vars(config), **checked})
    else:
        settled = load_config(config, **kwargs)
    network = Faster_Rcnn_Resnet(settled)
    checkpoint = setting(settled, "ckpt_file")
    if checkpoint:
        load_detector(network, settled, Path(checkpoint))
    return network
