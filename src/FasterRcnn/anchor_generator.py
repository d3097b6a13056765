"""Anchor boxes of one pyramid level (Ren et al., "Faster R-CNN", section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class AnchorGenerator:
    """Make boxes of every scale and ratio, centred on each position of a feature map.

    Args:
        base_size: side of the square of scale 1 and ratio 1, in pixels.
        scales: multiples of `base_size`.
        ratios: height divided by width.
        scale_major: order of the anchors at one position: True puts all scales of a ratio next to
            each other (ratio by ratio), False all ratios of a scale.
        ctr: centre (x, y) of the anchors of the first position; None is `0.5 * (base_size - 1)`.
    """

    def __init__(
        self,
        base_size: float,
        scales: Sequence[float],
        ratios: Sequence[float],
        scale_major: bool = True,
        ctr: tuple[float, float] | None = None,
    ):
        self.base_size = base_size
        self.scales = np.asarray(scales, dtype=np.float64)
        self.ratios = np.asarray(ratios, dtype=np.float64)
        self.scale_major = scale_major
        self.ctr = ctr
        self.base_anchors = self.gen_base_anchors()

    def gen_base_anchors(self) -> np.ndarray:
        """Return the anchors of the first position, (A, 4) float64 x1, y1, x2, y2, whole pixels.

        A box of width w reaches from `centre - (w - 1) / 2` to `centre + (w - 1) / 2`.
        """
        middle = 0.5 * (self.base_size - 1)
        x_ctr, y_ctr = (middle, middle) if self.ctr is None else self.ctr
        h_ratios = np.sqrt(self.ratios)
        w_ratios = 1 / h_ratios
        if self.scale_major:
            widths = (self.base_size * w_ratios[:, None] * self.scales[None, :]).ravel()
            heights = (self.base_size * h_ratios[:, None] * self.scales[None, :]).ravel()
        else:
            widths = (self.base_size * self.scales[:, None] * w_ratios[None, :]).ravel()
            heights = (self.base_size * self.scales[:, None] * h_ratios[None, :]).ravel()
        half_w, half_h = 0.5 * (widths - 1), 0.5 * (heights - 1)
        corners = [x_ctr - half_w, y_ctr - half_h, x_ctr + half_w, y_ctr + half_h]
        return np.stack(corners, axis=-1).round()

    def grid_anchors(self, featmap_size: Sequence[int], stride: float = 16) -> np.ndarray:
        """Return the anchors of a whole map, (h * w * A, 4) float32: row by row, anchors innermost.

        Args:
            featmap_size: (h, w) of the feature map.
            stride: pixels from one position to the next.
        """
        height, width = featmap_size[0], featmap_size[1]
        shift_y, shift_x = np.meshgrid(
            np.arange(height) * stride, np.arange(width) * stride, indexing="ij"
        )
        shifts = np.stack([shift_x, shift_y, shift_x, shift_y], axis=-1).reshape(-1, 1, 4)
        return (shifts + self.base_anchors).reshape(-1, 4).astype(np.float32)
