"""Interprets answers of the engine's servers: the outcome, and the servers' own words."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

import numpy as np

from src.federated import messages
from src.printing import printable

# A longer answer than this is no sentence of the engine.
LONGEST_SENTENCE = 256


class Outcome(enum.Enum):
    """The outcome of a request."""

    ACCEPTED = "accepted"
    NOT_READY = "not ready"
    SAFEMODE = "safemode"  # the server is changing the iteration or has lost Redis: ask again
    FULL = "iteration full"  # enough silos have joined, or enough have sent
    DUPLICATE = "counted already"  # this silo has joined, or sent, in this iteration
    NOT_JOINED = "not joined"  # the server does not know that this silo joined the iteration
    OVER = "iteration over"  # the server works on another iteration
    FINISHED = "job finished"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


# A server has not decided on the request; it is made again.
UNDECIDED = (Outcome.SAFEMODE, Outcome.UNREACHABLE)


@dataclass
class Reply:
    """A call's result.

    Attributes:
        reason: the server's words, or why it cannot be reached; "" if there is no reason.
        iteration: the server's current iteration, from 1; 0 if the server does not say.
        features: name -> 1-D float32 array; views into the one buffer that was received.
        sent, received: bytes of the two bodies; for an unreachable server what it accepted.
        seconds: from the first byte sent to the last byte decoded.
        own_seconds: the part that is this process's own work: scaling, encoding, decoding.
        address: the server that answered.
        iterations: number of the job's iterations; 0 if the server does not say.
        unanswered: whether one attempt was sent completely and got no answer, so that it may have
            counted.
    """

    outcome: Outcome
    reason: str = ""
    iteration: int = 0
    features: dict[str, np.ndarray] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    address: str = ""
    iterations: int = 0
    unanswered: bool = False

    def __post_init__(self) -> None:
        # The reason goes into logs, and into the error that ends a silo.
        self.reason = printable(" ".join(self.reason.split()))

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.reason}" if self.reason else self.outcome.value


# The engine distinguishes most of its refusals by their words only.
_WORDS = (
    ("has reached the threshold", Outcome.FULL),
    ("updateModel is enough", Outcome.FULL),
    ("Updating device metadata failed", Outcome.DUPLICATE),
    ("Updating metadata of UpdateModelClientList failed", Outcome.DUPLICATE),
    ("devices_meta for", Outcome.NOT_JOINED),
    ("iteration number is invalid", Outcome.OVER),
    ("safemode", Outcome.SAFEMODE),
    ("disabled or finished", Outcome.FINISHED),
)

# Sentences that the engine sends in place of a table.
_SENTENCES = (b"safemode", b"disabled or finished", b"An inner error occurred")


def understand(data: np.ndarray, *slots: int) -> Reply:
    """Decode a reply: a sentence of the engine, or a table.

    Args:
        slots: field numbers as `messages.decode` takes them.

    Raises:
        BadMessageError: the bytes are neither.
    """
    head = data[:LONGEST_SENTENCE].tobytes()
    if len(data) < LONGEST_SENTENCE and head and head.isascii() and b"\0" not in head:
        return _by_words(head.decode(), Outcome.UNREACHABLE)
    message = messages.decode(data.data, *slots)
    if message.code == messages.SUCCEED:
        return Reply(
            Outcome.ACCEPTED,
            message.reason,
            message.iteration,
            message.features,
            iterations=message.iterations,
        )
    if message.code == messages.NOT_READY:
        return Reply(Outcome.NOT_READY, message.reason, message.iteration)
    reply = _by_words(message.reason, Outcome.REFUSED)
    reply.iteration, reply.iterations = message.iteration, message.iterations
    return reply


def is_of_engine(head: bytes) -> bool:
    """Return whether an answer with this beginning is from one of the engine's servers."""
    return messages.begins_as_reply(head) or any(words in head for words in _SENTENCES)


def _by_words(text: str, otherwise: Outcome) -> Reply:
    reply = Reply(otherwise, text)
    for words, outcome in _WORDS:
        if words in reply.reason:
            return replace(reply, outcome=outcome)
    return reply
