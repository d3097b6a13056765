"""MindRecord files: written so that a partial one never looks complete, and checked before use."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from src.data.coco_boxes import crowded_words, dropped_words
from src.data.mindrecord_layout import check_index, check_layout, opened_index
from src.errors import UserError
from src.files import no_link, parsed_json, reason

SCHEMA_NAME = "fasterrcnn_json"
KEY = "coco_classes"


def description(classes: Sequence[str]) -> str:
    """Return the schema's description with the class list; only its name if the list is empty."""
    return f"{SCHEMA_NAME} {json.dumps({KEY: list(classes)})}" if classes else SCHEMA_NAME


def described_classes(text: str) -> list[str] | None:
    """Return the class list in a description, or None if it has none.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: its content is not a class list.
    """
    name, _, rest = text.partition(" ")
    if name != SCHEMA_NAME or not rest:
        return None
    classes = json.loads(rest)[KEY]
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise ValueError("the class list is no list of names")
    return classes


def require_same_classes(path: Path, written: list[str] | None, wanted: Sequence[str]) -> None:
    """Check that each class number means the same in the MindRecord `path` and the configuration.

    Args:
        written: the list that the file was written with; None, if the file does not say, passes.
        wanted: coco_classes of the configuration.

    Raises:
        UserError: they differ; names the first number with two meanings.
    """
    wanted = list(wanted)
    if written is None or written == wanted:
        return
    raise UserError(
        f"{path}: was written with another class list than coco_classes: "
        f"{_difference(written, wanted)}; write it again with python generate_mindrecord.py "
        "--overwrite and this configuration, or give the configuration that it was written with "
        "(--config_path)"
    )


def _difference(written: list[str], wanted: list[str]) -> str:
    number = next(
        (n for n, pair in enumerate(zip(written, wanted)) if pair[0] != pair[1]),
        min(len(written), len(wanted)),
    )
    there, here = (
        repr(names[number]) if number < len(names) else f"none ({len(names)} names)"
        for names in (written, wanted)
    )
    return f"class {number} is {there} there and {here} here"


SCHEMA = {"image": {"type": "bytes"}, "annotation": {"type": "int32", "shape": [-1, 6]}}
BASE_NAME = "FasterRcnn.mindrecord"
HOW_TO_WRITE = "write it with python generate_mindrecord.py"
WRITE_AGAIN = "write it again with python generate_mindrecord.py --overwrite"
# Counts of each row, in the index, so that counting reads no image: its objects, the same by class
# ("1:12 3:1"), and the boxes that its labels had and the row does not.
OBJECTS, CLASS_OBJECTS, DROPPED = INDEXED = ("objects", "class_objects", "dropped")
_CLASS_COUNT = re.compile(r"(\d{1,6}):(\d{1,6})")
WRITTEN = {
    **SCHEMA,
    OBJECTS: {"type": "int32"},
    CLASS_OBJECTS: {"type": "string"},
    DROPPED: {"type": "int32"},
}
MIN_PAGE, MAX_PAGE = 32 * 2**20, 256 * 2**20  # bytes; the writer's default and upper limit
LARGEST_ROW = MAX_PAGE - 2**16
HEADER_LIMIT = 128 * 2**20


def shard_number(mindrecord_dir: str | Path) -> int:
    """Return the number of a folder named mindrecord_<number>.

    Raises:
        UserError: the folder has another name.
    """
    name = Path(mindrecord_dir).name
    found = re.fullmatch(r"mindrecord_(\d+)", name)
    if not found:
        raise UserError(
            f"mindrecord_dir {mindrecord_dir}: the folder is named '{name}', expected "
            "mindrecord_<number>, for example mindrecord_0: the number says which worker's it is"
        )
    return int(found.group(1))


