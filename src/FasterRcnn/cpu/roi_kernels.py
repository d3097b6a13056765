"""RoIAlign over a feature pyramid, forward and backward, as compiled CPU kernels.

RoIAlign: He et al., "Mask R-CNN", 2017, section 3. The choice of level: Lin et al., "Feature
Pyramid Networks for Object Detection", 2017, equation 1. Sampling as in MindSpore's ROIAlign with
`roi_end_mode=1`: one pixel is added to x2 and y2, and positions are not shifted by half a pixel.

Maps are transposed to channels-last, so that the inner loops run over contiguous channels. The
backward pass gives each thread its own channels: no two threads add to the same place, and the
order of the sums, hence the result, does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from src.FasterRcnn.cpu.compiled import compiled, run_parallel, split_range

ROIS_PER_JOB = 32
CHANNELS_PER_JOB = 64
TILE = 32


def pool_forward(
    features: list[np.ndarray],
    rois: np.ndarray,
    strides: np.ndarray,
    out_size: tuple[int, int],
    samples: int,
    finest_scale: int,
    threads: int,
) -> np.ndarray:
    """Pool each RoI from its own level.

    Args:
        features: maps (B, C, H, W) float32, finest first.
        rois: (N, 5) float32: image index, then x1, y1, x2, y2 in pixels of the image.
        strides: pixels per cell of each level, (levels,) float32.
        out_size: bins (vertical, horizontal).
        samples: sampling points per bin and axis.
        finest_scale: pixels; boxes of up to twice this size belong to the finest level.
        threads: the largest number of threads.

    Returns:
        (N, C, *out_size) float32; zero where the image index is out of range.
    """
    maps = tuple(channels_last(feature, threads) for feature in features)
    levels = roi_levels(rois, finest_scale, len(features))
    pooled = np.empty((len(rois), features[0].shape[1], *out_size), np.float32)
    jobs = [
        (maps, rois, levels, strides, samples, start, end, pooled)
        for start, end in split_range(len(rois), ROIS_PER_JOB)
    ]
    run_parallel(_pool_range, jobs, threads)
    return pooled


def pool_backward(
    grad_pooled: np.ndarray,
    rois: np.ndarray,
    map_shapes: list[tuple[int, ...]],
    strides: np.ndarray,
    samples: int,
    finest_scale: int,
    threads: int,
) -> list[np.ndarray]:
    """Return the gradient of `pool_forward` with respect to the feature maps.

    Args:
        grad_pooled: (N, C, bins_y, bins_x) float32.
        map_shapes: (B, H, W) of each level.

    Returns:
        One (B, C, H, W) float32 array per level.
    """
    channels = grad_pooled.shape[1]
    levels = roi_levels(rois, finest_scale, len(map_shapes))
    grads = tuple(np.empty((b, channels, h, w), np.float32) for b, h, w in map_shapes)
    step = min(CHANNELS_PER_JOB, -(-channels // threads))
    jobs = [
        (grad_pooled, rois, levels, strides, samples, start, end, grads)
        for start, end in split_range(channels, step)
    ]
    run_parallel(_spread_channels, jobs, threads)
    return list(grads)


def roi_levels(rois: np.ndarray, finest_scale: int, num_levels: int) -> np.ndarray:
    """Return the pyramid level (N,) int64 of each RoI: one up per doubling beyond `finest_scale`.

    A box of exactly 2, 4, 8 ... times that scale stays on the finer level.
    """
    sides = np.maximum(rois[:, 3:5] - rois[:, 1:3] + np.float32(1), 0)
    area = sides[:, 0] * sides[:, 1]
    limits = [(finest_scale * 2.0**level) ** 2 for level in range(1, num_levels)]
    return sum((area > np.float32(limit)).astype(np.int64) for limit in limits)


def channels_last(feature: np.ndarray, threads: int) -> np.ndarray:
    """Transpose (B, C, H, W) to a contiguous (B, H, W, C)."""
    batch, channels, height, width = feature.shape
    turned = np.empty((batch, height, width, channels), np.float32)
    step = -(-height // (4 * threads))
    jobs = [(feature, start, end, turned) for start, end in split_range(height, step)]
    run_parallel(_turn_rows, jobs, threads)
    return turned


@compiled
def _turn_rows(feature, row_start, row_end, turned):
    batch, channels, _, width = feature.shape
    for b in range(batch):
        for y in range(row_start, row_end):
            for x0 in range(0, width, TILE):
                x1 = min(x0 + TILE, width)
                for c0 in range(0, channels, TILE):
                    for x in range(x0, x1):
                        for c in range(c0, min(c0 + TILE, channels)):
                            turned[b, y, x, c] = feature[b, c, y, x]


@compiled
def _sampling_points(start, end, size, bins, samples):
    """Return the two cells next to each sampling point along one axis, and their weights.

    The weights are those of linear interpolation, divided by a bin's sampling points on this axis,
    so that a bin's sum is a mean. A point more than a cell outside the map has weight 0, and so
    has NaN.

    Returns:
        Cells (bins * samples, 2) int64 and weights (bins * samples, 2) float32.
    """
    cells = np.zeros((bins * samples, 2), np.int64)
    shares = np.zeros((bins * samples, 2), np.float32)
    parts = np.float32(samples)
    step = (end - start) / np.float32(bins)
    for point in range(bins * samples):
        inside = (np.float32(point % samples) + np.float32(0.5)) * step / parts
        position = start + np.float32(point // samples) * step + inside
        if position >= -1 and position <= size:
            position = min(max(position, np.float32(0)), np.float32(size - 1))
            cell = int(position)
            cells[point, 0] = cell
            cells[point, 1] = min(cell + 1, size - 1)
            shares[point, 1] = (position - np.float32(cell)) / parts
            shares[point, 0] = np.float32(1) / parts - shares[point, 1]
    return cells, shares


@compiled
def _sampling_grid(roi, stride, height, width, bins_y, bins_x, samples):
    """Return the sampling points of one RoI: cells and weights of the rows, then of the columns."""
    x1, y1 = roi[1] / stride, roi[2] / stride
    x2, y2 = (roi[3] + np.float32(1)) / stride, (roi[4] + np.float32(1)) / stride
    rows, row_shares = _sampling_points(y1, y2, height, bins_y, samples)
    cols, col_shares = _sampling_points(x1, x2, width, bins_x, samples)
    return rows, row_shares, cols, col_shares


@compiled
def _image_of(roi, batch):
    """Return the RoI's image index, or -1 where there is no such image."""
    return int(roi[0]) if roi[0] >= 0 and roi[0] < batch else -1


