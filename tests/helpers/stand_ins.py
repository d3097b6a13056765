"""Replace a server with a small stand-in: each connection is handled as a test says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import numpy as np

from src.federated.messages import WeightsBody, encode

WEIGHTS = {"w": np.arange(6, dtype=np.float32)}
SUCCESS = encode({0: 200, 1: "success", 2: 3})


def model_reply(iteration: int = 4) -> bytes:
    return b"".join(bytes(piece) for piece in WeightsBody({0: 200, 2: iteration}, WEIGHTS, 1))


def read_request(connection: socket.socket) -> bytes:
    """Read head and body of one request."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, rest = data.split(b"\r\n\r\n", 1)
    body = bytearray(rest)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 20)
    return bytes(body)


def send(connection: socket.socket, body: bytes, announced: int | None = None) -> None:
    length = len(body) if announced is None else announced
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)


def answer(body: bytes, times: int = 100) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        for _ in range(times):
            if not read_request(connection):
                return
            send(connection, body)

    return handle


class StandIn:
    """Listen; the n-th handler gets the n-th connection, the last handler all later ones."""

    def __init__(self, *handlers: Callable[[socket.socket], None]):
        self.handlers = handlers
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            handler = self.handlers[min(self.connections, len(self.handlers) - 1)]
            self.connections += 1
            threading.Thread(target=self._handle, args=(handler, connection), daemon=True).start()

    @staticmethod
    def _handle(handler, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            handler(connection)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()
