"""configs/redis.conf: the Redis of a job serves this machine and refuses what harms."""

import subprocess

import psutil
import pytest
import redis as redis_client
from commands import wait_for
from ports import free_port_range

from src.launch.redis_store import JobStore, redis_command

# What the engine's library and this suite send; each has to stay.
NEEDED = (
    "ping", "info", "dbsize", "command", "client list", "client id", "scan 0", "get s", "set s 1",
    "del s", "incr n", "expire n 9", "pttl n", "hset h f 1", "hmset h f 1", "hsetnx h g 1",
    "hget h f", "hgetall h", "hkeys h", "hvals h", "hdel h f", "hexists h f", "hincrby h n 1",
    "lpush l 1", "lrange l 0 -1", "ltrim l 0 1", "sadd m 1", "smembers m", "sismember m 1",
)  # fmt: skip
HARMFUL = (
    "acl setuser default on >secret", "acl list", "bgrewriteaof", "bgsave", "bitfield s set u8 0 1",
    "client kill type normal", "client no-evict on", "client pause 1000", "cluster info",
    "config get dir", "config set dir /tmp", "debug sleep 0", "dump s", "eval return 0",
    "evalsha 0 0", "failover", "flushall", "flushdb", "keys *", "latency doctor",
    "migrate 127.0.0.1 1 s 0 1", "module list", "monitor", "pfadd p 1", "psync x 0", "publish c 1",
    "replicaof no one", "restore s 0 x", "save", "script flush", "setbit s 4294967295 1",
    "setrange s 536870000 x", "slaveof no one", "slowlog get", "sort m by x get y", "subscribe c",
    "swapdb 0 1", "sync", "wait 1 0",
)  # fmt: skip


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


def test_has_what_engine_and_tools_send(guarded):
    with redis_client.Redis(port=guarded[1]) as client:
        for command in NEEDED:
            client.execute_command(*command.split())


@pytest.mark.parametrize("command", HARMFUL)
def test_refuses_what_harms(guarded, command):
    with (
        redis_client.Redis(port=guarded[1]) as client,
        pytest.raises(redis_client.ResponseError, match="no permissions to run"),
    ):
        client.execute_command(*command.split())


def test_a_limit_of_memory_keeps_what_is_held(guarded):
    with redis_client.Redis(port=guarded[1]) as client:
        memory = client.info("memory")
    assert memory["maxmemory"] == 256 * 2**20
    assert memory["maxmemory_policy"] == "noeviction"


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