@compiled
def _pool_range(maps, rois, levels, strides, samples, roi_start, roi_end, pooled):
    """Pool RoIs roi_start to roi_end from channels-last maps."""
    _, channels, bins_y, bins_x = pooled.shape
    for n in range(roi_start, roi_end):
        source = maps[levels[n]]
        batch, height, width, _ = source.shape
        image = _image_of(rois[n], batch)
        sums = np.zeros((bins_y, bins_x, channels), np.float32)
        if image >= 0:
            rows, row_shares, cols, col_shares = _sampling_grid(
                rois[n], strides[levels[n]], height, width, bins_y, bins_x, samples
            )
            for i in range(len(rows)):
                for j in range(len(cols)):
                    total = sums[i // samples, j // samples]
                    _gather(source[image], rows[i], row_shares[i], cols[j], col_shares[j], total)
        for c in range(channels):
            for y in range(bins_y):
                for x in range(bins_x):
                    pooled[n, c, y, x] = sums[y, x, c]


@compiled
def _gather(source, row, row_share, col, col_share, total):
    """Add the bilinear value at one sampling point to `total` (C,)."""
    w00, w01 = row_share[0] * col_share[0], row_share[0] * col_share[1]
    w10, w11 = row_share[1] * col_share[0], row_share[1] * col_share[1]
    f00, f01 = source[row[0], col[0]], source[row[0], col[1]]
    f10, f11 = source[row[1], col[0]], source[row[1], col[1]]
    for c in range(len(total)):
        total[c] += w00 * f00[c] + w01 * f01[c] + w10 * f10[c] + w11 * f11[c]


@compiled
def _spread_channels(grad_pooled, rois, levels, strides, samples, c_start, c_end, grads):
    """Compute the gradient of all maps for channels c_start to c_end."""
    for level in range(len(grads)):
        batch, _, height, width = grads[level].shape
        turned = np.zeros((batch, height, width, c_end - c_start), np.float32)
        for n in range(len(rois)):
            image = _image_of(rois[n], batch)
            if levels[n] == level and image >= 0:
                received = grad_pooled[n, c_start:c_end]
                _spread_roi(received, rois[n], strides[level], samples, turned[image])
        for b in range(batch):
            for y in range(height):
                for c in range(c_start, c_end):
                    for x in range(width):
                        grads[level][b, c, y, x] = turned[b, y, x, c - c_start]


@compiled
def _spread_roi(received, roi, stride, samples, target):
    """Add the gradient of one RoI (C, bins_y, bins_x) to the map `target` (H, W, C)."""
    _, bins_y, bins_x = received.shape
    height, width, channels = target.shape
    turned = np.empty((bins_y, bins_x, channels), np.float32)
    for c in range(channels):
        for y in range(bins_y):
            for x in range(bins_x):
                turned[y, x, c] = received[c, y, x]
    rows, row_shares, cols, col_shares = _sampling_grid(
        roi, stride, height, width, bins_y, bins_x, samples
    )
    for i in range(len(rows)):
        for j in range(len(cols)):
            value = turned[i // samples, j // samples]
            _scatter(target, rows[i], row_shares[i], cols[j], col_shares[j], value)


@compiled
def _scatter(target, row, row_share, col, col_share, value):
    """Add `value` (C,) to the four cells around one sampling point."""
    for i in range(2):
        for j in range(2):
            weight = row_share[i] * col_share[j]
            cell = target[row[i], col[j]]
            for c in range(len(value)):
                cell[c] += weight * value[c]
