"""Lines with more than a box: polygons, key points, confidences, tracks; never a wrong box."""

import math
import random

import pytest
from label_folders import boxes_of, write_files

from src.data.labels.yolo import read_yolo
from src.errors import UserError

BOX = (24, 12, 40, 36)
FIRST = "0.5 0.5 0.25 0.5"


def read(folder, lines, columns="auto", shape=None):
    """The boxes of one image with these lines."""
    data = f"train: .\nnames: [cell, wbc]\n{f'kpt_shape: {shape}' if shape else ''}\n"
    write_files(folder, {"data.yaml": data, "a.jpg": None, "a.txt": "\n".join(lines)})
    source = read_yolo(folder, columns=columns)
    return [box for _, box in boxes_of(source)["train"]["a.jpg"]], source.notes.lines()


@pytest.mark.parametrize(
    ("shape", "behind"),
    [
        ([2, 2], "0.45 0.40 0.55 0.40"),
        ([2, 3], "0.45 0.40 2 0.55 0.40 1"),
        ([1, 2], "0.9 0.9"),
        ([4, 2], "0 0 0 0 0.5 0.6 0.52 0.61"),
        ([17, 3], " ".join(["0.5 0.5 2"] * 17)),
    ],
)
def test_with_kpt_shape_the_first_four_are_the_box(tmp_path, shape, behind):
    found, _ = read(tmp_path, [f"0 {FIRST} {behind}", f"1 {FIRST}"], shape=shape)
    assert found == [BOX, BOX]
    with pytest.raises(UserError, match=r"expected: class x y .*kpt_shape is \["):
        read(tmp_path, [f"0 {FIRST} {behind} 0.5"], shape=shape)


def test_corners_in_place_of_middle_and_size_are_refused(tmp_path):
    corners = ["0 0.1 0.2 0.6 0.7", "0 0.4 0.4 0.95 0.9", "1 0.3 0.3 0.5 0.5"]
    with pytest.raises(UserError, match="look like class x1 y1 x2 y2: 2 of 3 boxes reach far"):
        read(tmp_path, corners)
    with pytest.raises(UserError, match="class x1 y1 x2 y2"):
        read(tmp_path, corners, columns="box")
    # One box that is no corner pair, or most within the image: they are what they should be.
    found, _ = read(tmp_path, [*corners, f"0 {FIRST}", "0 0.5 0.5 0.4 0.4"])
    assert len(found) == 5


@pytest.mark.parametrize(
    "behind",
    ["0.45 0.40 2 0.55 0.40 2", "0.45 0.40 2 0.55 0.40 1 0 0 0", "0.45 0.4 1", "0 0 0 0.5 0.5 2"],
)
def test_key_points_with_visibility_are_recognized(tmp_path, behind):
    found, notes = read(tmp_path, [f"0 {FIRST} {behind}"] * 3)
    assert found == [BOX] * 3
    assert any(line.startswith("3 boxes with key points behind them") for line in notes)


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        ("0.45 0.40 0.55 0.40", "key points; write kpt_shape"),
        ("0.45 0.40 0.55 0.40 0.50 0.60 0.52 0.61", "key points; write kpt_shape"),
        ("0.05 0.95 0.95 0.05", "key points; write kpt_shape"),  # far from their box
        ("0.45 0.40", "key points; write kpt_shape"),
        ("0.45 0.40 1 0.55 0.40 1", "key points; write kpt_shape"),
        ("0.91", "a confidence, a track or an angle; give --columns=box"),
        ("17", "a confidence, a track or an angle; give --columns=box"),
        ("0.91 1", "a confidence and a track; give --columns=box"),
        ("0.88 0", "a confidence and a track; give --columns=box"),
        ("1 0.88", "a confidence and a track; give --columns=box"),
        ("0.9 0.8", "key points; write kpt_shape"),
        ("0.88 57", "a confidence and a track; give --columns=box"),
        ("0.88 1 0.3", "columns; give --columns=box"),
    ],
)
def test_what_may_be_columns_behind_a_box_is_refused_with_the_fix(tmp_path, behind, words):
    lines = [f"0 {FIRST} {behind}", f"1 0.25 0.25 0.125 0.25 {behind}"]
    if words.startswith("key"):
        lines = lines[:1]
    with pytest.raises(UserError, match=f"a.txt, line 1: .*{words}"):
        read(tmp_path, lines)
    assert read(tmp_path, lines, "box")[0][0] == BOX


@pytest.mark.parametrize(
    "line", ["0 0.97 0.5 0.2 0.3 0.9 1", "0 0.97 0.5 0.14 0.3 0.95 0.5 0.96 0.4"]
)
def test_a_box_at_the_edge_of_the_image_is_still_one(tmp_path, line):
    with pytest.raises(UserError, match="--columns=box"):
        read(tmp_path, [line])


