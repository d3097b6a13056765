"""Two silos as a job of ModelArts on the real engine; the object store is a folder."""

import os

import pytest
from commands import WORKER, make_shards, run
from launched_job import CONFIG, Job

from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.slow  # a whole job, 50 s


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """Scheduler and server that run, and a store with shards and a checkpoint."""
    folder = tmp_path_factory.mktemp("modelarts")
    store = folder / "store"
    shards = make_shards(folder)
    store.mkdir()
    shards.rename(store / "data")
    with Job(folder, shards) as job:
        job.write(2)
        job.scheduler()
        assert "enable_modelarts is for workers" in job.servers(1, "--enable_modelarts=True")
        (store / "models").mkdir()
        (store / "models" / "start.ckpt").write_bytes(job.initial.read_bytes())
        yield job, store


@pytest.fixture
def flags(cloud, tmp_path, monkeypatch):
    """The worker launcher's flags on a machine of the cloud; its disk is `tmp_path`."""
    job, store = cloud
    monkeypatch.setenv("MOXING_ROOT", str(store))
    stand_in = PROJECT_DIR / "tests" / "moxing_stand_in"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT_DIR), str(stand_in)]))
    paths = [f"--{name}_path={tmp_path / name}" for name in ("data", "output", "load")]
    urls = ["--data_url=s3://data", "--checkpoint_url=s3://models", "--train_url=s3://results"]
    yaml = f"--yaml_config={job.folder / 'default_yaml_config.yaml'}"
    where = f"--http_server_address={job.address}"
    return ["--enable_modelarts=True", CONFIG, yaml, where, *paths, *urls]


def test_workers_fetch_train_and_send(cloud, flags, tmp_path):
    _, store = cloud
    ended = run(tmp_path, WORKER, *flags, timeout=280)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert "worker_0, worker_1 have joined FasterRCNN" in ended.stdout
    assert "worker_1 ended with exit code 0" in ended.stdout
    copied = [line.split()[1] for line in (store / "copies.txt").read_text().splitlines()]
    assert copied == ["s3://data", "s3://models", str(tmp_path / "output")]
    for number in range(2):
        sent = store / "results" / f"worker_{number}"
        assert f"{tmp_path / 'load' / 'start.ckpt'}" in (sent / "worker.log").read_text()
        user = f"mindrecord_{number}"
        assert (sent / "ckpt" / user / f"{user}-fast-rcnn-1epoch.ckpt").stat().st_size > 10000
    assert not (tmp_path / "worker_0").exists()
