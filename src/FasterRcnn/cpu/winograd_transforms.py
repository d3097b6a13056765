"""The transforms of Winograd filtering F(4x4, 3x3), as compiled kernels.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4; convolution.py
says how the kernels work together. The points of interpolation are 0, +-a, +-b and infinity with
a = 5/8 and b = 3/2, which lose little in single precision (Barabasz et al., "Error analysis and
improving the accuracy of Winograd convolution", 2020). With ' for the transpose, S = a^2 + b^2,
P = a^2 b^2, p = 1 / (2 a^2 (a^2 - b^2)) and q = 1 / (2 b^2 (b^2 - a^2)) the matrices are:

    filter G (6x3)         input B' (6x6)                     result A' (4x6)
    1/P  0    0            P   0       -S    0    1  0        1  1    1     1    1     0
    p    p a  p a^2        0   -a b^2  -b^2  a    1  0        0  a    -a    b    -b    0
    p   -p a  p a^2        0    a b^2  -b^2  -a   1  0        0  a^2  a^2   b^2  b^2   0
    q    q b  q b^2        0   -a^2 b  -a^2  b    1  0        0  a^3  -a^3  b^3  -b^3  1
    q   -q b  q b^2        0    a^2 b  -a^2  -b   1  0
    0    0    1            0   P       0     -S   0  1

In the code `A` and `B` are the numbers a and b, not these matrices. In G, B' and A the rows of +a
and -a, and those of +b and -b, differ in the sign of the odd columns only, so the kernels compute
an even and an odd sum for each pair of rows.

    take_weight    u = G g G'         3x3 filters to 6x6 points
    take_input     v = B' d B         6x6 patches, 4 pixels apart, to 6x6 points
    give_result    Y = A' m A         6x6 points to 4x4 tiles
    take_gradient  g = A dY A'        4x4 tiles of the result's gradient to 6x6 points
    give_weight    dg = G' sums G     6x6 points to the 3x3 filters' gradient

The last two are the adjoints of give_result and take_weight. A transform of two axes is a transform
of columns and then of rows, or the other way round, by helpers that transform one axis. Arrays of
points are (36, channels, tiles) or (36, O, I), point SPAN * y + x being row y and column x of the
6x6. The last axis of every inner loop is contiguous in memory, so that the loops become vector
instructions.

Each kernel works on channels `start` to `end` of its output; `first` to `last` are rows of tiles,
counted through all images.
"""

from __future__ import annotations

import numpy as np

from src.FasterRcnn.cpu.compiled import compiled

TILE = 4  # side of a tile of the result
SPAN = TILE + 2  # side of the patch of the input that it depends on
PRODUCTS = SPAN * SPAN  # multiplications per tile, input channel and output channel
F32 = np.float32
A, B = F32(5 / 8), F32(3 / 2)
A2, B2, A3, B3 = A * A, B * B, A * A * A, B * B * B
SUM2, PRODUCT2 = A2 + B2, A2 * B2
# The scales 1/P, p and q of G.
WEIGHT_0 = F32(1) / PRODUCT2
WEIGHT_A = F32(1) / (F32(2) * A2 * (A2 - B2))
WEIGHT_B = F32(1) / (F32(2) * B2 * (B2 - A2))


@compiled
def take_weight(start, end, weight, turned, u) -> None:
    """Transform filters `start` to `end` of `weight` (O, I, 3, 3) into `u` (36, O, I).

    `turned` turns each filter by 180 degrees. Each filter's input channels become the last axis
    first, so that the inner loops run along them.
    """
    inputs = weight.shape[1]
    w = np.empty((3, 3, inputs), np.float32)
    t = np.empty((SPAN, 3, inputs), np.float32)
    for o in range(start, end):
        for i in range(inputs):
            for y in range(3):
                for x in range(3):
                    if turned:
                        w[y, x, i] = weight[o, i, 2 - y, 2 - x]
                    else:
                        w[y, x, i] = weight[o, i, y, x]
        for x in range(3):
            _weight_points(w[0, x], w[1, x], w[2, x], t[:, x])
        for y in range(SPAN):
            _weight_points(t[y, 0], t[y, 1], t[y, 2], u[SPAN * y : SPAN * (y + 1), o])


