"""A silo's identity: its name at the servers, and whether only this process uses it.

The servers keep one place and count one upload for each identity and iteration, so that a silo that
is restarted keeps its place. If two processes use one identity, the training of one is dropped. The
servers do not report this: `IdentityWatch` does.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Callable

from src.federated.replies import UNDECIDED, Outcome, Reply
from src.federated.rounds import Round, SyncError

FIX = "give each silo a --silo_name or --first_worker_id of its own"
# So many rounds in a row that another process has taken end this one.
MOST_TAKEN = 2


class IdentityTakenError(SyncError):
    """Another process uses this silo's identity, and its uploads are the ones that count."""


def silo_label(silo_name: str, number: int) -> str:
    """Return a silo's name for people: its identity without its weight."""
    return f"{silo_name}_{number}"


def identity(silo_name: str, number: int, data_size: int) -> str:
    """Return the silo's name at the servers, the same after a restart with the same data.

    The weight is part of the name: within an iteration the servers divide by what an identity
    declared first, so a silo that comes back with other data must not take its earlier place.
    """
    return f"{silo_label(silo_name, number)} ({data_size})"


def plain_name(identity: str) -> str:
    """Return an identity without the weight at its end."""
    return re.sub(r" \(\d+\)$", "", identity)


def plain_names(identities: Iterable[str]) -> list[str]:
    """Return the identities without the weights at their ends, sorted."""
    return sorted(map(plain_name, identities))


class _Sign(enum.Enum):
    """Evidence of who has joined, or sent, in this silo's name."""

    NONE = 0
    MAYBE = 1  # perhaps an earlier process of this silo, or one of another silo
    SURE = 2  # certainly a process that runs now


class IdentityWatch:
    """Notices when another process uses this silo's identity.

    If the servers hold something for the identity that this process has not sent, it comes from an
    earlier process of this silo or from a second one that runs now. It can come from an earlier one
    only in the first iteration that this process takes part in, and only until this process itself
    has joined it. A request whose answer was lost may have counted, so it proves nothing.

    Of two processes exactly one loses an iteration: the one whose upload is not counted. It ends
    when it has certainly lost MOST_TAKEN iterations in a row. That ends the conflict, so the other
    process stays. That one has then seen as many iterations without evidence of a rival.

    Args:
        fl_id: the silo's identity.
        log: called with a log line.
        all_needed: whether an iteration succeeds only with the uploads of all its silos. Then one
            that succeeded without this process had another process's upload.
    """

    def __init__(self, fl_id: str, log: Callable[[str], None], all_needed: bool = False):
        self._fl_id = fl_id
        self._log = log
        self._all_needed = all_needed
        self._first = 0  # the first iteration that this process took part in
        self._accepted = 0  # the last one whose request to join was accepted
        self._may_have_joined = 0  # the last one in which such a request may have counted
        self._may_have_sent = 0  # the last one in which an upload may have counted
        self._sign = _Sign.NONE  # evidence in the current iteration
        self._upload_taken = False
        self._warned = False
        self._taken: list[int] = []  # consecutive iterations certainly lost
        self._conflict = False  # whether another process seems to run
        self._quiet = 0  # consecutive iterations without evidence of it since

    def require_alone(self) -> None:
        """Raise IdentityTakenError if the other process's uploads count and not this one's."""
        if len(self._taken) >= MOST_TAKEN:
            iterations = " and ".join(map(str, self._taken[-MOST_TAKEN:]))
            raise IdentityTakenError(
                f"another process uses this silo's identity, {self._fl_id}: its uploads counted in "
                f"the iterations {iterations}, and this process's did not; {FIX}, then start this "
                "one again"
            )

    def join_answered(self, iteration: int, reply: Reply) -> None:
        """Note the answer to a request to join, made while `iteration` was the current one."""
        if reply.outcome is Outcome.ACCEPTED:
            self._accepted = reply.iteration or iteration
            self._may_have_joined = max(self._may_have_joined, self._accepted)
        elif reply.unanswered or reply.outcome in UNDECIDED:
            # The server may have been one iteration ahead.
            self._may_have_joined = max(self._may_have_joined, iteration + 1)

    def entered(self, iteration: int, kept: bool) -> None:
        """Note that this silo takes part in `iteration`; `kept`: it had joined already."""
        self._first = self._first or iteration
        self._sign, self._upload_taken = _Sign.NONE, False
        if not kept or iteration <= self._may_have_joined:
            return
        if iteration == self._first:
            self._sign = _Sign.MAYBE
            self._log(
                f"{self._fl_id} had joined iteration {iteration} before this process did; if that "
                f"was no earlier process of this silo, another silo uses its identity: {FIX}"
            )
            return
        self._sign = _Sign.SURE
        if not self._warned:
            self._warned = True
            self._log(
                f"WARNING: another process uses this silo's identity, {self._fl_id}: it joined "
                f"iteration {iteration} before this one did; the first upload of the two counts, "
                f"and the other one's training is lost; {FIX}"
            )

    def upload_answered(self, iteration: int, reply: Reply) -> None:
        """Note the answer to an upload, and warn if another process's upload counts instead."""
        mine = reply.unanswered or iteration <= self._may_have_sent
        if reply.outcome is Outcome.ACCEPTED:
            self._taken.clear()
        elif reply.outcome is Outcome.DUPLICATE and not mine:
            self._upload_taken = True
            # If the servers let this process in, no earlier one can have been in the iteration.
            let_in = iteration == self._accepted or iteration != self._first
            self._sign = _Sign.SURE if let_in else _Sign.MAYBE
            self._warn_of_loss(iteration)
        if mine or reply.outcome is Outcome.ACCEPTED or reply.outcome in UNDECIDED:
            self._may_have_sent = iteration

    def ended(self, record: Round) -> None:
        """Note an iteration's result; with another process's upload it is "missed" here."""
        missed = record.result == "missed" and record.iteration > self._may_have_sent
        if missed and self._all_needed and record.iteration == self._accepted:
            self._sign = _Sign.SURE
        if self._sign is not _Sign.NONE and (self._upload_taken or missed):
            if not self._upload_taken:
                self._warn_of_loss(record.iteration)
            # An upload by an earlier process of this silo is no loss, and may be intended.
            if self._sign is _Sign.SURE:
                self._taken.append(record.iteration)
                if record.result == "aggregated":
                    record.result = "missed"
        elif (self._conflict or self._sign is _Sign.SURE) and record.result != "aggregated":
            self._log(
                f"WARNING: the likely reason that iteration {record.iteration} came to nothing for "
                f"this process is another one that uses its identity, {self._fl_id}: {FIX}"
            )
        self._follow_conflict(record.iteration)

    def _follow_conflict(self, iteration: int) -> None:
        """Forget the other process once it must have ended, having lost enough iterations."""
        if self._sign is _Sign.SURE:
            self._conflict, self._quiet = True, 0
        elif iteration <= self._may_have_sent:
            self._quiet += 1
            self._conflict = self._conflict and self._quiet < MOST_TAKEN

    def _warn_of_loss(self, iteration: int) -> None:
        if self._sign is _Sign.SURE:
            self._log(
                f"WARNING: this process's training in iteration {iteration} is lost: another "
                f"process uses this silo's identity, {self._fl_id}, and its upload came first; "
                f"{FIX}"
            )
            return
        self._log(
            f"WARNING: the servers have counted an upload of {self._fl_id} in iteration "
            f"{iteration} that this process did not send, and this one's is not counted; if that "
            f"was no earlier process of this silo, another silo uses its identity: {FIX}"
        )
