"""Check what each role needs before it starts: the checks of the launchers and the preflight."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import redis

from src.data.mindrecord import BASE_NAME
from src.errors import UserError, user_path
from src.federated.aggregation import aggregation_of
from src.federated.privacy import privacy_settings
from src.federated.resume_state import (
    BrokenStateError,
    describe_state,
    state_file,
    terms_of_state,
)
from src.job.addresses import (
    parse_address,
    parse_ip,
    require_free_port,
    server_addresses,
)
from src.job.checks import WARN, Check, Finding
from src.job.disk_room import data_folder, disk_room, kept_files, worker_files
from src.job.job_config import JobConfig
from src.job.job_record import RANKS, role_folder
from src.job.recovery_files import (
    files_of_earlier_run,
    foreign_checkpoints,
    list_recovery_files,
    require_iterations_left,
    require_names,
    untaken_files,
    usable_files,
)
from src.job.tls_checks import peers_trusted, plain_checks, tls_checks
from src.launch.checkpoint_content import matching_names
from src.launch.machine_jobs import require_other_silos
from src.launch.membership import name_silo
from src.launch.preflight.data import objects_there, require_shards, validation_sets
from src.launch.preflight.machine import (
    PROCESS_BYTES,
    device,
    image_bytes,
    machine_checks,
    memory,
    server_bytes,
    worker_bytes,
)
from src.launch.preflight.network import reach_checks
from src.launch.processes import require_not_running
from src.launch.redis_store import JobStore, require_no_live_servers
from src.launch.server_start import (
    SERVER_FILES,
    consecutive_ports,
    require_same_settings,
    servers_to_start,
    unfit_initial,
)
from src.security.roster import load
from src.security.tls import TlsFiles
from src.weights.parameter_shapes import (
    FLOAT_BYTES,
    count_values,
    federated_shapes,
    model_bytes,
    trained_shapes,
)


def worker_numbers(config: Any) -> range:
    """Return the numbers of the workers that this machine starts."""
    return range(config.first_worker_id, config.first_worker_id + config.local_worker_num)


def worker_disk(job: JobConfig, base: Path, config: Any) -> str:
    """Check the room for the checkpoints to come, and for the states of --resume.

    Raises:
        UserError: there is less.
    """
    files = worker_files(config, job.iterations, config.local_worker_num)
    if config.resume:
        shards = [f"mindrecord_{number}" for number in worker_numbers(config)]
        folders = [_output(base, config, n) / "ckpt" for n in worker_numbers(config)]
        there = sum(len(kept_files(f / shard, shard)) for f, shard in zip(folders, shards))
        files = max(0, files - there)
    what, needed = f"{files} checkpoints", files * model_bytes(config)
    if config.resume_state:
        # A new one is written next to the previous one.
        models = 2 * aggregation_of(job, config).resume_models * config.local_worker_num
        needed += models * FLOAT_BYTES * count_values(trained_shapes(config))
        what += " and the states for --resume"
    return disk_room(base, needed, what)


def resume_checks(job: JobConfig, base: Path, config: Any) -> list[Check]:
    """Check that the states that --resume continues from are of this job; none without it."""

    def states() -> str | Finding:
        found, broken = [], []
        for number in worker_numbers(config):
            shard = data_folder(config).absolute() / f"mindrecord_{number}"
            path = state_file(_output(base, config, number), shard)
            try:
                found.append(describe_state(path, terms_of_state(job, config, shard)))
            except BrokenStateError as error:
                broken.append(f"{error}; the worker goes on without momentum")
        text = "; ".join([*broken, *found])
        return Finding(WARN, "resume", text) if broken else text

    return [Check("resume", states, after="mindrecord")] if config.resume else []


def _output(base: Path, config: Any, number: int) -> Path:
    together = getattr(config, "run_distribute", False)
    return base / (RANKS if together else role_folder("worker", number))


def federated_check(config: Any) -> Check:
    """Check that local_params names parts of the detector, and what is left to federate."""
    return Check("local_params", lambda: _federated(config))


def privacy_check(job: JobConfig, config: Any) -> Check:
    """Check that the keys of differential privacy make sense for the job."""
    return Check("privacy", lambda: _privacy(job, config))


def _federated(config: Any) -> str:
    shapes = federated_shapes(config)
    values = count_values(shapes)
    of = f"{len(shapes)} of {len(trained_shapes(config))} trained weights are federated"
    return f"{of}, {values:,} values, {FLOAT_BYTES * values / 1e6:.1f} MB"


def _privacy(job: JobConfig, config: Any) -> str | Finding:
    settings = privacy_settings(job, config)
    if settings is None:
        return "dp_clip_norm is 0: weights leave as they are"
    if settings.noise_multiplier == 0:
        text = "dp_noise_multiplier is 0: what leaves is clipped, but not private; set it too"
        return Finding(WARN, "privacy", text)
    deviation = settings.noise_multiplier * settings.clip_norm
    until = f", until epsilon is {settings.max_epsilon:g}" if settings.max_epsilon else ""
    return (
        f"updates are clipped to {settings.clip_norm:g} and get noise of standard deviation "
        f"{deviation:g} on each value{until}"
    )


MANAGE_FLAG, SERVER_FLAG = "--scheduler_manage_address", "--http_server_address"


def scheduler_checks(job: JobConfig, base: Path, manage_address: str) -> list[Check]:
    """Return the scheduler's checks, in the order in which a user would fix what is wrong."""

    def free() -> str:
        host, port = parse_address(manage_address, MANAGE_FLAG)
        require_not_running(base, ["scheduler"])
        require_free_port(host, port, MANAGE_FLAG)
        return f"{host}:{port} is free for the scheduler"

    return [
        *machine_checks(),
        Check("address", lambda: "{}:{}".format(*parse_address(manage_address, MANAGE_FLAG))),
        *tls_checks(job, "scheduler", manage_address),
        Check("redis", lambda: redis_answers(job)),
        Check("ports", free),
        Check("memory", lambda: memory("the scheduler", PROCESS_BYTES)),
    ]


