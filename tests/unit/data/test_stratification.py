"""The validation part: no image or group on both sides, classes in proportion, a seed's own."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.stratification import group_keys, hold_out, part_lines
from src.errors import UserError

boxes = st.dictionaries(st.integers(1, 5), st.integers(0, 4), max_size=3)
images = st.lists(st.tuples(boxes, st.integers(0, 12)), min_size=1, max_size=60)


@given(images, st.floats(0.01, 0.99), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_group_is_on_one_side_both_have_boxes_and_a_seed_repeats_itself(images, share, seed):
    counts, keys = [boxes for boxes, _ in images], [group for _, group in images]
    try:
        held = hold_out(counts, keys, share, seed)
    except UserError as error:
        assert "part would have no" in str(error) and f"--val {share:g}" in str(error)
        return
    assert held.shape == (len(images),)
    assert not {key for key, one in zip(keys, held) if one} & {
        key for key, one in zip(keys, held) if not one
    }
    for chosen in (held, ~held):
        assert any(any(counts[number].values()) for number in np.flatnonzero(chosen))
    assert (hold_out(counts, keys, share, seed) == held).all()


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_in_proportion(seed):
    rng = np.random.default_rng(seed)
    shares = np.array([60, 30, 6, 3, 1]) / 100
    counts = [Counter(rng.choice(5, rng.integers(0, 15), p=shares).tolist()) for _ in range(400)]
    total = sum(counts, Counter())
    held = hold_out(counts, range(400), 0.25, seed)
    chosen = sum((counts[number] for number in np.flatnonzero(held)), Counter())
    assert held.sum() == pytest.approx(100, abs=6)
    for kind, count in total.items():
        assert chosen[kind] == pytest.approx(count / 4, rel=0.1, abs=1.5)


def test_a_rare_class_is_on_both_sides_where_chance_would_often_leave_it_out():
    counts = [{1: 5} for _ in range(500)] + [{1: 4, 2: 1} for _ in range(8)]
    for seed in range(20):
        held = hold_out(counts, range(508), 0.15, seed)
        assert held[500:].sum() == 1 and abs(held.sum() - 76) <= 1


def test_the_seed_decides():
    counts = [{1: 1} for _ in range(50)]
    first, other = (hold_out(counts, range(50), 0.2, seed) for seed in (1, 2))
    assert (first != other).any() and first.sum() == other.sum() == 10


@pytest.mark.parametrize(
    ("counts", "keys", "words"),
    [
        (
            [{1: 1}] * 4,
            "abcd",
            "of 4 images the validation part would have no image; give a larger",
        ),
        ([{1: 1}] * 40, "a" * 40, "of 40 images in 1 groups the validation part would have no"),
        ([{1: 1}] + [{}] * 30, range(31), "the validation part would have no box"),
    ],
)
def test_a_part_without_anything_is_refused(counts, keys, words):
    with pytest.raises(UserError, match=words):
        hold_out(counts, list(keys), 0.1, 1)
    with pytest.raises(UserError, match=r"training part would have no .*give a smaller"):
        hold_out(counts, list(keys), 0.9, 1)


def test_a_pattern_groups_file_names():
    names = ["ward/p1_a.jpg", "ward/p1_b.jpg", "ward/p22_a.jpg"]
    assert group_keys(names) == names
    assert group_keys(names, r"/p(\d+)_") == [("1",), ("1",), ("22",)]
    assert group_keys(names, r"^(ward)/(p\d)") == [("ward", "p1"), ("ward", "p1"), ("ward", "p2")]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"p\d+_", r"it has no group; put .* in parentheses"),
        (r"p(\d+", "not a regular expression: missing \\)"),
        (r"p(\d)_", "1 of 3 file names have no match, first p22_a.jpg"),
        (r"p1_a|(b)", "2 of 3 file names have no match, first p1_a.jpg"),
    ],
)
def test_a_pattern_that_groups_nothing_is_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        group_keys(["p1_a.jpg", "p1_b.jpg", "p22_a.jpg"], pattern)


def test_the_table_names_images_and_boxes_and_a_class_that_cannot_be_measured():
    counts = [{1: 3}, {1: 2, 2: 1}, {1: 1}]
    lines = part_lines(counts, np.array([False, False, True]), {1: "cell", 2: "rare", 3: "none"})
    assert [line.split() for line in lines[:5]] == [
        ["training", "validation"], ["images", "2", "1"], ["cell", "5", "1"], ["rare", "1", "0"],
        ["none", "0", "0"],
    ]  # fmt: skip
    assert lines[5].startswith("WARNING: no box in the validation part of rare: ")
    many = part_lines(counts, np.array([False, False, True]), {n: f"c{n}" for n in range(1, 151)})
    assert len(many) == 104 and many[102] == "  ... 50 more classes" and "of c2:" in many[103]
