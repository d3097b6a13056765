"""Corrupt files: every reader takes them or refuses them with one line, whatever is in them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from coco_files import jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data.coco import load_labels
from src.data.label_summary import FORMAT, read_summary
from src.data.labels.voc import read_voc
from src.data.labels.yolo import read_yolo
from src.errors import UserError
from src.job.job_config import load_job
from src.job.job_record import FOLDER, read_record
from src.model_utils.config import PROJECT_DIR, load_config

FEW, MANY = 60, 1000
FEDERATION = (PROJECT_DIR / "default_yaml_config.yaml").read_text(encoding="utf-8")
DETECTOR = (PROJECT_DIR / "default_config.yaml").read_text(encoding="utf-8")
COCO = {
    "info": {"image_dir": "."},
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5.5, 2, 90, 20], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "person"}],
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../..", "/", "", "\0", "\n", "\x1b[2J", "{}", "1e999", "é" * 300]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def corrupt_trees(draw, tree: Any) -> Any:
    """`tree` with one to three of its values replaced, taken out or moved to another key."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(tree)))
        what = draw(st.sampled_from(["replace", "remove", "rename"]))
        if what == "replace":
            holder[key] = draw(VALUES)
            continue
        value = holder.pop(key)
        if what == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = value
        if not _places(tree):
            break
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(dict or list, key) of every value in `tree`."""
    if not isinstance(tree, (dict, list)):
        return []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    return [(tree, key) for key in keys] + [p for key in keys for p in _places(tree[key])]


@st.composite
def corrupt_bytes(draw, data: bytes, head: int) -> bytes:
    """`data` cut short, or with some bytes replaced, put in or taken out, in its first `head`."""
    corrupt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(head, len(corrupt))))
        what = draw(st.sampled_from(["cut", "replace", "insert", "remove"]))
        some = draw(st.binary(min_size=1, max_size=9))
        if what == "cut":
            del corrupt[draw(st.integers(0, len(corrupt))) :]
        elif what == "replace":
            corrupt[at : at + len(some)] = some
        elif what == "insert":
            corrupt[at:at] = some
        else:
            del corrupt[at : at + len(some)]
    return bytes(corrupt)


def survives(read: Callable[[Path], Any], path: Path) -> None:
    """`read` takes the file, or refuses it with one printable line."""
    try:
        read(path)
    except UserError as error:
        assert str(error).isprintable()


def often(test: Callable, examples: int) -> Callable:
    """The same examples in every run, so many of them."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(test)


def corrupt_text(tree: Any, text: str, write: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    """Files of a format: with other values, or with other bytes."""
    trees = corrupt_trees(tree).map(lambda corrupt: write(corrupt).encode("utf-8", "replace"))
    raw = text.encode()
    return st.one_of(trees, corrupt_bytes(raw, len(raw)))


def yaml_text(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the corrupt files are written, next to an image."""
    folder = tmp_path_factory.mktemp("corrupt")
    (folder / "a.jpg").write_bytes(b"an image")
    return folder


def read_labels(path: Path) -> None:
    load_labels(load_config(None, instance_set=str(path)))


VOC = (
    "<annotation><size><width>64</width><height>48</height></size><object><name>dog</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax>"
    "</bndbox></object></annotation>"
)
YOLO = "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4 0.5 0.6\n"


def read_voc_file(path: Path) -> None:
    path.with_suffix(".jpg").write_bytes(jpeg())
    read_voc(path.parent)


def read_yolo_file(path: Path) -> None:
    path.with_suffix(".jpg").write_bytes(jpeg())
    (path.parent / "classes.txt").write_text("dog\ncat\n")
    read_yolo(path.parent)


RECORD = {
    "fl_name": "job",
    "redis": "127.0.0.1:2345",
    "processes": [
        {"role": "worker", "number": 0, "pid": 7, "created": 1.5, "folder": "a", "servers": ["b"]}
    ],
    "tls": {},
}


SUMMARY = {
    "format": FORMAT,
    "classes": ["dog"],
    "image_sizes": [[640, 480, 2]],
    "objects": [[0, 1], [1, 1]],
    "boxes": {"dog": [[3, -20, 0, 1]]},
}


def read_job_record(path: Path) -> None:
    record = read_record(path.parent.parent)
    assert record is not None
    record.running()
    record.elsewhere()


READERS = {
    "record": (f"{FOLDER}/job.json", read_job_record, corrupt_text(RECORD, "{}", json.dumps)),
    "federation": (
        "federation.yaml",
        load_job,
        corrupt_text(yaml.safe_load(FEDERATION), FEDERATION, yaml_text),
    ),
    "detector": (
        "detector.yaml",
        load_config,
        corrupt_text(next(yaml.safe_load_all(DETECTOR)), DETECTOR, yaml_text),
    ),
    "coco": ("coco.json", read_labels, corrupt_text(COCO, json.dumps(COCO), json.dumps)),
    "summary": ("theirs.json", read_summary, corrupt_text(SUMMARY, "{}", json.dumps)),
    "voc": ("voc/a.xml", read_voc_file, corrupt_bytes(VOC.encode(), len(VOC))),
    "yolo": ("yolo/a.txt", read_yolo_file, corrupt_bytes(YOLO.encode(), len(YOLO))),
}


def check_reader(folder: Path, kind: str, examples: int) -> None:
    name, read, contents = READERS[kind]

    def one(content):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        survives(read, path)

    often(given(contents)(one), examples)()


@pytest.mark.parametrize("kind", READERS)
def test_text_files(folder, kind):
    check_reader(folder, kind, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_text_files_at_length(folder, kind):
    check_reader(folder, kind, MANY)


def check_child(folder: Path, kind: str, count: int, seed: int) -> None:
    """A process reads `count` corrupt files and survives, having refused some of them."""
    script = Path(__file__).resolve().parents[2] / "helpers" / "corrupt_reading.py"
    result = subprocess.run(
        [sys.executable, str(script), kind, str(folder), str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, f"last file in {folder}: {result.stderr[-3000:]}"
    assert int(result.stdout.split()[-1]) > 0


# Files that libraries read, which may bring the process down.
@pytest.mark.parametrize(("kind", "count"), [("checkpoint", 200), ("mindrecord", 30)])
def test_binary_files(tmp_path, kind, count):
    check_child(tmp_path, kind, count, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("checkpoint", 5000), ("mindrecord", 1000)])
def test_binary_files_at_length(tmp_path, kind, count):
    check_child(tmp_path, kind, count, 2)
