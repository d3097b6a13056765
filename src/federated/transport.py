"""The protocol of the engine's servers: join an iteration, send weights, ask for the model.

`Client` posts the engine's messages over one kept-alive HTTP or HTTPS connection. Every call has
a deadline and returns a `Reply`, whose `outcome` says in one word what happened; nothing here
waits for another silo or retries a decision of the server. Where a connection breaks, a new one is
opened and the request sent again, to the next address if the first server is away or hangs. This
is safe because the server counts a silo once, by its `fl_id`.

A deadline counts from the last byte that the other side has taken or sent, so that a slow line gets
the time that it needs while a server that hangs does not.

Requests, each a POST of one message (messages.py), with the field numbers of the request and of its
reply, whose fields 0 and 1 are code and reason:

    path         request                                    reply
    startFLJob   0 fl_name, 1 fl_id, 3 data_size, 4 time    2 iteration, 5 plan, 6 features
    updateModel  0 fl_name, 1 fl_id, 2 iteration,
                 3 features, 4 time
    getModel     0 fl_name, 1 iteration, 2 time             2 iteration, 3 features

Features are a vector of FeatureMap, the time is milliseconds since 1970 as text.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import struct
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
# The longest that one request may take, however steadily its bytes move.
LONGEST_SECONDS = 4200.0
# Fewer bytes than this within a deadline are no progress: else a server that sends a byte now and
# then could hold a silo.
LEAST_PROGRESS = 1024
TOO_LARGE = (
    "HTTP status 413: a web server or proxy in between limits the size of a request; let it pass "
    "{:.0f} MB and more"
)
# The gate (deploy/gate) has this header in its answers; other web servers do not.
GATE_HEADER = "Federation-Gate"
# Why the gate does not let a silo in, by HTTP status; asking again changes nothing.
TURNED_AWAY = {
    401: "it wants a certificate of this silo that the job's authority has signed, and "
    f"{CLIENT} to open it",
    403: "this silo's certificate is not in the roster, or no longer; ask the coordinator",
    409: "this silo's name belongs to another silo than its certificate; --silo_name has to be the "
    "certificate's name",
}
# Other answers of the gate; asking again may help.
NOT_NOW = {
    421: "its certificate is not for this address",
    429: "it takes no more requests of this silo at a time",
    502: "the server behind it does not run",
    504: "the server behind it does not answer",
}
NOT_FOUND = (
    "HTTP status 404: no server of a job, or another client.http_url_prefix in its federation file "
    "than in this silo's"
)


class Client:
    """Connect one silo to the servers of a job.

    Args:
        addresses: "host:port" of the servers, the preferred one first.
        fl_name: the job's name.
        fl_id: the silo's identity; the same name after a restart keeps the silo's place.
        tls: context for HTTPS, which verifies the servers; None is plain HTTP.
        longest: seconds that one request may take in all; the `seconds` of each call limit the time
            without a byte in either direction, shared among the servers that are tried.
        prefix: prefix of the servers' paths, with a slash at both ends; "" for none.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        fl_name: str,
        fl_id: str,
        tls: ssl.SSLContext | None = None,
        longest: float = LONGEST_SECONDS,
        prefix: str = "",
    ):
        if not addresses:
            raise ValueError("addresses: at least one server is needed")
        self.addresses = list(addresses)
        self.fl_name = fl_name
        self.fl_id = fl_id
        self._tls = tls
        self._longest = longest
        self._prefix = prefix or "/"
        self._current = 0
        self._connection: http.client.HTTPConnection | None = None
        self._answered = False

    @property
    def address(self) -> str:
        """Return the server that the next request goes to first."""
        return self.addresses[self._current]

    def start(self, data_size: int, seconds: float) -> Reply:
        """Ask to join the current iteration with `data_size` samples; ACCEPTED tells which it is.

        The features of the reply are the control variates of Scaffold, else empty.
        """
        body = messages.encode({0: self.fl_name, 1: self.fl_id, 3: data_size, 4: _now()})
        return self._call("startFLJob", [body], len(body), seconds, (2, 6, 5))

    def update(
        self, iteration: int, features: Mapping[str, np.ndarray], data_size: int, seconds: float
    ) -> Reply:
        """Send the weights of an iteration that was joined with the same `data_size`.

        The values are multiplied by it, as the server expects.
        """
        fields: messages.Fields = {0: self.fl_name, 1: self.fl_id, 2: iteration, 4: _now()}
        body = messages.WeightsBody(fields, features, data_size)
        return self._call("updateModel", body, body.length, seconds, (-1, -1))

    def get_model(self, iteration: int, seconds: float) -> Reply:
        """Get the model of a finished iteration, with -1 the latest; NOT_READY while it is built.

        `Reply.iteration` is the iteration that the server works on now.
        """
        body = messages.encode({0: self.fl_name, 1: iteration, 2: _now()})
        return self._call("getModel", [body], len(body), seconds, (2, 3))

    def has_joined(self, iteration: int, seconds: float) -> Reply:
        """Ask whether this silo is in the iteration; NOT_JOINED says that it is not.

        The request is an upload without weights. The server refuses it before counting it, and its
        reason tells which is the case.
        """
        return self.update(iteration, {}, 0, seconds)

    def is_full(self, seconds: float) -> Reply:
        """Ask whether the current iteration has all its silos, without joining; FULL says yes.

        The request is to join with 0 images. The server refuses it before counting it, and its
        reason tells which is the case.
        """
        return self.start(0, seconds)

    def next_server(self) -> None:
        """Send the next request to another server first, where there is one."""
        self.close()
        self._current = (self._current + 1) % len(self.addresses)

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(
        self, path: str, body: Iterable, length: int, seconds: float, slots: tuple[int, ...]
    ) -> Reply:
        """Post to the first server that answers.

        Each server is tried once, over a kept-alive connection twice, since it may have been closed
        meanwhile. A server without progress for its share of `seconds` is given up for the next.
        """
        begin = time.monotonic()
        failures: list[str] = []
        left, sent, unanswered = seconds, 0, False
        for number, _ in enumerate(self.addresses):
            patience = left / (len(self.addresses) - number)
            for _ in range(2 if self._connection is not None else 1):
                clock = _Clock()
                try:
                    reply = self._attempt(path, clock.over(body), length, patience, slots)
                except StalledError as error:
                    failures.append(self._failed(error))
                    left -= error.waited
                    sent = max(sent, error.sent)
                    unanswered |= clock.finished and error.sent >= length
                    break
                except (OSError, http.client.HTTPException, messages.BadMessageError) as error:
                    failures.append(self._failed(error))
                    unanswered |= clock.finished
                    continue
                self._answered = True
                reply.own_seconds += clock.seconds
                reply.unanswered = unanswered
                reply.seconds = time.monotonic() - begin
                return reply
            self.next_server()
        return Reply(
            Outcome.UNREACHABLE,
            "; ".join(dict.fromkeys(failures)),
            sent=sent,
            unanswered=unanswered,
            seconds=time.monotonic() - begin,
        )

    def _attempt(
        self, path: str, body: Iterable, length: int, seconds: float, slots: tuple[int, ...]
    ) -> Reply:
        try:
            data = self._post(path, body, length, seconds)
        except TurnedAwayError as error:
            self.close()
            return Reply(Outcome.REFUSED, str(error), address=self.address)
        with (clock := _Clock()):
            reply = understand(data, *slots)
        reply.own_seconds = clock.seconds
        reply.sent, reply.received, reply.address = length, len(data), self.address
        return reply

    def _post(self, path: str, body: Iterable, length: int, seconds: float) -> np.ndarray:
        """Return the body of the answer.

        Raises:
            StalledError: nothing moved for `seconds`.
            TurnedAwayError: something in between does not let the request pass.
        """
        if self._connection is None or self._connection.sock is None:
            self._connection = self._connect(seconds)
        connection = self._connection
        with _deadline(connection.sock, length, seconds, self._longest):
            headers = {
                "Content-Type": "application/x-www-form-urlencoded",
                "Content-Length": str(length),
            }
            connection.request("POST", self._prefix + path, body=body, headers=headers)
            with connection.getresponse() as response:
                if response.status != http.client.OK:
                    raise _failure(response, length)
                return _read(response)

    def _failed(self, error: Exception) -> str:
        """Close the connection, and say where and why the request failed."""
        self.close()
        return f"{self.address}: {self._words_of(error)}"

    def _words_of(self, error: Exception) -> str:
        """Say why a request failed.

        A connection that breaks before any answer may mean that one side has TLS and the other not.
        """
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
        connection.sock.settimeout(None)  # from here on `_deadline` ends a call that stands still
        _keep_alive(connection.sock)
        return connection