@compiled
def _weight_points(w0, w1, w2, out):
    # Multiply three rows by G: `out` (6, n).
    for i in range(len(w0)):
        even, odd = w0[i] + A2 * w2[i], A * w1[i]
        out[0, i] = WEIGHT_0 * w0[i]
        out[1, i] = WEIGHT_A * (even + odd)
        out[2, i] = WEIGHT_A * (even - odd)
        even, odd = w0[i] + B2 * w2[i], B * w1[i]
        out[3, i] = WEIGHT_B * (even + odd)
        out[4, i] = WEIGHT_B * (even - odd)
        out[5, i] = w2[i]


@compiled
def give_weight(start, end, sums, weight) -> None:
    """Fill the filters' gradient `weight` (O, I, 3, 3) from `sums` (36, O, I) over all tiles."""
    inputs = weight.shape[1]
    t = np.empty((3, SPAN, inputs), np.float32)
    w = np.empty((3, 3, inputs), np.float32)
    for o in range(start, end):
        for x in range(SPAN):
            _weight_back(sums[x::SPAN, o], t[:, x])
        for y in range(3):
            _weight_back(t[y], w[y])
        for i in range(inputs):
            for y in range(3):
                for x in range(3):
                    weight[o, i, y, x] = w[y, x, i]


@compiled
def _weight_back(s, out):
    # Multiply six rows `s` (6, n) by the transpose of G: `out` (3, n).
    for i in range(s.shape[1]):
        sum_a, dif_a = WEIGHT_A * (s[1, i] + s[2, i]), WEIGHT_A * (s[1, i] - s[2, i])
        sum_b, dif_b = WEIGHT_B * (s[3, i] + s[4, i]), WEIGHT_B * (s[3, i] - s[4, i])
        out[0, i] = WEIGHT_0 * s[0, i] + sum_a + sum_b
        out[1, i] = A * dif_a + B * dif_b
        out[2, i] = A2 * sum_a + B2 * sum_b + s[5, i]


