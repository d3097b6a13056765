"""Return the detector for MindSpore Hub: `create_network("faster_rcnn")`.

  net = create_network("faster_rcnn", backbone="resnet_v1_50", num_classes=81)
  mindspore.load_param_into_net(net, mindspore.load_checkpoint("detector.ckpt"))

as MindSpore Hub does with the checkpoint that it fetched; `ckpt_file="detector.ckpt"` loads a local
one at once. A missing `ckpt_file` in a configuration file, such as upstream's /cache/train/..., is
left out with a warning.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from src.commands.load_detector import load_detector
from src.errors import UserError, user_path
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import (
    DEFAULT_CONFIG,
    Config,
    check_values,
    load_config,
    script_parser,
)


class UnknownNetworkError(UserError, NotImplementedError):
    """Report a name that `create_network` does not know; upstream raised a NotImplementedError."""


def create_network(
    name: str, config: Config | str | Path | None = None, **kwargs: Any
) -> Faster_Rcnn_Resnet:
    """Return the detector by name.

    Args:
        name: "faster_rcnn", the only one.
        config: a configuration, or the path of its file; without it, `default_config.yaml`
            of the current folder or next to this script.
        kwargs: keys of the configuration with values that override the file: `backbone`
            ("resnet_v1.5_50", "resnet_v1_50", ...), `num_classes`, `coco_classes`; `ckpt_file` is
            a checkpoint of a whole detector to load. One that the file names is loaded where it
            exists.

    Raises:
        UserError: another name (it is a NotImplementedError too), an unknown key, a configuration
            that does not fit together, or a file that is no checkpoint of this detector.
    """
    if name != "faster_rcnn":
        raise UnknownNetworkError(
            f"create_network: no network {name!r} here, expected 'faster_rcnn'"
        )
    if isinstance(config, Config):
        settled = Config({**vars(config), **check_values(kwargs, "create_network")})
    else:
        settled = load_config(config or DEFAULT_CONFIG, **kwargs)
    network = Faster_Rcnn_Resnet(settled)
    given = getattr(settled, "ckpt_file", "")
    checkpoint = user_path(given)
    if given and "ckpt_file" not in kwargs and not checkpoint.exists():
        # Upstream's own file names a path on one of its machines; upstream does not load it here.
        warnings.warn(
            f"create_network: ckpt_file {checkpoint} of the configuration is not there; the "
            "network has fresh weights (give ckpt_file=... to load a checkpoint)",
            stacklevel=2,
        )
    elif given:
        load_detector(network, settled, checkpoint)
    return network


if __name__ == "__main__":
    parser = script_parser(__doc__)
    parser.parse_args()
    parser.print_help()
