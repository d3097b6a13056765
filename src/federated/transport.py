"""The protocol of the engine's servers: join an iteration, send weights, ask for the model.

`Client` posts the engine's messages over one kept-alive HTTP or HTTPS connection. Every call has
a deadline and returns a `Reply`, whose `outcome` says in one word what happened; nothing here
waits for another silo or retries a decision of the server. A connection that breaks is opened
again and the request sent again, at the next address where the first one stays away: the server
counts a silo once, by its `fl_id`.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from src.federated import messages
from src.federated.replies import Outcome, Reply, understand
from src.security.passwords import CLIENT
from src.security.tls import breaks_off, explain, speaks_tls

CONNECT_SECONDS = 5.0
KEEPALIVE_SECONDS = 60


class Client:
    """One silo's connection to the servers of a job.

    Args:
        addresses: "host:port" of the servers, the preferred one first.
        fl_name: the job's name.
        fl_id: the silo's identity; the same name after a restart keeps the silo's place.
        tls: verifies the servers and makes the connection HTTPS; None is plain HTTP.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        fl_name: str,
        fl_id: str,
        tls: ssl.SSLContext | None = None,
    ):
        if not addresses:
            raise ValueError("addresses: at least one server is needed")
        self.addresses = list(addresses)
        self.fl_name = fl_name
        self.fl_id = fl_id
        self._tls = tls
        self._current = 0
        self._connection: http.client.HTTPConnection | None = None
        self._answered = False

    @property
    def address(self) -> str:
        """The server that the next request goes to first."""
        return self.addresses[self._current]

    def start(self, data_size: int, seconds: float) -> Reply:
        """Join the current iteration with `data_size` samples: ACCEPTED tells which one.

        The features of the reply are the control variates of Scaffold, else empty.
        """
        body = messages.encode({0: self.fl_name, 1: self.fl_id, 3: data_size, 4: _now()})
        return self._call("/startFLJob", [body], len(body), seconds, (2, 6))

    def update(
        self, iteration: int, features: Mapping[str, np.ndarray], data_size: int, seconds: float
    ) -> Reply:
        """Send the weights of an iteration that was joined with the same `data_size`.

        The values leave multiplied by it, as the server expects.
        """
        fields: messages.Fields = {0: self.fl_name, 1: self.fl_id, 2: iteration, 4: _now()}
        body = messages.WeightsBody(fields, features, data_size)
        return self._call("/updateModel", body, body.length, seconds, (-1, -1))

    def get_model(self, iteration: int, seconds: float) -> Reply:
        """The model of a finished iteration, or with -1 the latest; NOT_READY while it is built.

        `Reply.iteration` is the iteration that the server works on now.
        """
        body = messages.encode({0: self.fl_name, 1: iteration, 2: _now()})
        return self._call("/getModel", [body], len(body), seconds, (2, 3))

    def has_joined(self, iteration: int, seconds: float) -> Reply:
        """Whether this silo is in the iteration, asked without sending anything: NOT_JOINED or not.

        An upload without weights is refused before it is counted, for one reason or the other.
        """
        return self.update(iteration, {}, 0, seconds)

    def next_server(self) -> None:
        """Let the next request go to another server first, where there is one."""
        self.close()
        self._current = (self._current + 1) % len(self.addresses)

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(
        self, path: str, body: Iterable, length: int, seconds: float, slots: tuple[int, int]
    ) -> Reply:
        """Post to the first server that answers, each tried once, a kept-alive one twice."""
        begin = time.monotonic()
        failures: list[str] = []
        for _ in self.addresses:
            for _ in range(2 if self._connection is not None else 1):
                remaining = seconds - (time.monotonic() - begin)
                if remaining <= 0:
                    break
                try:
                    reply = self._attempt(path, body, length, remaining, slots)
                except (OSError, http.client.HTTPException, messages.BadMessageError) as error:
                    self.close()
                    failures.append(f"{self.address}: {self._words_of(error)}")
                    continue
                reply.seconds = time.monotonic() - begin
                self._answered = True
                return reply
            self.next_server()
        reasons = "; ".join(dict.fromkeys(failures))
        return Reply(Outcome.UNREACHABLE, reasons, seconds=time.monotonic() - begin)

    def _attempt(
        self, path: str, body: Iterable, length: int, seconds: float, slots: tuple[int, int]
    ) -> Reply:
        clock = _Clock()
        data = self._post(path, clock.over(body), length, seconds)
        with clock:
            reply = understand(data, *slots)
        reply.sent, reply.received, reply.address = length, len(data), self.address
        reply.own_seconds = clock.seconds
        return reply

    def _post(self, path: str, body: Iterable, length: int, seconds: float) -> np.ndarray:
        """One request and the whole body of its answer, or an error within `seconds`."""
        if self._connection is None or self._connection.sock is None:
            self._connection = self._connect(seconds)
        connection = self._connection
        with _deadline(connection, seconds):
            headers = {
                "Content-Type": "application/x-www-form-urlencoded",
                "Content-Length": str(length),
            }
            connection.request("POST", path, body=body, headers=headers)
            with connection.getresponse() as response:
                if response.status != http.client.OK:
                    raise http.client.HTTPException(f"HTTP status {response.status}")
                return _read(response)

    def _words_of(self, error: Exception) -> str:
        """Why a request failed; what breaks before any answer may be the other protocol."""
        if isinstance(error, ConnectionRefusedError):
            return "connection refused"
        words = explain(error) or type(error).__name__
        if self._answered or not breaks_off(error):
            return words
        host, port = self.address.rsplit(":", 1)
        if self._tls is not None:
            return f"{words}; does it want a certificate of this silo ({CLIENT})?"
        if speaks_tls(host, int(port)):
            return "it speaks TLS, and this silo's enable_ssl is False"
        return words

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        limit = min(seconds, CONNECT_SECONDS)
        if self._tls is None:
            connection = http.client.HTTPConnection(self.address, timeout=limit)
        else:
            connection = http.client.HTTPSConnection(self.address, context=self._tls, timeout=limit)
        connection.connect()
        connection.sock.settimeout(None)  # from here on `_deadline` ends a call that hangs
        _keep_alive(connection.sock)
        return connection


def _keep_alive(sock: socket.socket) -> None:
    """Let the system send a sign of life each minute while the silo trains.

    Routers that translate addresses forget a connection that carries nothing, often after some
    minutes, and then swallow the next request instead of refusing it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)


class _Clock:
    """Adds up the seconds spent in `with` blocks and in making the pieces of an iterable."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begin

    def over(self, pieces: Iterable) -> Iterator:
        iterator = iter(pieces)
        while True:
            with self:
                piece = next(iterator, None)
            if piece is None:
                return
            yield piece


def _now() -> str:
    return str(int(time.time() * 1000))


@contextlib.contextmanager
def _deadline(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Break the connection after `seconds`, whatever it is doing: TimeoutError.

    A socket's own timeout counts from the last byte, so a slow sender could hold a call for ever.
    """
    sock = connection.sock
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            # The plain socket's method also under TLS: the wrapper's would wait for the peer.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if expired.is_set():
            raise TimeoutError(f"no answer within {seconds:.3g} s") from error
        raise
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse) -> np.ndarray:
    """The body as uint8, received into one buffer of its announced length."""
    if response.length is None or response.length > messages.LARGEST_MESSAGE:
        raise http.client.HTTPException(f"an answer of {response.length} bytes")
    data = np.empty(response.length, np.uint8)
    view, done = data.data, 0
    while done < len(view):
        count = response.readinto(view[done:])
        if not count:
            raise http.client.IncompleteRead(b"", len(view) - done)
        done += count
    return data
