"""Kits of silos: what is in them, what they are good for, how one is added and one removed."""

import stat

import pytest
from commands import refused, succeed
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from stand_ins import StandIn, answer, model_reply
from tls_front import TlsFront

from src.federated.replies import Outcome
from src.federated.tls import silo_tls
from src.federated.transport import Client
from src.job.checks import PASS, run_checks
from src.job.job_config import load_job
from src.job.tls_checks import tls_checks
from src.security.key_files import read_certificate, read_pkcs12
from src.security.passwords import CLIENT, NAMES, read_passwords
from src.security.roster import load, member_of

TOOL = "tools/make_certificates.py"
TEMPLATE = "--yaml_config=deploy/machines/federation_tls.yaml"
KIT = {"README.md", "ca.crt", "client.p12", "federation.yaml", "passwords", "silos.yaml"}


@pytest.fixture(autouse=True)
def no_passwords_in_the_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The coordinator's folder with the kits of two hospitals, and what the tool has said."""
    folder = tmp_path_factory.mktemp("made")
    said = succeed(folder, TOOL, "--out=c", "--silos=hospital_a,hospital_b", TEMPLATE)
    return folder / "c", said


def pair_of(kit):
    return read_pkcs12("kit", kit / "client.p12", read_passwords(kit / "passwords")[CLIENT])


def job_of(folder):
    job = load_job(folder / "federation.yaml")
    object.__setattr__(job, "ssl_passwords", str(folder / "passwords"))
    return job


def names_in(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_each_silo_gets_a_private_folder_and_the_coordinator_the_roster(made):
    folder, said = made
    roster = load(folder / "silos.yaml")
    assert list(roster.members) == ["hospital_a", "hospital_b"]
    for name in roster.members:
        kit = folder / name
        assert names_in(kit) == KIT
        assert {stat.S_IMODE(path.stat().st_mode) for path in kit.iterdir()} == {0o600}
        assert stat.S_IMODE(kit.stat().st_mode) == 0o700
        assert load(kit / "silos.yaml").members == roster.members
        assert roster.members[name] == member_of(name, pair_of(kit).certificate)
        assert len((kit / "README.md").read_text().splitlines()) == 3
        assert list(read_passwords(kit / "passwords")) == [CLIENT]
        assert (kit / "federation.yaml").read_bytes() == (folder / "federation.yaml").read_bytes()
        for password in read_passwords(kit / "passwords").values():
            assert password not in said
    secrets = [read_passwords(folder / name / "passwords")[CLIENT] for name in roster.members]
    assert len({*secrets, read_passwords(folder / "passwords")[CLIENT]}) == 3


def test_the_federations_file_has_a_secret_path_of_its_own_and_fits_both_sides(made, tmp_path):
    folder, said = made
    prefix = job_of(folder).url_prefix
    assert len(prefix) > 30 and prefix not in said
    succeed(tmp_path, TOOL, "--out=other", "--silos=x", TEMPLATE)
    assert job_of(tmp_path / "other").url_prefix != prefix
    for place, role in ((folder, "server"), (folder / "hospital_a", "worker")):
        found = list(run_checks(tls_checks(job_of(place), role, "127.0.0.1:6668")))
        assert {one.level for one in found} == {PASS}, found


def test_a_silos_certificate_is_for_a_client_alone_and_for_no_host(made):
    for kit, name in ((made[0] / "hospital_a", "hospital_a"), (made[0], "federated client")):
        certificate = pair_of(kit).certificate
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        kinds = {extension.oid._name for extension in certificate.extensions}
        assert "subjectAltName" not in kinds
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [oid._name for oid in usage] == ["clientAuth"]


def test_a_server_that_shows_a_silos_certificate_is_refused_by_every_silo(made, tmp_path):
    folder, _ = made
    pair = pair_of(folder / "hospital_b")
    shown, key = tmp_path / "shown.crt", tmp_path / "shown.key"
    shown.write_bytes(pair.certificate.public_bytes(Encoding.PEM))
    key.write_bytes(pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = silo_tls(job_of(folder / "hospital_a"))
    # Neither its purpose nor its names are a server's: each alone has to be enough.
    for checks_host in (True, False):
        context.check_hostname = checks_host
        with (
            StandIn(answer(model_reply())) as service,
            TlsFront(service.address, shown, key) as fake,
        ):
            client = Client([fake.address], "job", "silo", context)
            reply = client.get_model(-1, 3)
            client.close()
        assert reply.outcome is Outcome.UNREACHABLE
        assert "its certificate is refused: uns" in reply.reason and "purpose" in reply.reason


def test_a_front_that_asks_for_a_certificate_takes_a_kits(made):
    folder, _ = made
    files = (folder / "redis.crt", folder / "redis.key")
    with (
        StandIn(answer(model_reply())) as service,
        TlsFront(service.address, *files, authority=folder / "ca.crt") as front,
    ):
        client = Client([front.address], "job", "silo", silo_tls(job_of(folder / "hospital_a")))
        assert client.get_model(-1, 5).outcome is Outcome.ACCEPTED
        client.close()


def test_one_is_added_later_and_one_gets_another_certificate(tmp_path):
    succeed(tmp_path, TOOL, "--out=c", "--silos=a,b", TEMPLATE)
    folder = tmp_path / "c"
    before, prefix = load(folder / "silos.yaml").members, job_of(folder).url_prefix
    # What signs is kept elsewhere.
    safe = tmp_path / "safe"
    safe.mkdir()
    for name in ("ca.key", "ca.password"):
        (folder / name).rename(safe / name)
    (safe / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    said = succeed(tmp_path, TOOL, "--ca=safe", "--out=c", "--silos=c")
    after = load(folder / "silos.yaml").members
    assert list(after) == ["a", "b", "c"] and {name: after[name] for name in before} == before
    assert names_in(folder / "c") == KIT and job_of(folder / "c").url_prefix == prefix
    assert "kit of c: c/c, for that silo alone" in said and "to put away" not in said
    authority = read_certificate("ca", folder / "ca.crt")
    pair_of(folder / "c").certificate.verify_directly_issued_by(authority)

    line = refused(tmp_path, TOOL, "--ca=safe", "--out=c", "--silos=b")
    assert "b is in c/silos.yaml already; for another certificate remove its entry there" in line
    text = (folder / "silos.yaml").read_text()
    (folder / "silos.yaml").write_text(text[: text.index("  b:")] + text[text.index("  c:") :])
    line = refused(tmp_path, TOOL, "--ca=safe", "--out=c", "--silos=b")
    assert "holds b/ca.crt, b/client.p12" in line and "nothing is overwritten" in line
    (folder / "b").rename(tmp_path / "old")
    succeed(tmp_path, TOOL, "--ca=safe", "--out=c", "--silos=b")
    again = load(folder / "silos.yaml").members
    assert list(again) == ["a", "b", "c"] and again["b"].serial != before["b"].serial


@pytest.mark.parametrize(
    ("silos", "words"),
    [
        ("../x", "--silos: '../x' is no name of a silo, expected up to 64 letters"),
        ("a,,b", "--silos: '' is no name of a silo"),
        ("a b", "--silos: 'a b' is no name of a silo"),
        ("a,b,a", "--silos: a is there twice"),
        ("a;b", "--silos: 'a;b' is no name of a silo"),
    ],
)
def test_names_that_are_none_are_refused_before_anything_is_written(tmp_path, silos, words):
    assert words in refused(tmp_path, TOOL, "--out=n", f"--silos={silos}", TEMPLATE)
    assert not (tmp_path / "n").exists()
