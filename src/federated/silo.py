"""One silo's part in the federation, iteration by iteration, on plain numpy arrays.

An iteration is: join it, train, send the weights, wait for the other silos, load the global model.
`Silo` does all but the training. Every wait has a deadline and logs it; a silo's part ends early
with a `SyncError` whose message is one line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np

from src.federated.identity import IdentityWatch, plain_name
from src.federated.model_check import DisagreementError, ModelCheck, RuinedModelError, Start
from src.federated.replies import UNDECIDED, Outcome, Reply
from src.federated.rounds import (
    Deadlines,
    Features,
    JobRestartedError,
    Patience,
    Round,
    SyncError,
    check_finite,
    declared_size,
    sample,
    traffic,
)
from src.federated.server_requests import ServerRequests, pause
from src.federated.transport import Client
from src.files import Lossy
from src.printing import print

# The silo ends after this many consecutive iterations without a model that it can use.
MOST_REFUSED = 3
# If a model fails its check and there is no last good one, this many earlier iterations are
# searched, which servers keep.
KEPT_BY_SERVERS = 2
PERHAPS: dict[type, str] = {
    RuinedModelError: "A member's upload, or somebody else who reaches the servers, has ruined it",
    DisagreementError: "A silo that has joined or the servers have another version or other "
    "settings, or a member's upload has ruined it",
}


@dataclass(frozen=True)
class SiloSettings:
    """What a silo brings into a job.

    Attributes:
        images: number of this silo's images; its weight in the mean.
        iterations: number of iterations of the job.
        threshold: number of silos in an iteration; only for log lines.
        number: this silo's number; only for log lines.
        data_size_unit: number of images that count as one, see `declared_size`; the same for all
            silos.
        aspects: what silos must agree on, see `fingerprint`; {} sends no fingerprint.
        deadlines: for joining, a request, and waiting for an iteration's end.
        log: called with a log line.
        on_phase: called as on_phase(phase, iteration) with "join", "train", "push", "wait",
            "pull" or "done".
        rounds_path: file that gets a JSON line for each iteration.
        all_needed: whether an iteration succeeds only with the uploads of all its silos.
        max_change: bound of the global model's change in one iteration, see `ModelBounds`; 0 is no
            bound.
    """

    images: int
    iterations: int
    threshold: int
    number: int = 0
    data_size_unit: int = 1
    aspects: Mapping[str, object] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    log: Callable[[str], None] = print
    on_phase: Callable[[str, int], None] = lambda phase, iteration: None
    rounds_path: Path | None = None
    all_needed: bool = False
    max_change: float = 0.0


class Silo:
    """A silo in a job. Call `join`, train, `exchange`, and so on until `finished`.

    Args:
        client: the connection, with the servers' addresses and this silo's identity.
        load: called with a global model, name -> 1-D float32 array, valid during the call only.
        sizes: name -> number of values of every federated weight.
        settings: see `SiloSettings`.
        adds: whether the servers add uploads to their model (FedNova), in place of a mean of
            models.
        declared: what the silo declares as its weight in place of its number of images (FedNova).
        start: the silo's own initial weights if they come from a checkpoint: it starts from them if
            the servers' initial model was made without one.

    Attributes:
        iteration: the servers' current one, from 1; 0 before the first `join`.
        joined: whether this silo takes part in `iteration`.
        finished: whether no iteration is left.
        rounds: records of the iterations of this process.
        data_size: this silo's weight in the mean, 1 to 65535.
        controls: the control variates that came with the answer to join this iteration (Scaffold
            only); {} if an earlier process of this silo received them, or the answer was lost.
    """

    def __init__(
        self,
        client: Client,
        load: Callable[[dict[str, np.ndarray]], None],
        sizes: Mapping[str, int],
        settings: SiloSettings,
        adds: bool = False,
        declared: int | None = None,
        start: Start | None = None,
    ):
        self.client = client
        of_images = declared_size(settings.images, settings.data_size_unit)
        self.data_size = of_images if declared is None else declared
        self.iteration = 0
        self.finished = False
        self.joined = False
        self.rounds: list[Round] = []
        self.controls: dict[str, np.ndarray] = {}
        self._load = load
        self._sizes = dict(sizes)
        self._settings = settings
        self._iterations = settings.iterations
        self._log = log = settings.log
        self._on_phase = settings.on_phase
        self._rounds_file = Lossy("rounds.jsonl", log)
        self._adds = adds
        self._check = ModelCheck(
            self._sizes, dict(settings.aspects), log, start, adds, settings.max_change
        )
        self._identity = IdentityWatch(client.fl_id, log, settings.all_needed)
        self._requests = ServerRequests(
            client,
            self.data_size,
            settings.threshold,
            settings.deadlines,
            log,
            self._identity,
            settings.all_needed,
        )
        self._granted: tuple[int, dict[str, np.ndarray]] = (0, {})
        self._job_iterations = 0  # according to the servers, once they have said so
        self._held = -1  # the last iteration whose starting weights were loaded
        self._sample = np.empty(0, np.float32)
        self._refused: list[int] = []  # consecutive iterations whose model was refused
        self._began = 0.0

    def join(self) -> None:
        """Join the servers' current iteration and load its weights; do nothing if already joined.

        Sets `iteration` and `joined`, or `finished`.

        Raises:
            UserError: this silo's model or settings differ from the servers'.
            SyncError: a deadline has passed, or the servers refuse.
            IdentityTakenError: another process uses this silo's identity.
        """
        if self.joined or self.finished:
            return
        self._identity.require_alone()
        self._began = time.monotonic()
        self._on_phase("join", self.iteration)
        patience = self._requests.patience()
        while not (self.joined or self.finished):
            if self._held != self.iteration:
                self._pull_latest(patience)
            if self.iteration > self._iterations:
                self._finish()
            else:
                self._ask_to_join(patience)
        if self.joined:
            self._on_phase("train", self.iteration)

    def exchange(self, features: Features, step: int = 0, epsilon: float | None = None) -> Round:
        """Send this silo's weights, wait for the others, and load the servers' new model.

        If the iteration fails, or ends without this silo, the servers' latest model is loaded
        nevertheless; the log and the result say so.

        Args:
            features: name -> float32 array of any shape.
            step: the silo's training step, for messages.
            epsilon: see `Round`.

        Raises:
            NotFiniteError: a value is NaN or infinite.
            UploadRefusedError: the servers refuse the weights.
            SyncError: a deadline has passed, or the job was started again.
        """
        if not self.joined:
            raise SyncError("weights can be sent only in an iteration that this silo has joined")
        record = Round(self.iteration, epsilon=epsilon)
        begin = time.perf_counter()
        check_finite(features, step, self.data_size)
        sent = sample(features, self._sizes)
        record.client_s = time.perf_counter() - begin
        self._on_phase("push", self.iteration)
        everything = {**features, **self._check.sent_beside()}
        self._requests.upload(everything, record)
        self._on_phase("wait", self.iteration)
        self._await_end(everything, record, sent)
        return record

    def reload(self) -> None:
        """Load the servers' latest global model."""
        self._pull_latest(self._requests.patience())

    def _ask_to_join(self, patience: Patience) -> None:
        """Ask once to join, and act on the answer."""
        self._heed(self._requests.join(self.iteration), patience)

    def _heed(self, reply: Reply, patience: Patience) -> None:
        """Act on the answer to a request to join."""
        self._compare_iterations(reply)
        if reply.outcome is Outcome.ACCEPTED:
            # They come only once: when asked again with the iteration's model, servers say "joined
            # already".
            self._granted = (reply.iteration or self.iteration, reply.features)
        if reply.iteration and reply.iteration != self.iteration:
            self._see(reply.iteration)
        elif reply.outcome in (Outcome.ACCEPTED, Outcome.DUPLICATE):
            self._enter()
        elif reply.outcome is Outcome.FULL:
            self._when_full(patience)
        elif reply.outcome is Outcome.REFUSED:
            raise SyncError(f"{reply.address} does not let this silo join: {reply.reason}")
        elif reply.outcome is Outcome.FINISHED and 0 < self._job_iterations < self.iteration:
            self._finish()
        elif reply.outcome is Outcome.FINISHED:
            pause(patience, self._servers_that_take_nobody())
        else:
            pause(patience, f"the servers ({reply})")

    def _servers_that_take_nobody(self) -> str:
        """Describe servers that answer "disabled or finished": which of it, as far as known."""
        done = self.iteration - 1
        if self._job_iterations:
            return (
                f"the servers, which take nobody in after iteration {done} of "
                f"{self._job_iterations}: the job is disabled, or Redis takes no writes"
            )
        return (
            f"the servers, disabled or finished after iteration {done} where this silo's "
            f"fl_iteration_num is {self._iterations}"
        )

    def _compare_iterations(self, reply: Reply) -> None:
        """Note how many iterations the servers' job has; log a difference from this silo's number.

        The silo continues: it ends with the job, or before it.
        """
        theirs, mine = reply.iterations, self._iterations
        if theirs not in (0, mine, self._job_iterations):
            self._log(
                f"WARNING: fl_iteration_num is {theirs} at the servers and {mine} in this silo, "
                f"whose learning rates are for {mine} and which leaves after iteration "
                f"{min(theirs, mine)}; give silos and servers the same --fl_iteration_num"
            )
        self._job_iterations = theirs or self._job_iterations

    def _when_full(self, patience: Patience) -> None:
        """Keep the place of an earlier process of this silo, or wait for the next iteration."""
        reply = self._requests.has_joined(self.iteration)
        if reply.outcome is Outcome.REFUSED:
            self._enter()
        elif reply.outcome in UNDECIDED:
            pause(patience, f"the servers ({reply})")
        else:
            self._log(f"iteration {self.iteration} has its silos already; taking the next one")
            self._on_phase("wait", self.iteration)
            self._wait_for_next(patience)

    def _wait_for_next(self, patience: Patience) -> None:
        """Wait until the iteration is over and its model loaded, or it has a place after all."""
        polls = self._requests.polls(self.iteration)
        while (model := next(polls)) is None:
            reply = self._requests.join(self.iteration)
            if reply.outcome is not Outcome.FULL:
                self._heed(reply, patience)
                return
        self._take_newest(model, self.iteration)
        patience.renew()

    def _enter(self) -> None:
        """Enter the iteration whose weights are loaded."""
        self.joined = True
        granted, features = self._granted
        own = granted == self.iteration
        how = "joined" if own else "kept the place in"
        self.controls = features if own else {}
        self._granted = (0, {})  # as large as the model
        self._log(
            f"{how} iteration {self.iteration} of {self._iterations} as silo "
            f"{self._settings.number} with {self._settings.images} images "
            f"({plain_name(self.client.fl_id)})"
        )
        self._identity.entered(self.iteration, kept=not own)

    def _finish(self) -> None:
        self.finished = True
        done = min(self._iterations, self._job_iterations or self._iterations)
        self._log(f"the job is finished: all {done} iterations are done")
        self._on_phase("done", self.iteration)

    def _see(self, iteration: int) -> None:
        """Note the servers' current iteration; raise JobRestartedError if it has decreased."""
        if iteration < self.iteration:
            raise JobRestartedError(
                f"the servers are at iteration {iteration} and this silo has seen "
                f"{self.iteration}: the job was started again; start this silo again too"
            )
        self.iteration = iteration

    def _pull_latest(self, patience: Patience) -> None:
        reply = self._requests.latest(patience)
        if not self._take(reply):
            which = f"the weights that iteration {self.iteration} starts from"
            if self.iteration > self._iterations:
                which = "the last model of the job"
            self._log(f"received {which}: {traffic(reply.received, reply.seconds)}")

    def _take_newest(self, reply: Reply, iteration: int) -> np.ndarray:
        """Load the model that ended `iteration`, or the latest if others have ended since.

        Servers return the model that was asked for, however many iterations they are ahead.

        Returns:
            A sample of the model that ended `iteration`.
        """
        if reply.iteration <= iteration + 1:
            self._take(reply)
            return self._sample
        ended = self._sample  # as after a failed iteration
        if self._fault(reply) is None:
            ended = sample(reply.features, self._sizes)
        self._see(reply.iteration)
        self._log(f"the servers are at iteration {reply.iteration} already; taking their latest")
        self._pull_latest(self._requests.patience())
        return ended

    def _take(self, reply: Reply) -> bool:
        """Check the model in a reply and load it, or the silo's own instead; return True then.

        If the model cannot be used, the last good one is loaded instead.
        """
        reply = self._sound(reply)
        fault = self._fault(reply)
        if fault is not None:
            self._see(reply.iteration)
            return self._go_back(reply, fault)
        self._see(reply.iteration)
        self._refused.clear()
        return self._take_good(reply)

    def _take_good(self, reply: Reply) -> bool:
        # A sample of the servers' model in either case: its change shows whether a round succeeded.
        self._sample = sample(reply.features, self._sizes)
        weights, own = self._check.starting_weights(reply)
        self._check.keep(weights, reply.iteration)
        self._load(dict(weights))
        self._held = self.iteration
        return own

    def _fault(self, reply: Reply) -> Exception | None:
        """Return why this silo cannot continue from the model in a reply; None if it can."""
        try:
            self._check.require_own(reply)
        except (RuinedModelError, DisagreementError) as error:
            return error
        return None

    def _go_back(self, reply: Reply, fault: Exception) -> bool:
        """Load the last good model instead of the one in `reply`.

        Raises:
            RuinedModelError, DisagreementError: there is none, or this lasts too long.
        """
        ended = reply.iteration - 1
        good = self._check.last_good
        earlier = None if good else self._earlier_model(reply, fault)
        if ended not in self._refused:
            self._refused.append(ended)
        count = len(self._refused)
        if count >= MOST_REFUSED:
            raise type(fault)(
                f"{fault}; it is the model of iteration {ended}, and this silo could take none of "
                f"the last {count}: docs/recovery.md says how to go back to the last good one, "
                "and the log of the servers whose uploads were in them"
            )
        self._log(
            f"WARNING: the model of iteration {ended} is not taken, the last good one is: {fault}. "
            f"{PERHAPS[type(fault)]}. {count} in a row; {MOST_REFUSED} end this silo"
        )
        if earlier is not None:
            return self._take_good(earlier)
        self._load(good)
        self._held = self.iteration
        return False

    def _earlier_model(self, reply: Reply, fault: Exception) -> Reply:
        """Return a good model from before the one in `reply`, which the servers still keep.

        An initial model that silos with other frozen weights may start from is excluded: it would
        admit a silo that starts from other weights than the rest.

        Raises:
            RuinedModelError, DisagreementError: there is none. It is the fault of the oldest model,
                which tells a difference of this silo's from what a later upload has ruined.
        """
        ended = reply.iteration - 1
        for number in range(ended - 1, max(ended - 1 - KEPT_BY_SERVERS, -1), -1):
            polls = self._requests.polls(number)
            while (found := next(polls)) is None:
                continue
            wrong = self._fault(found)
            sound = wrong is None and self._check.factor(found) == 1.0
            if sound and not self._check.is_open(found):
                return found
            fault = wrong or fault
        raise fault

    def _sound(self, reply: Reply) -> Reply:
        """Return `reply`, or, if its model is not the mean, another server's or the previous one.

        The engine adds an upload that arrives during the division to the finished mean. It happens
        when more silos send at once than an iteration needs, and not on all servers.
        """
        iteration = reply.iteration - 1
        others = [iteration] * (len(self.client.addresses) - 1)
        wanted = iter([*others, iteration - 1, iteration - 2])
        while (factor := self._check.factor(reply)) != 1.0:
            said = f"the model at {reply.address} is not the mean but {factor:.6g} times it"
            instead = next(wanted, None)
            if instead is None:
                # Divided by the factor, it is a mean again, in which that upload has more weight.
                self._log(f"WARNING: {said}; dividing it by that")
                features = {
                    name: value / np.float32(factor) for name, value in reply.features.items()
                }
                return replace(reply, features=features)
            self._log(f"WARNING: {said}; asking for that of iteration {instead} instead")
            self.client.next_server()
            polls = self._requests.polls(instead)
            while (found := next(polls)) is None:
                continue
            reply = found
            if found.iteration > iteration + 1:  # another iteration has ended in the meantime
                reply = self._requests.latest(self._requests.patience())
                iteration = reply.iteration - 1
                wanted = iter([*[iteration] * len(others), iteration - 1, iteration - 2])
        return reply

    def _await_end(self, features: Features, record: Round, sent: np.ndarray) -> None:
        """Wait for the iteration's end, load the model, log and record the result."""
        reply = self._requests.decision(features, record)
        self._on_phase("pull", record.iteration)
        before = self._sample
        begin = time.perf_counter()
        if reply.iteration == record.iteration:
            raise SyncError(
                f"{reply.address} gives the model that ends iteration {record.iteration} and calls "
                "it the current one still: what this silo has sent in it would be sent twice"
            )
        ended = self._take_newest(reply, record.iteration)
        record.client_s += reply.own_seconds + time.perf_counter() - begin
        record.bytes_down, record.download_s = reply.received, reply.seconds
        trained = sent.any() if self._adds else not np.array_equal(sent, before)
        if self._refused or (trained and np.array_equal(before, ended)):
            record.result = "lost"
        self._identity.ended(record)
        record.close(self._began)
        self._log(record.line())
        self.rounds.append(record)
        path = self._settings.rounds_path
        if path is not None:
            self._rounds_file.do(partial(record.append_to, path))
        self.joined = False
        if self.iteration > self._iterations:
            self._finish()