def server_checks(job: JobConfig, base: Path, config: Any) -> list[Check]:
    """Return the servers' checks; `config` has the keys of default_config.yaml and their flags."""
    folder = user_path(config.checkpoint_dir).absolute()

    def ports() -> str:
        host, first = parse_address(config.http_server_address, SERVER_FLAG)
        all_ports = consecutive_ports(first, config.local_server_num)
        numbers = servers_to_start(base, len(all_ports), config.resume)
        for number in numbers:
            require_free_port(host, all_ports[number], SERVER_FLAG)
        listed = ", ".join(str(all_ports[number]) for number in numbers)
        return f"{listed} of {host} are free for {len(numbers)} server(s)"

    def addresses() -> str:
        consecutive_ports(
            parse_address(config.http_server_address, SERVER_FLAG)[1], config.local_server_num
        )
        parse_ip(config.tcp_server_ip, "--tcp_server_ip")
        return f"{config.http_server_address} for silos, {config.tcp_server_ip} between servers"

    def disk() -> str:
        held = aggregation_of(job, config).server_models
        needed = SERVER_FILES * held * model_bytes(config)
        return disk_room(folder, needed, f"{SERVER_FILES} models")

    def room() -> str | Finding:
        count, held = config.local_server_num, aggregation_of(job, config).server_models
        return memory(f"{count} server(s)", count * server_bytes(config, held))

    return [
        *machine_checks(),
        *value_checks(config),
        aggregation_check(job, config),
        federated_check(config),
        Check("address", addresses),
        *tls_checks(job, "server", config.http_server_address),
        *plain_checks(job, [config.http_server_address]),
        *_roster(config),
        Check("redis", lambda: redis_answers(job)),
        Check("ports", ports),
        Check("keys", lambda: keys_of_job(job, config.resume), after="redis"),
        *_peers(job, config.resume),
        Check("checkpoint_dir", lambda: models_there(job, folder, config)),
        *_pre_trained(config),
        Check("disk", disk, after="aggregation"),
        Check("memory", room, after="aggregation"),
    ]


