"""Addresses that the engine accepts, and checks that ports are free."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket

import psutil

from src.errors import StartError, UserError


def parse_address(address: str, where: str) -> tuple[str, int]:
    """Parse "ip:port" into (ip, port).

    Args:
        address: what the user gave.
        where: the flag, or file and key, for the message.

    Raises:
        UserError: it has another form, is a name instead of an address, or the engine refuses it.
    """
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UserError(
            f"{where}: {address!r} is not an address with a port (1 to 65535), "
            "expected for example 127.0.0.1:6668"
        )
    return parse_ip(host, where), int(port)


def parse_ip(host: str, where: str) -> str:
    """Return `host` if it is an IPv4 address that the engine can bind and connect to.

    Raises:
        UserError: a host name, 0.0.0.0, or an address that ends in 0 or 255.
    """
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError:
        _refuse_ipv6(host, where)
        hint = "127.0.0.1" if host == "localhost" else "the machine's address, 192.168.1.5"
        raise UserError(
            f"{where}: {host!r} is refused by the engine, which takes IPv4 addresses only; "
            f"write for example {hint}"
        ) from None
    first, *_, last = ip.packed
    if not (1 <= first <= 254 and 1 <= last <= 254):
        raise UserError(
            f"{where}: {host} is refused by the engine (first and last number must be 1 to 254); "
            "give the address of one interface of this machine"
        )
    return str(ip)


def _refuse_ipv6(host: str, where: str) -> None:
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host.strip("[]"))
        raise UserError(
            f"{where}: {host} is an IPv6 address, and the engine takes IPv4 only; give the "
            "machine's IPv4 address (ip -4 address), a silo also a DNS name that has one"
        )


def require_free_port(host: str, port: int, what: str) -> None:
    """Raise a UserError that names the port if something on this machine listens on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"{what}: cannot listen on {host}:{port}: {host} is no address of this "
                    f"machine, which has {', '.join(own_addresses())}; behind a router it is the "
                    "machine's inner address, and silos connect to the router's outer one"
                ) from None
            raise UserError(
                f"{what}: cannot listen on {host}:{port}: {error.strerror}; choose another "
                f"address or port, or stop what listens there (ss -ltnp 'sport = :{port}')"
            ) from None


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine's interfaces."""
    found = [one for interface in psutil.net_if_addrs().values() for one in interface]
    return sorted({one.address for one in found if one.family == socket.AF_INET})


def listens(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Return whether a TCP connection to the address succeeds within `timeout_s`."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return `count` consecutive ports of the loopback address on which nothing listens.

    Raises:
        StartError: there are none.
    """
    for first in range(6668, 60000, 7):
        ports = list(range(first, first + count))
        if not any(listens("127.0.0.1", port) for port in ports):
            return ports
    raise StartError(f"no {count} consecutive free ports on 127.0.0.1", 1)


def server_addresses(given: str, server_num: int) -> list[str]:
    """Return the addresses of the servers that a worker may talk to.

    Args:
        given: "ip:port", or several with commas.
        server_num: number of servers on consecutive ports, starting at a single address.

    Raises:
        UserError: an address is invalid, or both several addresses and a number are given.
    """
    addresses = [require_worker_address(part.strip()) for part in given.split(",")]
    if server_num == 1:
        return addresses
    if len(addresses) > 1 or server_num < 1:
        raise UserError(
            f"--server_num {server_num} goes with one --http_server_address, found {given!r}; "
            "give the addresses or their number"
        )
    host, _, port = addresses[0].rpartition(":")
    return [f"{host}:{int(port) + i}" for i in range(server_num)]


def require_worker_address(address: str) -> str:
    """Return `address` if a worker can connect to it: an IPv4 address or DNS name, with a port.

    Raises:
        UserError: anything else; a name without a dot is refused by the engine.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit() and re.fullmatch(r"[a-zA-Z_][\w-]*", host) and host != "localhost":
        raise UserError(
            f"--http_server_address: the engine takes no name without a dot, found {host!r}; give "
            f"the whole name ({host}.example.org) or the server's IPv4 address"
        )
    is_name = re.fullmatch(r"[\w-]+(\.[\w-]+)+", host) and not host.replace(".", "").isdigit()
    if not (is_name and port.isdigit() and 0 < int(port) < 65536):
        parse_address(address, "--http_server_address")
    return address
