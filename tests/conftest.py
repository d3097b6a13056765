"""For all tests: an index of running jobs of their own, and data to train on."""

import pytest
from commands import make_shards


@pytest.fixture(autouse=True, scope="session")
def own_index(tmp_path_factory):
    """Jobs that somebody runs on this machine are not seen, and so not stopped, by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The folder of two silos' shards, 6 drawn images each, which everybody only reads."""
    return make_shards(tmp_path_factory.mktemp("data"))
