"""Checks of a silo's way to the servers: connections, encryption, large messages, clocks."""

from __future__ import annotations

import http.client
from typing import Any

from src.errors import UserError
from src.federated.encryption import silo_context
from src.job.addresses import server_addresses
from src.job.checks import WARN, Check, Finding
from src.job.job_config import JobConfig
from src.launch.reachability import ask, exchange_large, why_not_reached
from src.security.tls import client_context, explain, require_handshake, speaks_tls

FLAG = "--http_server_address"
# Certificates are valid from a day before they were made; logs of silos are compared by time.
CLOCK_S = 60


def reach_checks(job: JobConfig, config: Any) -> list[Check]:
    """Of a worker, once its certificates are in order."""
    reached: list[tuple[str, int]] = []
    return [
        Check("servers", lambda: servers_answer(job, config, reached), after="certificates"),
        Check("messages", lambda: large_messages_pass(job, reached), after="servers"),
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
        answer = ask(host, port, job.name, context)
    except (OSError, http.client.HTTPException):
        return ""  # what is wrong with it, the larger message finds out
    if answer.passing:
        return f"answered by {answer.stranger}, the server behind it does not answer"
    if not answer.stranger:
        return ""
    raise UserError(
        f"{FLAG}: at {host}:{port} no server of a job answers but {answer.stranger}; give the "
        "address of the servers, or let what stands in between pass POST requests to /startFLJob, "
        "/updateModel and /getModel on to them"
    )


def large_messages_pass(job: JobConfig, servers: list[tuple[str, int]]) -> str | Finding:
    """Whether what is larger than a packet gets through, and whether the clocks agree."""
    context = silo_context(job, job.tls) if job.tls else None
    ahead = 0.0
    for host, port in servers:
        try:
            reason, ahead = exchange_large(host, port, job.name, context)
        except (OSError, http.client.HTTPException) as error:
            reason = f"it breaks off a request ({explain(error) or type(error).__name__})"
        if reason:
            return Finding(WARN, "messages", f"{host}:{port}: {reason}")
    if abs(ahead) > CLOCK_S:
        return Finding(WARN, "messages", _clock(ahead))
    return "64 kB pass in both directions" if servers else "no server to try it with"


def _clock(ahead: float) -> str:
    """Words for a clock that differs from the server's by `ahead` seconds."""
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {way} the server's: certificates may seem "
        "expired or not yet valid, and times in logs differ; set it (timedatectl set-ntp true)"
    )
