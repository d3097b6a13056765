"""What a role needs is looked at before its start."""

import pytest

from src.errors import UserError
from src.launch.role_checks import require_shards


def test_missing_shards_are_named(tmp_path):
    shard = tmp_path / "mindrecord_0"
    shard.mkdir()
    for name in ("f", "f.db"):
        (shard / name).write_bytes(b"")
    with pytest.raises(UserError, match="in mindrecord_1, mindrecord_2 .*found: mindrecord_0"):
        require_shards(tmp_path, [0, 1, 2], "f", 2)
    with pytest.raises(UserError, match="mindrecord_0"):
        require_shards(tmp_path, [0], "f", 2)
