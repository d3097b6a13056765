"""Pictures with boxes: what is drawn where, what tells errors, and names of files."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from src.reporting.detections import Box, LabelledPicture
from src.reporting.pictures import (
    PictureNames,
    class_lines,
    contact_sheet,
    panels_of,
    picture_of,
)
from src.reporting.plots import colour


def grey(folder, size=(200, 100)):
    path = folder / "grey.png"
    Image.new("RGB", size, (128, 128, 128)).save(path)
    return path


def test_no_two_pictures_have_one_name():
    pairs = [("v1/f.jpg", 1), ("v2/f.jpg", "1"), ("f.png", 1.0), ("f_1.jpg", 2), ("f.jpg", "1_2")]
    pairs += [("contact.jpg", "sheet"), ("x.jpg", "a/b"), ("x.jpg", "a b"), ("X.jpg", "A b")]
    pairs += [("图" * 80 + ".jpg", 1), ("图" * 80 + ".png", 1), ("a.jpg", "9" * 300)]
    names = PictureNames()
    given = [names.name_of(LabelledPicture(id_, Path(name))) for name, id_ in pairs]
    assert given[:5] == ["f_1.png", "f_1_2.png", "f_1_0.png", "f_1_2_2.png", "f_1_2_3.png"]
    assert len({name.casefold() for name in [*given, "contact_sheet.png"]}) == len(pairs) + 1
    assert max(len(name.encode()) for name in given) < 200


def coloured(image, tone):
    """(height, width) bool: pixels of about this colour."""
    wanted = np.array(to_rgb(tone)) * 255
    return np.abs(np.asarray(image).astype(int) - wanted).max(axis=2) < 12


def test_a_frame_is_drawn_where_the_box_is_and_a_detections_is_broken(tmp_path):
    path = grey(tmp_path)
    box = {"category": 0, "name": "dog", "corner": (50.0, 40.0), "size": (80.0, 40.0)}
    picture = LabelledPicture(1, path, [Box(**box)], [Box(**box, score=0.75)])
    covered = []
    for panel in panels_of(picture, 0.5):
        scale = panel.image.width / 200
        blue = coloured(panel.image, colour(0))
        y = int(60 * scale)
        columns = np.flatnonzero(blue[y - 20 : y + 20].any(axis=0)) / scale
        assert np.abs(columns - 50).min() < 3 and np.abs(columns - 130).min() < 3
        assert not ((columns > 60) & (columns < 120)).any()
        edge = slice(int(47 * scale), int(53 * scale))
        covered.append(blue[y - 25 : y + 25, edge].any(axis=1).mean())
    assert covered[0] == 1 and 0.3 < covered[1] < 1


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    path = tmp_path / "a$x$ $.png"
    Image.new("RGB", (60, 90)).save(path)
    box = Box(0, "$\\frac$ _", (5.0, 5.0), (300.0, 20.0), crowd=True)
    assert picture_of(LabelledPicture(1, path, [box]), 0.5, overlay=True).size[1] > 90


def test_a_contact_sheet_holds_images_of_any_shape():
    sheet = contact_sheet([Image.new("RGB", size, "red") for size in ((90, 30), (30, 90), (9, 9))])
    assert sheet.size == (2400, 1200 + 1200)
    assert contact_sheet([Image.new("RGB", (90, 30))]).size == (1200, 400)


def box_of(outcome="", score=None, category=0, x=50.0, **more):
    name = ("RBC", "WBC")[category]
    return Box(category, name, (x, 40.0), (80.0, 40.0), score, outcome=outcome, **more)


def test_counts_by_class_stand_below_a_picture(tmp_path):
    truth = [box_of("found"), box_of("missed"), box_of("missed", category=1), box_of(crowd=True)]
    found = [box_of("found", 0.9), box_of("false", 0.8), box_of("false", 0.7)]
    picture = LabelledPicture(1, grey(tmp_path), truth, found)
    assert class_lines(picture) == [
        (0, "RBC: 1 found, 1 missed, 2 false"),
        (1, "WBC: 0 found, 1 missed, 0 false"),
    ]
    titles = [panel.titles for panel in panels_of(picture, 0.5)]
    assert titles == [
        ("4 labelled: 1 found, 2 missed",),
        ("3 detected, score ≥ 0.5: 1 right, 2 false",),
    ]
    (both,) = panels_of(picture, 0.5, overlay=True)
    assert [title.split(":")[0] for title in both.titles] == ["solid", "dashed"]


def test_a_picture_without_labels_counts_detections_alone(tmp_path):
    picture = LabelledPicture(1, grey(tmp_path), None, [box_of(score=0.9), box_of(score=0.8)])
    assert class_lines(picture) == [(0, "RBC: 2 detected")]
    (panel,) = panels_of(picture, 0.5)
    assert panel.titles == ("2 detected, score ≥ 0.5",)


@pytest.mark.parametrize(("outcome", "score"), [("missed", None), ("false", 0.9)])
def test_errors_differ_from_what_was_found_without_their_colour(tmp_path, outcome, score):
    """A thicker frame, and a white mark with a black rim on its corner."""
    drawn = {}
    for what in ("found", outcome):
        boxes = ([box_of(what)], []) if score is None else ([], [box_of(what, score)])
        panels = panels_of(LabelledPicture(1, grey(tmp_path), *boxes), 0.5)
        drawn[what] = panels[score is not None].image
    blue = {what: coloured(image, colour(0)) for what, image in drawn.items()}
    edge = slice(700 // 2, 360)
    assert blue[outcome][200, :][edge].sum() == blue["found"][200, :][edge].sum() == 0
    # The right frame, between the dashes' gaps: pixels of the whole side.
    side = (slice(180, 300), slice(505, 535))
    assert blue[outcome][side].sum() > 1.5 * blue["found"][side].sum()
    corner = (slice(148, 172), slice(188, 212))
    black = {what: coloured(image, "black")[corner].sum() for what, image in drawn.items()}
    assert black["found"] == 0 and black[outcome] > 10


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((64, 48), (800, 600)),
        ((1200, 900), (1200, 900)),
        ((4000, 3000), (1600, 1200)),
        ((4, 2000), (3, 1600)),
    ],
)
def test_an_image_is_drawn_at_its_own_size_within_limits(tmp_path, size, drawn):
    picture = LabelledPicture(1, grey(tmp_path, size), [], [])
    assert [panel.image.size for panel in panels_of(picture, 0.5)] == [drawn] * 2
    # Its text has room even where the image has none.
    assert picture_of(picture, 0.5).width >= 600


def test_lines_are_thinner_on_small_objects(tmp_path):
    def width(side):
        box = Box(0, "RBC", (100.0, 100.0), (side, side), outcome="missed")
        picture = LabelledPicture(1, grey(tmp_path, (800, 600)), [box], [])
        blue = coloured(panels_of(picture, 0.5)[0].image, colour(0))
        return blue[int(100 + side / 2), 90 : int(100 + side / 2)].sum()

    assert 1 <= width(16.0) < width(200.0)


def test_of_a_numerous_class_only_errors_are_named(tmp_path):
    """Their tags hide much of a crowded image, and the colour tells the class."""

    def tagged(count):
        boxes = [
            Box(0, "RBC", (100.0 * n + 20, 100.0), (40.0, 40.0), outcome="found")
            for n in range(count)
        ]
        picture = LabelledPicture(1, grey(tmp_path, (800, 200)), boxes, [])
        return coloured(panels_of(picture, 0.5)[0].image, colour(0))[:95].any()

    assert tagged(6) and not tagged(7)