@compiled
def take_input(start, end, x, first, last, v) -> None:
    """Transform the patches of `x` (B, I, H, W) into `v` (36, I, tiles).

    A patch is a tile with a rim of one pixel. `patch` holds a whole row of them, which overlap by
    2 columns. Its columns left and right of the map stay zero, also through `_input_points_down`,
    which works on each column by itself; rows above and below the map are set to zero.
    """
    height, width = x.shape[2], x.shape[3]
    tiles, rows = -(-width // TILE), -(-height // TILE)
    patch = np.zeros((SPAN, TILE * tiles + 2), np.float32)
    for c in range(start, end):
        for row in range(first, last):
            image, top = row // rows, row % rows * TILE - 1
            for y in range(SPAN):
                if 0 <= top + y < height:
                    patch[y, 1 : width + 1] = x[image, c, top + y]
                else:
                    patch[y] = 0
            _input_points_down(patch)
            begin = (row - first) * tiles
            for y in range(SPAN):
                _input_points_along(
                    patch[y], v[SPAN * y : SPAN * (y + 1), c, begin : begin + tiles]
                )


@compiled
def _input_points_down(d):
    # Multiply the six rows of `d` (6, n) by the transpose of B, in place.
    for i in range(d.shape[1]):
        d0, d1, d2, d3, d4, d5 = d[0, i], d[1, i], d[2, i], d[3, i], d[4, i], d[5, i]
        d[0, i] = PRODUCT2 * d0 - SUM2 * d2 + d4
        even, odd = d4 - B2 * d2, A * (d3 - B2 * d1)
        d[1, i] = even + odd
        d[2, i] = even - odd
        even, odd = d4 - A2 * d2, B * (d3 - A2 * d1)
        d[3, i] = even + odd
        d[4, i] = even - odd
        d[5, i] = PRODUCT2 * d1 - SUM2 * d3 + d5


@compiled
def _input_points_along(d, out):
    # Multiply each patch's six values of one row `d` by the transpose of B: `out` (6, tiles).
    for t in range(out.shape[1]):
        i = TILE * t
        d1, d2, d3, d4 = d[i + 1], d[i + 2], d[i + 3], d[i + 4]
        out[0, t] = PRODUCT2 * d[i] - SUM2 * d2 + d4
        even, odd = d4 - B2 * d2, A * (d3 - B2 * d1)
        out[1, t] = even + odd
        out[2, t] = even - odd
        even, odd = d4 - A2 * d2, B * (d3 - A2 * d1)
        out[3, t] = even + odd
        out[4, t] = even - odd
        out[5, t] = PRODUCT2 * d1 - SUM2 * d3 + d[i + 5]


@compiled
def take_gradient(start, end, grad, first, last, g) -> None:
    """Transform the tiles of the result's gradient (B, O, H, W) into `g` (36, O, tiles).

    These tiles do not overlap; what lies outside the map is zero.
    """
    height, width = grad.shape[2], grad.shape[3]
    tiles, rows = -(-width // TILE), -(-height // TILE)
    patch = np.zeros((TILE, TILE * tiles), np.float32)
    t = np.empty((SPAN, TILE * tiles), np.float32)
    for c in range(start, end):
        for row in range(first, last):
            image, top = row // rows, row % rows * TILE
            for y in range(TILE):
                if top + y < height:
                    patch[y, :width] = grad[image, c, top + y]
                else:
                    patch[y] = 0
            _gradient_points(patch[0], patch[1], patch[2], patch[3], t)
            begin = (row - first) * tiles
            for y in range(SPAN):
                d = t[y]
                _gradient_points(
                    d[0::TILE],
                    d[1::TILE],
                    d[2::TILE],
                    d[3::TILE],
                    g[SPAN * y : SPAN * (y + 1), c, begin : begin + tiles],
                )


@compiled
def _gradient_points(g0, g1, g2, g3, out):
    # Multiply four rows by A: `out` (6, n).
    for i in range(out.shape[1]):
        even, odd = g0[i] + A2 * g2[i], A * g1[i] + A3 * g3[i]
        out[0, i] = g0[i]
        out[1, i] = even + odd
        out[2, i] = even - odd
        even, odd = g0[i] + B2 * g2[i], B * g1[i] + B3 * g3[i]
        out[3, i] = even + odd
        out[4, i] = even - odd
        out[5, i] = g3[i]


@compiled
def give_result(start, end, m, first, last, result) -> None:
    """Fill tiles of `result` (B, O, H, W) from the products `m` (36, O, tiles).

    What a tile has outside the map is dropped.
    """
    height, width = result.shape[2], result.shape[3]
    tiles, rows = -(-width // TILE), -(-height // TILE)
    t = np.empty((TILE, SPAN, tiles), np.float32)
    line = np.empty((TILE, TILE * tiles), np.float32)
    for c in range(start, end):
        for row in range(first, last):
            image, top = row // rows, row % rows * TILE
            begin = (row - first) * tiles
            for x in range(SPAN):
                _result_down(m[x::SPAN, c, begin : begin + tiles], t[:, x])
            for y in range(TILE):
                _result_along(t[y], line[y])
            for y in range(min(TILE, height - top)):
                result[image, c, top + y] = line[y, :width]


@compiled
def _result_down(m, out):
    # Multiply six rows `m` (6, tiles) by the transpose of A: `out` (4, tiles).
    for i in range(m.shape[1]):
        sum_a, dif_a = m[1, i] + m[2, i], m[1, i] - m[2, i]
        sum_b, dif_b = m[3, i] + m[4, i], m[3, i] - m[4, i]
        out[0, i] = m[0, i] + sum_a + sum_b
        out[1, i] = A * dif_a + B * dif_b
        out[2, i] = A2 * sum_a + B2 * sum_b
        out[3, i] = A3 * dif_a + B3 * dif_b + m[5, i]


@compiled
def _result_along(m, out):
    # Do what `_result_down` does, and write the 4 values of each tile next to each other.
    for i in range(m.shape[1]):
        sum_a, dif_a = m[1, i] + m[2, i], m[1, i] - m[2, i]
        sum_b, dif_b = m[3, i] + m[4, i], m[3, i] - m[4, i]
        out[TILE * i] = m[0, i] + sum_a + sum_b
        out[TILE * i + 1] = A * dif_a + B * dif_b
        out[TILE * i + 2] = A2 * sum_a + B2 * sum_b
        out[TILE * i + 3] = A3 * dif_a + B3 * dif_b + m[5, i]
