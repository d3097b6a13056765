"""Why an address of another machine does not answer, and whom to ask for what."""

from __future__ import annotations

import contextlib
import errno
import http.client
import math
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from src.federated import messages
from src.federated.replies import is_of_engine
from src.federated.transport import turned_away

CONNECT_S = 3.0
ANSWER_S = 10.0
# More than fits into one packet of any network, in both directions.
LARGE = 65536
# Enough to time a line of 50 kB/s to 50 MB/s by.
TIMED = 8 * LARGE
# Statuses of a proxy whose server is not there, or not yet.
GATEWAY = (502, 503, 504)
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def why_not_reached(host: str, port: int, timeout_s: float = CONNECT_S) -> str:
    """Why no TCP connection comes about, and how to mend it; "" where it does.

    Args:
        host: IPv4 address or DNS name.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        address = (str(found[0][4][0]), port)
    except socket.gaierror:
        return _unknown_name(host)
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError as error:
        return _words(error, address, timeout_s)
    return ""


def _unknown_name(host: str) -> str:
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(host, None, socket.AF_INET6)
        return f"the name {host} has an IPv6 address only, and servers take IPv4"
    return f"this machine's name service does not know {host}; mend the name, or give the address"


def _words(error: OSError, address: tuple[str, int], timeout_s: float) -> str:
    host, port = address
    here = own_address(host)
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there yet, or a firewall rejects it"
    if isinstance(error, socket.timeout):
        ask = f"TCP connections from {here or 'this machine'} to port {port} of {host}"
        return (
            f"no answer within {timeout_s:.0f} s: the address is wrong, the machine is off, or a "
            f"firewall drops it; ask the network administrator to let pass {ask}"
        )
    if error.errno in NO_ROUTE:
        return (
            f"no way there from {here or 'this machine'} ({error.strerror}): the address is "
            "wrong, or a cable, VPN or route is missing (ip route get " + host + ")"
        )
    return error.strerror or str(error)


def own_address(host: str) -> str:
    """This machine's own address on the way to `host`; "" where there is no way."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing.
        probe.connect((host, 9))
        return probe.getsockname()[0]
    return ""


@dataclass
class Answer:
    """What came back from an address.

    Attributes:
        stranger: what answered in place of a server of the engine, "" where it was one.
        passing: a proxy says that the server behind it is not there, which may pass.
        turned_away: why a gate does not let this silo in; "" where it does, or there is none.
        ahead_s: seconds by which this machine's clock is ahead of the one there.
    """

    stranger: str = ""
    passing: bool = False
    turned_away: str = ""
    ahead_s: float = 0.0


def ask(
    host: str,
    port: int,
    fl_name: str,
    context: ssl.SSLContext | None,
    prefix: str = "",
    padding: int = 0,
    timeout_s: float = CONNECT_S,
) -> Answer:
    """Ask for the job's model, read the beginning of the answer, and say whose it is.

    Args:
        fl_name: the job's.
        context: encrypts; None is plain.
        prefix: what the servers' paths begin with; "" for nothing.
        padding: bytes behind the request, which the engine ignores.

    Raises:
        OSError, http.client.HTTPException: no answer in time, or none that is whole.
    """
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    now = str(int(time.time() * 1000))
    body = messages.encode({0: fl_name, 1: -1, 2: now}) + bytes(padding)
    try:
        connection.request("POST", f"{prefix or '/'}getModel", body=body)
        response = connection.getresponse()
        head = response.read(LARGE)
    except http.client.RemoteDisconnected:
        raise
    except http.client.BadStatusLine as error:
        return Answer(f"something that does not speak HTTP ({str(error.args[0])[:40]!r})")
    finally:
        connection.close()
    if response.status == http.client.OK and is_of_engine(head):
        return Answer(ahead_s=_ahead(response.getheader("Date")))
    server = response.getheader("Server") or response.getheader("Via")
    by = f"Server: {server[:60]}" if server else "no Server header"
    status = f"HTTP status {response.status} {response.reason}".rstrip()
    stranger = f"another web server or a proxy ({status}, {by})"
    return Answer(stranger, response.status in GATEWAY, turned_away(response))


def exchange_large(
    host: str, port: int, fl_name: str, context: ssl.SSLContext | None, prefix: str = ""
) -> tuple[str, float]:
    """Send and receive more than one packet, as weights will, and compare clocks.

    A connection that opens and then carries nothing large is what a wrong packet size on the way
    looks like.

    Args:
        fl_name: the job's, whose model is asked for and read in part.
        context: encrypts; None is plain.
        prefix: as in `ask`.

    Returns:
        Why it failed or "", and the seconds by which this clock is ahead of the server's.

    Raises:
        OSError, http.client.HTTPException: anything but a message that never arrives.
    """
    try:
        answer = ask(host, port, fl_name, context, prefix, LARGE, ANSWER_S)
    except socket.timeout:
        return (
            f"it takes connections, and {LARGE // 1024} kB do not get through within "
            f"{ANSWER_S:.0f} s: packets of full size are lost on the way, often in a VPN; ask the "
            "network administrator for the path's MTU and set it here (ip link set mtu 1280 dev "
            "...), or let ICMP 'fragmentation needed' pass"
        ), 0.0
    if answer.stranger:
        return f"{LARGE // 1024} kB are answered by {answer.stranger}", 0.0
    return "", answer.ahead_s


def upload_rate(
    host: str, port: int, fl_name: str, context: ssl.SSLContext | None, prefix: str = ""
) -> float:
    """Bytes per second from here to the server, by how much longer a larger request takes.

    Returns:
        The rate; infinite where the line is too fast to tell, 0 where the request is not through
        within `ANSWER_S`.

    Raises:
        OSError, http.client.HTTPException: the server breaks off.
    """
    seconds = []
    for size in (LARGE, TIMED):
        begin = time.monotonic()
        try:
            ask(host, port, fl_name, context, prefix, size, ANSWER_S)
        except socket.timeout:
            return 0.0
        seconds.append(time.monotonic() - begin)
    longer = seconds[1] - seconds[0]
    return (TIMED - LARGE) / longer if longer > 0.01 else math.inf


def _ahead(date: str | None) -> float:
    """Seconds by which this machine's clock is ahead of an HTTP date; 0 without one."""
    return time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