def _keep_alive(sock: socket.socket) -> None:
    """Send TCP keepalive probes each minute while the silo trains.

    NAT routers forget an idle connection, often after some minutes, and then drop the next request
    silently instead of refusing it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)


class _Clock:
    """Add up the seconds spent in `with` blocks and in making the pieces of an iterable."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.finished = False  # True once the iterable has no more pieces

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
                self.finished = True
                return
            yield piece


def _now() -> str:
    return str(int(time.time() * 1000))


class TurnedAwayError(http.client.HTTPException):
    """Raised where a gate or web server in between refuses a request, and would do so again."""


def _failure(response: http.client.HTTPResponse, length: int) -> http.client.HTTPException:
    """Make the error for an answer other than 200 to a request of `length` bytes."""
    status = response.status
    if status == http.client.REQUEST_ENTITY_TOO_LARGE:
        return TurnedAwayError(TOO_LARGE.format(length / 1e6))
    if status == http.client.NOT_FOUND:
        return http.client.HTTPException(NOT_FOUND)
    if why := turned_away(response):
        return TurnedAwayError(why)
    hint = NOT_NOW.get(status, "") if response.getheader(GATE_HEADER) else ""
    return http.client.HTTPException(f"HTTP status {status}{hint and f' of the gate: {hint}'}")


