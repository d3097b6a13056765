"""Entry point of MindSpore Hub: `create_network("faster_rcnn")` gives the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.errors import UserError
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import Config, load_config


def create_network(
    name: str, config: Config | str | Path | None = None, **kwargs: Any
) -> Faster_Rcnn_Resnet:
    """The detector by name.

    Args:
        name: "faster_rcnn", the only one.
        config: a configuration, or the path of a file of one; without it the defaults hold.
        kwargs: keys of the configuration with their values, laid over the file.

    Raises:
        UserError: another name, or a configuration that does not fit together.
    """
    if name != "faster_rcnn":
        raise UserError(f"create_network: no network {name!r} here, expected 'faster_rcnn'")
    if isinstance(config, Config):
        return Faster_Rcnn_Resnet(Config({**vars(config), **kwargs}))
    return Faster_Rcnn_Resnet(load_config(config, **kwargs))
