"""What several unit tests stand on: an index of jobs of their own, a process, a Redis."""

import subprocess
import sys

import pytest
import redis as redis_client
from commands import running_redis


@pytest.fixture
def own_index(tmp_path, monkeypatch):
    """Keep the per-user index of jobs out of the real home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def sleeper():
    """A process that would run for a minute."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory):
    """The port of a Redis; on the seven behind it nothing listened."""
    with running_redis(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def redis(redis_port):
    """An empty Redis."""
    client = redis_client.Redis(port=redis_port)
    client.flushall()
    yield client
    client.close()
