"""The tables of the classes: what is in them, and what a file may lack or hold."""

import json

import pytest

from src.evaluation.class_tables import (
    class_table,
    confusion_in,
    confusion_record,
    confusion_table,
    text_lines,
)

CONFUSION = [("RBC", "RBC", 14), ("RBC", "WBC", 1), ("RBC", None, 2), (None, "RBC", 2)]


def record(confusion, **more):
    return json.loads(json.dumps({"confusion": confusion_record(confusion, 0.5, 0.5), **more}))


def test_a_class_has_its_figures_and_counts_in_one_row():
    table = class_table(record(CONFUSION, per_class={"RBC": 0.5}, per_class_AP50={"RBC": 0.9}))
    names = ["class", "AP", "AP50", "objects", "found", "missed", "false", "recall", "precision"]
    assert table[0] == names
    assert table[1:] == [
        ["RBC", "0.500", "0.900", "17", "14", "3", "2", "0.82", "0.88"],
        ["WBC", "-", "-", "0", "0", "0", "1", "-", "0.00"],
    ]


def test_what_an_earlier_version_did_not_record_has_no_column():
    assert class_table({"per_class": {"dog": 0.25, "cat": None}}) == [
        ["class", "AP"],
        ["dog", "0.250"],
        ["cat", "-"],
    ]
    assert class_table({}) == [] and confusion_table({}) == []


def test_rows_are_what_is_labelled_and_columns_what_was_detected():
    assert confusion_table(record(CONFUSION)) == [
        ["labelled", "as RBC", "as WBC", "not detected"],
        ["RBC", "14", "1", "2"],
        ["WBC", "0", "0", "0"],
        ["nothing", "2", "0", ""],
    ]


def test_of_many_classes_the_most_frequent_errors_are_listed():
    confusion = [(f"class {n}", f"class {n + 1}", n + 1) for n in range(40)]
    table = confusion_table(record([*confusion, ("class 1", "class 1", 99)]))
    assert table[:2] == [["labelled", "detected", "times"], ["class 39", "class 40", "40"]]
    assert len(table) == 21


@pytest.mark.parametrize(
    "odd",
    [
        7, [], {"counts": 7}, {"counts": [7, [1, 2], ["a", "b", "c"], [None, None, 3]]},
        {"counts": [["a", "a", -1], ["a", ["b"], 1], ["a", "a", True], ["a", "a", 1e400]]},
    ],
)  # fmt: skip
def test_a_file_with_other_content_has_no_table(odd):
    assert confusion_in({"confusion": odd}) == []
    given = {"confusion": odd, "per_class": 3, "per_class_AP50": {"dog": "x"}}
    assert class_table(given) == [["class"], ["dog"]]


def test_lines_of_text_are_aligned():
    assert text_lines([["class", "AP"], ["a", "0.5"]]) == ["class   AP", "a      0.5"]
    assert text_lines([]) == []
