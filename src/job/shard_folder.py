"""The folders of the MindRecords of a machine's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.errors import user_path


def data_folder(config: Any) -> Path:
    """The folder of mindrecord_0, mindrecord_1, ..."""
    return user_path(config.dataset_path or Path(config.mindrecord_dir).parent)


def shard_of(config: Any) -> Path:
    """Folder of the MindRecord of worker `config.user_id`."""
    return data_folder(config) / f"mindrecord_{config.user_id}"
