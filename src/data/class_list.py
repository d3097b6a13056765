"""Which class a number in a MindRecord means: its class list, kept in the file's own description.

A row has the place of a class in `coco_classes`, not its name. The list that it was written with
stands behind the name of the schema; files of other writers have none there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError

SCHEMA_NAME = "fasterrcnn_json"
KEY = "coco_classes"


def description(classes: Sequence[str]) -> str:
    """The schema's description with the class list; its name alone where the list is empty."""
    return f"{SCHEMA_NAME} {json.dumps({KEY: list(classes)})}" if classes else SCHEMA_NAME


def described_classes(text: str) -> list[str] | None:
    """The class list of a description, or None where it has none.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: what stands there is no class list.
    """
    name, _, rest = text.partition(" ")
    if name != SCHEMA_NAME or not rest:
        return None
    classes = json.loads(rest)[KEY]
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise ValueError("the class list is no list of names")
    return classes


def require_same_classes(path: Path, written: list[str] | None, wanted: Sequence[str]) -> None:
    """See that the MindRecord `path` and the configuration mean the same by each number.

    Args:
        written: the list that the file was written with; None, of a file that does not say,
            passes.
        wanted: coco_classes of the configuration.

    Raises:
        UserError: they differ; names the first number that means two things.
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
