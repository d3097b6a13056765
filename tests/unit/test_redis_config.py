"""configs/redis.conf: the Redis of a job serves this machine and refuses what harms."""

import re
import subprocess

import psutil
import pytest
import redis as redis_client
from commands import wait_for
from ports import free_port_range

from src.launch.redis_store import REDIS_CONFIG, JobStore, redis_command

# What the engine's library and this suite send; each has to stay.
NEEDED = (
    "del", "expire", "get", "hdel", "hexists", "hget", "hgetall", "hincrby", "hmset", "hset",
    "hsetnx", "incr", "info", "lpush", "lrange", "sadd", "set", "sismember", "smembers",
    "ping", "scan", "dbsize", "pttl", "hkeys", "client", "shutdown",
)  # fmt: skip
REFUSED = re.findall(r'(?m)^rename-command (\w+) ""$', REDIS_CONFIG.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """(process, port) of a Redis started as the demo starts it."""
    folder, port = tmp_path_factory.mktemp("guarded"), free_port_range(1)
    process = subprocess.Popen(redis_command(port), cwd=folder, stdout=subprocess.DEVNULL)
    store = JobStore(("127.0.0.1", port), "Any")
    wait_for(store.answers, 10, "Redis did not start")
    store.close()
    yield process, port
    process.kill()
    process.wait()


def test_listens_on_loopback_alone(guarded):
    process, port = guarded
    listening = [c.laddr for c in psutil.Process(process.pid).connections("tcp") if not c.raddr]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]


@pytest.mark.parametrize("command", REFUSED)
def test_refuses_what_harms(guarded, command):
    with (
        redis_client.Redis(port=guarded[1]) as client,
        pytest.raises(redis_client.ResponseError, match="unknown command"),
    ):
        client.execute_command(command)


def test_settings_files_code_and_wiping_are_among_the_refused():
    assert {"CONFIG", "MODULE", "DEBUG", "EVAL", "FLUSHALL", "FLUSHDB", "REPLICAOF"} <= set(REFUSED)


def test_has_what_engine_and_tools_send(guarded):
    with redis_client.Redis(port=guarded[1], decode_responses=True) as client:
        assert not set(NEEDED) - set(client.command())


def test_serves_a_job_to_its_end(tmp_path):
    port = free_port_range(1)
    process = subprocess.Popen(redis_command(port), cwd=tmp_path, stdout=subprocess.DEVNULL)
    store = JobStore(("127.0.0.1", port), "Any")
    try:
        wait_for(store.answers, 10, "Redis did not start")
        with redis_client.Redis(port=port) as client:
            client.set("ms_fl:Any:InstanceName:String", "one")
        assert store.purge() == 1
        assert store.stop_if_unused() == f"stopped Redis at 127.0.0.1:{port}"
        assert process.wait(timeout=10) == 0
    finally:
        store.close()
        process.kill()
        process.wait()
    assert not list(tmp_path.iterdir())
