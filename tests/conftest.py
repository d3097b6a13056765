"""For all tests: an index of running jobs of their own."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_index(tmp_path_factory):
    """Jobs that somebody runs on this machine are not seen, and so not stopped, by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
