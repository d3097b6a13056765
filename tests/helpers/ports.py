"""Find free ports for the tests, different for each process that runs some of them."""

from __future__ import annotations

import itertools
import os
import socket

# Below the range from which the system takes the ports of outgoing connections.
FIRST, LAST = 12000, 32000
PROCESSES = 8
_EACH = (LAST - FIRST) // PROCESSES
_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % PROCESSES
_BEGIN = FIRST + _NUMBER * _EACH
# Do not reuse ports soon: a test's last connections may still hold them.
_turn = itertools.count()


def free_port_range(count: int) -> int:
    """Return the first of `count` consecutive free ports of the loopback address."""
    for _ in range(_EACH):
        first = _BEGIN + (next(_turn) * 16) % (_EACH - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def free_ports(count: int) -> list[int]:
    """Return `count` ports of 127.0.0.1 that nobody listens on."""
    first = free_port_range(count)
    return list(range(first, first + count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
