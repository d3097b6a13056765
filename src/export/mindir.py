"""The detector as a MindIR file, MindSpore's own format: graph and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.errors import UserError
from src.FasterRcnn.cpu.compiled import library_operators
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.config import setting


def write_mindir(network: nn.Cell, config: Any, path: Path) -> None:
    """Write `path`, which ends in .mindir.

    The file takes `config.test_batch_size` images, and their img_metas unless `restore_bbox` is
    set; it gives what `FasterRcnn_Infer` gives. It holds the library's operators alone: our
    compiled kernels are code of this suite and cannot go into a file.

    Args:
        network: a `Faster_Rcnn` of `config` with the weights to write.
    """
    with library_operators():
        twin = Faster_Rcnn_Resnet(config)
    weights = {p.name: p for p in network.get_parameters()}
    for parameter in twin.get_parameters():
        parameter.set_data(weights[parameter.name].data)
    infer = FasterRcnn_Infer(config, twin)
    size = config.test_batch_size
    image = Tensor(np.zeros((size, 3, config.img_height, config.img_width), np.float32))
    metas = Tensor(np.ones((size, 4), np.float32))
    inputs = [image] if setting(config, "restore_bbox") else [image, metas]
    ms.export(infer, *inputs, file_name=str(path.with_suffix("")), file_format="MINDIR")


def load_mindir(path: Path) -> nn.GraphCell:
    """What the file computes, as a cell.

    Raises:
        UserError: not a MindIR file.
    """
    try:
        return nn.GraphCell(ms.load(str(path)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a MindIR file: {str(error).splitlines()[0]}") from error
