"""Prepare the start of servers: which of them, for a new or resumed job, from which model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from src.errors import StartError, UserError, user_path
from src.federated.aggregation import aggregation_of
from src.federated.fingerprint import (
    FROZEN_ASPECT,
    LOCAL_ASPECT,
    is_of_this_version,
    is_open,
    key_aspects,
    same_mark,
    unlike_aspects,
)
from src.job.job_config import JobConfig
from src.job.job_record import read_record, role_folder
from src.job.recovery_files import (
    initial_origin,
    list_recovery_files,
    put_aside_earlier_run,
    usable_files,
    whole_detector,
)
from src.launch.checkpoint_content import frozen_aspect, mark_of, origin_of
from src.launch.processes import require_not_running
from src.launch.redis_store import FINISHED, JobStore, live_servers, settings_of
from src.model_utils.config import PROJECT_DIR, Config, find_config_file, setting
from src.printing import print
from src.weights.local_params import local_names
from src.weights.parameter_shapes import trained_shapes

# Three recovery files and the one being written, next to the initial model.
SERVER_FILES = 5


def consecutive_ports(first: int, count: int) -> list[int]:
    """Return the ports of `count` servers; raise a UserError where there are none or too many."""
    if count < 1:
        raise UserError(f"--local_server_num is {count}, expected 1 or more")
    if first + count - 1 > 65535:
        raise UserError(
            f"--local_server_num {count} from port {first} goes past 65535; "
            "give a lower port in --http_server_address"
        )
    return list(range(first, first + count))


def servers_to_start(base: Path, count: int, resume: bool) -> list[int]:
    """Return the numbers of the servers to start; with `resume`, those that do not run."""
    labels = [role_folder("server", number) for number in range(count)]
    record = read_record(base)
    running = {process.label for process in record.running("server")} if record else set()
    if not resume or running.issuperset(labels):
        require_not_running(base, labels)
    numbers = [number for number, label in enumerate(labels) if label not in running]
    require_not_running(base, [labels[number] for number in numbers])
    return numbers


def prepare_job(
    job: JobConfig,
    store: JobStore,
    checkpoint_dir: Path,
    resume: bool,
    aside: Collection[Path] = (),
) -> None:
    """Prepare a new job without what an earlier one left, or continue a resumed one from it.

    Args:
        aside: what a new job renames in addition, see `unfit_initial`.
    """
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    if resume:
        _take_settings(job, store)
        _bring_up_to_date(job, store, checkpoint_dir)
        _take_up_finished(job, store)
        return
    purged = store.purge()
    if purged:
        print(f"removed {purged} Redis keys of an earlier job named {job.name}")
    moved = put_aside_earlier_run(checkpoint_dir, job.name, aside)
    if moved:
        print(f"moved the recovery files of an earlier run to {moved} (--resume continues it)")


def _take_settings(job: JobConfig, store: JobStore) -> None:
    """Write settings that changed in the file to Redis, since servers use Redis, not the file."""
    known, own = store.settings(), settings_of(job)
    changed = [
        f"{key} {known[key]} -> {value}"
        for key, value in own.items()
        if key in known and not math.isclose(known[key], value, rel_tol=1e-6)
    ]
    if not changed:
        return
    words = f"{job.path} was changed: {', '.join(changed)}"
    if live_servers(store):
        print(f"WARNING: {words}; takes effect once all servers have ended and start with --resume")
        return
    store.replace_settings(**own)
    print(words)


def _bring_up_to_date(job: JobConfig, store: JobStore, checkpoint_dir: Path) -> None:
    """Let the files decide the iteration where Redis came back with older data than they have."""
    files, _ = usable_files(checkpoint_dir, job.name)
    known = int(store.status().get("iterationNum", 0))
    if not files and known > 1 and not live_servers(store):
        raise UserError(
            f"--resume: Redis knows iteration {known} of {job.name}, and {checkpoint_dir} holds no "
            "model of it, so the job would go on from a fresh one; give the --checkpoint_dir that "
            "it was started with, or begin again without --resume, with "
            "--pre_trained=<a worker's newest checkpoint> to keep its weights"
        )
    if not files or not 0 < known <= files[0].iteration or live_servers(store):
        return
    first = files[0].iteration + 1
    store.go_on_at(first)
    print(f"Redis knew iteration {known}, an older state; going on at {first} as the files say")


def _take_up_finished(job: JobConfig, store: JobStore) -> None:
    """Let a finished job continue where iterations are left, or serve its last model again."""
    status = store.status()
    if status.get("runningState") != FINISHED or live_servers(store):
        return
    store.forget_fetching()
    if int(status.get("iterationNum", 0)) <= job.iterations:
        store.run_again()
        print(f"{job.name} had finished; it goes on to iteration {job.iterations}")


def require_same_settings(model: Path, config: Config) -> None:
    """Check that the model that servers begin with, where it says so, was made with `config`.

    Frozen weights are compared where `pre_trained` has them all: weights from the seed would need
    MindSpore.

    Raises:
        UserError: it was not, and so every worker of this configuration would be refused.
    """
    mark = mark_of(model)
    if mark is None:
        return
    known = _known_aspects(config)
    frozen = frozen_aspect(_pre_trained(config), config) if config.pre_trained else None
    if frozen is not None and not is_open(mark):
        known[FROZEN_ASPECT] = frozen
    unlike = unlike_aspects(known, mark)
    if unlike:
        how = "start without --resume and with" if config.resume else "give"
        raise UserError(
            f"{model}: the servers would begin with this model, which was made with other values "
            f"of: {', '.join(unlike)}; give the configuration that it was made with, "
            f"--config_path=<its file> and the same flags, or {how} another --checkpoint_dir for "
            "a new model"
        )


def _known_aspects(config: Config) -> dict[str, object]:
    """Return the aspects of a job's model that can be determined without MindSpore."""
    local = local_names(trained_shapes(config), setting(config, LOCAL_ASPECT))
    return {**key_aspects(config), LOCAL_ASPECT: sorted(local)}


