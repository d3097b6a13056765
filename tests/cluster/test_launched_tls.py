"""A job of the launchers with enable_ssl: True, from the certificates to the finish."""

import json

import pytest
from certificate_files import make_certificates, write_tls_job
from commands import processes_of, run, running_redis, succeed
from launched_job import Job
from tls_front import TlsFront

from src.job.job_record import FOLDER

pytestmark = pytest.mark.slow


@pytest.fixture
def certificates(tmp_path):
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def secret(certificates):
    """The flag of those who have keys: scheduler and servers."""
    return f"--ssl_passwords={certificates / 'passwords'}"


@pytest.fixture
def front(tmp_path, certificates):
    """TLS before a Redis."""
    files = (certificates / "redis.crt", certificates / "redis.key")
    with running_redis(tmp_path) as port, TlsFront(f"127.0.0.1:{port}", *files) as front:
        yield front


@pytest.fixture
def job(tmp_path, shards, certificates, front):
    with Job(tmp_path / "job", shards, redis_port=front.port) as job:
        write_tls_job(job.write(iterations=2), certificates)
        yield job


def test_a_job_from_its_start_to_its_end(job, secret):
    assert f"https://127.0.0.1:{job.manage_port}/state" in job.scheduler(secret)
    job.servers(2, secret)
    listed = json.loads(run(job.folder, "tools/status.py", "--json").stdout)
    assert "CLUSTER_READY, 2 server(s)" in listed["scheduler"]
    assert "signs of life of 2 server(s)" in listed["redis"]
    said = succeed(job.folder, "tools/status.py", "query")
    assert "enable_ssl                      True" in said

    job.workers("--server_num=2")
    job.wait_for_end()
    for label in ("worker_0", "worker_1"):
        assert "finished: 2 iterations" in job.log(label)
        assert "ended; exit code 0" in job.log(label)
    assert "Redis keys of FasterRCNN" in job.finish()


def test_no_password_is_in_a_record_a_log_or_a_command_line(job, certificates, secret):
    job.servers(2, secret)
    lines = (certificates / "passwords").read_text().split()
    secrets = [line.split("=", 1)[1] for line in lines]
    texts = [p.read_text(errors="replace") for p in job.folder.rglob("*") if p.is_file()]
    texts += [" ".join(process.cmdline()) for process in processes_of(job.folder)]
    assert (job.folder / FOLDER / "specs" / "server_0.json").is_file()
    assert not any(secret in text for secret in secrets for text in texts)
