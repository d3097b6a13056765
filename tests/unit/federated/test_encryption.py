"""Encrypted connections against small stand-ins: who is refused, and the line that says so."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from certificate_files import make_certificates, write_tls_job
from commands import run, wait_for, write_job
from stand_ins import StandIn, answer, model_reply
from tls_front import TlsFront

from src.errors import UserError
from src.federated.replies import Outcome
from src.federated.tls import silo_tls
from src.federated.transport import Client
from src.job.job_config import load_job
from src.launch.management import Management
from src.launch.preflight.network import servers_answer
from src.launch.redis_store import JobStore
from src.security.passwords import NAMES
from src.security.tls import speaks_tls


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("good") / "certificates")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("other") / "certificates", name="other")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "certificates"
    return make_certificates(folder, hosts=("127.0.0.2",))


@pytest.fixture(scope="module")
def expired(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("expired") / "certificates", days=-1)


@pytest.fixture(autouse=True)
def no_passwords_in_the_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service():
    with StandIn(answer(model_reply())) as service:
        yield service


def front_of(service, certificates, authority=None):
    files = (certificates / "redis.crt", certificates / "redis.key")
    return TlsFront(service.address, *files, authority=authority)


def tls_job(folder, certificates, passwords=""):
    path = write_job(folder, 2345, 3)
    write_tls_job(path, certificates)
    job = load_job(path)
    object.__setattr__(job, "ssl_passwords", str(passwords))
    return job


def ask(address, context=None):
    client = Client([address], "job", "silo", context)
    reply = client.get_model(-1, 3)
    client.close()
    return reply


def test_a_model_over_tls(tmp_path, service, good):
    with front_of(service, good) as front:
        reply = ask(front.address, silo_tls(tls_job(tmp_path, good)))
    assert reply.outcome is Outcome.ACCEPTED
    np.testing.assert_array_equal(reply.features["w"], np.arange(6))


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("other", "signed by another authority than this side trusts: ssl.ca_cert_path"),
        ("elsewhere", "is not valid for '127.0.0.1'"),
        ("expired", "certificate has expired"),
    ],
)
def test_a_silo_refuses_a_server(tmp_path, service, shown, words, request):
    certificates = request.getfixturevalue(shown)
    trusted = request.getfixturevalue("good" if shown == "other" else shown)
    job = tls_job(tmp_path, trusted)
    with front_of(service, certificates) as front:
        reply = ask(front.address, silo_tls(job))
        assert reply.outcome is Outcome.UNREACHABLE
        assert f"{front.address}: its certificate is refused" in reply.reason
        assert words in reply.reason
        flags = SimpleNamespace(http_server_address=front.address, server_num=1)
        with pytest.raises(UserError, match="the server at 127.0.0.1:") as caught:
            servers_answer(job, flags)
        assert words in str(caught.value)


def test_a_front_that_asks_for_a_certificate_gets_the_silos(tmp_path, service, good):
    with front_of(service, good, authority=good / "ca.crt") as front:
        without = silo_tls(tls_job(tmp_path, good))
        refusal = ask(front.address, without)
        assert refusal.outcome is Outcome.UNREACHABLE
        assert "does it want a certificate of this si" in refusal.reason
        wait_for(lambda: front.refused, 5, "the front's own word")
        assert "peer did not return a certificate" in front.refused[0]
        shown = silo_tls(tls_job(tmp_path, good, good / "passwords"))
        assert ask(front.address, shown).outcome is Outcome.ACCEPTED


def test_plain_text_meets_tls(tmp_path, service, good):
    with front_of(service, good) as front:
        reply = ask(front.address)
        assert (
            f"{front.address}: it speaks TLS, and this silo's enable_ssl is False" == reply.reason
        )
        flags = SimpleNamespace(http_server_address=front.address, server_num=1)
        job = load_job(write_job(tmp_path, 2345, 3))
        with pytest.raises(UserError, match="speaks TLS, and .* says enable_ssl: False"):
            servers_answer(job, flags)
        with pytest.raises(UserError, match="it speaks TLS, and this job's enable_ssl is False"):
            Management(front.address).state()


def speak_http(connection):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def be_silent(connection):
    connection.recv(4096)
    time.sleep(10)


def test_tls_meets_plain_text(tmp_path, good):
    job = tls_job(tmp_path, good)
    with StandIn(speak_http) as plain:
        words = "it does not speak TLS, and this side does"
        assert words in ask(plain.address, silo_tls(job)).reason
        with pytest.raises(UserError, match=words):
            Management(plain.address, tls=job.tls).state()
        assert not speaks_tls("127.0.0.1", int(plain.address.split(":")[1]))
    with StandIn(be_silent) as silent:
        assert "no TLS handshake in time" in ask(silent.address, silo_tls(job)).reason


def test_redis_with_another_authority_and_without_tls(tmp_path, redis_port, good, other):
    service = SimpleNamespace(address=f"127.0.0.1:{redis_port}")
    with front_of(service, good) as front:
        store = JobStore(("127.0.0.1", front.port), "job", tls=tls_job(tmp_path, good).tls)
        store.require()
        assert store.purge() == 0
        store.close()
        wrong = JobStore(("127.0.0.1", front.port), "job", tls=tls_job(tmp_path, other).tls)
        with pytest.raises(UserError, match="signed by another authority"):
            wrong.require()
        with pytest.raises(UserError, match="it takes TLS there: set enable_ssl: True"):
            JobStore(("127.0.0.1", front.port), "job").require()
    store = JobStore(("127.0.0.1", redis_port), "job", 1.0, tls_job(tmp_path, good).tls)
    with pytest.raises(UserError, match="no TLS handshake in time.*it has to take TLS there"):
        store.require()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distributed_cache.cacert_filename": ""}, "cacert_filename is missing, the PEM file"),
        ({"distributed_cache.cert_filename": "x"}, "go together, and one is missing"),
        ({"ssl.crl_path": "list.crl"}, "the engine lets in certificates that the list revokes"),
        ({"ssl.cipher_list": "AES128-SHA"}, "ssl.cipher_list has 'AES128-SHA'"),
        ({"ssl.ca_cert_path": ""}, "ssl.ca_cert_path is missing"),
    ],
)
def test_settings_that_are_refused(tmp_path, good, changes, words):
    path = write_job(tmp_path, 2345, 3)
    write_tls_job(path, good)
    with pytest.raises(UserError, match=words):
        load_job(path, changes)


def test_the_preflight_names_the_wrong_certificate(tmp_path, service, good, other):
    write_tls_job(write_job(tmp_path, 2345, 3), good)
    with front_of(service, other) as front:
        flags = ("--role=worker", f"--http_server_address={front.address}")
        listed = run(tmp_path, "tools/preflight.py", *flags).stdout
    assert "FAIL  servers        the server at 127.0.0.1" in listed
    assert "signed by another authority than this side trusts: ssl.ca_cert_path" in listed
