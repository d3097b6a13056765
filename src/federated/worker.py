"""A worker: trains its silo's task, iteration by iteration, and saves each global model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.train.callback import Callback, RunContext

from src.federated.aggregation import aggregation_of
from src.federated.checkpoints import CheckpointKeeper
from src.federated.fingerprint import fingerprint
from src.federated.identity import identity
from src.federated.journal import Journal
from src.federated.manager import SiloManager
from src.federated.privacy import Privacy, make_privacy
from src.federated.rank_gradients import is_leader, label_of, opened_ranks, share_gradients
from src.federated.ranks import Ranks, WatchRanks
from src.federated.resume import StateKeeper, require_same_job, resumed_state, set_momentum
from src.federated.resume_state import ResumeState, state_file, terms_of_state
from src.federated.rounds import Deadlines, SyncError, declared_size, steps_per_iteration
from src.federated.silo import SiloSettings
from src.federated.step_times import StepTimes
from src.federated.task import Task
from src.federated.tls import silo_tls
from src.federated.transport import Client
from src.job.addresses import server_addresses
from src.job.disk_room import shard_of
from src.job.iteration_results import has_failed, summary_of
from src.job.job_config import JobConfig
from src.job.job_record import DONE, StatusFile
from src.job.log_files import log_to_console, say, say_settings
from src.job.tls_checks import plain_words
from src.printing import print
from src.weights.local_params import local_names


class KeepAfterRound(Callback):
    """Saves and evaluates each global model that the manager has loaded, and saves the state.

    A failed iteration has no model of its own, so its number is missing among the checkpoints.
    Place this callback after the manager.
    """

    def __init__(
        self,
        manager: SiloManager,
        keeper: CheckpointKeeper,
        journal: Journal | None,
        state: StateKeeper | None,
    ):
        super().__init__()
        self._manager = manager
        self._keeper = keeper
        self._journal = journal
        self._state = state
        self._saved = 0

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Save and evaluate after a step that ended an iteration."""
        for record in self._manager.rounds[self._saved :]:
            # A late silo now has a later model than that of the iteration it took part in.
            number = self._manager.iteration - 1
            has_model = record.result != "lost" or number != record.iteration
            if has_model:
                self._keeper.save(number)
            self._saved += 1
            if self._state is not None:
                self._state.save()
            if self._journal is None or not has_model:
                continue
            if self._manager.finished:
                # Servers do not exit before the silos' connections are closed.
                self._manager.close()
            self._journal.after(number)


