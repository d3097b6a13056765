"""Check a silo's way to the servers: connections, encryption, large messages, clocks."""

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
from typing import Any

from src.errors import UserError
from src.federated import messages
from src.federated.replies import is_of_engine
from src.federated.tls import silo_context
from src.federated.transport import turned_away
from src.job.addresses import server_addresses
from src.job.checks import WARN, Check, Finding
from src.job.job_config import JobConfig
from src.security.tls import client_context, explain, require_handshake, speaks_tls
from src.weights.parameter_shapes import FLOAT_BYTES, count_values, federated_shapes

CONNECT_S = 3.0
ANSWER_S = 10.0
# More than fits into one packet of any network, in both directions.
LARGE = 65536
# Enough to time a line of 50 kB/s to 50 MB/s.
TIMED = 8 * LARGE
# Statuses of a proxy whose server is not there, or not yet.
GATEWAY = (502, 503, 504)
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def why_not_reached(host: str, port: int, timeout_s: float = CONNECT_S) -> str:
    """Return why a TCP connection fails, and how to fix it; "" where it succeeds.

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
    return (
        f"this machine's name service does not know {host}; correct the name, or give the address"
    )


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
    """Return this machine's own address on the way to `host`; "" where there is no way."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing.
        probe.connect((host, 9))
        return probe.getsockname()[0]
    return ""


@dataclass
class Answer:
    """Describe what came back from an address.

    Attributes:
        stranger: what answered in place of a server of the engine, "" where it was one.
        passing: a proxy says that the server behind it is not there, which may pass.
        turned_away: why a gate refuses this silo; "" where it does not, or there is none.
        ahead_s: seconds by which this machine's clock is ahead of the server's.
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
    """Ask for the job's model, read the beginning of the answer, and tell who sent it.

    Args:
        fl_name: the job's.
        context: encrypts; None is plain.
        prefix: what the servers' paths begin with; "" for nothing.
        padding: bytes after the request, which the engine ignores.

    Raises:
        OSError, http.client.HTTPException: no answer in time, or an incomplete one.
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

    A connection that opens and then carries nothing large is the symptom of a wrong packet size on
    the way.

    Args:
        fl_name: name of the job whose model is asked for and read in part.
        context: encrypts; None is plain.
        prefix: as in `ask`.

    Returns:
        Why it failed or "", and the seconds by which this clock is ahead of the server's.

    Raises:
        OSError, http.client.HTTPException: any error but a message that never arrives.
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
    """Measure bytes per second from here to the server, by how much longer a larger request takes.

    Returns:
        The rate; infinite where the line is too fast to tell, 0 where the request does not
            complete within `ANSWER_S`.

    Raises:
        OSError, http.client.HTTPException: the server breaks the connection.
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
    """Return the seconds by which this machine's clock is ahead of an HTTP date; 0 without one."""
    return time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0


FLAG = "--http_server_address"
# Certificates are valid from a day before they were made; logs of silos are compared by time.
CLOCK_S = 60


def reach_checks(job: JobConfig, config: Any) -> list[Check]:
    """Return the checks of a worker's network, once its certificates are in order."""
    reached: list[tuple[str, int]] = []
    return [
        Check("servers", lambda: servers_answer(job, config, reached), after="certificates"),
        Check("messages", lambda: large_messages_pass(job, config, reached), after="servers"),
    ]


def servers_answer(
    job: JobConfig, config: Any, reached: list[tuple[str, int]] | None = None
) -> str | Finding:
    """Check that servers listen where the workers look for them; workers wait for them if not.

    A server that accepts the connection and says nothing may be busy, and is not an error here.

    Args:
        reached: gets the (host, port) of those that accept connections.

    Raises:
        UserError: a server and the workers would not understand or trust each other, or what
            answers is not a server of a job.
    """
    addresses = server_addresses(config.http_server_address, config.server_num)
    why_not = {}
    for address in addresses:
        host, _, port = address.rpartition(":")
        reason = why_not_reached(host, int(port))
        if reason:
            why_not[address] = reason
            continue
        _require_understanding(job, host, int(port))
        if reason := _proxy_without_server(job, host, int(port)):
            why_not[address] = reason
        elif reached is not None:
            reached.append((host, int(port)))
    if not why_not:
        return f"{', '.join(addresses)} take connections"
    listed = "; ".join(f"{address}: {reason}" for address, reason in why_not.items())
    return Finding(
        WARN,
        "servers",
        f"{listed}; workers wait for servers, and their launcher ends after "
        f"{min(config.start_timeout, config.join_timeout):.0f} s (--start_timeout, "
        f"--join_timeout); {FLAG} names them",
    )


