"""Checks that a MindRecord's description of its pages is possible: the reader trusts it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOB, RAW = "BLOB_DATA", "RAW_DATA"
INDEXED_TYPES = ("int32", "int64", "float32", "float64", "string")
SMALLEST, LARGEST = 2**14, 2**28  # bytes of a header or page
# All that an index is made of, as the engine's writer makes it; the fields that rows are found by
# stand behind the places. A view, a virtual table or a generated column would be a program.
INDEX_PARTS = {
    ("table", "INDEXES"): re.compile(
        r"CREATE TABLE INDEXES\( ROW_ID INT NOT NULL, PAGE_ID_RAW INT NOT NULL, "
        r"PAGE_OFFSET_RAW INT NOT NULL, PAGE_OFFSET_RAW_END INT NOT NULL, "
        r"ROW_GROUP_ID INT NOT NULL, PAGE_ID_BLOB INT NOT NULL, PAGE_OFFSET_BLOB INT NOT NULL, "
        r"PAGE_OFFSET_BLOB_END INT NOT NULL(,INC_\d+ INT, [A-Za-z_]\w* [A-Z]+)*"
        r", PRIMARY KEY\(ROW_ID(,INC_\d+)*\)\)",
        re.ASCII,
    ),
    ("table", "SHARD_NAME"): re.compile(r"CREATE TABLE SHARD_NAME\(NAME TEXT NOT NULL\)"),
    ("index", "sqlite_autoindex_INDEXES_1"): re.compile(""),
}


def check_layout(content: dict[str, Any], name: str) -> None:
    """Check that the header of the file `name` describes pages in order and within their bounds.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it does not.
    """
    files = [Path(address).name for address in content["shard_addresses"]]
    pages = content["page"] or []
    _require(content["version"] in ("2.0", "3.0") and len(content["schema"]) == 1)
    _require(isinstance(content["schema"][0]["blob_fields"], list))
    _require(_within(content["header_size"], SMALLEST, LARGEST))
    _require(_within(content["page_size"], SMALLEST, LARGEST))
    schema = content["schema"][0]
    for field in content["index_fields"] or []:
        column = field["index_field"]
        _require(field["schema_id"] == 0 and column not in schema["blob_fields"])
        _require(schema["schema"][column]["type"] in INDEXED_TYPES)
    shard = content["shard_id"]
    _require(_within(shard, 0, len(files) - 1))
    _require(name not in files or files[shard] == name)
    counts, rows = {BLOB: 0, RAW: 0}, 0
    for number, page in enumerate(pages):
        kind = page["page_type"]
        _require(page["page_id"] == number and page["shard_id"] == shard)
        _require(page["page_type_id"] == counts[kind])
        _require(_within(page["page_size"], 0, content["page_size"]))
        if kind == BLOB:
            _require(page["start_row_id"] == rows and _within(page["end_row_id"], rows, 2**31))
            rows = page["end_row_id"]
        counts[kind] += 1
    for page in pages:
        groups = page["row_group_ids"]
        if page["page_type"] == BLOB:
            _require(groups == [{"id": 0, "offset": 0}])
        for group in groups:
            _require(_within(group["id"], 0, counts[BLOB] - 1))
            _require(_within(group["offset"], 0, page["page_size"]))


@contextlib.contextmanager
def opened_index(index: Path) -> Iterator[sqlite3.Connection]:
    """Open the index file for reading, without executing anything that its author put there."""
    place = f"{index.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(place, uri=True)) as db:
        db.execute("PRAGMA trusted_schema=OFF")
        yield db


def check_index(db: sqlite3.Connection, content: dict[str, Any], name: str) -> int:
    """Count the rows in the index of the file `name`, and check that they fill its pages.

    The rows of a page follow each other without a gap: the reader decodes whatever lies between the
    two ends that the index gives, and a part of a row can crash it.

    Raises:
        ValueError: a row lies elsewhere, or the index belongs to another file or is broken.
        sqlite3.Error: it is not an index.
    """
    parts = db.execute("SELECT type, name, sql FROM sqlite_master").fetchmany(len(INDEX_PARTS) + 1)
    _require({(kind, part) for kind, part, _ in parts} == set(INDEX_PARTS))
    for kind, part, text in parts:
        _require(bool(INDEX_PARTS[kind, part].fullmatch(" ".join((text or "").split()))))
    _require(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    _require(db.execute("SELECT NAME FROM SHARD_NAME").fetchall() == [(name,)])
    pages = content["page"] or []
    rows = db.execute(
        "SELECT ROW_ID, ROW_GROUP_ID, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, "
        "PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
    )
    count, filled = 0, [0] * len(pages)
    for row_id, group, *places in rows:
        _require(row_id == count)
        for kind, (page, begin, end) in ((RAW, places[:3]), (BLOB, places[3:])):
            _require(_within(page, 0, len(pages) - 1) and pages[page]["page_type"] == kind)
            _require(begin == filled[page] and _within(end, begin, pages[page]["page_size"]))
            filled[page] = end
        _require(group == pages[places[3]]["page_type_id"])
        count += 1
    # With fewer or more rows than the file has it is the index of another writing.
    written = max((page["end_row_id"] for page in pages if page["page_type"] == BLOB), default=0)
    _require(count != written or filled == [page["page_size"] for page in pages])
    return count


def _within(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _require(sound: bool) -> None:
    if not sound:
        raise ValueError("the file contradicts itself")
