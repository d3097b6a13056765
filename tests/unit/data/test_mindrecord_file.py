"""What is refused as a MindRecord, and that a killed writing never looks whole."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from coco_files import PROJECT, jpeg
from mindspore.mindrecord import FileWriter

from src.data import mindrecord
from src.data.coco import NO_BOX
from src.data.mindrecord import (
    SCHEMA,
    check_mindrecord,
    indexed_objects,
    is_whole,
    locked_folder,
    row,
    write_rows,
)
from src.dataset import count_objects
from src.errors import UserError

BOXES = np.array([[1, 2, 30, 20, 1, 0]], np.int32)
NAME = "FasterRcnn.mindrecord"

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from src.data.mindrecord import locked_folder, row, write_rows

def batches():
    for number in range(3):
        yield [row(b"x" * 100, np.zeros((1, 6), np.int32))]
    os.kill(os.getpid(), signal.SIGKILL)

target = Path(sys.argv[1])
with locked_folder(target.parent):
    write_rows(target, batches())
"""


def write(target: Path, count: int) -> Path:
    with locked_folder(target.parent):
        write_rows(target, [[row(jpeg(number), BOXES)] for number in range(count)])
    return target


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / NAME, 3)


@pytest.fixture
def copy(three, tmp_path):
    for path in three.parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / NAME


def refuse_index(path: Path, data: bytes) -> None:
    path.with_name(path.name + ".db").write_bytes(data)


def hide_query(path: Path) -> None:
    with sqlite3.connect(path.with_name(path.name + ".db")) as db:
        db.execute("ALTER TABLE INDEXES RENAME TO KEPT")
        db.execute("CREATE VIEW INDEXES AS SELECT * FROM KEPT")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_schema(*statements):
    def ruin(path):
        with sqlite3.connect(path.with_name(path.name + ".db")) as db:
            for statement in statements:
                db.execute(statement)

    return ruin


VIRTUAL = with_schema(
    "ALTER TABLE INDEXES RENAME TO KEPT", "CREATE VIRTUAL TABLE INDEXES USING fts4(ROW_ID)"
)
GENERATED = with_schema(
    "ALTER TABLE INDEXES ADD COLUMN x TEXT AS (printf('%.*c', 900000000, 'x')) VIRTUAL"
)
TRIGGER = with_schema("CREATE TRIGGER t AFTER INSERT ON INDEXES BEGIN DELETE FROM INDEXES; END")
ONE_MORE = with_schema("CREATE TABLE more(x)")
BY_NAME = with_schema("CREATE INDEX more ON INDEXES(abs(ROW_ID))")


@pytest.mark.parametrize(
    ("ruin", "message"),
    [
        (lambda p: p.unlink(), "no such MindRecord"),
        (lambda p: p.with_name(NAME + ".db").unlink(), "interrupted"),
        (lambda p: p.write_bytes(b""), "not a MindRecord"),
        (lambda p: p.write_bytes(b"hello" * 100), "not a MindRecord"),
        (lambda p: p.write_bytes(b"\x02" + b"\0" * 7 + b"{}"), "not a MindRecord"),
        (cut, "cut off"),
        (lambda p: refuse_index(p, b""), "not the index"),
        (lambda p: refuse_index(p, b"hello" * 1000), "not the index"),
        (hide_query, "not the index"),
        (VIRTUAL, "not the index"),
        (GENERATED, "not the index"),
        (TRIGGER, "not the index"),
        (ONE_MORE, "not the index"),
        (BY_NAME, "not the index"),
    ],
)
def test_corrupt_files_are_refused_at_once(copy, ruin, message):
    assert check_mindrecord(copy, 3) == 3
    ruin(copy)
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        check_mindrecord(copy)
    assert time.monotonic() - start < 1
    assert str(copy.parent) in str(error.value) and "\n" not in str(error.value)
    assert not is_whole(copy)


