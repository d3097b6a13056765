"""Encrypted connections of the real engine: silos, servers, scheduler, Redis, and strangers."""

import subprocess
import sys

import pytest
from certificate_files import make_certificates, write_tls_job
from commands import run
from engine import Engine, listens, wait_for
from members import Member, assert_mean, initial, together
from ports import free_ports

from src.errors import UserError
from src.federated.replies import Outcome
from src.federated.tls import silo_tls
from src.federated.transport import Client
from src.job.job_config import load_job
from src.job.tls_checks import peers_trusted
from src.launch.management import Management
from src.launch.redis_store import JobStore
from src.model_utils.config import PROJECT_DIR

SCRIPT = "test_fl_fasterrcnn.py"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("good") / "certificates")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("other") / "certificates", name="other")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, good):
    """Redis behind TLS and two servers that talk TLS to it, to silos and to each other."""
    with Engine(initial(), tmp_path_factory.mktemp("engine"), servers=2, tls=good) as engine:
        yield engine


@pytest.fixture(scope="module")
def job(engine):
    return load_job(engine.yaml_path)


@pytest.fixture(scope="module")
def scheduler(engine, good):
    """The address of a scheduler."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, str(PROJECT_DIR / SCRIPT), "--ms_role=MS_SCHED"]
    command += [f"--yaml_config={engine.yaml_path}", f"--scheduler_manage_address={address}"]
    with (engine.folder / "scheduler.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--ssl_passwords={good / 'passwords'}"],
            cwd=engine.folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: listens(address), 30, "scheduler")
        yield address
    finally:
        process.kill()
        process.wait()


def test_two_silos_and_two_servers_take_the_mean(engine, job):
    context = silo_tls(job)
    first = Member(engine, "bank_0 (30)", 30, tls=context)
    second = Member(engine, "clinic_1 (10)", 10, tls=context, addresses=engine.addresses[::-1])
    for _ in range(2):
        assert_mean([first, second], together(first, second))
    first.client.close()
    second.client.close()


def test_the_scheduler_and_redis_answer_the_tools(engine, job, scheduler):
    assert len(Management(scheduler, tls=job.tls).state()["nodes"]) == 2
    store = JobStore(job.redis_address, job.name, tls=job.tls)
    assert len(store.heartbeats()) == 2
    store.close()


def test_who_has_another_authority_or_no_tls_is_refused(engine, job, scheduler, other, tmp_path):
    path = job.write(tmp_path / "other.yaml")
    write_tls_job(path, other)
    stranger = load_job(path)
    words = "signed by another authority than this side trusts: ssl.ca_cert_path"
    reply = Client(engine.addresses[:1], job.name, "x", silo_tls(stranger)).get_model(-1, 5)
    assert reply.outcome is Outcome.UNREACHABLE and words in reply.reason
    with pytest.raises(UserError, match=words):
        Management(scheduler, tls=stranger.tls).state()
    reply = Client(engine.addresses[:1], job.name, "x").get_model(-1, 5)
    assert "it speaks TLS, and this silo's enable_ssl is False" in reply.reason
    with pytest.raises(UserError, match="it speaks TLS, and this job's enable_ssl is False"):
        Management(scheduler).state()
    # And nobody else has noticed.
    client = Client(engine.addresses, job.name, "y", silo_tls(job))
    assert client.get_model(-1, 5).outcome is Outcome.ACCEPTED
    client.close()


def test_a_server_that_would_join_others_has_to_trust_them(engine, job, other, tmp_path):
    store = JobStore(job.redis_address, job.name, tls=job.tls)
    nodes = [key.split(":heartbeat:")[1].split("::")[0] for key in store.heartbeats()]
    store.close()
    assert peers_trusted(job.tls, nodes).startswith("2 server(s) that run")
    path = job.write(tmp_path / "other.yaml")
    write_tls_job(path, other)
    with pytest.raises(UserError, match="the server that this one is to join at 127.0.0.1:") as no:
        peers_trusted(load_job(path).tls, nodes)
    assert "signed by another authority than this side trusts: ssl.ca_cert_path" in str(no.value)


@pytest.mark.parametrize("role", ["MS_SCHED", "MS_SERVER"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired", "has expired on"),
        ("authority", "was not signed by the authority of ssl.ca_cert_path"),
        ("password", "this password does not open it"),
    ],
)
def test_a_role_with_a_wrong_certificate_says_so(tmp_path, good, other, role, fault, words):
    certificates = good
    if fault == "expired":
        certificates = make_certificates(tmp_path / "certificates", days=-1)
    path = tmp_path / "job.yaml"
    path.write_text((PROJECT_DIR / "default_yaml_config.yaml").read_text())
    write_tls_job(path, certificates)
    if fault == "authority":
        path.write_text(path.read_text().replace(str(good / "ca.crt"), str(other / "ca.crt")))
    secret = (other if fault == "password" else certificates) / "passwords"
    result = run(tmp_path, SCRIPT, f"--ms_role={role}", "--yaml_config=job.yaml",
                 f"--ssl_passwords={secret}")  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1
