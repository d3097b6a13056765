"""Run the real nginx as the gate of a job, with members' certificates, for tests."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml
from certificate_files import make_certificates
from commands import succeed
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from engine import listens, wait_for

from src.security.certificates import load_authority, new_leaf, passwords_in
from src.security.roster import member_of, text_of
from src.security.tls import CIPHERS, TlsFiles, client_context

TOOL = "tools/make_gate.py"
STOP_S = 10.0


def nginx() -> str:
    """Return nginx's path, also where only root's PATH has its folder; "" where there is none."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or ""


def why_no_gate(folder: Path) -> str:
    """Return why this machine cannot run the gate; "" where it can."""
    if not nginx():
        return "no nginx (Debian: apt-get install nginx-light libnginx-mod-http-js)"
    path = folder / "try.conf"
    module = "load_module modules/ngx_http_js_module.so;"
    path.write_text(f"{module} pid {folder}/try.pid; events {{}}\n")
    command = [nginx(), "-t", "-e", "stderr", "-c", str(path)]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        words = tried.stderr.strip().splitlines()[0]
        return f"nginx lacks its JavaScript module (Debian: libnginx-mod-http-js): {words}"
    return ""


def start_command(folder: Path) -> list[str]:
    """Return the command that starts the gate of the folder in the foreground."""
    # As root, nginx would give its workers to a user who cannot reach the tests' folder.
    user = "user root; " if os.geteuid() == 0 else ""
    return [*_command(folder), "-g", f"{user}daemon off;"]


def _command(folder: Path) -> list[str]:
    return [nginx(), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


class Members:
    """Make an authority, the gate's certificate, and one certificate for each name.

    Args:
        folder: gets certificates/ and silos.yaml, with all names but the `strangers` in it.
    """

    def __init__(self, folder: Path, names: Sequence[str], strangers: Sequence[str] = ()):
        self.folder = folder
        self.certificates = make_certificates(folder / "certificates")
        authority = load_authority(self.certificates, passwords_in(self.certificates, ""))
        entries = []
        for name in (*names, *strangers):
            leaf = new_leaf(authority, name, None, 30)
            private = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (folder / f"{name}.pem").write_bytes(
                private + leaf.certificate.public_bytes(Encoding.PEM)
            )
            if name in names:
                entries.append(member_of(name, leaf.certificate))
        self.roster = folder / "silos.yaml"
        self.roster.write_text(text_of(entries))

    def context(self, name: str = "") -> ssl.SSLContext:
        """Return the TLS context that the silo connects with; "" shows no certificate."""
        files = TlsFiles(str(self.certificates / "ca.crt"), ":".join(CIPHERS))
        context = client_context(files)
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem")
        return context

    def revoke(self, name: str) -> None:
        """Delete a silo's entry."""
        values = yaml.safe_load(self.roster.read_text())
        del values["silos"][name]
        self.roster.write_text(yaml.safe_dump(values))


class Gate:
    """Run the gate before servers on consecutive ports, as tools/make_gate.py configures it."""

    def __init__(self, members: Members, yaml_path: Path, listen: str, first: str, count: int):
        self._members = members
        self._flags = [
            f"--yaml_config={yaml_path}",
            f"--roster={members.roster}",
            f"--certificates={members.certificates}",
            f"--listen={listen}",
            f"--http_server_address={first}",
            f"--local_server_num={count}",
        ]
        host, port = listen.rsplit(":", 1)
        self.addresses = [f"{host}:{int(port) + number}" for number in range(count)]
        self.folder = members.folder / "gate"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Gate:
        self.write()
        self._process = subprocess.Popen(start_command(self.folder), stdin=subprocess.DEVNULL)
        wait_for(lambda: all(map(listens, self.addresses)), STOP_S, "nginx")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)

    def write(self, *flags: str) -> str:
        """Call the tool; return what it prints."""
        return succeed(self._members.folder, TOOL, *self._flags, *flags)

    def reload(self) -> None:
        """Make nginx read its configuration again, and wait until it has."""
        before = self._workers()
        subprocess.run([*_command(self.folder), "-s", "reload"], check=True, timeout=STOP_S)
        wait_for(lambda: not before & self._workers(), STOP_S, "nginx's reload")

    def log(self) -> list[str]:
        """Return the lines of the access log."""
        return (self.folder / "access.log").read_text().splitlines()

    def _workers(self) -> set[int]:
        return {one.pid for one in psutil.Process(self._process.pid).children()}
