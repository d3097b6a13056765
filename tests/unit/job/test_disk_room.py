"""Too little room on the disk is told before the start."""

import pytest

from src.errors import UserError
from src.job.disk_room import require_disk


def test_too_little_disk_says_how_much(tmp_path):
    with pytest.raises(UserError, match=r"3 checkpoints need 1000000000.0 GB"):
        require_disk(tmp_path, 10**18, "3 checkpoints")
