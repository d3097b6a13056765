"""Tags of boxes: next to them, over nobody's object, or left out."""

from src.reporting.picture_tags import Area, place_tags

WHOLE = Area(0, 0, 400, 300)


def size_of(text):
    return 10.0 * len(text), 20.0


def placed(boxes, texts, taken=()):
    return dict(place_tags(boxes, texts, size_of, WHOLE, taken))


def test_a_tag_stands_above_its_box_and_below_at_the_upper_edge():
    tags = placed([Area(50, 50, 100, 100), Area(200, 5, 250, 60)], [["RBC"], ["RBC"]])
    assert tags[0].area == Area(50, 30, 80, 50)
    assert tags[1].area == Area(200, 60, 230, 80)


def test_no_tag_hides_another_box_or_tag():
    boxes = [Area(x, y, x + 48, y + 48) for x in range(0, 400, 50) for y in range(0, 300, 50)]
    tags = placed(boxes, [["platelets 0.93", "0.93"]] * len(boxes))
    assert not tags
    boxes = [Area(x, y, x + 40, y + 40) for x in range(20, 350, 90) for y in range(30, 250, 70)]
    tags = placed(boxes, [["platelets 0.93", "0.93"]] * len(boxes))
    assert {tag.text for tag in tags.values()} >= {"0.93"}
    for number, tag in tags.items():
        others = [box for place, box in enumerate(boxes) if place != number]
        assert all(tag.area.common(box) <= 0.04 * box.size for box in others)
        tags_of_others = [one.area for place, one in tags.items() if place != number]
        assert not any(tag.area.common(area) for area in tags_of_others)


def test_the_first_boxes_get_the_places_and_marks_keep_theirs():
    box = Area(50, 50, 90, 90)
    tags = placed([box, box], [["first"], ["second"]])
    assert tags[0].area.top == 30 and tags[0].text == "first"
    assert placed([box], [["RBC"]], taken=[Area(45, 45, 55, 55)])[0].area == Area(60, 30, 90, 50)


def test_a_box_over_the_whole_image_is_named_in_its_corner_and_hinders_nobody():
    tags = placed([WHOLE, Area(50, 50, 100, 100)], [["field"], ["RBC"]])
    assert tags[0].area == Area(0, 0, 50, 20) and tags[1].area == Area(50, 30, 80, 50)


def test_a_box_without_a_text_has_no_tag():
    assert placed([Area(50, 50, 100, 100)], [[]]) == {}
