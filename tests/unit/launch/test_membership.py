"""A worker's place in the roster: by its certificate, or where nothing is encrypted by its name."""

import socket
from types import SimpleNamespace

import pytest
from commands import run, write_job

from src.errors import UserError
from src.job.job_config import load_job
from src.job.kits import federation_text, write_kits
from src.job.tls_checks import plain_words
from src.launch.membership import name_silo
from src.security.certificates import new_authority
from src.security.passwords import NAMES
from src.security.roster import Member, load, text_of


@pytest.fixture(autouse=True)
def no_passwords_in_the_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority():
    return new_authority("federation", 30)


@pytest.fixture(scope="module")
def kits(tmp_path_factory, authority):
    """Of hospital_a and hospital_b, and the roster with both."""
    folder = tmp_path_factory.mktemp("kits")
    text = federation_text("deploy/machines/federation_tls.yaml")
    write_kits(folder, ["hospital_a", "hospital_b"], authority, 20, text, {})
    return folder


def job_of(kit):
    job = load_job(kit / "federation.yaml")
    object.__setattr__(job, "ssl_passwords", str(kit / "passwords"))
    return job


def flags(roster="", silo_name=""):
    return SimpleNamespace(roster=str(roster), silo_name=silo_name)


def roster_with(path, *members):
    path.write_text(text_of(members))
    return path


def test_a_silo_has_the_name_of_its_certificate_in_the_roster(kits, monkeypatch):
    kit = kits / "hospital_b"
    config = flags(kit / "silos.yaml")
    assert name_silo(job_of(kit), config).startswith("hospital_b is one of 2 in ")
    assert config.silo_name == "hospital_b"
    monkeypatch.chdir(kit)
    config = flags("silos.yaml", "hospital_b")
    name_silo(job_of(kit), config)
    assert config.roster == str(kit / "silos.yaml")


def test_another_name_than_the_certificates_is_refused(kits):
    kit = kits / "hospital_b"
    with pytest.raises(
        UserError, match="'hospital_a', and this silo's certificate is .* hospital_b"
    ):
        name_silo(job_of(kit), flags(kit / "silos.yaml", "hospital_a"))


def test_a_removed_or_renamed_entry_and_a_missing_password_are_told(kits, tmp_path):
    job, members = job_of(kits / "hospital_b"), load(kits / "silos.yaml").members
    a, b = members["hospital_a"], members["hospital_b"]
    path = tmp_path / "silos.yaml"
    roster_with(path, a)
    with pytest.raises(UserError, match="is the certificate of 'hospital_b', and .* has no such"):
        name_silo(job, flags(path))
    roster_with(path, a, Member("hospital_b", "0" * 64, "01"))
    with pytest.raises(UserError, match="has another certificate for hospital_b; ask the coord"):
        name_silo(job, flags(path))
    roster_with(path, a, Member("hospital_c", b.certificate, b.serial))
    with pytest.raises(UserError, match="of 'hospital_b', and .* has it as hospital_c"):
        name_silo(job, flags(path))
    object.__setattr__(job, "ssl_passwords", "")
    with pytest.raises(UserError, match="needs the silo's own certificate: FL_CLIENT_PASSWORD is"):
        name_silo(job, flags(path))


def test_without_encryption_the_name_has_to_be_in_the_roster(tmp_path):
    job = load_job(write_job(tmp_path, 2345, 3))
    path = roster_with(tmp_path / "silos.yaml", Member("bank", "3f" * 32, "5A"))
    config = flags(path, "bank")
    assert name_silo(job, config).startswith("bank is one of 1 in")
    with pytest.raises(UserError, match="--silo_name is '', and .*silos.yaml has only bank"):
        name_silo(job, flags(path))


def test_without_a_roster_any_name_does_and_the_machines_is_the_default(tmp_path):
    job = load_job(write_job(tmp_path, 2345, 3))
    for given, name in (("", socket.gethostname()), ("bank", "bank")):
        config = flags("", given)
        name_silo(job, config)
        assert config.silo_name == name


def test_the_preflight_of_a_kit_says_who_the_silo_is_or_what_is_wrong(kits):
    flags = ["--role=worker", "--yaml_config=hospital_a/federation.yaml", "--json"]
    flags += ["--roster=hospital_a/silos.yaml", "--http_server_address=127.0.0.1:9"]
    listed = run(kits, "tools/preflight.py", *flags, "--ssl_passwords=hospital_a/passwords").stdout
    assert "hospital_a is one of 2 in " in listed and "ssl.client_cert_path 19 days" in listed
    listed = run(kits, "tools/preflight.py", *flags).stdout
    assert "needs the silo's own certificate: FL_CLIENT_PASSWORD" in listed


def test_plain_http_to_another_machine_is_a_warning_and_not_within_this_one(tmp_path, kits):
    job = load_job(write_job(tmp_path, 2345, 3))
    near = ["127.0.0.1:6668", "127.0.0.2:1", "localhost:7"]
    assert plain_words(job, near) == ""
    words = plain_words(job, [*near, "192.0.2.1:6668", "fl.example.org:6668"])
    assert words.startswith("192.0.2.1:6668, fl.example.org:6668: plain HTTP to another machine;")
    assert plain_words(job_of(kits / "hospital_a"), ["192.0.2.1:6668"]) == ""
    for role in ("worker", "server"):
        flags = (f"--role={role}", "--http_server_address=192.0.2.1:6668")
        listed = run(tmp_path, "tools/preflight.py", *flags).stdout
        assert "WARN  encryption     192.0.2.1:6668: plain HTTP to another machine" in listed