def _require_understanding(job: JobConfig, host: str, port: int) -> None:
    if job.tls:
        require_handshake(host, port, client_context(job.tls), "the server")
    elif speaks_tls(host, port):
        raise UserError(
            f"the server at {host}:{port} speaks TLS, and {job.path} says enable_ssl: False; "
            "set it as on the servers, see docs/tls.md"
        )


def _proxy_without_server(job: JobConfig, host: str, port: int) -> str:
    """Return what a proxy without its server says; "" for a server, or where nothing is said.

    Raises:
        UserError: something else answers.
    """
    context = silo_context(job, job.tls) if job.tls else None
    try:
        answer = ask(host, port, job.name, context, job.url_prefix)
    except (OSError, http.client.HTTPException):
        return ""  # the larger message finds out what is wrong with it
    if answer.passing:
        return f"answered by {answer.stranger}, the server behind it does not answer"
    if not answer.stranger:
        return ""
    if answer.turned_away:
        raise UserError(f"{FLAG}: {host}:{port}: {answer.turned_away}")
    raise UserError(
        f"{FLAG}: at {host}:{port} no server of a job answers but {answer.stranger}; give the "
        "servers' address and their client.http_url_prefix, or let what stands in between pass "
        "POST requests to /startFLJob, /updateModel and /getModel on to them"
    )


def large_messages_pass(
    job: JobConfig, config: Any, servers: list[tuple[str, int]]
) -> str | Finding:
    """Check that large messages get through, in what time, and that the clocks agree."""
    context = silo_context(job, job.tls) if job.tls else None
    ahead = 0.0
    for host, port in servers:
        try:
            reason, ahead = exchange_large(host, port, job.name, context, job.url_prefix)
        except (OSError, http.client.HTTPException) as error:
            reason = f"it breaks off a request ({explain(error) or type(error).__name__})"
        if reason:
            return Finding(WARN, "messages", f"{host}:{port}: {reason}")
    if abs(ahead) > CLOCK_S:
        return Finding(WARN, "messages", _clock(ahead))
    return _time_of_upload(job, config, servers) if servers else "no server to try it with"


def _time_of_upload(job: JobConfig, config: Any, servers: list[tuple[str, int]]) -> str | Finding:
    """Report how long the weights of a silo take to the slowest of the servers."""
    context = silo_context(job, job.tls) if job.tls else None
    passed = "64 kB pass in both directions"
    try:
        rate = min(upload_rate(*server, job.name, context, job.url_prefix) for server in servers)
    except (OSError, http.client.HTTPException) as error:
        return f"{passed}; the line was not timed ({explain(error) or type(error).__name__})"
    size = FLOAT_BYTES * count_values(federated_shapes(config))
    window_s = job["round.update_model_time_window"] / 1000
    what = f"the {size / 1e6:.0f} MB that a silo sends in a round"
    if rate == math.inf:
        return f"{passed}; {what} take seconds"
    seconds = size / rate if rate else math.inf
    mbit = f"{8 * rate / 1e6:.1f} Mbit/s" if rate else "less than 0.4 Mbit/s"
    if seconds <= window_s / 2:
        return f"{passed}; {what} take about {seconds:.0f} s at {mbit}"
    needed = 8 * size / (window_s / 2) / 1e6
    return Finding(
        WARN,
        "messages",
        f"the line carries {mbit}: {what} take {seconds / 60:.0f} min or more, and servers end an "
        f"iteration {window_s / 60:.0f} min after its first upload; use a line of {needed:.1f} "
        "Mbit/s, let the coordinator raise round.update_model_time_window, or send less "
        "(--local_params, docs/privacy.md)",
    )


def line_seconds(job: JobConfig, config: Any) -> float:
    """Return the seconds that a silo's weights take to the slowest server; 0 where none answers."""
    context = silo_context(job, job.tls) if job.tls else None
    rates = []
    for address in server_addresses(config.http_server_address, config.server_num):
        host, _, port = address.rpartition(":")
        if not why_not_reached(host, int(port)):
            with contextlib.suppress(OSError, http.client.HTTPException):
                rates.append(upload_rate(host, int(port), job.name, context, job.url_prefix))
    slowest = min(rates, default=math.inf)
    # A line that is too slow to time is a WARN of its own.
    return FLOAT_BYTES * count_values(federated_shapes(config)) / slowest if slowest else 0.0


def _clock(ahead: float) -> str:
    """Describe a clock that differs from the server's by `ahead` seconds."""
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {way} the server's: certificates may seem "
        "expired or not yet valid, and times in logs differ; set it (timedatectl set-ntp true)"
    )
