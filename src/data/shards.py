"""Numbered shards: the same configuration for silo 0, 1, 2, ..."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from src.data.mindrecord_file import shard_number
from src.errors import UserError


def parse_shards(text: str) -> list[int]:
    """Numbers of a list like 0-99 or 0,2,5-7, ascending and once each.

    Raises:
        UserError: anything else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UserError(f"--shards {text}: {part!r} is no range, expected like 0-99 or 0,2,5-7")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def for_shard(config: Any, number: int) -> Any:
    """A copy of `config` whose mindrecord_dir and json carry `number` in place of their own.

    Raises:
        UserError: one of the names has no number to replace.
    """
    shard_number(config.mindrecord_dir)
    changed = copy.copy(config)
    folder = Path(config.mindrecord_dir)
    changed.mindrecord_dir = str(folder.with_name(f"mindrecord_{number}"))
    key = "train_set" if config.train_set else "instance_set"
    setattr(changed, key, _renumbered(key, getattr(config, key), number))
    return changed


def _renumbered(key: str, name: str, number: int) -> str:
    path = Path(name)
    stem, found = re.subn(r"_\d+$", f"_{number}", path.stem)
    if not found:
        raise UserError(
            f"{key} {name}: its name has no shard number to replace, expected like train_0.json"
        )
    return str(path.with_name(stem + path.suffix))
