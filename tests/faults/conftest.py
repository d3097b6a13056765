"""What tests of faults share."""

import pytest
from commands import processes_of


@pytest.fixture
def nothing_is_left(tmp_path):
    """Every process that a test starts in its folder has ended with it."""
    yield
    assert not processes_of(tmp_path)
