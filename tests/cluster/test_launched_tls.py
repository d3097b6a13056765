"""A job of the launchers with enable_ssl: True, from the certificates to the finish."""

import json

import pytest
import yaml
from certificate_files import make_certificates, write_tls_job
from commands import processes_of, run, running_redis, succeed, wait_for
from launched_job import Job
from tls_front import TlsFront

from src.job.job_record import FOLDER
from src.job.kits import federation_text, write_kits
from src.security.certificates import load_authority, passwords_in
from src.security.roster import Member, text_of

pytestmark = pytest.mark.slow
PREFIX = "/k3y7-k3y7-k3y7_k3y7/"


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
        path = job.write(iterations=2)
        write_tls_job(path, certificates)
        values = yaml.safe_load(path.read_text())
        values["client"] = {"http_url_prefix": PREFIX}
        path.write_text(yaml.safe_dump(values))
        yield job


def test_a_job_from_its_start_to_its_end(job, secret):
    assert f"https://127.0.0.1:{job.manage_port}/state" in job.scheduler(secret)
    job.servers(2, secret)
    listed = json.loads(run(job.folder, "tools/status.py", "--json").stdout)
    assert "CLUSTER_READY, 2 server(s)" in listed["scheduler"]
    assert "heartbeats of 2 server(s)" in listed["redis"]
    said = succeed(job.folder, "tools/status.py", "query")
    assert "enable_ssl                      True" in said

    job.workers("--server_num=2")
    job.wait_for_end()
    for label in ("worker_0", "worker_1"):
        assert "finished: 2 iterations" in job.log(label)
        assert "ended; exit code 0" in job.log(label)
    assert "Redis keys of FasterRCNN" in job.finish()


def test_a_silo_with_a_kit_has_its_name_and_one_that_leaves_the_roster_is_told(
    job, certificates, secret
):
    authority = load_authority(certificates, passwords_in(certificates, ""))
    text = federation_text(str(job.folder / "default_yaml_config.yaml"))
    write_kits(certificates, ["hospital_a"], authority, 20, text, {})
    roster, kit = certificates / "silos.yaml", certificates / "hospital_a"
    job.servers(2, secret, f"--roster={roster}")
    flags = [f"--yaml_config={kit / 'federation.yaml'}", f"--ssl_passwords={kit / 'passwords'}"]
    job.workers("--server_num=2", *flags, f"--roster={kit / 'silos.yaml'}")
    said = succeed(job.folder, "tools/status.py")
    assert "hospital_a_0 (worker_0)" in said and "not in the roster" not in said
    roster.write_text(text_of([Member("hospital_b", "3f" * 32, "5A")]))
    words = f"not in the roster {roster}: hospital_a_0, hospital_a_1"
    wait_for(lambda: "WARNING: is in iteration" in job.log("server_0"), 60, "a warning")
    assert words in job.log("server_0") and words in run(job.folder, "tools/status.py").stdout


def test_no_secret_is_in_a_record_a_log_a_command_line_or_what_tools_say(job, certificates, secret):
    job.scheduler(secret)
    job.servers(2, secret)
    job.workers("--server_num=2")
    said = [succeed(job.folder, "tools/status.py", *words) for words in ((), ("query",))]
    said.append(succeed(job.folder, "tools/report.py", "."))
    lines = (certificates / "passwords").read_text().split()
    secrets = [*(line.split("=", 1)[1] for line in lines), PREFIX.strip("/")]
    holding = {job.folder / "default_yaml_config.yaml", *job.folder.rglob("yaml_config.yaml")}
    holding |= set(job.folder.rglob("MS_*.yaml"))  # what the roles read, for their owner alone
    assert {p.stat().st_mode & 0o777 for p in holding if FOLDER in p.parts} == {0o600}
    files = [p for p in job.folder.rglob("*") if p.is_file() and p not in holding]
    texts = said + [p.read_text(errors="replace") for p in files]
    texts += [" ".join(process.cmdline()) for process in processes_of(job.folder)]
    assert (job.folder / FOLDER / "specs" / "server_0.json").is_file()
    assert not any(secret in text for secret in secrets for text in texts)