def check_mindrecord(
    mindrecord_file: str | Path, batch_size: int = 1, classes: Sequence[str] | None = None
) -> int:
    """Check a MindRecord file quickly, without loading MindSpore; return its number of images.

    Args:
        mindrecord_file: .../FasterRcnn.mindrecord; its index .db is next to it.
        batch_size: the minimum number of images.
        classes: the class list to read it with; None skips this check.

    Raises:
        UserError: file or index is missing, not a MindRecord, truncated or renamed; it has other
            columns; the two come from different writes; it is empty, has fewer images than a batch,
            or was written with another class list.
    """
    path = Path(mindrecord_file)
    header = _read_header(path)
    if path.name not in header.files:
        raise UserError(
            f"{path}: was written as {header.files[0]} and is read by that name only; "
            "name it (and its .db) so again"
        )
    if classes is not None:
        require_same_classes(path, header.classes, classes)
    rows = 0
    for name in header.files:
        part = path.with_name(name)
        rows += _check_part(part, header if part == path else _read_header(part))
    if rows < max(batch_size, 1):
        raise UserError(
            f"{path}: holds {rows} images, fewer than one batch of {batch_size}; "
            + ("lower batch_size or give this silo more images" if rows else WRITE_AGAIN)
        )
    return rows


class _Header(NamedTuple):
    """A file's header: columns, files of the same write, rows, length, classes; and everything."""

    columns: list[str]
    files: list[str]
    rows: int
    end: int
    classes: list[str] | None
    content: dict[str, Any]