def worker_checks(job: JobConfig, base: Path, config: Any) -> list[Check]:
    """Return the workers' checks; `config` has the keys of default_config.yaml and their flags."""
    count = config.local_worker_num
    numbers = worker_numbers(config)

    def workers() -> str:
        if count < 1:
            raise UserError(f"--local_worker_num is {count}, expected 1 or more")
        server_addresses(config.http_server_address, config.server_num)
        labels = {number: role_folder("worker", number) for number in numbers}
        require_not_running(base, labels.values())
        if not getattr(config, "run_distribute", False):
            require_other_silos(base, job, config, labels)
        return ", ".join(labels.values())

    def shards() -> str:
        data, name = data_folder(config).absolute(), config.prefix or BASE_NAME
        return require_shards(data, numbers, name, config.batch_size, config.coco_classes)

    def objects() -> str | Finding:
        data, name = data_folder(config).absolute(), config.prefix or BASE_NAME
        files = [data / f"mindrecord_{number}" / name for number in numbers]
        return objects_there(files, config.num_gts, config.coco_classes)

    def room() -> str | Finding:
        kept = aggregation_of(job, config).silo_models
        return memory(f"{count} worker(s)", count * worker_bytes(config, kept))

    return [
        *machine_checks(),
        *value_checks(config),
        aggregation_check(job, config),
        federated_check(config),
        privacy_check(job, config),
        Check("roster", lambda: name_silo(job, config)),
        Check("workers", workers, after="roster"),
        Check("mindrecord", shards),
        Check("objects", objects, after="mindrecord"),
        *([Check("val_set", lambda: validation_sets(config, numbers))] if config.run_eval else []),
        *resume_checks(job, base, config),
        *_pre_trained(config),
        Check("device", lambda: device(config.device_target, count, config.threads)),
        Check("disk", lambda: worker_disk(job, base, config), after="aggregation"),
        Check("memory", room, after="aggregation"),
        *tls_checks(job, "worker"),
        *plain_checks(job, config.http_server_address.split(",")),
        *reach_checks(job, config),
    ]


def value_checks(config: Any) -> list[Check]:
    """Return a warning for each value that means something else here than in its source."""
    notes = list(config.notes)
    batch = getattr(config, "client_batch_size", None)
    if batch is not None:
        notes.append(
            f"--client_batch_size={batch} takes effect here, upstream's scripts ignored it: about "
            f"{image_bytes(config) / 1e9:.2g} GB of memory for each image of a batch, "
            f"{worker_bytes(config) / 1e9:.1f} GB for a worker"
        )
    rate = getattr(config, "client_learning_rate", None)
    if rate is not None:
        notes.append(
            f"--client_learning_rate={rate:g} takes effect here, upstream's scripts ignored it; "
            f"without it base_lr of the configuration holds"
        )
    return [Check("values", partial(Finding, WARN, "values", note)) for note in notes]


def aggregation_check(job: JobConfig, config: Any) -> Check:
    """Check that the algorithm's settings in the two files fit together."""
    return Check("aggregation", lambda: aggregation_of(job, config).words())


def redis_answers(job: JobConfig) -> str | Finding:
    """Check that the job's Redis is there, and whose keys it holds.

    Raises:
        UserError: it does not answer.
    """
    host, port = job.redis_address
    with _opened(job) as store:
        store.require()
        jobs = store.jobs()
        mine, all_keys = jobs.pop(job.name, 0), store.size()
    text = f"{host}:{port} answers, {mine} keys of {job.name}"
    if jobs:
        text += "; also of " + ", ".join(f"{name} ({count})" for name, count in jobs.items())
    strangers = all_keys - mine - sum(jobs.values())
    return f"{text}; {strangers} keys that are of no federation" if strangers else text


def keys_of_job(job: JobConfig, resume: bool) -> str | Finding:
    """Check that a new job of this name may take its place in Redis.

    Raises:
        UserError: its servers are alive.
    """
    with _opened(job) as store:
        if resume:
            known = store.status().get("iterationNum")
            return f"--resume goes on at iteration {known}" if known else "no key to resume from"
        require_no_live_servers(store)
        left = len(store.keys())
    return f"{left} keys of an ended job {job.name} will be removed" if left else "no key is there"