def test_renamed_files_are_refused(copy):
    other = copy.with_name("Other.mindrecord")
    copy.rename(other)
    copy.with_name(NAME + ".db").rename(other.with_name("Other.mindrecord.db"))
    with pytest.raises(UserError, match=f"was written as {NAME}"):
        check_mindrecord(other)


def test_fewer_images_than_a_batch_are_refused(three):
    with pytest.raises(UserError, match="3 images, fewer than one batch of 4"):
        check_mindrecord(three, 4)


def test_no_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="0 images"):
        check_mindrecord(write(tmp_path / NAME, 0))


def test_pair_of_two_writings_is_refused(copy, tmp_path):
    other = write(tmp_path / "other" / NAME, 2)
    shutil.copy(other.with_name(NAME + ".db"), copy.with_name(NAME + ".db"))
    with pytest.raises(UserError, match="same writing"):
        check_mindrecord(copy)


@pytest.mark.parametrize("column", ["PAGE_OFFSET_RAW_END", "PAGE_OFFSET_BLOB_END"])
@pytest.mark.parametrize("number", [0, 2])
def test_an_index_that_gives_a_part_of_a_row_is_refused(copy, number, column):
    with contextlib.closing(sqlite3.connect(copy.with_name(NAME + ".db"))) as db, db:
        db.execute(f"UPDATE INDEXES SET {column} = {column} - 5 WHERE ROW_ID = {number}")
    with pytest.raises(UserError, match="not the index of a MindRecord file"):
        check_mindrecord(copy)


def test_other_columns_are_refused(tmp_path, monkeypatch):
    columns = {"data": {"type": "bytes"}, "objects": {"type": "int32"}}
    monkeypatch.setattr(mindrecord, "WRITTEN", columns)
    monkeypatch.setattr(mindrecord, "INDEXED", ["objects"])
    write_rows(tmp_path / NAME, [[{"data": b"1", "objects": 1}]])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"columns \['data', 'objects'\]"):
        check_mindrecord(tmp_path / NAME)


def crowded_rows():
    """Rows of 1, 3 and no objects of two classes; the second has a crowd too."""
    one, other = [1, 2, 30, 20, 1, 0], [1, 2, 30, 20, 12, 0]
    images = ([one], [other, one, other, [*one[:5], 1]], NO_BOX)
    return [row(jpeg(), np.array(rows), dropped=2) for rows in images]


def test_the_number_of_objects_is_read_from_the_index_or_else_from_the_rows(tmp_path):
    with locked_folder(tmp_path / "own"):
        write_rows(tmp_path / "own" / NAME, [crowded_rows()])
    assert indexed_objects(tmp_path / "own" / NAME) == count_objects(tmp_path / "own" / NAME)
    assert count_objects(tmp_path / "own" / NAME).dropped == 6
    (tmp_path / "other").mkdir()
    writer = FileWriter(str(tmp_path / "other" / NAME), 1)
    writer.add_schema(SCHEMA, "of another writer")
    writer.write_raw_data([{name: one[name] for name in SCHEMA} for one in crowded_rows()])
    writer.commit()
    assert check_mindrecord(tmp_path / "other" / NAME) == 3
    assert indexed_objects(tmp_path / "other" / NAME) is None
    for folder in ("own", "other"):
        found = count_objects(tmp_path / folder / NAME)
        assert found.per_image == {1: 1, 3: 1, 0: 1} and found.per_class == {1: 2, 12: 2}


@pytest.mark.parametrize("value", ["'x'", "NULL", "x'00'", "'1:1 " + "9" * 5000 + ":1'"])
def test_an_index_with_other_things_in_place_of_counts_gives_no_counts(copy, value):
    index = copy.with_name(NAME + ".db")
    with contextlib.closing(sqlite3.connect(index)) as db, db:
        db.execute(f"UPDATE INDEXES SET class_objects_0 = {value}, dropped_0 = {value}")
    assert check_mindrecord(copy) and not indexed_objects(copy).per_class
    with contextlib.closing(sqlite3.connect(index)) as db, db:
        db.execute(f"UPDATE INDEXES SET objects_0 = {value}")
    assert indexed_objects(copy) is None