def _read_header(path: Path) -> _Header:
    """Read the description at the start of the file: 8 bytes of length, then json."""
    if not path.is_file():
        raise UserError(f"{path}: no such MindRecord file; {HOW_TO_WRITE}")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = parsed_json(file.read(length) if length < HEADER_LIMIT else b"")
        check_layout(content, path.name)
        header = _parse_header(content)
    except (
        struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: not a MindRecord file; {WRITE_AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not set(SCHEMA) <= set(header.columns):
        raise UserError(
            f"{path}: a MindRecord with the columns {header.columns}, expected {sorted(SCHEMA)}"
        )
    written = content["schema"][0]
    found = {name: written["schema"][name] for name in SCHEMA}
    if found != SCHEMA or written["blob_fields"] != sorted(SCHEMA):
        raise UserError(f"{path}: its columns are {found}, expected {SCHEMA}; {WRITE_AGAIN}")
    return header


def _parse_header(content: dict[str, Any]) -> _Header:
    start, step, pages = content["header_size"], content["page_size"], content["page"] or []
    return _Header(
        columns=sorted(content["schema"][0]["schema"]),
        files=[Path(name).name for name in content["shard_addresses"]],
        rows=max((p["end_row_id"] for p in pages if p["page_type"] == "BLOB_DATA"), default=0),
        end=max((start + p["page_id"] * step + p["page_size"] for p in pages), default=0),
        classes=described_classes(content["schema"][0]["desc"]),
        content=content,
    )


def _check_part(path: Path, header: _Header) -> int:
    """Check one file's index and length against its header; return its number of rows."""
    index = path.with_name(path.name + ".db")
    if not index.is_file():
        raise UserError(
            f"{index}: missing, so {path.name} is the rest of an interrupted writing; {WRITE_AGAIN}"
        )
    size = path.stat().st_size
    if size < header.end:
        raise UserError(
            f"{path}: cut off at {size} of {header.end} bytes; copy it, or {WRITE_AGAIN}"
        )
    if 0 < header.end < size:
        raise UserError(f"{path}: has {size} bytes, its header says {header.end}; {WRITE_AGAIN}")
    indexed = _indexed_rows(index, path.name, header) if header.rows else 0
    if indexed != header.rows:
        raise UserError(
            f"{index}: lists {indexed} images and {path.name} holds {header.rows}: they are not of "
            f"the same writing; {WRITE_AGAIN}"
        )
    return header.rows


def _indexed_rows(index: Path, name: str, header: _Header) -> int:
    try:
        with opened_index(index) as db:
            return check_index(db, header.content, name)
    except (sqlite3.Error, ValueError) as error:
        raise UserError(f"{index}: not the index of a MindRecord file; {WRITE_AGAIN}") from error


def written_classes(mindrecord_file: Path) -> list[str] | None:
    """Return the class list of a checked MindRecord, the background first; None if it has none."""
    return _read_header(mindrecord_file).classes


@dataclass
class ObjectCounts:
    """The objects of a MindRecord; crowds are none.

    Attributes:
        per_image: number of objects -> number of images with so many.
        per_class: class number -> number of objects; None if unknown.
        dropped: boxes that the labels of its images had and it does not; 0 if unknown.
    """

    per_image: Counter = field(default_factory=Counter)
    per_class: Counter | None = field(default_factory=Counter)
    dropped: int = 0

    def add(self, boxes: np.ndarray) -> None:
        """Count an image's rows (n, 6)."""
        counts = class_counts(boxes)
        self.per_image[sum(counts.values())] += 1
        if self.per_class is not None:
            self.per_class.update(counts)


def indexed_objects(mindrecord_file: Path) -> ObjectCounts | None:
    """Return the counts in the index of a checked MindRecord; None if it has none.

    Files of other writers have none, those of earlier versions no classes and no dropped boxes.
    """
    found = ObjectCounts()
    for name in _read_header(mindrecord_file).files:
        index = mindrecord_file.with_name(f"{name}.db")
        try:
            found.per_image.update({int(number): n for number, n in _grouped(index, OBJECTS)})
        except (sqlite3.Error, TypeError, ValueError):
            return None
        try:
            for text, images in _grouped(index, CLASS_OBJECTS):
                for number, count in _CLASS_COUNT.findall(text):
                    if found.per_class is not None:
                        found.per_class[int(number)] += int(count) * images
            found.dropped += sum(each * images for each, images in _grouped(index, DROPPED))
        except (sqlite3.Error, TypeError):
            found.per_class = None
    return found


def require_objects(mindrecord_file: Path, counts: ObjectCounts) -> None:
    """Check that there is anything to learn from.

    Raises:
        UserError: no image has an object.
    """
    if not any(counts.per_image):
        images = sum(counts.per_image.values())
        raise UserError(
            f"{mindrecord_file}: no box in its {images} images, so this silo has nothing to learn "
            f"from and does not join; correct its labels and class list, then {WRITE_AGAIN}"
        )


def odd_objects(counts: ObjectCounts, num_gts: int) -> list[str]:
    """Return warnings: most boxes of the labels left out, images with more than num_gts objects."""
    dropped = dropped_words(counts.dropped, sum(n * i for n, i in counts.per_image.items()))
    how = f"{dropped}: its conversion says why; correct labels or class list, then {WRITE_AGAIN}"
    return [*([how] if dropped else []), *filter(None, [crowded_words(counts.per_image, num_gts)])]


def _grouped(index: Path, column: str) -> list[tuple[Any, int]]:
    """Return the values of a column of an index, each with its number of rows."""
    name = f"{column}_0"
    with opened_index(index) as db:
        return db.execute(f"SELECT {name}, COUNT(*) FROM INDEXES GROUP BY {name}").fetchall()  # noqa: S608


def is_whole(mindrecord_file: Path) -> bool:
    """Return whether there is a readable MindRecord."""
    try:
        check_mindrecord(mindrecord_file)
    except UserError:
        return False
    return True


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` (created if missing) for one writer, and remove what a killed one left.

    Folders that were created here and are empty at the end are removed again.

    Raises:
        UserError: another process writes there, or the folder cannot be created.
    """
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    lock = folder / ".writing.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w", opener=no_link)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{folder}: cannot be made or written: {reason(error)}") from error
    with file:
        _take(lock, file)
        try:
            for rest in folder.glob(".*.writing"):
                if rest.is_symlink() or not rest.is_dir():
                    raise UserError(f"{rest}: is no folder that a killed writer left: remove it")
                shutil.rmtree(rest)
            yield
        finally:
            lock.unlink()
            for place in made:
                if any(place.iterdir()):
                    break
                place.rmdir()


def _take(lock: Path, file: IO[str]) -> None:
    """Lock `file`, opened from `lock`; the kernel releases it when the process ends.

    The second test detects a holder that removed the file between our open and our lock.
    """
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return
    raise UserError(f"{lock.parent}: another process is writing there; wait for it")


def write_rows(
    target: Path,
    batches: Iterable[list[dict[str, Any]]],
    file_num: int = 1,
    largest: int = 0,
    classes: Sequence[str] = (),
) -> None:
    """Write batches of rows as MindRecord `target`, in a folder next to it, then move it.

    The index is moved last, and an old one is removed first: whenever this is killed, an index is
    only next to the data that it belongs to. The names inside the files have no folder, so that
    moving them is safe.

    Args:
        target: the final path of the data file, in a folder locked by `locked_folder`.
        batches: lists of rows {"image": bytes, "annotation": (n, 6) int32}, written one by one.
        file_num: number of files; several files are numbered, target0, target1, ...
        largest: size in bytes of the largest row, which a page must hold.
        classes: the class list that the rows' numbers index; written into the file.
    """
    from mindspore.mindrecord import FileWriter
    from mindspore.mindrecord.common.exceptions import MindRecordException

    folder = target.parent / f".{target.name}.writing"
    folder.mkdir()
    try:
        writer = FileWriter(str(folder / target.name), file_num)
        writer.set_page_size(_page_size(largest))
        writer.add_schema(WRITTEN, description(classes))
        writer.add_index(list(INDEXED))
        for batch in batches:
            writer.write_raw_data(batch)
        writer.commit()
        _move_into_place(folder, target)
    except (RuntimeError, OSError, MindRecordException) as error:
        problem = next((line for line in str(error).splitlines() if "[ERROR]" in line), str(error))
        how = "look whether there is room, or choose another place"
        why = reason(error) if isinstance(error, OSError) else f"{problem}; {how}"
        raise UserError(f"{target}: could not be written: {why}") from error
    finally:
        shutil.rmtree(folder)


def _page_size(largest: int) -> int:
    size = MIN_PAGE
    while size < largest + 2**16:
        size *= 2
    if size > MAX_PAGE:
        raise UserError(
            f"an image of {largest} bytes does not fit into a MindRecord page of {MAX_PAGE}; "
            "store it smaller"
        )
    return size


def _move_into_place(folder: Path, target: Path) -> None:
    """Remove old indexes, then move the new data, then the new indexes."""
    written = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".db", path.name))
    for path in written:
        if path.suffix == ".db":
            (target.parent / path.name).unlink(missing_ok=True)
    for path in written:
        path.replace(target.parent / path.name)


def row(image: bytes, boxes: np.ndarray, dropped: int = 0) -> dict[str, Any]:
    """Make a row for `write_rows`.

    Args:
        image: the file's content.
        boxes: (n, 6) with at least one row.
        dropped: number of boxes in the image's labels that are not in `boxes`.
    """
    rows = np.ascontiguousarray(boxes, np.int32)
    counts = class_counts(rows)
    return {
        "image": image,
        "annotation": rows,
        OBJECTS: sum(counts.values()),
        CLASS_OBJECTS: " ".join(f"{number}:{count}" for number, count in sorted(counts.items())),
        DROPPED: dropped,
    }


def class_counts(boxes: np.ndarray) -> Counter:
    """Count an image's objects by class in its rows (n, 6).

    Crowds and the row of an empty image are no objects.
    """
    return Counter(boxes[boxes[:, 5] == 0, 4].astype(int).tolist())
