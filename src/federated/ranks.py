"""The ranks of one silo: processes that train together, each on a share of the silo's images.

Only rank 0 talks to the servers; the others get its weights and its decisions, and all of them get
the mean of their gradients. On a CPU the gradients use the same connections, a star with rank 0 in
its middle: MindSpore's cluster of CPU processes sometimes loses a registration when they start at
once, and its AllReduce gives up after 30 s, which one rank's evaluation or a longer compilation can
take. On other devices the device's own library averages them.

A message on a connection is

    uint32, big-endian      bytes of the head
    head, JSON              [kind, {fields}, [[name of an array, count of its numbers], ...]]
    arrays                  float32 of each array in the order of the head, in the byte order of
                            the machine, without padding

The kinds of messages, in the order in which they come. Each join and each exchange of an iteration
sends its loads and a state; the gradients of the iteration's training steps come between the two.

    kind        from -> to          when
    hello       each -> rank 0      once, on connecting; rank 0 waits until all ranks are there, and
                                    answers only a rank that it refuses, with an error
    resume      rank 0 -> each      once, with --resume: the state to go on from, or no fields
    agree       each -> rank 0      once; rank 0 reads them rank by rank and compares
    agreed      rank 0 -> each      once, when all of them have rank 0's values
    load        rank 0 -> each      before a state: a model that rank 0 loads, none or several times
    state       rank 0 -> each      at the end of each join, exchange and reload of rank 0's silo
    gradients   each -> rank 0,     in each training step on a CPU: rank 0 reads them rank by rank,
                then back           adds them to its own in this order, and sends the mean to all
    error       any -> its peers    at any time, in place of what the other side waits for: why the
                                    sender ends
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import numpy as np
from mindspore.train.callback import Callback, RunContext

from src.errors import UserError
from src.federated.rounds import GaveUpError, SyncError
from src.files import parsed_json
from src.printing import printable

_LENGTH = struct.Struct("!I")
# A machine that vanishes without closing its connections is noticed after 15 + 5 * 3 s, or, where
# something was sent to it, after TCP_USER_TIMEOUT ms without an acknowledgement.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 30_000),
)
_LARGEST_HEAD = 1 << 24  # bytes
_MOST_NUMBERS = 1 << 29  # of one message's arrays; a detector has less than a fifth


class RankError(SyncError):
    """Raised where another rank of this silo has ended, has failed, or is silent for too long."""


@dataclass
class Message:
    """Hold what one rank tells another.

    Attributes:
        kind: hello, resume, agree, agreed, gradients, load, state or error.
        fields: values that JSON can hold.
        arrays: name -> 1-D float32 array.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Channel:
    """Send and receive messages at one end of the connection of two ranks.

    Args:
        sock: a connected TCP socket.
        peer: the other rank as messages name it, "rank 1".
        seconds: the longest silence while this end waits for something.
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
        """Set the longest silence from here on."""
        self._seconds = seconds
        self._socket.settimeout(seconds)

    def send(self, message: Message) -> None:
        """Send all of a message.

        Raises:
            RankError: the other rank is gone or does not read.
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
        """Return the next message.

        Args:
            kind: the only kind that can come now; "" where several can.
            within_s: seconds until all of it has to be there; None limits only the silence between
                bytes.

        Raises:
            RankError: the other rank is gone, is silent for `seconds`, sends an error, or sends
                something that no rank sends here.
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
        """Close the connection; the other rank reads what was sent and then its end."""
        self._socket.close()

    def _head(self, length: int) -> list:
        """Read and check kind, fields and sizes of the arrays of a message."""
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
    """Tell whether these are pairs of an array's name and count, not too many numbers in all.

    It is checked before memory is taken for the arrays.
    """
    if not isinstance(sizes, list):
        return False
    for pair in sizes:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            return False
        if type(pair[1]) is not int or pair[1] < 0:
            return False
    return sum(size for _, size in sizes) <= _MOST_NUMBERS


RETRY_S = 0.2
# A rank sends its hello at once; what does not is something else that found the port.
HELLO_S = 10.0
ACCEPT_S = 0.1

logger = logging.getLogger(__name__)


class Ranks:
    """Hold this process's connections to the other ranks of its silo.

    Args:
        rank: number of this rank; 0 listens and the others connect to it.
        size: number of ranks of the silo, on all machines.
        address: host and port of rank 0.
        silo: text that is equal in all ranks and differs in any other silo that may use the same
            port by mistake.
        connect_s: seconds that the others may take to start.
        silence_s: seconds, see `Channel`.

    Raises:
        UserError: rank 0 cannot listen at the address.
        GaveUpError: not all ranks connected in time; names those that are missing.
        RankError: rank 0 is of another silo, or has this rank already.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        address: tuple[str, int],
        silo: str,
        connect_s: float,
        silence_s: float,
    ):
        self.rank = rank
        self.size = size
        self._silence_s = silence_s
        self._failure: RankError | None = None
        self._channels: dict[int, Channel] = {}
        deadline = time.monotonic() + connect_s
        if rank == 0:
            self._accept(address, silo, deadline)
        else:
            self._connect(address, silo, deadline)

    def agree(self, values: Mapping[str, object]) -> None:
        """Check that all ranks have the same values.

        Values are compared by their `repr`.

        Raises:
            RankError: a rank has other values than rank 0; names the keys. Rank 0 raises it, and
                the others do when `fail` has told them.
        """
        texts = {key: repr(value) for key, value in values.items()}
        if self.rank:
            self._channels[0].send(Message("agree", texts))
            self._channels[0].receive("agreed")
            return
        for rank, channel in self._channels.items():
            theirs = channel.receive("agree").fields
            differing = [key for key, text in texts.items() if theirs.get(key) != text]
            if differing:
                raise RankError(
                    f"rank {rank} and rank 0 of this silo differ in: {', '.join(differing)}; give "
                    "all ranks the same configuration and the same data"
                )
        self.tell(Message("agreed"))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over all ranks of a 1-D float32 array, the same bits on each.

        It is called within a training step, where nothing can be raised: after a failure it
        returns `values`, and `check` raises.
        """
        if self._failure is None:
            try:
                return self._mean(values)
            except RankError as error:
                self._failure = error
        return values

    def check(self) -> None:
        """Raise the RankError that occurred within a training step, if any."""
        if self._failure is not None:
            raise self._failure

    def tell(self, message: Message) -> None:
        """Send a message from rank 0 to all others."""
        for channel in self._channels.values():
            channel.send(message)

    def hear(self) -> Message:
        """Return the next message of rank 0."""
        return self._channels[0].receive()

    def fail(self, reason: str) -> None:
        """Tell the ranks that are connected why this rank ends."""
        for channel in self._channels.values():
            with contextlib.suppress(RankError):
                channel.send(Message("error", {"reason": reason}))

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()

    def _mean(self, values: np.ndarray) -> np.ndarray:
        if self.rank:
            self._channels[0].send(Message("gradients", arrays={"": values}))
            return _gradients(self._channels[0], values.size)
        total = values.copy()
        for channel in self._channels.values():
            total += _gradients(channel, values.size)
        total /= self.size
        self.tell(Message("gradients", arrays={"": total}))
        return total

    def _accept(self, address: tuple[str, int], silo: str, deadline: float) -> None:
        """Wait for every other rank.

        Channels are kept in the order of the ranks' numbers, so that sums of gradients are
        repeatable. A thread for each connection waits for its hello, so that a slow one does not
        delay the others.
        """
        found: dict[int, Channel] = {}
        greeted: queue.Queue[tuple[Channel, Message]] = queue.Queue()
        with _listening(address) as server:
            server.settimeout(ACCEPT_S)
            while len(found) < self.size - 1:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, self.size)) - set(found))
                    raise GaveUpError(
                        f"rank(s) {', '.join(map(str, missing))} of this silo's {self.size} did "
                        f"not connect to {address[0]}:{address[1]} in time"
                    )
                with contextlib.suppress(socket.timeout):
                    sock, peer = server.accept()
                    channel = Channel(sock, f"what is at {peer[0]}", HELLO_S)
                    Thread(target=_greet, args=(channel, greeted), daemon=True).start()
                while not greeted.empty():
                    self._welcome(*greeted.get(), silo, found)
        self._channels = dict(sorted(found.items()))

    def _welcome(
        self, channel: Channel, message: Message, silo: str, found: dict[int, Channel]
    ) -> None:
        """Keep the channel of a rank; refuse one of another silo, say why, and close it."""
        hello = message.fields
        rank: Any = hello.get("rank")
        theirs = (hello.get("silo"), hello.get("size"))
        own = theirs == (silo, self.size) and type(rank) is int and 0 < rank < self.size
        if not own or rank in found:
            reason = (
                f"rank {rank!r:.20} of {theirs[0]!s:.80} with {theirs[1]!r:.20} ranks connected to "
                f"rank 0 of {silo} with {self.size}; start each rank of the silo once, with the "
                "same flags"
            )
            logger.warning("refused at the start: %s", reason)
            with contextlib.suppress(RankError):
                channel.send(Message("error", {"reason": reason}))
            channel.close()
            return
        channel.peer = f"rank {rank}"
        channel.wait_at_most(self._silence_s)
        found[rank] = channel

    def _connect(self, address: tuple[str, int], silo: str, deadline: float) -> None:
        # Rank 0 may start later: try again until the deadline.
        while True:
            try:
                sock = socket.create_connection(address, timeout=max(1.0, self._silence_s))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise GaveUpError(
                        f"rank 0 of this silo does not listen at {address[0]}:{address[1]} "
                        f"({error}); start it, or correct --rank_host and --rank_port"
                    ) from error
                time.sleep(RETRY_S)
        self._channels = {0: Channel(sock, "rank 0", self._silence_s)}
        hello = {"rank": self.rank, "size": self.size, "silo": silo}
        self._channels[0].send(Message("hello", hello))


def _greet(channel: Channel, greeted: queue.Queue[tuple[Channel, Message]]) -> None:
    """Hand over a connection that sends a hello in time; close any other."""
    try:
        greeted.put((channel, channel.receive("hello", HELLO_S)))
    except RankError:
        channel.close()


def _gradients(channel: Channel, count: int) -> np.ndarray:
    """Return the `count` numbers that another rank sends in a step.

    Raises:
        RankError: the other rank sends another count; or see `Channel.receive`.
    """
    array = channel.receive("gradients").arrays.get("")
    if array is None or array.size != count:
        raise RankError(
            f"{channel.peer} of this silo sends {0 if array is None else array.size} gradients in "
            f"place of {count}; give all ranks the same configuration"
        )
    return array


def _listening(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address)
    except OSError as error:
        raise UserError(
            f"--rank_host, --rank_port: rank 0 cannot listen on {address[0]}:{address[1]} "
            f"({error.strerror}); give an address of this machine and a free port"
        ) from error


class WatchRanks(Callback):
    """End the training after a step in which the mean over the ranks has failed."""

    def __init__(self, ranks: Ranks):
        super().__init__()
        self._ranks = ranks

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Check after each step; this callback comes before all others that use the weights."""
        self._ranks.check()