def turned_away(response: http.client.HTTPResponse) -> str:
    """Say why the gate does not let this silo in; "" where it does, or there is no gate."""
    if response.status not in TURNED_AWAY or not response.getheader(GATE_HEADER):
        return ""
    return f"the gate does not let this silo in: {TURNED_AWAY[response.status]}"


class StalledError(TimeoutError):
    """Raised where a request had next to no progress for too long, or took too long in all.

    Attributes:
        sent: bytes of the request's body that the other side has taken.
        waited: seconds since the last byte in either direction.
    """

    def __init__(self, words: str, sent: int, waited: float):
        super().__init__(words)
        self.sent, self.waited = sent, waited


@contextlib.contextmanager
def _deadline(sock: socket.socket, length: int, seconds: float, longest: float) -> Iterator[None]:
    """Break the connection after `seconds` without progress and raise `StalledError`.

    A thread asks the kernel for the bytes that have moved. A write returns as soon as the bytes are
    buffered, on a slow line minutes before the other side has them, and a socket's own timeout
    counts whole calls, so neither shows progress.

    Args:
        length: bytes of the request's body, for the message.
        seconds: longest time with less than LEAST_PROGRESS bytes in both directions together.
        longest: seconds after which the connection is broken in any case.
    """
    done = threading.Event()
    stalled: list[StalledError] = []
    begin = time.monotonic()
    first = _moved(sock)

    def watch() -> None:
        last, since = first, begin
        while not done.wait(min(seconds / 10, 1.0)):
            now, moved = time.monotonic(), _moved(sock)
            if sum(moved) - sum(last) >= LEAST_PROGRESS:
                last, since = moved, now
            if now - since < seconds and now - begin < longest:
                continue
            sent = min(moved[0] - first[0], length)
            words = f"no answer within {seconds:.3g} s (--request_timeout)"
            if now - since < seconds:
                words = f"no answer within {longest:.3g} s (--wait_timeout)"
            elif 0 < sent < length:
                words = f"nothing moved for {seconds:.3g} s (--request_timeout)"
            if sent < length:
                words += f", {sent / 1e6:.3g} of {length / 1e6:.3g} MB were sent"
                words += f" in {now - begin:.3g} s"
            stalled.append(StalledError(words, sent, now - since))
            with contextlib.suppress(OSError):
                # The plain socket's method also under TLS: the wrapper's would wait for the peer.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if stalled:
            raise stalled[0] from error
        raise
    finally:
        done.set()


def _moved(sock: socket.socket) -> tuple[int, int]:
    """Return the bytes that the other side has acknowledged and those received; (0, 0) if closed.

    They are tcpi_bytes_acked and tcpi_bytes_received of Linux' struct tcp_info, uint64 at the
    offsets 120 and 128.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    except OSError:
        return 0, 0
    return struct.unpack_from("=QQ", info, 120)


def _read(response: http.client.HTTPResponse) -> np.ndarray:
    """Read the body into one uint8 buffer of its announced length.

    Raises:
        HTTPException: no length, or more than the engine's messages have; or the body ends early.
    """
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
