"""The gate's configuration: what goes into it, and what is refused before nginx reads it."""

from __future__ import annotations

import stat

import pytest
from certificate_files import make_certificates, write_tls_job
from commands import refused, succeed, write_job
from cryptography import x509

from src.errors import UserError
from src.job.job_config import load_job
from src.launch.gate import configuration, hosts_of, servers_behind
from src.security.key_files import read_certificate
from src.security.roster import Member, Roster, member_of, text_of

TOOL = "tools/make_gate.py"
LISTEN = "10.0.0.2:6668"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    hosts = ["10.0.0.2", "FL.example.org"]
    return make_certificates(tmp_path_factory.mktemp("gate") / "certificates", hosts=hosts)


@pytest.fixture
def folder(tmp_path, certificates):
    """A coordinator's folder: federation.yaml and a roster of one silo."""
    write_job(tmp_path, 2345, 3)
    member = member_of("hospital_a", read_certificate("", certificates / "gate.crt"))
    (tmp_path / "silos.yaml").write_text(text_of([member]))
    return tmp_path


def flags(folder, certificates) -> list[str]:
    yaml_path = folder / "default_yaml_config.yaml"
    return [f"--yaml_config={yaml_path}", f"--certificates={certificates}", f"--listen={LISTEN}"]


def test_the_tool_writes_a_private_folder_and_says_how_to_start(folder, certificates):
    said = succeed(folder, TOOL, *flags(folder, certificates), "--local_server_num=2")
    assert "1 silos: hospital_a" in said and f"-c {folder}/gate/nginx.conf -s reload" in said
    assert "10.0.0.2:6669 leads to 127.0.0.1:6669" in said
    assert stat.S_IMODE((folder / "gate").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "gate/nginx.conf").stat().st_mode) == 0o600
    text = (folder / "gate/nginx.conf").read_text()
    member = member_of("hospital_a", read_certificate("", certificates / "gate.crt"))
    assert f'"{member.serial} {member.certificate}" "hospital_a";' in text
    assert '"10.0.0.2" yes;' in text and '"fl.example.org" yes;' in text
    assert text.count("proxy_pass http://127.0.0.1:6669$uri;") == 2
    succeed(folder, TOOL, *flags(folder, certificates), "--local_server_num=1")
    assert "6669" not in (folder / "gate/nginx.conf").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--listen=10.0.0.2"], "--listen: '10.0.0.2' is not an address with a port"),
        (["--listen=0.0.0.0:6668"], "--listen: 0.0.0.0 is refused"),
        (["--listen=10.0.0.2:6668;}"], "--listen: '10.0.0.2:6668;}'"),
        (["--http_server_address=10.0.0.2:7000"], "expected servers on 127.0.0.1"),
        (["--listen=127.0.0.1:6669"], "the servers listen there"),
        (["--local_server_num=0"], "--local_server_num is 0, expected 1 to 58868"),
        (["--local_server_num=99999"], "--local_server_num is 99999"),
        (["--max_upload_mb=0"], "--max_upload_mb is 0, expected 1 to 2048"),
        (["--roster=none.yaml"], "none.yaml"),
        (["--certificates=none"], "--certificates"),
        (["--out=a$b"], "nginx takes no path with a quote"),
        (['--out=a";b'], "nginx takes no path with a quote"),
        (["--out=a\nb"], "nginx takes no path with a quote"),
    ],
)
def test_refused_with_the_flag_and_the_reason(folder, certificates, changed, words):
    assert words in refused(folder, TOOL, *flags(folder, certificates), *changed)
    assert not (folder / "gate").exists()


def test_a_gate_whose_certificate_another_authority_has_signed_is_refused(
    folder, certificates, tmp_path
):
    other = make_certificates(tmp_path / "other", name="other")
    (other / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
    (given, *rest) = flags(folder, other)
    assert "was not signed by" in refused(folder, TOOL, given, *rest)


def test_the_servers_get_the_silos_file_without_its_encryption(folder, certificates):
    path = folder / "default_yaml_config.yaml"
    write_tls_job(path, certificates)
    succeed(folder, TOOL, *flags(folder, certificates), "--local_server_num=1")
    silos, servers = load_job(path), load_job(folder / "gate/federation.yaml")
    assert silos.tls is not None and servers.tls is None
    assert servers.redis_address == ("127.0.0.1", 2345) and servers.get("ssl.ca_cert_path") is None
    assert stat.S_IMODE((folder / "gate/federation.yaml").stat().st_mode) == 0o600
    path.write_text(path.read_text().replace("127.0.0.1:2345", "10.0.0.2:2345"))
    assert "expected Redis on 127.0.0.1" in refused(folder, TOOL, *flags(folder, certificates))


@pytest.mark.parametrize("host", ["*.example.org", "a b.example.org", '";x', "~^.*$", ""])
def test_a_certificates_host_that_nginx_could_take_for_more_is_refused(certificates, host):
    real = read_certificate("", certificates / "gate.crt")
    names = x509.SubjectAlternativeName([x509.DNSName(host)] if host else [])

    class Certificate:
        extensions = x509.Extensions([x509.Extension(names.oid, False, names)])

    assert "fl.example.org" in hosts_of(real, "gate.crt")
    with pytest.raises(UserError, match="gate.crt"):
        hosts_of(Certificate(), "gate.crt")


def test_a_prefix_stands_before_every_path_and_stays_out_of_the_log(folder, certificates):
    job = load_job(flags(folder, certificates)[0].split("=")[1])
    servers = servers_behind(LISTEN, "127.0.0.1:6668", 1)
    roster = Roster(folder / "silos.yaml", {"a": Member("a", "0" * 64, "00")})

    def text(prefix: str) -> str:
        job.values["client"] = {"http_url_prefix": prefix}
        return configuration(job, roster, certificates, servers, folder / "gate", 400)

    prefix = "/k3y7-k3y7-k3y7_k3y7/"
    for name in ("startFLJob", "updateModel", "getModel"):
        assert f"location = {prefix}{name} {{" in text(prefix)
        assert f"location = /{name} {{" in text("")
    assert f'"~^{prefix}(?<name>.*)$" "/$name";' in text(prefix)
