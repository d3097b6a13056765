"""Put TLS in front of a plain-text service on this machine: the wheel's Redis has none.

As a program (`python tests/helpers/tls_front.py listen_address service certificate key`) it
runs until it is killed; a test starts it this way in a network namespace.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
import threading
from pathlib import Path

PIECE = 65536


class TlsFront:
    """Accept TLS connections at `address` and forward their bytes to `service`.

    Args:
        service: "host:port" of the plain-text service.
        certificate, key: PEM files that it shows.
        authority: PEM file; clients must show a certificate that it has signed. None asks for none.
        listen: (host, port) to listen on; port 0 is any.
    """

    def __init__(
        self,
        service: str,
        certificate: Path,
        key: Path,
        authority: Path | None = None,
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ):
        host, port = service.rsplit(":", 1)
        self._service = (host, int(port))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if authority is not None:
            self._context.load_verify_locations(authority)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._socket = socket.create_server(listen)
        self.port = self._socket.getsockname()[1]
        self.address = f"{listen[0]}:{self.port}"
        self.refused: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more connections."""
        # A close alone would leave the thread in accept, and the port in use.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(connection, server_side=True)
        except OSError as error:
            self.refused.append(str(error))
            connection.close()
            return
        with client, contextlib.suppress(OSError), socket.create_connection(self._service) as plain:
            forward(client, plain)


def forward(client: ssl.SSLSocket, plain: socket.socket) -> None:
    """Forward bytes until one of the two closes."""
    while True:
        waiting = [client] if client.pending() else select.select([client, plain], [], [])[0]
        for source, target in ((client, plain), (plain, client)):
            if source in waiting:
                data = source.recv(PIECE)
                if not data:
                    return
                target.sendall(data)


def main() -> None:
    listen, service, certificate, key = sys.argv[1:]
    host, port = listen.rsplit(":", 1)
    with TlsFront(service, Path(certificate), Path(key), listen=(host, int(port))) as front:
        print(f"TLS at {front.address} for {service}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