def _pre_trained(config: Config) -> Path:
    return user_path(config.pre_trained)


def unfit_initial(job: JobConfig, folder: Path, config: Config) -> tuple[list[Path], str]:
    """Find an initial model of this suite that a new job cannot begin with.

    A model that the launcher made must match the current settings. One that a user made with
    tools/create_initial_checkpoint.py is unfit only where --pre_trained or --seed say otherwise.

    Returns:
        Its two files and what it was made from; none where it fits or is the user's.
    """
    files = [f for f in list_recovery_files(folder, job.name) if f.iteration == 0]
    whole = whole_detector(folder, job.name)
    if config.resume or len(files) != 1 or not whole.is_file():
        return [], ""
    origin, mark = origin_of(whole), mark_of(whole)
    if origin is None or mark is None or origin.file != files[0].path.name:
        return [], ""
    if not _same_mark(mark, files[0].path):
        return [], ""
    own, given = origin.launcher, set(config.given_flags)
    now = initial_origin(config, files[0].path, own)
    unlike = (own or config.pre_trained) and now.digest != origin.digest
    unlike = unlike or ((own or "seed" in given) and now.seed != origin.seed)
    if own and not unlike and len(list_recovery_files(folder, job.name)) == 1:
        aspects = {**_known_aspects(config), **aggregation_of(job, config).aspects()}
        unlike = not is_of_this_version(mark) or bool(unlike_aspects(aspects, mark))
    return ([files[0].path, whole], origin.words()) if unlike else ([], "")


def _same_mark(mark: np.ndarray, servers: Path) -> bool:
    """Return whether the servers' file is the one that a whole detector was written with."""
    try:
        theirs = mark_of(servers)
    except UserError:
        return False
    return theirs is not None and same_mark(theirs, mark)


def ensure_initial_model(job: JobConfig, checkpoint_dir: Path, config: Config) -> None:
    """Make the servers' initial model where checkpoint_dir has none."""
    if not list_recovery_files(checkpoint_dir, job.name):
        print(f"{checkpoint_dir} holds no model of {job.name}: making the initial one", flush=True)
        tool = PROJECT_DIR / "tools" / "create_initial_checkpoint.py"
        command = [sys.executable, str(tool), f"--fl_name={job.name}", "--for_launcher"]
        command += [f"--checkpoint_dir={checkpoint_dir}", f"--yaml_config={job.path}"]
        command += [f"--config_path={find_config_file(config.config_path)}"]
        command += [f"--{name}={getattr(config, name)}" for name in config.given_flags]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise StartError("the initial model could not be made", code)
    elif config.pre_trained or {"seed", "local_params"}.intersection(config.given_flags):
        origin = origin_of(whole_detector(checkpoint_dir, job.name))
        if origin is None or config.resume:
            print(
                f"{checkpoint_dir} holds a model already: --pre_trained, --seed and --local_params "
                "do not change it; another --checkpoint_dir begins from scratch"
            )


def start_words(job: JobConfig, checkpoint_dir: Path) -> str:
    """Return what silos must give to start with the servers' model; "" where not known."""
    files, _ = usable_files(checkpoint_dir, job.name)
    mark = mark_of(files[0].path)
    if mark is None or files[0].iteration > 0:
        return ""
    if is_open(mark):
        return (
            "the initial model was made without a checkpoint: silos with --pre_trained start from "
            "theirs, the same for all"
        )
    whole = whole_detector(checkpoint_dir, job.name)
    origin = origin_of(whole) if whole.is_file() else None
    if origin is None or not _same_mark(mark, whole):
        return ""
    if origin.pre_trained:
        return f"every silo needs the checkpoint of the initial model, {origin.words()}"
    return f"servers add to an initial model of {origin.words()}: silos start without --pre_trained"
