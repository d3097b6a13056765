"""A silo's requests to the servers, each repeated until they have decided on it.

Servers that are unreachable, are changing the iteration or have lost Redis are asked again until a
deadline; a refusal raises a `SyncError` with their reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Callable

from src.federated.identity import IdentityWatch
from src.federated.replies import Outcome, Reply
from src.federated.rounds import (
    Deadlines,
    Features,
    Patience,
    Round,
    SyncError,
    UploadRefusedError,
    traffic,
)
from src.federated.transport import Client

POLL_SECONDS = 0.05
RETRY_SECONDS = 0.5
# Servers that have lost Redis briefly report that an iteration is full, so they are asked again.
ASK_AGAIN_SECONDS = 5.0
# Time limit of a question whose answer only improves a log line.
QUESTION_SECONDS = 5.0


def pause(patience: Patience, what: str) -> None:
    """Wait a moment for `what`, an unexpected wait, before a request is repeated."""
    patience.pause(what, RETRY_SECONDS, report_at_once=True)


def _window(seconds: float, since: str) -> str:
    """Describe in brackets when the servers end an iteration by themselves; "" if unknown."""
    return f" (the servers end it {seconds:.0f} s after its first {since})" if seconds else ""


class ServerRequests:
    """The requests of one silo.

    Args:
        client: the connection, with the servers' addresses and the silo's identity.
        data_size: the silo's weight in the mean, the same in all its requests.
        threshold: number of silos in an iteration; only for log lines.
        all_needed: whether an iteration succeeds only with the uploads of all its silos.
        log: called with a log line.
        identity: is told the servers' answers to this silo.
    """

    def __init__(
        self,
        client: Client,
        data_size: int,
        threshold: int,
        deadlines: Deadlines,
        log: Callable[[str], None],
        identity: IdentityWatch,
        all_needed: bool = False,
    ):
        self._client = client
        self._data_size = data_size
        self._threshold = threshold
        self._deadlines = deadlines
        self._log = log
        self._identity = identity
        self._all_needed = all_needed
        self._told_threshold = False

    def patience(self) -> Patience:
        """Return a wait for servers that are unreachable or undecided."""
        return Patience(self._deadlines.join, self._log)

    def join(self, iteration: int) -> Reply:
        """Ask once to join the current iteration, which is `iteration` as far as is known."""
        reply = self._client.start(self._data_size, self._deadlines.request)
        self._identity.join_answered(iteration, reply)
        return reply

    def has_joined(self, iteration: int) -> Reply:
        """Ask whether the silo is in the iteration: NOT_JOINED, or REFUSED if it is."""
        return self._client.has_joined(iteration, self._deadlines.request)

    def latest(self, patience: Patience) -> Reply:
        """Return the latest model, as soon as a server provides it."""
        while True:
            reply = self._client.get_model(-1, self._deadlines.request)
            if reply.outcome is Outcome.ACCEPTED:
                return reply
            if reply.outcome is Outcome.REFUSED:
                raise SyncError(f"{reply.address} does not give the model: {reply.reason}")
            pause(patience, f"the servers ({reply})")

    def polls(self, iteration: int) -> Iterator[Reply | None]:
        """Ask until the servers have decided on the iteration, and yield its model.

        Before that, yields None every ASK_AGAIN_SECONDS, for the caller to do other checks.
        """
        for_others = Patience(self._deadlines.wait, self._log)
        for_servers = self.patience()
        turn = time.monotonic()
        while True:
            reply = self._client.get_model(iteration, self._deadlines.request)
            if reply.outcome is Outcome.ACCEPTED:
                yield reply
            elif reply.outcome is Outcome.REFUSED:
                raise SyncError(f"{reply.address} does not give the model: {reply.reason}")
            elif reply.outcome is Outcome.NOT_READY:
                for_servers.renew()
                for_others.pause(partial(self._others_of, iteration), POLL_SECONDS)
            else:
                for_servers.pause(f"the servers ({reply})", POLL_SECONDS)
            if time.monotonic() - turn >= ASK_AGAIN_SECONDS:
                yield None
                turn = time.monotonic()

    def _others_of(self, iteration: int) -> str:
        """Describe what is awaited: silos that have yet to join, or to send."""
        words = f"the others of {self._threshold} silos in iteration {iteration}"
        if self._client.is_full(QUESTION_SECONDS).outcome is not Outcome.REFUSED:
            return words + _window(self._deadlines.upload_window, "upload")
        if not self._told_threshold:
            self._told_threshold = True
            self._log(
                f"iteration {iteration} needs {self._threshold} silos (start_fl_job_threshold): "
                "start another one, or the servers with --start_fl_job_threshold=<silos that "
                "there are>"
            )
        window = _window(self._deadlines.join_window, "silo")
        return f"{words}, which has fewer so far{window}"

    def upload(self, features: Features, record: Round) -> None:
        """Send until a server has counted it, or the record's iteration is over: "missed"."""
        patience = self.patience()
        unanswered = False
        while True:
            reply = self._client.update(
                record.iteration, features, self._data_size, self._deadlines.request
            )
            record.upload_s += reply.seconds
            record.client_s += reply.own_seconds
            unanswered |= reply.unanswered
            self._identity.upload_answered(record.iteration, reply)
            outcome = reply.outcome
            if outcome is Outcome.UNREACHABLE:
                outcome = self._still_wanted(record.iteration, reply, patience)
            if outcome is Outcome.NOT_JOINED:
                outcome = self._join_again(record.iteration)
            if outcome in (Outcome.ACCEPTED, Outcome.DUPLICATE):
                record.bytes_up = reply.sent
                earlier = "; an earlier upload counts" * (outcome is Outcome.DUPLICATE)
                self._log(f"sent {traffic(reply.sent, reply.seconds)}{earlier}")
                return
            if outcome in (Outcome.FULL, Outcome.OVER, Outcome.FINISHED):
                result = "missed"
                if unanswered:
                    result = self._result_unanswered(record.iteration)
                record.result = result
                return
            if outcome is Outcome.REFUSED:
                raise UploadRefusedError(
                    f"{reply.address} refused the weights of iteration {record.iteration}: "
                    f"{reply.reason}"
                )
            if reply.outcome is not Outcome.UNREACHABLE:
                pause(patience, f"the servers ({reply})")

    def _still_wanted(self, iteration: int, reply: Reply, patience: Patience) -> Outcome:
        """Ask, after an interrupted upload, whether to send it again: NOT_READY means yes.

        The question is small, and the iteration may be over, with or without this upload.
        """
        while reply.outcome is Outcome.UNREACHABLE:
            pause(patience, f"the servers ({reply})")
            reply = self.has_joined(iteration)
        return Outcome.NOT_READY if reply.outcome is Outcome.REFUSED else reply.outcome

    def _result_unanswered(self, iteration: int) -> str:
        """Return the result of an upload whose answer was lost, after the servers accept no more.

        If an iteration needs all uploads, it has this one or has failed, which its model shows.
        """
        if self._all_needed:
            return "aggregated"
        self._log(
            f"WARNING: the answer to the upload of iteration {iteration} was lost, so it is not "
            "known whether the servers counted it; this silo takes it for not counted"
        )
        return "missed"

    def _join_again(self, iteration: int) -> Outcome:
        """Join servers that have forgotten the silo: OVER, FULL, or NOT_READY to send again."""
        if self._client.get_model(iteration, self._deadlines.request).outcome is Outcome.ACCEPTED:
            return Outcome.OVER
        reply = self.join(iteration)
        if reply.outcome is Outcome.FULL:
            return Outcome.FULL
        self._log(f"the servers have forgotten this silo; joining again: {reply}")
        return Outcome.NOT_READY

    def decision(self, features: Features, record: Round) -> Reply:
        """Return the model that ends the record's iteration; retry an upload that came too late."""
        begin = time.monotonic()
        polls = self.polls(record.iteration)
        while (reply := next(polls)) is None:
            if record.result == "missed" and self._has_room(record.iteration):
                record.result = "aggregated"
                self.upload(features, record)
                if record.result == "aggregated":
                    self._log(f"iteration {record.iteration} took this silo's weights after all")
        record.wait_s = time.monotonic() - begin - reply.seconds
        return reply

    def _has_room(self, iteration: int) -> bool:
        """Return whether the servers would consider an upload of this silo."""
        return self.has_joined(iteration).outcome is Outcome.REFUSED
