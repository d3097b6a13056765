"""Relay between a silo and a real server, and break one exchange of a chosen kind."""

from __future__ import annotations

import contextlib
import socket
import threading

FAULTS = ("request cut", "no reply", "half a reply", "garbage", "silence")


class Proxy:
    """Forward whole HTTP messages; the first request to `path` gets `fault`, later ones pass.

    Args:
        server: "host:port" of the real server.
        path: /startFLJob, /updateModel or /getModel.
        fault: one of FAULTS.
    """

    def __init__(self, server: str, path: str, fault: str):
        host, port = server.rsplit(":", 1)
        self._server, self._path, self._fault = (host, int(port)), path.encode(), fault
        self.spoiled = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, silo: socket.socket) -> None:
        with silo, socket.create_connection(self._server) as server, contextlib.suppress(OSError):
            while request := read_message(silo):
                if self._path in request.split(b"\r\n", 1)[0] and not self.spoiled:
                    self.spoiled += 1
                    self._spoil(request, silo, server)
                    return
                server.sendall(request)
                silo.sendall(read_message(server))

    def _spoil(self, request: bytes, silo: socket.socket, server: socket.socket) -> None:
        if self._fault == "request cut":
            server.sendall(request[:-20])
            return
        server.sendall(request)
        reply = read_message(server)
        if self._fault == "half a reply":
            silo.sendall(reply[:-10])
        elif self._fault == "garbage":
            silo.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n" + bytes(400))
        elif self._fault == "silence":
            silo.recv(1)  # until the silo has had enough


def read_message(connection: socket.socket) -> bytes:
    """Read head and body of one HTTP message; b"" where the peer has closed."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, rest = bytes(data).split(b"\r\n\r\n", 1)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(rest) < length:
        part = connection.recv(65536)
        if not part:
            return b""
        rest += part
    return head + b"\r\n\r\n" + rest
