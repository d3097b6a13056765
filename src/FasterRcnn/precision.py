"""The one place where the detector depends on the device: which parts compute in half precision."""

import mindspore
from mindspore import context


def head_dtype() -> mindspore.dtype.Type:
    """Return float16 on Ascend, whose matrix unit takes nothing wider, and float32 elsewhere.

    The blocks of the region proposal network and the dense layers of the box head use it.
    """
    on_ascend = context.get_context("device_target") == "Ascend"
    return mindspore.float16 if on_ascend else mindspore.float32