class FollowIterations(Callback):
    """Advances the schedule by the iterations that the silo misses.

    The learning rate is then that of the servers' iteration, as for a silo that starts late. Place
    this callback after the manager, which joins an iteration at its first step.

    Args:
        manager: the silo's manager.
        optimizer: the training step's optimiser; its momentum is kept.
        counters: callbacks whose attribute `steps_done` is advanced too.
        unit: number of steps per unit of `manager.frequency`.
    """

    def __init__(
        self, manager: SiloManager, optimizer: nn.Cell, counters: Sequence[Any], unit: int
    ):
        super().__init__()
        self._manager = manager
        self._optimizer = optimizer
        self._counters = [counter for counter in counters if hasattr(counter, "steps_done")]
        self._unit = unit
        self._iteration = manager.iteration

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Advance the schedule before a step if iterations were missed."""
        missed = self._manager.iteration - self._iteration - 1
        self._iteration = self._manager.iteration
        if missed <= 0 or self._manager.finished:
            return
        steps = missed * self._manager.frequency * self._unit
        done = int(self._optimizer.global_step.asnumpy()[0]) + steps
        self._optimizer.global_step.set_data(Tensor([done], mstype.int32))
        for counter in self._counters:
            counter.steps_done += steps


# The servers' time windows end an iteration; a silo gives up only if they fail to.
WINDOW_MARGIN_S = 600.0


def run_worker(job: JobConfig, config: Any, make_task: Callable[[Any, Path], Task]) -> int:
    """Train until the job's last iteration is done.

    Args:
        job: the federation's configuration.
        config: the keys of default_config.yaml and the worker's flags.
        make_task: makes the task from the configuration and the shard's folder.

    Returns:
        Exit code: 0 when the job is finished, 1 when this silo could not continue (the reason is
            the last line that starts with "error: ").

    Raises:
        UserError: something that the user can fix.
    """
    status = StatusFile(config.status_file)
    status.update(label=f"worker_{config.user_id}", iterations=job.iterations)
    try:
        with opened_ranks(job, config) as ranks:
            _run_silo(job, config, make_task, status, ranks)
    except (SyncError, FloatingPointError) as error:
        return _failed(status, str(error))
    except RuntimeError as error:
        if "[Decode]" not in str(error):
            raise
        return _failed(
            status,
            f"{shard_of(config)}: holds an image that does not decode; write it again with "
            "generate_mindrecord.py --overwrite --verify",
        )
    return 0


def _run_silo(
    job: JobConfig,
    config: Any,
    make_task: Callable[[Any, Path], Task],
    status: StatusFile,
    ranks: Ranks | None,
) -> None:
    """Load the data, join, train until the job is finished."""
    label = label_of(config)
    log_to_console(label)
    if is_leader(config):
        say_settings(label, config)
    for note in config.notes if is_leader(config) else []:
        say(label, f"note: {note}")
    status.update(phase="loading the data")
    shard = shard_of(config)
    resumed = resumed_state(job, config, shard, ranks, partial(say, label))
    privacy = make_privacy(job, config, shard, partial(say, label)) if is_leader(config) else None
    task = make_task(config, shard)
    say(label, f"{epoch_words(task)}; {task.origin}")
    for remark in task.remarks:
        say(label, remark)
    folder = config.output_dir / "ckpt" / shard.name
    mark = fingerprint({**task.aspects, **aggregation_of(job, config).aspects()})
    keeper = CheckpointKeeper(label, task.network, folder, shard.name, config, mark)
    if is_leader(config):
        keeper.require_room(job.iterations, config.local_worker_num)
    if ranks is not None:
        ranks.agree({"steps in an epoch": task.steps_per_epoch, **task.aspects})
    steps = steps_per_iteration(config, task.steps_per_epoch)
    status.update(phase="waiting for the server", steps=steps * job.iterations, images=task.images)
    manager = make_manager(job, config, task, steps, status, privacy, ranks)
    try:
        if resumed is not None:
            manager.restore(resumed.arrays, resumed.numbers)
        manager.join()
        require_same_job(resumed, manager.iteration)
        train(job, config, task, manager, keeper, status, steps, ranks, resumed)
        took_part = manager.rounds[-1].iteration if manager.rounds else 0
        if manager.finished and is_leader(config) and took_part != manager.iteration - 1:
            keeper.save_last(manager.iteration - 1)
    finally:
        manager.close()
    say(label, f"{DONE}: {len(manager.rounds)} iterations in this process")
    _judge(label, manager)
    status.update(phase=DONE)


def _judge(label: str, manager: SiloManager) -> None:
    """Log how many iterations failed; raise a SyncError if too many did."""
    failed = sum(record.result == "lost" for record in manager.rounds)
    aggregated = len(manager.rounds) - failed
    if failed:
        say(label, summary_of(aggregated, failed))
    if has_failed(aggregated, failed):
        raise SyncError(
            f"{summary_of(aggregated, failed)}: the model is that of the last one that was "
            "aggregated; the servers' log says why the others failed. To train on, give servers "
            "and workers --resume and a larger --fl_iteration_num"
        )


def _failed(status: StatusFile, reason: str) -> int:
    """Log why this silo cannot continue, and return its exit code."""
    status.update(phase="failed", reason=reason)
    print(f"error: {reason}", flush=True)
    return 1


def epoch_words(task: Task) -> str:
    """Describe how many images the silo has, and how many images and steps an epoch has."""
    words = f"{task.converted} images"
    if task.images < task.converted:
        words += f", {task.images} of them in an epoch's whole batches"
    elif task.images > task.converted:
        words += f", {task.images - task.converted} of them twice in an epoch: ranks have as many"
    return f"{words}, {task.steps_per_epoch} steps an epoch"


def make_manager(
    job: JobConfig,
    config: Any,
    task: Task,
    steps: int,
    status: StatusFile,
    privacy: Privacy | None = None,
    ranks: Ranks | None = None,
) -> SiloManager:
    """Make the manager that synchronises this worker."""
    label = label_of(config)
    addresses = server_addresses(config.http_server_address, config.server_num)
    if words := plain_words(job, addresses):
        say(label, f"WARNING: {words}")
    first = config.user_id % len(addresses)

    def on_phase(phase: str, iteration: int) -> None:
        # In these phases, and when no iteration is left, the server has answered.
        joined = status.fields.get("joined", False) or phase in ("train", "wait", "done")
        status.update(phase=phase, iteration=iteration, joined=joined)

    window_s = job["round.global_iteration_time_window"] / 1000
    aggregation = aggregation_of(job, config)
    say(label, f"aggregation: {aggregation.words()}")
    size = declared_size(task.images, config.data_size_unit)
    weight = steps if aggregation.facts.adds_uploads else size
    deadlines = Deadlines(
        join=config.join_timeout,
        request=config.request_timeout,
        wait=config.wait_timeout or window_s + WINDOW_MARGIN_S,
        join_window=job["round.start_fl_job_time_window"] / 1000,
        upload_window=job["round.update_model_time_window"] / 1000,
    )
    client = Client(
        addresses[first:] + addresses[:first],
        job.name,
        identity(config.silo_name, config.user_id, weight),
        silo_tls(job),
        longest=deadlines.wait,
        prefix=job.url_prefix,
    )
    settings = SiloSettings(
        images=task.images,
        iterations=job.iterations,
        threshold=job["round.start_fl_job_threshold"],
        number=config.user_id,
        data_size_unit=config.data_size_unit,
        aspects={**task.aspects, **aggregation.aspects()},
        deadlines=deadlines,
        log=partial(say, label),
        on_phase=on_phase,
        rounds_path=config.output_dir / "rounds.jsonl",
        all_needed=job["round.update_model_ratio"] >= 1.0,
        max_change=config.max_model_change,
    )
    return SiloManager(
        str(job.path),
        task.network,
        steps // task.steps_per_epoch if sinks_data(config) else steps,
        client,
        settings,
        local=local_names([p.name for p in task.network.trainable_params()], config.local_params),
        privacy=privacy,
        aggregation=aggregation,
        steps=steps,
        ranks=ranks,
        pre_trained=config.pre_trained,
    )


def sinks_data(config: Any) -> bool:
    """Return whether the data set really sinks into the device; never on a CPU."""
    return config.dataset_sink_mode and config.device_target != "CPU"


def train(
    job: JobConfig,
    config: Any,
    task: Task,
    manager: SiloManager,
    keeper: CheckpointKeeper,
    status: StatusFile,
    steps: int,
    ranks: Ranks | None = None,
    resumed: ResumeState | None = None,
) -> None:
    """Train the remaining iterations; do nothing if the job is finished."""
    if manager.finished:
        return
    steps_done, skipped = place_in_run(config, manager, steps, resumed)
    if skipped:
        task.skip(skipped)
    rates = task.rates(steps, job.iterations)
    step = task.training_step(rates, steps_done, manager.terms)
    if resumed is not None:
        set_momentum(step.optimizer, resumed.arrays)
    callbacks = task.callbacks(label_of(config), config.output_dir, status, rates, steps_done)
    unit = task.steps_per_epoch if sinks_data(config) else 1
    place = FollowIterations(manager, step.optimizer, callbacks, unit)
    if ranks is not None:
        share_gradients(step, ranks)
        callbacks.insert(0, WatchRanks(ranks))
    callbacks += [manager, place]
    if is_leader(config):
        journal = make_journal(config, task, keeper, status) if config.run_eval else None
        state = make_state_keeper(job, config, manager, step)
        callbacks.append(KeepAfterRound(manager, keeper, journal, state))
    epochs_done = (steps_done - skipped) // task.steps_per_epoch
    times = StepTimes(
        partial(say, label_of(config)),
        status,
        lambda: (len(manager.rounds), manager.steps_left * unit),
        epochs_done,
    )
    callbacks = [times.before, *callbacks, times]
    model = ms.Model(step)
    left = steps * (job.iterations - manager.iteration + 1)
    epochs = -(-(skipped + left) // task.steps_per_epoch)
    status.update(phase="compiling")
    model.train(epochs, task.dataset, callbacks=callbacks, dataset_sink_mode=sinks_data(config))


def place_in_run(
    config: Any, manager: SiloManager, steps: int, resumed: ResumeState | None
) -> tuple[int, int]:
    """Return the steps done, for the schedule, and the steps whose data are skipped.

    Without --resume a silo that comes late has the learning rate of its iteration, and begins with
    its first data.
    """
    steps_done = (manager.iteration - 1) * steps
    if resumed is not None:
        steps_done = resumed.steps_at(manager.iteration, steps)
    # Data sinking requests a whole number of batches in every epoch, including skipped ones.
    skips = config.resume and not sinks_data(config)
    return steps_done, steps_done if skips else 0


def make_state_keeper(
    job: JobConfig, config: Any, manager: SiloManager, step: nn.Cell
) -> StateKeeper | None:
    """Make the writer of this worker's state for --resume; None with resume_state: False."""
    if not config.resume_state:
        return None
    shard = shard_of(config)
    path, terms = state_file(config.output_dir, shard), terms_of_state(job, config, shard)
    return StateKeeper(path, terms, manager, step.optimizer, partial(say, label_of(config)))


def make_journal(config: Any, task: Task, keeper: CheckpointKeeper, status: StatusFile) -> Journal:
    """Make the journal that evaluates this worker's global models."""
    return Journal(
        f"worker_{config.user_id}",
        task.evaluate,
        config.interval,
        metrics=config.output_dir / "metrics.jsonl",
        best=keeper.best.with_suffix(".json"),
        save_best=keeper.save_best,
        status=status,
    )
