"""Certificates: what is made, what is refused before a start, where passwords come from."""

import os
import ssl
import stat

import pytest
from certificate_files import make_certificates, passwords_of, write_tls_job
from commands import refused, run, succeed, write_job
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from src.errors import UserError
from src.federated.tls import silo_tls
from src.job.checks import FAIL, PASS, WARN, run_checks
from src.job.job_config import load_job
from src.job.tls_checks import tls_checks
from src.security.certificate_checks import days_left, require_certificate
from src.security.certificates import new_authority, new_leaf
from src.security.key_files import Certified, read_certificate, read_pkcs12
from src.security.passwords import CLIENT, NAMES, SERVER, read_passwords

TOOL = "tools/make_certificates.py"
ADDRESS = "127.0.0.1:6668"


@pytest.fixture(autouse=True)
def no_passwords_in_the_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("good") / "certificates")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("other") / "certificates", name="other")


@pytest.fixture(scope="module")
def expired(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("expired") / "certificates", days=-1)


def job_with(folder, certificates, passwords=None, **changes):
    """A job of these certificates; a change is section__key."""
    path = write_job(folder, 2345, 3)
    write_tls_job(path, certificates)
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    job = load_job(path, flat)
    object.__setattr__(job, "ssl_passwords", str(passwords or certificates / "passwords"))
    return job


def findings(job, role="server", address=ADDRESS):
    return {f.subject: f for f in run_checks(tls_checks(job, role, address))}


def fault(job, role="server"):
    found = [f for f in findings(job, role).values() if f.level == FAIL]
    assert len(found) == 1, found
    return found[0].text


def test_the_tool_writes_private_files_and_the_lines_to_set(tmp_path):
    said = succeed(tmp_path, TOOL, "--out=c", "--hosts=127.0.0.1,fl.example.org", "--days=30")
    written = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "c").iterdir()}
    assert set(written.values()) == {0o600} and len(written) == 10
    assert f"  ca_cert_path: {tmp_path / 'c' / 'ca.crt'}" in said
    for password in read_passwords(tmp_path / "c" / "passwords").values():
        assert password not in said and len(password) >= 32
    pair = read_pkcs12(SERVER, tmp_path / "c/server.p12", passwords_of(tmp_path / "c")[SERVER])
    names = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert days_left(pair.certificate) in (29, 30)


def test_the_tool_renews_with_the_same_authority_and_passwords(tmp_path):
    succeed(tmp_path, TOOL, "--out=a")
    succeed(tmp_path, TOOL, "--out=b", "--ca=a")
    assert (tmp_path / "a/ca.crt").read_bytes() == (tmp_path / "b/ca.crt").read_bytes()
    assert passwords_of(tmp_path / "a") == passwords_of(tmp_path / "b")
    assert not (tmp_path / "b/ca.key").exists()
    authority = read_certificate("ca", tmp_path / "a/ca.crt")
    pair = read_pkcs12("server", tmp_path / "b/server.p12", passwords_of(tmp_path / "b")[SERVER])
    require_certificate("server", pair, authority)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=a"], "holds ca.key, ca.password, ca.crt, server.p12"),
        (["--out=n", "--hosts=10.0.0.1:6668"], "neither an address nor a host name"),
        (["--out=n", "--days=0"], "--days is 0, expected 1 to"),
        (["--out=n", "--ca=a", "--days=5000"], "the authority expires on"),
        (["--out=n", "--ca=nowhere"], "--ca nowhere: FL_CA_PASSWORD is not set"),
        (["--out=n", "--ssl_passwords=open"], "has mode 0644, expected 0600"),
    ],
)
def test_the_tool_refuses_in_one_line(tmp_path, good, flags, words):
    (tmp_path / "a").symlink_to(good)
    (tmp_path / "open").write_text(f"{SERVER}=x\n")
    (tmp_path / "open").chmod(0o644)
    result = run(tmp_path, TOOL, *flags)
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "n").exists()


def test_good_certificates_pass(tmp_path, good):
    found = findings(job_with(tmp_path, good))
    assert {f.level for f in found.values()} == {PASS}
    assert "ssl.server_cert_path 364 days" in found["certificates"].text
    assert {f.level for f in findings(job_with(tmp_path, good), "scheduler").values()} == {PASS}


def test_expired(tmp_path, expired):
    line = fault(job_with(tmp_path, expired))
    assert line.startswith(f"ssl.server_cert_path {expired}/server.p12: has expired on 20")


def test_wrong_authority(tmp_path, good, other):
    line = fault(job_with(tmp_path, good, ssl__ca_cert_path=str(other / "ca.crt")))
    assert "was not signed by the authority of ssl.ca_cert_path ('other') but by" in line


def test_wrong_password(tmp_path, good, other):
    line = fault(job_with(tmp_path, good, passwords=other / "passwords"))
    assert f"ssl.server_cert_path {good}/server.p12: this password does not open it" in line


