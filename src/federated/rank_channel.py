"""Messages between two ranks of one silo: a TCP connection, a deadline on every wait.

The ranks' own machines and the network between them belong to the silo: messages are neither
encrypted nor signed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.federated.rounds import SyncError
from src.files import parsed_json
from src.printing import printable

_LENGTH = struct.Struct("!I")
# A machine that vanishes without a word is noticed after 15 + 5 * 3 s, or, where something was sent
# to it, after so many ms without an acknowledgement.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 30_000),
)
_LARGEST_HEAD = 1 << 24
_MOST_NUMBERS = 1 << 29  # of one message's arrays; a detector has less than a fifth


class RankError(SyncError):
    """Another rank of this silo has ended, has failed, or says nothing."""


@dataclass
class Message:
    """What one rank tells another.

    Attributes:
        kind: hello, agree, agreed, gradients, load, state or error.
        fields: plain values.
        arrays: name -> 1-D float32 array.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Channel:
    """One end of the connection of two ranks.

    Args:
        sock: connected.
        peer: the other rank as messages name it, "rank 1".
        seconds: longest silence while something is waited for.
    """

    def __init__(self, sock: socket.socket, peer: str, seconds: float):
        self._socket = sock
        self.peer = peer
        self.wait_at_most(seconds)
        self._deadline: float | None = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def wait_at_most(self, seconds: float) -> None:
        """Take this as the longest silence from here on."""
        self._seconds = seconds
        self._socket.settimeout(seconds)

    def send(self, message: Message) -> None:
        """Send all of a message.

        Raises:
            RankError: the other rank is gone or takes nothing.
        """
        flat = [np.ascontiguousarray(a, np.float32).reshape(-1) for a in message.arrays.values()]
        sizes = [[name, array.size] for name, array in zip(message.arrays, flat)]
        head = json.dumps([message.kind, message.fields, sizes]).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(head)) + head)
            for array in flat:
                self._socket.sendall(array.data.cast("B") if array.size else b"")
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, kind: str = "", within_s: float | None = None) -> Message:
        """The next message.

        Args:
            kind: the only one that can come now; "" where several can.
            within_s: until all of it is there; None where only silence is too long.

        Raises:
            RankError: the other rank is gone, says nothing for `seconds`, tells an error, or
                something that no rank tells.
        """
        self._deadline = None if within_s is None else time.monotonic() + within_s
        try:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            told, fields, sizes = self._head(length)
            arrays = {}
            for name, size in sizes:
                array = np.empty(size, np.float32)
                self._fill(array.data.cast("B") if size else memoryview(bytearray()))
                arrays[name] = array
        except OSError as error:
            raise self._lost(error) from error
        if told == "error":
            raise RankError(printable(str(fields.get("reason", f"{self.peer} failed"))))
        if kind and told != kind:
            raise self._stranger()
        return Message(told, fields, arrays)

    def close(self) -> None:
        """The other rank reads what was sent and then the end."""
        self._socket.close()

    def _head(self, length: int) -> list:
        """Kind, fields and sizes of the arrays of a message."""
        with contextlib.suppress(ValueError):
            head = parsed_json(bytes(self._exactly(length))) if length <= _LARGEST_HEAD else None
            if isinstance(head, list) and len(head) == 3 and isinstance(head[1], dict):
                told, _, sizes = head
                if isinstance(told, str) and _are_sizes(sizes):
                    return head
        raise self._stranger()

    def _stranger(self) -> RankError:
        return RankError(f"{self.peer} does not speak as a rank of a silo does")

    def _exactly(self, size: int) -> bytearray:
        buffer = bytearray(size)
        self._fill(memoryview(buffer))
        return buffer

    def _fill(self, view: memoryview) -> None:
        while view:
            if self._deadline is not None:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise socket.timeout
                self._socket.settimeout(left)
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("its connection is closed")
            view = view[count:]

    def _lost(self, error: OSError) -> RankError:
        if isinstance(error, socket.timeout):
            return RankError(
                f"{self.peer} of this silo says nothing for {self._seconds:.0f} s (--rank_timeout)"
            )
        return RankError(f"{self.peer} of this silo has ended: {error}")


def _are_sizes(sizes: Any) -> bool:
    """Whether these are names of arrays and how many numbers each has."""
    if not isinstance(sizes, list):
        return False
    for pair in sizes:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            return False
        if type(pair[1]) is not int or pair[1] < 0:
            return False
    return sum(size for _, size in sizes) <= _MOST_NUMBERS