def test_a_tracker_that_lost_a_track_now_and_then_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 1: 6 numbers.*line 2: 7 numbers"):
        read(tmp_path, [f"0 {FIRST} 0.9", f"0 {FIRST} 0.9 0.3"])


def polygon(rng, corners, span=0.4):
    """Corners around a middle, and the box around them in pixels of 64x48."""
    x, y, size = rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95), rng.uniform(0.02, span)
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(corners))
    points = [
        (min(max(x + size * math.cos(a), 0), 1), min(max(y + size * math.sin(a), 0), 1))
        for a in angles
    ]
    xs, ys = zip(*points)
    return (
        "0 " + " ".join(f"{v:.6f}" for point in points for v in point),
        (min(xs) * 64, min(ys) * 48, max(xs) * 64, max(ys) * 48),
    )


@pytest.mark.parametrize("seed", range(5))
def test_polygons_of_many_corners_are_the_boxes_around_them(tmp_path, seed):
    rng = random.Random(seed)
    both = [polygon(rng, rng.randrange(3, 12)) for _ in range(20)]
    found, _ = read(tmp_path, [line for line, _ in both] + [f"1 {FIRST}"])
    assert found[:-1] == [pytest.approx(box, abs=1e-3) for _, box in both] and found[-1] == BOX


@pytest.mark.parametrize("seed", range(5))
def test_oriented_boxes_are_the_boxes_around_them(tmp_path, seed):
    rng, lines, boxes = random.Random(seed), [], []
    for _ in range(1 + 4 * seed):
        x, y, w, h = (
            rng.uniform(*ends) for ends in ((0.3, 0.6), (0.3, 0.6), (0.02, 0.2), (0.02, 0.2))
        )
        c, s = math.cos(rng.uniform(0, 6)), math.sin(rng.uniform(0, 6))
        points = [(x + i * w * c - j * h * s, y + i * w * s + j * h * c)
                  for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
        xs, ys = zip(*points)
        lines.append("1 " + " ".join(f"{v:.6f}" for point in points for v in point))
        edges = (min(xs) * 64, min(ys) * 48, max(xs) * 64, max(ys) * 48)
        ends = (0, 0, 64, 48)
        boxes.append(tuple(min(max(v, 0), ends[2 + n % 2]) for n, v in enumerate(edges)))
    found, _ = read(tmp_path, lines)
    assert found == [pytest.approx(box, abs=1e-3) for box in boxes]


@pytest.mark.parametrize("seed", range(40))
def test_random_key_points_are_never_a_wrong_box(tmp_path, seed):
    rng = random.Random(seed)
    number, each, lines, boxes = rng.randrange(1, 18), rng.choice([2, 3]), [], []
    for _ in range(rng.choice([1, 2, 5, 30])):
        w, h = rng.uniform(0.05, 0.6), rng.uniform(0.05, 0.6)
        x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
        points = []
        for _ in range(number):
            out = 1.3 if rng.random() < 0.1 else 1  # some are outside of the box
            points += [min(max(x + out * w * (rng.random() - 0.5), 0), 1)]
            points += [min(max(y + out * h * (rng.random() - 0.5), 0), 1)]
            points += [rng.choice([0, 1, 2])] if each == 3 else []
        lines.append("0 " + " ".join(f"{v:g}" for v in (x, y, w, h, *points)))
        boxes.append(tuple(round(v, 3) for v in ((x - w / 2) * 64, (y - h / 2) * 48,
                                                 (x + w / 2) * 64, (y + h / 2) * 48)))  # fmt: skip
    try:
        found, _ = read(tmp_path, lines)
    except UserError as error:
        assert "--columns=box" in str(error)
        found, _ = read(tmp_path, lines, "box")
    assert found == [pytest.approx(box, abs=2e-3) for box in boxes]


def test_the_user_decides_where_the_lines_leave_it_open(tmp_path):
    line = "0 0.5 0.5 0.52 0.5 0.52 0.52 0.5 0.53"
    with pytest.raises(UserError, match="--columns=polygon"):
        read(tmp_path, [line])
    assert read(tmp_path, [line], "polygon")[0] == [(32, 24, 33.28, 25.44)]
    assert read(tmp_path, [line], "box")[0] == [(15.36, 12, 48.64, 36)]
    with pytest.raises(UserError, match="6 numbers, expected"):
        read(tmp_path, [f"0 {FIRST} 0.5"], "polygon")


@pytest.mark.parametrize("shape", ["3", "[2]", "[0, 2]", "[2, 4]", "[a, b]"])
def test_a_bad_kpt_shape_is_named(tmp_path, shape):
    with pytest.raises(UserError, match="kpt_shape is .*, expected like"):
        read(tmp_path, [f"0 {FIRST}"], shape=shape)
