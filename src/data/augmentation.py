"""Prepares one sample for the network: pad the boxes, zoom out, resize, normalise, flip.

The image stays uint8 until the last step. Resizing and flipping then move a quarter of the bytes,
and a table of the 256 normalised levels replaces the arithmetic for every pixel.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

MEAN = np.array([123.675, 116.28, 103.53])  # of ImageNet, RGB, in grey levels
STD = np.array([58.395, 57.12, 57.375])

PADDING_BOX = (0, 0, 0, 0, -1, 1)  # an empty box of no class, marked as a crowd


def _level_table() -> np.ndarray:
    """Return the normalised value of each grey level of each channel, (1, 256, 3) float32.

    The mean is subtracted in float32 and the quotient taken in float64, as OpenCV's per-channel
    arithmetic does, so that the last bit agrees with it.
    """
    centred = np.arange(256, dtype=np.float32)[:, None] - MEAN.astype(np.float32)
    return (centred / STD).astype(np.float32)[None]


LEVELS = _level_table()


class Expand:
    """Zooms out: places the image at random on a larger canvas, in half of the calls.

    SSD (Liu et al. 2016, section 3.6). Draws `randint(2)`, where 1 leaves the image unchanged, then
    the ratio, the left and the top margin from uniform distributions.

    Args:
        mean: the canvas' colour, in the channel order of the image.
        to_rgb: `mean` is in the opposite channel order of the image.
        ratio_range: smallest and largest side of the canvas, as a multiple of the image's side.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = (0, 0, 0),
        to_rgb: bool = True,
        ratio_range: tuple[float, float] = (1, 4),
    ):
        self.mean = mean[::-1] if to_rgb else mean
        self.min_ratio, self.max_ratio = ratio_range

    def __call__(
        self, img: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: Any = np.random
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image (h, w, 3), boxes (n, 4) and labels after a random draw from `rng`."""
        if rng.randint(2):
            return img, boxes, labels
        height, width = img.shape[:2]
        ratio = rng.uniform(self.min_ratio, self.max_ratio)
        left = int(rng.uniform(0, width * ratio - width))
        top = int(rng.uniform(0, height * ratio - height))
        canvas = np.zeros((int(height * ratio), int(width * ratio), 3), img.dtype)
        if any(self.mean):
            canvas[:] = self.mean
        canvas[top : top + height, left : left + width] = img
        return canvas, boxes + np.array([left, top, left, top], boxes.dtype), labels


def rescale_with_tuple(img: np.ndarray, scale: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Resize `img` to fit into `scale` in either orientation, keeping proportions.

    Returns the image and the factor.

    Args:
        img: (h, w, 3).
        scale: two sides in pixels; the longer one limits the longer side of the image.
    """
    height, width = img.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1))
    return cv2.resize(img, size, interpolation=cv2.INTER_LINEAR), factor


def _fit(img: np.ndarray, config: Any) -> tuple[np.ndarray, float]:
    """Resize `img` into img_width x img_height with its proportions; return it and the factor.

    A portrait image for a landscape target (or the reverse) is still too long after the first
    resize. It is resized a second time into the square of the side that it exceeds.
    """
    img, factor = rescale_with_tuple(img, (config.img_width, config.img_height))
    for length, limit in ((img.shape[0], config.img_height), (img.shape[1], config.img_width)):
        if length > limit:
            img, again = rescale_with_tuple(img, (limit, limit))
            factor *= again
    return img, factor


def _clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `boxes` (n, 4) with each corner on a pixel of a height x width image."""
    boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, width - 1)
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height - 1)
    return boxes


def _resize(
    img: np.ndarray, boxes: np.ndarray, is_training: bool, config: Any
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Resize the image to at most img_width x img_height.

    Returns the image, its boxes, and the row of `image_shape`.

    Training: boxes are scaled with the image and clipped to it. Evaluation keeps boxes in the
    original's pixels (keep_ratio) or clips the scaled ones to the original's size (without).
    """
    height, width = img.shape[:2]
    if config.keep_ratio:
        img, scale = _fit(img, config)
        if not is_training:
            return img, boxes, (height, width, scale, scale)
        return img, _clip(boxes * scale, *img.shape[:2]), (config.img_height, config.img_width, 1)
    img = cv2.resize(img, (config.img_width, config.img_height), interpolation=cv2.INTER_LINEAR)
    h_scale, w_scale = config.img_height / height, config.img_width / width
    boxes = boxes * np.array([w_scale, h_scale, w_scale, h_scale], np.float32)
    if not is_training:
        return img, _clip(boxes, height, width), (height, width, h_scale, w_scale)
    return img, _clip(boxes, *img.shape[:2]), (config.img_height, config.img_width, 1)


def _network_image(img: np.ndarray, flip: bool, config: Any) -> np.ndarray:
    """Return (3, img_height, img_width) float32: normalised, padded right and below, flipped."""
    height, width = img.shape[:2]
    padded = np.zeros((config.img_height, config.img_width, 3), np.uint8)
    if flip:
        padded[:height, config.img_width - width :] = img[:, ::-1]
    else:
        padded[:height, :width] = img
    return np.ascontiguousarray(cv2.LUT(padded, LEVELS).transpose(2, 0, 1))


def objects_first(box: np.ndarray, num_gts: int) -> np.ndarray:
    """Return rows (n, 6) int32; if there are more than `num_gts`, crowds come after objects.

    A batch takes only the first `num_gts`, and a crowd must not take an object's place.
    """
    if len(box) <= num_gts:
        return box
    return box[np.argsort(box[:, 5] != 0, kind="stable")]


def _pad_annotation(box: np.ndarray, num_gts: int) -> np.ndarray:
    """Return the first `num_gts` rows of (n, 6) int32, filled up with padding rows."""
    rows = np.tile(np.array(PADDING_BOX, np.int32), (num_gts, 1))
    kept = np.asarray(box, np.int32).reshape(-1, 6)[:num_gts]
    rows[: len(kept)] = kept
    return rows


def preprocess_fn(
    image: np.ndarray, box: np.ndarray, is_training: bool, config: Any, rng: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Prepare one sample as the network takes it.

    Args:
        image: (h, w, 3) uint8, RGB.
        box: (n, 6) int32 of x1, y1, x2, y2, class, iscrowd, in pixels of `image`.
        is_training: whether to augment; evaluation draws no random numbers.
        config: the keys img_width, img_height, keep_ratio, flip_ratio, expand_ratio, num_gts.
        rng: a `numpy.random.RandomState`; None uses numpy's global one.

    Returns:
        image (3, img_height, img_width) float32; image_shape float32: (height, width, 1) of the
        network's input in training, (height, width, scale of y, scale of x) of the original in
        evaluation; boxes (num_gts, 4) float32; labels (num_gts,) int32, -1 in padding rows;
        valid (num_gts,) bool, False for padding and crowds.
    """
    rng = np.random if rng is None else rng
    rows = _pad_annotation(box, config.num_gts)
    boxes, labels, valid = rows[:, :4], rows[:, 4], rows[:, 5] == 0
    flip = False
    if is_training:
        flip = rng.rand() < config.flip_ratio
        if rng.rand() < config.expand_ratio:
            image, boxes, labels = Expand()(image, boxes, labels, rng)
    image, boxes, shape = _resize(image, boxes, is_training, config)
    if flip:
        boxes = boxes.copy()
        boxes[:, 0::2] = config.img_width - boxes[:, 2::-2] - 1
    return (
        _network_image(image, flip, config),
        np.array(shape, np.float32),
        boxes.astype(np.float32),
        labels.astype(np.int32),
        valid,
    )
