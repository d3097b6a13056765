"""What the network is told of an image in evaluation: its original's size and the factors."""

from __future__ import annotations

import numpy as np

from src.errors import UserError
from src.model_utils.config import Config, setting


def generator_img_meta(
    n: int, ori_h: int, ori_w: int, in_h: int, in_w: int, keep_ratio: bool = True
) -> np.ndarray:
    """img_metas of `n` originals of the same size.

    Args:
        ori_h, ori_w: pixels of the originals.
        in_h, in_w: pixels of the network's input.
        keep_ratio: the originals were scaled to fit with their proportions, as the data path does.

    Returns:
        (n, 4) float32: height and width of the original, factors of height and width.
    """
    factors = in_h / ori_h, in_w / ori_w
    if keep_ratio:
        factors = (_fitting(ori_h, ori_w, in_h, in_w),) * 2
    return np.tile(np.array([ori_h, ori_w, *factors], np.float32), (n, 1))


def _fitting(height: int, width: int, in_h: int, in_w: int) -> float:
    """The factor of an original that is resized within in_h x in_w, either way up.

    Where it is then still too high or too wide, it is resized again into the square of that side.
    """
    long, short = max(in_h, in_w), min(in_h, in_w)
    factor = min(long / max(height, width), short / min(height, width))
    total, sides = factor, _scaled(height, width, factor)
    for place, limit in enumerate((in_h, in_w)):
        if sides[place] > limit:
            again = min(limit / max(sides), limit / min(sides))
            total, sides = total * again, _scaled(*sides, again)
    return total


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    """Sides in whole pixels."""
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def usual_metas(config: Config) -> np.ndarray:
    """img_metas (1, 4) of an image of which nothing is said.

    Raises:
        UserError: `restore_bbox` without the size of the originals.
    """
    height, width = config.img_height, config.img_width
    if not setting(config, "restore_bbox"):
        return np.array([[height, width, 1, 1]], np.float32)
    originals = setting(config, "ori_h"), setting(config, "ori_w")
    if min(originals) < 1:
        raise UserError(
            f"restore_bbox needs the size of the originals: ori_h is {originals[0]} and ori_w "
            f"{originals[1]}, expected 1 or more for both"
        )
    return generator_img_meta(1, *originals, height, width, config.keep_ratio)
