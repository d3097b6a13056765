"""Simulate machines for tests: network namespaces with their own addresses, joined by a bridge.

    with Network() as network:
        coordinator = network.machine("coordinator", "10.77.0.2")
        silo = network.machine("silo_a", "192.168.1.2", outside="10.77.0.11")

A machine with an address `outside` is behind a router that translates addresses and lets in nothing
but answers, like an organisation's own. When the block ends, everything that runs in the namespaces
is killed and the namespaces are removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

BACKBONE, MASK = "wan", 24
NAMES = Path("/etc/netns")
# The router of one silo: it hides silos' addresses behind its own, and nobody connects to them.
TRANSLATION = """
table ip federation {
    chain outgoing {
        type nat hook postrouting priority 100;
        oifname "wan" masquerade
    }
    chain incoming {
        type filter hook forward priority 0; policy drop;
        iifname "lan" accept
        ct state established,related accept
    }
}
"""


def why_no_namespaces() -> str:
    """Return why this machine cannot have network namespaces, or "" where it can."""
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian's package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"try{os.getpid()}"
    tried = subprocess.run(
        ["ip", "netns", "add", name], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"no rights for network namespaces: {tried.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return ""


# Prefix of a command that should see no process outside, as in a container.
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def why_no_container() -> str:
    """Return why this machine cannot have PID namespaces, or "" where it can."""
    if shutil.which("unshare") is None:
        return "PID namespaces need the command unshare (Debian's package util-linux)"
    tried = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, check=False)
    return f"no rights for PID namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def why_no_translation() -> str:
    """Return why this machine cannot translate addresses, or "" where it can."""
    found = shutil.which("nft")
    return "" if found else "a router needs the command nft (Debian's package nftables)"


def _run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Machine:
    """Describe one namespace with an address.

    Args:
        namespace: its name.
        address: its own IPv4 address.
        port: the backbone's end of the cable that leads to it, or to its router.
        backbone: namespace of the bridge.
    """

    def __init__(self, namespace: str, address: str, port: str, backbone: str):
        self.namespace, self.address = namespace, address
        self._port, self._backbone = port, backbone

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the prefix of a command that should run on this machine."""
        return ("ip", "netns", "exec", self.namespace)

    def start(self, command: Sequence[str], folder: Path, log: Path) -> subprocess.Popen:
        """Start a process on this machine."""
        with log.open("a") as file:
            return subprocess.Popen(
                [*self.prefix, *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def knows(self, name: str, address: str) -> None:
        """Make this machine's name service return `address` for `name`."""
        folder = NAMES / self.namespace
        folder.mkdir(parents=True, exist_ok=True)
        # `ip netns exec` mounts the files of this folder over those of /etc.
        with (folder / "hosts").open("a") as hosts:
            hosts.write(f"{address} {name}\n")

    def cut_off(self) -> None:
        """Pull the cable."""
        _run("ip", "-n", self._backbone, "link", "set", self._port, "down")

    def reconnect(self) -> None:
        """Plug it in again."""
        _run("ip", "-n", self._backbone, "link", "set", self._port, "up")


class Network:
    """Run a bridge, with machines and routers on it."""

    def __init__(self):
        self._own = f"fl{os.getpid()}"
        self._namespaces: list[str] = []
        self._ports = 0

    def __enter__(self) -> Network:
        try:
            self._backbone = self._namespace(BACKBONE)
            _run("ip", "-n", self._backbone, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", self._backbone, "link", "set", "bridge", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def machine(self, name: str, address: str, outside: str = "") -> Machine:
        """Add a machine on the bridge, or with `outside` behind a router that has this address."""
        namespace = self._namespace(name)
        if not outside:
            port = self._plug(namespace, address)
            return Machine(namespace, address, port, self._backbone)
        router = self._namespace(f"{name}_router")
        port = self._plug(router, outside)
        gateway = address.rsplit(".", 1)[0] + ".254"
        _run("ip", "-n", router, "link", "add", "lan", "type", "veth",
             "peer", "name", "eth0", "netns", namespace)  # fmt: skip
        self._up(router, "lan", gateway)
        self._up(namespace, "eth0", address)
        _run("ip", "-n", namespace, "route", "add", "default", "via", gateway)
        _run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run("ip", "netns", "exec", router, "nft", "-f", "-", given=TRANSLATION)
        return Machine(namespace, address, port, self._backbone)

    def close(self) -> None:
        """Kill what runs in the namespaces, and remove them."""
        for namespace in self._namespaces:
            for pid in _run("ip", "netns", "pids", namespace).split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for namespace in self._namespaces:
            _run("ip", "netns", "del", namespace)
            shutil.rmtree(NAMES / namespace, ignore_errors=True)
        self._namespaces.clear()

    def _namespace(self, name: str) -> str:
        namespace = f"{self._own}_{name}"
        _run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _plug(self, namespace: str, address: str) -> str:
        """Connect the bridge and a namespace by a cable; return the bridge's end."""
        self._ports += 1
        port = f"port{self._ports}"
        _run("ip", "-n", self._backbone, "link", "add", port, "type", "veth",
             "peer", "name", BACKBONE, "netns", namespace)  # fmt: skip
        _run("ip", "-n", self._backbone, "link", "set", port, "master", "bridge", "up")
        self._up(namespace, BACKBONE, address)
        return port

    @staticmethod
    def _up(namespace: str, device: str, address: str) -> None:
        _run("ip", "-n", namespace, "address", "add", f"{address}/{MASK}", "dev", device)
        _run("ip", "-n", namespace, "link", "set", device, "up")
