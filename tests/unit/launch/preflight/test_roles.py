"""What a role needs is looked at before its start."""

from collections import Counter
from pathlib import Path

import pytest

from src.errors import UserError
from src.launch.preflight import roles
from src.launch.preflight.roles import require_shards, room_for_objects


def test_missing_shards_are_named(tmp_path):
    shard = tmp_path / "mindrecord_0"
    shard.mkdir()
    for name in ("f", "f.db"):
        (shard / name).write_bytes(b"")
    with pytest.raises(UserError, match="in mindrecord_1, mindrecord_2 .*found: mindrecord_0"):
        require_shards(tmp_path, [0, 1, 2], "f", 2)
    with pytest.raises(UserError, match="mindrecord_0"):
        require_shards(tmp_path, [0], "f", 2)


def test_images_with_more_objects_than_there_is_room_for_are_counted_for_each_silo(monkeypatch):
    indexes = {"a": Counter({0: 5, 3: 2}), "b": Counter({9: 2, 4: 1}), "c": None}
    monkeypatch.setattr(roles, "indexed_objects", lambda file: indexes[file.parent.name])
    files = [Path(name) / "x.mindrecord" for name in indexes]
    assert room_for_objects(files[:2], 9) == "up to 9 in an image, num_gts 9 holds all"
    found = room_for_objects(files[:2], 4)
    assert (found.level, found.subject) == ("WARN", "objects")
    assert found.text == (
        "b: 2 images have more than num_gts 4 objects: the rest of them would be learned as "
        "background; num_gts 9 holds all"
    )
    # The index of another writer does not have them.
    later = "the index of c does not say: the worker counts at its start"
    assert room_for_objects(files, 9) == later
    assert room_for_objects(files, 4).text == f"{found.text}; {later}"
