"""A job of the launchers with enable_ssl: True, from the certificates to the finish."""

import json

import pytest
from certificate_files import make_certificates, write_tls_job
from commands import (
    TINY,
    make_shards,
    processes_of,
    run,
    start_redis,
    succeed,
    wait_for_end,
    write_job,
)
from ports import free_port_range
from tls_front import TlsFront

from src.job.job_record import FOLDER

pytestmark = pytest.mark.slow

SCHEDULER = "run_cross_silo_fasterrcnn_sched.py"
SERVERS = "run_cross_silo_fasterrcnn_server.py"
WORKERS = "run_cross_silo_fasterrcnn_worker.py"
FINISH = "finish_cross_silo_fasterrcnn.py"


class Job:
    """A folder with shards, a Redis behind TLS, and the launchers' flags."""

    def __init__(self, folder, front, port, certificates):
        self.folder, self.front, self.port = folder, front, port
        self.yaml = write_job(folder, front.port, iterations=2)
        write_tls_job(self.yaml, certificates)
        self.secret = f"--ssl_passwords={certificates / 'passwords'}"
        self.server = f"--http_server_address=127.0.0.1:{port}"
        self.manage = f"--scheduler_manage_address=127.0.0.1:{port + 2}"

    def server_flags(self):
        return [f"--config_path={TINY}", "--local_server_num=2", self.server, self.secret]

    def worker_flags(self, shards):
        return [f"--config_path={TINY}", f"--dataset_path={shards}", self.server, "--server_num=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def job(tmp_path):
    certificates = make_certificates(tmp_path / "certificates")
    folder = tmp_path / "job"
    folder.mkdir()
    port = free_port_range(4)
    redis = start_redis(folder, port + 3)
    files = (certificates / "redis.crt", certificates / "redis.key")
    with TlsFront(f"127.0.0.1:{port + 3}", *files) as front:
        job = Job(folder, front, port, certificates)
        yield job
        run(folder, FINISH, f"--redis_port={front.port}")
    redis.kill()
    redis.wait()
    assert not processes_of(folder)


def test_a_job_from_its_start_to_its_end(job, shards):
    folder = job.folder
    said = succeed(folder, SCHEDULER, job.manage, job.secret)
    assert f"https://127.0.0.1:{job.port + 2}/state" in said
    succeed(folder, SERVERS, *job.server_flags())
    listed = json.loads(run(folder, "tools/status.py", "--json").stdout)
    assert "CLUSTER_READY, 2 server(s)" in listed["scheduler"]
    assert "signs of life of 2 server(s)" in listed["redis"]
    assert "enable_ssl                      True" in succeed(folder, "tools/status.py", "query")

    succeed(folder, WORKERS, *job.worker_flags(shards))
    wait_for_end(folder)
    for number in (0, 1):
        log = (folder / f"worker_{number}" / "worker.log").read_text()
        assert "finished: 2 iterations" in log
        assert "ended; exit code 0" in log
    said = succeed(folder, FINISH, f"--redis_port={job.front.port}")
    assert "Redis keys of FasterRCNN" in said


def test_no_password_is_in_a_record_a_log_or_a_command_line(job, tmp_path):
    succeed(job.folder, SERVERS, *job.server_flags())
    lines = (tmp_path / "certificates" / "passwords").read_text().split()
    secrets = [line.split("=", 1)[1] for line in lines]
    texts = [p.read_text(errors="replace") for p in job.folder.rglob("*") if p.is_file()]
    texts += [" ".join(process.cmdline()) for process in processes_of(job.folder)]
    assert (job.folder / FOLDER / "specs" / "server_0.json").is_file()
    assert not any(secret in text for secret in secrets for text in texts)
    succeed(job.folder, FINISH, f"--redis_port={job.front.port}")