def test_a_file_of_an_earlier_version_is_read_for_its_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(mindrecord, "WRITTEN", {**SCHEMA, "objects": {"type": "int32"}})
    monkeypatch.setattr(mindrecord, "INDEXED", ["objects"])
    kept = {"image", "annotation", "objects"}
    rows = [{name: one[name] for name in kept} for one in crowded_rows()]
    write_rows(tmp_path / NAME, [rows])
    monkeypatch.undo()
    assert check_mindrecord(tmp_path / NAME) == 3
    found = indexed_objects(tmp_path / NAME)
    assert found.per_image == {1: 1, 3: 1, 0: 1} and found.per_class is None
    assert count_objects(tmp_path / NAME).per_class == {1: 2, 12: 2}


@pytest.mark.parametrize("broken", [b'"schema_id":5', b'"schema_id":x'])
def test_an_index_of_a_column_that_is_not_there_is_refused(copy, broken):
    data = copy.read_bytes()
    assert b'"schema_id":0' in data
    copy.write_bytes(data.replace(b'"schema_id":0', broken))
    with pytest.raises(UserError, match="not a MindRecord file"):
        check_mindrecord(copy)


def test_killed_writer_leaves_nothing_that_looks_whole(tmp_path):
    target = tmp_path / "mindrecord_0" / NAME
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(target)], cwd=PROJECT, timeout=60
    )
    assert ended.returncode == -9
    assert not is_whole(target) and not target.exists()
    assert any(target.parent.iterdir())
    write(target, 2)
    assert check_mindrecord(target) == 2
    assert sorted(path.name for path in target.parent.iterdir()) == [NAME, NAME + ".db"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", range(1, 4))
def test_killed_while_replacing_leaves_nothing_that_looks_whole(
    copy, tmp_path, monkeypatch, moment
):
    new = write(tmp_path / "new" / NAME, 2)
    calls = []

    def at_most(operation):
        def step(*args, **kwargs):
            calls.append(operation)
            if len(calls) == moment:
                raise Killed
            return operation(*args, **kwargs)

        return step

    monkeypatch.setattr(Path, "replace", at_most(Path.replace))
    monkeypatch.setattr(Path, "unlink", at_most(Path.unlink))
    with pytest.raises(Killed):
        mindrecord._move_into_place(new.parent, copy)
    monkeypatch.undo()
    assert is_whole(copy) == (moment == 1)
    assert check_mindrecord(write(copy, 1)) == 1


def test_two_writers_do_not_meet(tmp_path):
    second = locked_folder(tmp_path)
    with locked_folder(tmp_path), pytest.raises(UserError, match="another process"):
        second.__enter__()


def test_failed_writing_leaves_no_folder(tmp_path):
    def broken():
        yield [row(jpeg(), BOXES)]
        raise UserError("broken on purpose")

    folder = tmp_path / "a" / "mindrecord_0"
    with pytest.raises(UserError, match="on purpose"), locked_folder(folder):
        write_rows(folder / NAME, broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".writing.lock", ".FasterRcnn.mindrecord.writing"])
def test_a_link_in_the_place_of_what_a_writer_makes_is_one_line(tmp_path, name):
    target, folder = tmp_path / "other", tmp_path / "mindrecord_0"
    target.mkdir()
    folder.mkdir()
    (target / "kept").touch()
    link = folder / name
    link.symlink_to(target / "kept" if name.endswith("lock") else target)
    refused = pytest.raises(UserError, match="link|no folder that a killed writer left: remove it")
    with refused, locked_folder(folder):
        pass
    assert [path.name for path in target.iterdir()] == ["kept"]
