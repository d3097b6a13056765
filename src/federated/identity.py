"""A silo's identity: the name that the servers know it by, and whether it is this process's alone.

The servers keep one place and count one upload for each identity and iteration. That lets a silo
that is started again keep its place. It also means that of two processes with one identity the
training of one is dropped, and the servers do not say so: `IdentityWatch` does.
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
    """Another process uses this silo's identity, and its uploads are those that count."""


def silo_label(silo_name: str, number: int) -> str:
    """The name of a silo for people: its identity without its weight."""
    return f"{silo_name}_{number}"


def identity(silo_name: str, number: int, data_size: int) -> str:
    """The name by which the servers know a silo, the same after a restart with the same data.

    Its weight is part of it: within an iteration the servers divide by what an identity declared
    first, so a silo that comes back with other data must not take its earlier place.
    """
    return f"{silo_label(silo_name, number)} ({data_size})"


def plain_names(identities: Iterable[str]) -> list[str]:
    """Identities without the number of images behind them."""
    return sorted(re.sub(r" \(\d+\)$", "", identity) for identity in identities)


class _Sign(enum.Enum):
    """Who may have joined, or sent, in this silo's name."""

    NONE = 0
    MAYBE = 1  # an earlier process of this silo, or another silo's
    SURE = 2  # a process that runs now


class IdentityWatch:
    """Notices when another process uses this silo's identity.

    What the servers hold of the identity and this process has not sent is of an earlier process
    of this silo or of a second one that runs now. An earlier one can be meant only in the first
    iteration that this process takes part in, and no longer there once this process was the one
    that joined. A request whose answer was lost may have counted, so it proves nothing.

    Of two processes exactly one loses an iteration: the one whose upload is not counted. It ends
    when it has surely lost MOST_TAKEN in a row, and with it the conflict, so the other one stays.
    That one has then gone through as many without a sign of the other.

    Args:
        fl_id: the identity.
        log: takes a line.
        all_needed: an iteration ends well only with the uploads of all its silos, so that one which
            did without this process had another one's.
    """

    def __init__(self, fl_id: str, log: Callable[[str], None], all_needed: bool = False):
        self._fl_id = fl_id
        self._log = log
        self._all_needed = all_needed
        self._first = 0  # iteration that this process entered first
        self._accepted = 0  # the last one in which the servers took its request to join
        self._may_have_joined = 0  # the last one in which such a request may have counted
        self._may_have_sent = 0  # the same of an upload
        self._sign = _Sign.NONE  # of the current iteration
        self._upload_taken = False
        self._warned = False
        self._taken: list[int] = []  # iterations surely lost to the other process, in a row
        self._conflict = False  # another process of the identity runs, as far as is known
        self._quiet = 0  # iterations without a sign of it since, in a row

    def require_alone(self) -> None:
        """Raise IdentityTakenError where the other process's uploads count and not this one's."""
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
            # The server may have been one iteration further.
            self._may_have_joined = max(self._may_have_joined, iteration + 1)

    def entered(self, iteration: int, kept: bool) -> None:
        """Note that this silo takes part in `iteration`; `kept`: the servers had it already."""
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
        """Note the answer to an upload, and warn where another process's is the one that counts."""
        mine = reply.unanswered or iteration <= self._may_have_sent
        if reply.outcome is Outcome.ACCEPTED:
            self._taken.clear()
        elif reply.outcome is Outcome.DUPLICATE and not mine:
            self._upload_taken = True
            # Once the servers let this process in, no earlier one can have been in the iteration.
            let_in = iteration == self._accepted or iteration != self._first
            self._sign = _Sign.SURE if let_in else _Sign.MAYBE
            self._warn_of_loss(iteration)
        if mine or reply.outcome is Outcome.ACCEPTED or reply.outcome in UNDECIDED:
            self._may_have_sent = iteration

    def ended(self, record: Round) -> None:
        """Note how an iteration went; one whose upload was another process's is "missed" here."""
        missed = record.result == "missed" and record.iteration > self._may_have_sent
        if missed and self._all_needed and record.iteration == self._accepted:
            self._sign = _Sign.SURE
        if self._sign is not _Sign.NONE and (self._upload_taken or missed):
            if not self._upload_taken:
                self._warn_of_loss(record.iteration)
            # What an earlier process of this silo has sent is no loss, and may be meant.
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
        """Forget the other process when it must have ended, having lost as many iterations."""
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