def models_there(job: JobConfig, folder: Path, config: Any) -> str | Finding:
    """Report what the servers begin with.

    Raises:
        UserError: the folder cannot be written, its newest model is of the last iteration, or it
            was made with another configuration.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--checkpoint_dir {folder}: {there} is no folder that can be written")
    unfit, made_from = unfit_initial(job, folder, config)
    aside = [] if config.resume else files_of_earlier_run(folder, job.name)
    aside += [f for f in list_recovery_files(folder, job.name) if f.path in unfit]
    first = require_iterations_left(folder, job.name, job.iterations, aside, config.resume)
    left, broken = usable_files(folder, job.name, leave_out=aside)
    if not left:
        return _initial_to_make(job, folder, config, made_from)
    require_same_settings(left[0].path, config)
    moved = f"; {len(aside)} of an earlier run go aside" if aside else ""
    begins = f"begins iteration {first} of {job.iterations} from {left[0].path.name}{moved}"
    if first > job.iterations:
        begins = f"all {job.iterations} iterations are done, {left[0].path.name} is the last model"
    odd = [*broken, *untaken_files(folder, job.name)]
    if odd:
        return Finding(WARN, "checkpoint_dir", f"{'; '.join(odd)}; {begins}")
    return f"{folder}: {begins}"


def _initial_to_make(job: JobConfig, folder: Path, config: Any, made_from: str) -> str | Finding:
    """Report what to say before an initial model is made.

    Args:
        made_from: what the existing one was made from; "" where none is there.

    Raises:
        UserError: the model would be random, and a file is there that may have been meant.
    """
    if not config.pre_trained:
        require_names(folder, job.name)
    odd = untaken_files(folder, job.name)
    others = foreign_checkpoints(folder, job.name)
    if others and not config.pre_trained:
        odd.append(
            f"{others[0]}{f' and {len(others) - 1} more' * (len(others) > 1)} in {folder} not "
            f"taken: servers read files named {job.name}_recovery_iteration_... (--fl_name) alone; "
            "give it as --pre_trained where they are to start from it"
        )
    made = f"{folder}: no model of {job.name} yet, an initial one will be made"
    if made_from:
        made = f"{folder}: its initial model, made from {made_from}, goes aside for another one"
    return Finding(WARN, "checkpoint_dir", f"{'; '.join(odd)}; {made}") if odd else made


def _roster(config: Any) -> list[Check]:
    def members() -> str:
        roster = load(user_path(config.roster))
        return f"{roster.path}: {', '.join(roster.members)}"

    return [Check("roster", members)] if config.roster else []


def _pre_trained(config: Any) -> list[Check]:
    def matches() -> str:
        path = user_path(config.pre_trained)
        found, wanted = matching_names(path, config)
        return f"{path}: {found} of the detector's {wanted} parameters are in it by name and shape"

    if config.pre_trained:
        return [Check("pre_trained", matches, after="packages")]
    return []


def _peers(job: JobConfig, resume: bool) -> list[Check]:
    def trusted(tls: TlsFiles) -> str:
        with _opened(job) as store:
            nodes = {key.split(":heartbeat:")[1].split("::")[0] for key in store.heartbeats()}
        return peers_trusted(tls, sorted(nodes))

    tls = job.tls
    if not resume or tls is None:
        return []
    return [Check("peers", lambda: trusted(tls), after="redis")]


@contextlib.contextmanager
def _opened(job: JobConfig) -> Iterator[JobStore]:
    """Open the job's Redis for one look; one that fails meanwhile is a UserError."""
    store = JobStore(job.redis_address, job.name, tls=job.tls)
    try:
        yield store
    except redis.RedisError as error:
        host, port = store.address
        raise UserError(
            f"Redis at {host}:{port} failed while it was looked into: {error}"
        ) from None
    finally:
        store.close()
