"""The roster of a job's members: what it takes, and what it refuses in one line."""

from __future__ import annotations

import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from src.errors import UserError
from src.security.certificates import new_authority, new_leaf
from src.security.roster import Member, load, member_of, text_of

A = {"certificate": '"' + "3f" * 32 + '"', "serial": '"5A01"'}
B = {"certificate": '"' + "07" * 32 + '"', "serial": '"0B"'}


def entry(name, values, **changed):
    lines = [f"    {key}: {value}" for key, value in {**values, **changed}.items() if value]
    return "\n".join([f"  {name}:", *lines, ""])


def written(tmp_path, text):
    path = tmp_path / "silos.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path, text):
    with pytest.raises(UserError) as raised:
        load(written(tmp_path, text))
    return str(raised.value)


def test_members_are_read_and_what_is_written_is_read_again(tmp_path):
    text = "silos:\n" + entry("hospital_a", A, images=500) + entry("b.example-1", B)
    roster = load(written(tmp_path, text))
    assert roster.members["hospital_a"] == Member("hospital_a", "3f" * 32, "5A01", images=500)
    assert list(roster.members) == ["hospital_a", "b.example-1"]
    again = load(written(tmp_path, text_of(roster.members.values())))
    assert again == roster


def test_a_number_of_digits_alone_is_still_text_in_a_written_roster(tmp_path):
    members = [Member("1", "12" * 32, "0123"), Member("on", "34" * 32, "10")]
    assert list(load(written(tmp_path, text_of(members))).members.values()) == members


def test_a_silo_is_a_members_by_its_name_without_the_workers_number(tmp_path):
    roster = load(written(tmp_path, "silos:\n" + entry("hospital_a", A) + entry("b_1", B)))
    labels = ["hospital_a_0", "hospital_a_12", "b_1_0", "b_1", "hospital_b_0", "hospital_a"]
    assert roster.strangers(labels) == ["b_1", "hospital_b_0"]


@pytest.mark.parametrize("serial", [0x5A, 0x0A0B, 0x80FF])
def test_the_serial_number_is_as_openssl_prints_it(tmp_path, monkeypatch, serial):
    monkeypatch.setattr("cryptography.x509.random_serial_number", lambda: serial)
    authority = new_authority("test", 10)
    certificate = new_leaf(authority, "a", ["127.0.0.1"], 5).certificate
    path = tmp_path / "a.crt"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "x509", "-in", str(path), "-noout", "-serial", "-fingerprint", "-sha256"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    member = member_of("a", certificate)
    assert f"serial={member.serial}\n" in out
    assert out.splitlines()[1].split("=")[1].replace(":", "").lower() == member.certificate


@pytest.mark.parametrize(
    "text, words",
    [
        ("silos:\n" + entry("a b", A), "'a b' is no name of a silo, expected up to 64"),
        ("silos:\n" + entry("..", A), "'..' is no name of a silo"),
        ("silos:\n" + entry("a" * 65, A), "is no name of a silo"),
        ("silos:\n" + entry("1", A), "1 is no name of a silo"),
        ("silos:\n" + entry("a", A) + entry("a", B), "line 5: 'a' is there already, in line 2"),
        ("silos:\n" + entry("a", A) + entry("b", A), "a and b have the same certificate 3f"),
        ("silos:\n" + entry("a", A) + entry("b", B, serial='"5A01"'), "the same serial 5A01"),
        ("silos:\n" + entry("a", A, serials="1"), "unknown key 'serials' (did you mean serial?)"),
        ("silos:\n" + entry("a", A, serials="1"), "certificate, serial, public_key, images"),
        ("silos:\n" + entry("a", A, serial=""), "silos.a: serial is missing"),
        ("silos:\n" + entry("a", A, serial="1234"), "in quotes, since YAML reads digits"),
        (
            "silos:\n" + entry("a", A, serial="5a"),
            "silos.a.serial is '5a', expected the certificate's serial",
        ),
        ("silos:\n" + entry("a", A, serial="A"), "silos.a.serial is 'A', expected"),
        ("silos:\n" + entry("a", A, certificate="3F" * 32), "64 lower-case hexadecimal digits"),
        ("silos:\n" + entry("a", A, images="0"), "silos.a.images is 0, expected a number"),
        ("silos:\n" + entry("a", A, images="yes"), "silos.a.images is True, expected a number"),
        ("silos:\n" + entry("a", A, public_key="[1]"), "silos.a.public_key is list, expected"),
        ("silos:\n", "expected one document, silos: and below it a line per silo"),
        ("silos: []\n", "expected one document, silos: and below it a line per silo"),
        ("silos:\n  a:\n", "silos.a: expected the keys certificate, serial below it"),
        ("members:\n" + entry("a", A), "unknown key 'members', expected only silos:"),
        ("silos: {a\n", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_file_the_place_and_the_form(tmp_path, text, words):
    said = refusal(tmp_path, text)
    assert "silos.yaml" in said and words in said and "\n" not in said


def test_a_roster_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"silos\.yaml: cannot be read"):
        load(tmp_path / "silos.yaml")
