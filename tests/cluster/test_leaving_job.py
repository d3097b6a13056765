"""A launched job of tiny detectors whose head stays and whose updates get noise, twice over."""

import json

import mindspore as ms
import pytest
from commands import (
    TINY,
    make_shards,
    processes_of,
    refused,
    start_redis,
    succeed,
    wait_for_end,
    write_job,
)
from ports import free_port_range

from src.federated.privacy import epsilon_of

pytestmark = pytest.mark.slow

ITERATIONS = 2
CONFIG = f"--config_path={TINY}"
LOCAL = "--local_params=rcnn.*"
NOISE = ["--dp_clip_norm=0.5", "--dp_noise_multiplier=0.01"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What was refused before the start, and the folder after two finished jobs."""
    folder = tmp_path_factory.mktemp("leaving")
    shards = make_shards(folder)
    port = free_port_range(4)
    write_job(folder, port, ITERATIONS)
    redis = start_redis(folder, port)
    address = f"--http_server_address=127.0.0.1:{port + 2}"
    sched = f"--scheduler_manage_address=127.0.0.1:{port + 1}"
    server = ["run_cross_silo_fasterrcnn_server.py", CONFIG, address, "--local_server_num=1"]
    words = ["run_cross_silo_fasterrcnn_worker.py", CONFIG, address, "--local_worker_num=2"]
    words += [f"--dataset_path={shards}", LOCAL]
    lines = [
        refused(folder, *server, "--local_params=rcn.*"),
        refused(folder, *words, "--dp_noise_multiplier=1.0"),
    ]
    for _ in range(2):
        succeed(folder, "run_cross_silo_fasterrcnn_sched.py", sched)
        succeed(folder, *server, LOCAL)
        succeed(folder, *words, *NOISE)
        wait_for_end(folder)
    yield folder, lines
    succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    redis.kill()
    redis.wait()
    assert not processes_of(folder)


def test_what_makes_no_sense_is_refused_before_the_start(job):
    _, (pattern, noise) = job
    assert "local_params: 'rcn.*' matches none of the 66 trained weights" in pattern
    assert "did you mean rcnn.*" in pattern
    assert "dp_noise_multiplier is 1.0 and dp_clip_norm 0" in noise


def test_each_silo_keeps_a_head_of_its_own_and_shares_the_rest(job):
    folder, _ = job
    last = ITERATIONS - 1
    silos = [
        ms.load_checkpoint(str(next(folder.glob(f"worker_{n}/ckpt/*/*-{last}epoch.ckpt"))))
        for n in range(2)
    ]
    servers = ms.load_checkpoint(
        str(next(folder.glob(f"fl_ckpt/*_recovery_iteration_{ITERATIONS}_*.ckpt")))
    )
    for name, value in silos[0].items():
        same = bool((value.asnumpy() == silos[1][name].asnumpy()).all())
        assert same != name.startswith("rcnn."), name
    assert not any(name.startswith("rcnn.") for name in servers)


def test_epsilon_goes_on_from_the_first_job(job):
    folder, _ = job
    for number in range(2):
        rounds = (folder / f"worker_{number}" / "rounds.jsonl").read_text().splitlines()
        told = [json.loads(line)["epsilon"] for line in rounds]
        wanted = [epsilon_of([0.01] * uploads, 1e-5) for uploads in (3, 4)]
        assert told == pytest.approx(wanted, rel=1e-6)
        log = (folder / f"worker_{number}" / "worker.log").read_text()
        assert "privacy: 2 earlier upload(s) of this data count" in log
        assert "at delta 1e-05 in 4 upload(s)" in log