@pytest.mark.parametrize("launcher", ["sched", "server"])
def test_a_launcher_stops_before_anything_is_started(tmp_path, good, other, launcher):
    write_tls_job(write_job(tmp_path, 2345, 3), good)
    script = f"run_cross_silo_fasterrcnn_{launcher}.py"
    line = refused(tmp_path, script, f"--ssl_passwords={other / 'passwords'}")
    assert "server.p12: this password does not open it" in line
    line = refused(tmp_path, script)
    assert "enable_ssl is True, and the environment has no FL_SERVER_PASSWORD" in line
    assert not (tmp_path / ".federation").exists()


def test_a_scheduler_needs_no_password_of_the_client(tmp_path, good, monkeypatch):
    monkeypatch.setenv(SERVER, passwords_of(good)[SERVER])
    job = job_with(tmp_path, good)
    object.__setattr__(job, "ssl_passwords", "")
    assert findings(job, "scheduler")["certificates"].level == PASS
    assert "the environment has no FL_CLIENT_PASSWORD" in fault(job)
    monkeypatch.setenv(CLIENT, "wrong")
    assert "ssl.client_cert_path" in fault(job)


def test_missing_and_broken_files(tmp_path, good):
    job = job_with(tmp_path, good, ssl__server_cert_path="gone.p12")
    assert f"{tmp_path}/gone.p12: No such file" in fault(job)
    (tmp_path / "text.crt").write_text("no certificate")
    job = job_with(tmp_path, good, ssl__ca_cert_path="text.crt")
    assert "expected a certificate in PEM" in fault(job, "worker")
    job = job_with(tmp_path, good, ssl__ca_cert_path=str(good / "redis.crt"))
    assert "is no authority's certificate" in fault(job, "worker")


def test_a_key_that_is_not_the_certificates(good, tmp_path, other):
    job = job_with(
        tmp_path,
        good,
        distributed_cache__cert_filename=str(good / "redis.crt"),
        distributed_cache__private_key_filename=str(other / "redis.key"),
    )
    assert "distributed_cache.cert_filename" in fault(job)
    assert "the private key is not the certificate's" in fault(job)


def test_a_short_key_and_a_missing_identifier(monkeypatch):
    authority = new_authority("federation", 30)
    monkeypatch.setattr("src.security.certificates.KEY_BITS", 2048)
    weak = new_leaf(authority, "server", ["127.0.0.1"], 20)
    with pytest.raises(UserError, match="server: its key is too weak for the engine"):
        require_certificate("server", weak, authority.certificate)
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    name = authority.certificate.subject
    plain = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(weak.certificate.not_valid_before_utc)
        .not_valid_after(weak.certificate.not_valid_after_utc)
        .sign(authority.key, weak.certificate.signature_hash_algorithm)
    )
    with pytest.raises(UserError, match="has no authorityKeyIdentifier"):
        require_certificate("server", Certified(plain, key), authority.certificate)


def test_one_that_expires_soon_is_a_warning(tmp_path):
    job = job_with(tmp_path, make_certificates(tmp_path / "soon", days=89))
    assert findings(job)["certificates"].level == WARN
    assert "ssl.server_cert_path 88 days" in findings(job)["certificates"].text
    job = job_with(tmp_path, tmp_path / "soon", ssl__cert_expire_warning_time_in_day=30)
    assert findings(job)["certificates"].level == PASS


def test_a_certificate_for_another_address_is_a_warning(tmp_path, good):
    found = findings(job_with(tmp_path, good), address="127.0.0.2:6668")["names"]
    assert found.level == WARN
    assert "is for 127.0.0.1, not for 127.0.0.2" in found.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FL_SERVER_PASSWORT=geheim\n", "line 1 is not FL_SERVER_PASSWORD or"),
        ("# mine\ngeheim\n", "line 2 is not FL_SERVER_PASSWORD or"),
        ("FL_SERVER_PASSWORD=\n", "line 1 is not"),
        ("FL_SERVER_PASSWORD=gehe\u00efm\n", "expected up to 255 printable ASCII characters"),
    ],
)
def test_a_password_file_is_refused_without_showing_it(tmp_path, text, words):
    file = tmp_path / "passwords"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(UserError, match=words) as caught:
        read_passwords(file)
    assert "gehe" not in str(caught.value)


def test_the_environment_wins_over_the_file(good, monkeypatch):
    monkeypatch.setenv(CLIENT, "own")
    found = read_passwords(good / "passwords")
    assert found == {SERVER: passwords_of(good)[SERVER], CLIENT: "own"}


def test_relative_names_count_from_the_file(tmp_path, good, monkeypatch):
    (tmp_path / "certificates").symlink_to(good)
    job = job_with(tmp_path, good, ssl__ca_cert_path="certificates/ca.crt")
    monkeypatch.chdir("/")
    assert job.tls.authority == str(tmp_path / "certificates" / "ca.crt")
    assert job.write(tmp_path / "sub" / "job.yaml")
    assert load_job(tmp_path / "sub" / "job.yaml").tls == job.tls


def test_a_silo_shows_its_certificate_and_leaves_no_file(tmp_path, good, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    context = silo_tls(job_with(tmp_path, good))
    assert not os.listdir(tmp_path / "temporary")
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    der = context.get_ca_certs(binary_form=True)
    authority = read_certificate("ca", good / "ca.crt")
    assert der == [authority.public_bytes(Encoding.DER)]
