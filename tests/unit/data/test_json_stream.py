"""A json that is read in chunks: the content and the errors of json itself."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import json_stream
from src.data.json_stream import read_json

TEXT = json.dumps(
    {
        "info": {"name": "Zelle \u00e4\u2028\U0001f600\n", "none": {}},
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": -2.5e3}],
        "annotations": [{"image_id": 1, "polygon": [[1.5, 2, float("nan")]]}, 10**40, True, '\\"'],
        "categories": [],
    },
    ensure_ascii=False,
    indent=1,
)


class Kept(list):
    add = list.append


def outcome(read):
    try:
        return repr(read())
    except (ValueError, RecursionError) as error:
        return str(error)


def same_as_json(folder, text, chunk):
    path = folder / "a.json"
    path.write_bytes(text.encode())
    before, json_stream.CHUNK = json_stream.CHUNK, chunk
    try:
        streamed = outcome(lambda: read_json(path, {"annotations": Kept}))
    finally:
        json_stream.CHUNK = before
    assert streamed == outcome(lambda: json.loads(text))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10_000])
def test_the_content_is_that_of_json_wherever_the_chunks_end(tmp_path, chunk):
    same_as_json(tmp_path, TEXT, chunk)
    same_as_json(tmp_path, json.dumps(json.loads(TEXT)), chunk)


@given(st.integers(0, len(TEXT)), st.integers(0, 3), st.text('{}[],:"\\ \n1.e-tN', max_size=2))
@settings(max_examples=300, deadline=None)
def test_what_is_invalid_is_said_as_json_says_it(tmp_path_factory, place, cut, added):
    text = TEXT[:place] + added + TEXT[place + cut :]
    same_as_json(tmp_path_factory.getbasetemp(), text, 1 + place % 50)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "12",
        " 1 2",
        "{",
        "nul",
        "{}{}",
        '{"a": 1,}',
        '{"a" 1}',
        TEXT[:200],
        "[" * 9999,
    ]
    + ['{"annotations": 3}', '{"annotations": [1], "annotations": [2, 3]}'],
)
def test_odd_files_are_read_or_refused_as_by_json(tmp_path, text):
    same_as_json(tmp_path, text, 5)


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert list(read_json(tmp_path / "a.json", {})) == list(json.loads(TEXT))


def test_large_files_give_signs_of_life(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text(TEXT)
    monkeypatch.setattr(json_stream, "LARGE", 2)
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr("src.progress.FIRST_S", 0.0)
    read_json(tmp_path / "a.json", {"annotations": Kept})
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"reading {tmp_path / 'a.json'}, 0 MB"
    assert second.startswith("reading: 1 of ") and second.endswith(" megabytes")
