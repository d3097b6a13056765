"""Checks of a silo's way to the servers: connections, encryption, large messages, clocks."""

from __future__ import annotations

import http.client
import math
from typing import Any

from src.errors import UserError
from src.federated.tls import silo_context
from src.job.addresses import server_addresses
from src.job.checks import WARN, Check, Finding
from src.job.job_config import JobConfig
from src.launch.detector_size import FLOAT_BYTES, count_values, federated_shapes
from src.launch.reachability import ask, exchange_large, upload_rate, why_not_reached
from src.security.tls import client_context, explain, require_handshake, speaks_tls

FLAG = "--http_server_address"
# Certificates are valid from a day before they were made; logs of silos are compared by time.
CLOCK_S = 60


def reach_checks(job: JobConfig, config: Any) -> list[Check]:
    """Of a worker, once its certificates are in order."""
    reached: list[tuple[str, int]] = []
    return [
        Check("servers", lambda: servers_answer(job, config, reached), after="certificates"),
        Check("messages", lambda: large_messages_pass(job, config, reached), after="servers"),
    ]


def servers_answer(
    job: JobConfig, config: Any, reached: list[tuple[str, int]] | None = None
) -> str | Finding:
    """Whether servers listen where the workers look for them; they wait for them if not.

    One that takes the connection and says nothing may be busy, and is no fault here.

    Args:
        reached: gets the (host, port) that take connections.

    Raises:
        UserError: a server and the workers would not understand or trust each other, or what
            answers is no server of a job.
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
        f"{listed}; workers wait {config.join_timeout:.0f} s for servers (--join_timeout), "
        f"{FLAG} names them",
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
    """What a proxy says whose server is not there yet; "" of a server, or where nothing is said.

    Raises:
        UserError: something else answers.
    """
    context = silo_context(job, job.tls) if job.tls else None
    try:
        answer = ask(host, port, job.name, context, job.url_prefix)
    except (OSError, http.client.HTTPException):
        return ""  # what is wrong with it, the larger message finds out
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
    """How long the weights of a silo take to the slowest of the servers."""
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


def _clock(ahead: float) -> str:
    """Words for a clock that differs from the server's by `ahead` seconds."""
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {way} the server's: certificates may seem "
        "expired or not yet valid, and times in logs differ; set it (timedatectl set-ntp true)"
    )
