"""Names of images as programs write them into labels: the file that is meant, or how to fix it."""

import unicodedata
from collections import Counter

import pytest

from src.data.image_names import files_of, folder_of
from src.errors import UserError


def folder(tmp_path, *files):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(place, *names):
    notes: Counter = Counter()
    paths = files_of(names, place, place / "train.json", notes)
    return [path.relative_to(place.parent).as_posix() for path in paths], "; ".join(notes)


def umlaut(form):
    return unicodedata.normalize(form, "Zellenübersicht.jpg")


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("sub/a.jpg", "sub/a.jpg", ""),
        ("sub/a.jpg", "sub\\a.jpg", "backslashes"),
        ("sub/a.jpg", ".\\sub\\a.jpg", "backslashes"),
        ("my cell.jpg", "my%20cell.jpg", "percent-encoded"),
        ("细胞.jpg", "%E7%BB%86%E8%83%9E.jpg", "percent-encoded"),
        ("sub/my cell.jpg", "sub\\my%20cell.jpg", "percent-encoded"),
        ("50%25.jpg", "50%25.jpg", ""),
        ("IMG_1.jpg", "IMG_1.JPG", "case"),
        ("Sub/a.JPEG", "sub/A.jpeg", "case"),
        (umlaut("NFC"), umlaut("NFD"), "Unicode form"),
        (umlaut("NFD"), umlaut("NFC"), "Unicode form"),
        ("a.jpg", "../../label-studio/data/media/upload/4/a.jpg", "another machine"),
        ("a.jpg", "..\\..\\label-studio\\media\\upload\\4\\a.jpg", "another machine"),
        ("a.jpg", "C:\\Users\\me\\a.jpg", "another machine"),
        ("a.jpg", "/home/other/images/a.jpg", "another machine"),
        ("my cell.jpg", "https://host.example/a/my%20cell.jpg?token=1", "another machine"),
        ("a.jpg", "s3://bucket/images/a.jpg", "another machine"),
        ("my cell.jpg", "/data/local-files/?d=upload/my%20cell.jpg", "another machine"),
    ],
)
def test_a_name_that_is_spelled_otherwise_is_found_and_that_is_said(tmp_path, file, name, said):
    place = folder(tmp_path / "images", file)
    paths, notes = found(place, name)
    assert paths == [f"images/{file}"]
    assert said in notes and bool(said) == bool(notes)
    assert not said or repr(name) in notes
    assert folder_of([name], [tmp_path / "none", place], tmp_path / "train.json") == place


def test_a_folder_that_the_names_have_too_is_taken_once(tmp_path):
    place = folder(tmp_path / "export" / "images", "a.jpg")
    paths, notes = found(place, "images/a.jpg")
    assert paths == ["images/a.jpg"] and "begins with the folder" in notes
    assert folder_of(["export/images/a.jpg"], [place], tmp_path / "train.json") == place


def refusal(place, *names):
    with pytest.raises(UserError) as error:
        files_of(names, place, place / "train.json", Counter())
    return str(error.value)


@pytest.mark.parametrize(
    ("files", "name", "fix"),
    [
        (("export/images/a.jpg",), "a.jpg", "set image_dir to {}/export/images"),
        (("a.jpg",), "v1/a.jpg", "if that is the image, write 'a.jpg' into file_name"),
        (("a.png",), "a.jpg", "a.png is there: if that is the image"),
        (("a.jpg",), "a", "a.jpg is there: if that is the image"),
        (("a.jpg",), "3f2a91bc-a.jpg", "a.jpg is there: if that is the image"),
        (("a.jpg", "A.JPG"), "A.jpg", "A.JPG and a.jpg are there: write one of them"),
        (("other.jpg",), "a.jpg", "set image_dir to the folder that has them all"),
    ],
)
def test_a_name_that_is_not_clear_is_refused_with_what_is_there(tmp_path, files, name, fix):
    place = folder(tmp_path / "images", "b.jpg", *files)
    said = refusal(place, "b.jpg", name)
    assert "1 of the 2 images" in said and fix.format(place) in said
    with pytest.raises(UserError) as error:
        folder_of([name], [place], tmp_path / "train.json")
    assert fix.format(place).split(" that has")[0] in str(error.value).replace("their", "the")


def test_two_names_that_would_be_one_file_are_refused(tmp_path):
    place = folder(tmp_path / "images", "a.jpg")
    said = refusal(place, "http://host.example/1/a.jpg", "http://host.example/2/a.jpg")
    assert "would both be" in said and "/1/a.jpg" in said and "/2/a.jpg" in said
    assert found(place, "a.jpg", "a.jpg")[0] == ["images/a.jpg"] * 2


def test_a_folder_one_above_is_named(tmp_path):
    folder(tmp_path, "a.jpg", "images/b.jpg")
    said = refusal(tmp_path / "images", "b.jpg", "a.jpg")
    assert f"{tmp_path / 'a.jpg'} is there: set image_dir to {tmp_path}" in said


def test_images_outside_of_the_folder_are_counted_with_the_first(tmp_path):
    place = folder(tmp_path / "images", "a.jpg", "sub/b.jpg")
    other = folder(tmp_path / "private", "c.jpg", "d.jpg") / "c.jpg"
    (place / "link.jpg").symlink_to(other)
    (place / "within.jpg").symlink_to(place / "a.jpg")
    (place / "folder").symlink_to(other.parent)
    notes = Counter()
    names = ["a.jpg", "sub/b.jpg", "sub/../a.jpg", "within.jpg", str(place / "a.jpg")]
    files_of(names, place, place / "train.json", notes)
    assert not notes
    linked = tmp_path / "linked"
    linked.symlink_to(place)
    files_of(names[:4], linked, place / "train.json", notes)
    assert not notes
    outside = ["link.jpg", "../private/c.jpg", str(other), "folder/d.jpg"]
    paths = files_of([*names, *outside], place, place / "train.json", notes)
    assert len(paths) == 9
    assert notes == {f"that lie outside of {place}, first {other}": 4}
