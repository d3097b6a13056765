"""Keep a launcher running until all it started has ended, for containers and service managers."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError, user_path
from src.job.job_config import JobConfig
from src.job.job_record import STOPPED_BY, exit_states
from src.launch.processes import Started, stop_started
from src.launch.supervise import as_exit_code
from src.model_utils.config import find_config_file
from src.model_utils.moxing_adapter import moxing_wrapper
from src.printing import print

POLL_S = 0.5


def launch_and_stay(stay: bool, launch: Callable[[], list[Started]]) -> int:
    """Call `launch`; with `stay`, print the logs until all that it started has ended.

    SIGTERM and Ctrl-C stop what was started.

    Returns:
        The exit code: the highest of the roles' codes, or 128 plus the signal's number.
    """
    if not stay:
        launch()
        return 0
    base = Path.cwd()
    started = run_to_the_end(base, launch, show_logs=True)
    return max(exit_codes(base, started))


def run_to_the_end(
    base: Path, launch: Callable[[], list[Started]], show_logs: bool = False
) -> list[Started]:
    """Call `launch`, and return what it started in the folder `base` when all of it has ended.

    Each role ends by itself and has a deadline for each of its waits. SIGTERM and Ctrl-C stop the
    roles and are then passed on to the caller, unless the roles had finished their work.
    """
    # The first process of a container gets no signal without a handler for it.
    before = signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        # While the launcher starts them, it stops them itself on any exception.
        started = launch()
        _follow(base, started, show_logs)
        return started
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_codes(base: Path, started: list[Started]) -> list[int]:
    """Return the exit codes of ended roles, as their supervisors wrote them or as they ended."""
    states = exit_states(base)
    return [
        states.get(one.role.label, {}).get("code", as_exit_code(one.supervisor.returncode))
        for one in started
    ]


def exit_on_signal(number: int, _frame: Any) -> None:
    """Handle a signal: end the process in order, with 128 plus the number as exit code."""
    raise SystemExit(128 + number)


def _follow(base: Path, started: list[Started], show_logs: bool) -> None:
    several = len(started) > 1
    logs = [LogTail(one.log, one.role.label if several else "") for one in started if show_logs]
    try:
        ended = False
        while not ended:
            ended = all(role.supervisor.poll() is not None for role in started)
            for log in logs:
                log.show()
            if not ended:
                time.sleep(POLL_S)
    except BaseException as error:
        stop_started(base, started)
        for log in logs:
            log.show()
        by_signal = isinstance(error, (SystemExit, KeyboardInterrupt))
        if not (by_signal and all(_is_done(base, one) for one in started)):
            raise


def _is_done(base: Path, one: Started) -> bool:
    """Return whether a role ended without being stopped and without failing."""
    if one.supervisor.poll() is None:
        return False
    end = exit_states(base).get(one.role.label, {})
    return end.get("code") == 0 and not end.get("reason", "").startswith(STOPPED_BY)


class LogTail:
    """Print a log's new lines, also after the file has been rotated.

    Args:
        path: the log.
        label: text before each line; "" for none.
    """

    def __init__(self, path: Path, label: str = ""):
        self._path = path
        self._before = f"{label} | " if label else ""
        self._file = path.open(encoding="utf-8", errors="replace")
        self._begun = ""

    def show(self) -> None:
        """Print the lines that are complete so far."""
        self._print()
        now = self._path.stat() if self._path.exists() else None
        if now and not os.path.samestat(now, os.fstat(self._file.fileno())):
            self._file.close()
            self._file = self._path.open(encoding="utf-8", errors="replace")
            self._print()

    def _print(self) -> None:
        text = self._begun + self._file.read()
        *lines, self._begun = text.split("\n")
        for line in lines:
            print(f"{self._before}{line}")
        sys.stdout.flush()


Launch = Callable[[JobConfig, Any, Path], "list[Started]"]


def launch_and_send(launch: Launch, job: JobConfig, config: Any) -> int:
    """Launch workers, and stay with them where `config.foreground` says so.

    With enable_modelarts, fetch the data before, wait for the workers' end, and send the results.

    Args:
        launch: `launch_workers` or `launch_ranks`.
        job: the federation's configuration.
        config: keys of default_config.yaml, and the launcher's own flags.

    Returns:
        Exit code: 0, or with enable_modelarts 1 when a worker ended with a nonzero code.

    Raises:
        UserError: as `launch`, or from copying.
        StartError: as `launch`.
    """
    if not config.enable_modelarts:
        return launch_and_stay(config.foreground, lambda: launch(job, config, Path.cwd()))
    config.config_path = str(find_config_file(config.config_path))
    return moxing_wrapper(pre_process=use_fetched)(_run_to_the_end)(config, launch, job)


def use_fetched(config: Any) -> None:
    """Point the configuration at the fetched files, for this process and those that it starts.

    Relative paths of data are resolved against data_path and that of pre_trained against load_path,
    where these were fetched; otherwise against the current folder. Without pre_trained, the only
    .ckpt in load_path is used. Folders that a worker writes are in output_path.

    Raises:
        UserError: load_path has no .ckpt, or several.
    """
    here = Path.cwd()
    data = _folder(config.data_path) if config.data_url else here
    if config.data_url:
        _set(config, "dataset_path", str(data / user_path(config.dataset_path)))
    for key in ("val_set", "image_dir", "coco_root"):
        if getattr(config, key):
            _set(config, key, str(data / user_path(getattr(config, key))))
    models = _folder(config.load_path) if config.checkpoint_url else here
    if config.pre_trained:
        _set(config, "pre_trained", str(models / user_path(config.pre_trained)))
    elif config.checkpoint_url:
        _set(config, "pre_trained", str(_only_checkpoint(models, config.checkpoint_url)))
    if hasattr(config, "output_dir"):
        config.output_dir = _folder(config.output_path) / config.output_dir
    # Done here, once for all processes that are started from here.
    _set(config, "enable_modelarts", False)


def _folder(name: str) -> Path:
    return user_path(name).absolute()


def _set(config: Any, key: str, value: Any) -> None:
    """Change a key, and have the launcher pass it on like a flag of the command line."""
    setattr(config, key, value)
    if key != "dataset_path":  # passed on in any case
        config.given_flags = sorted({*config.given_flags, key})


def _only_checkpoint(folder: Path, source: str) -> Path:
    found = sorted(folder.glob("*.ckpt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(
            f"checkpoint_url {source}: expected one .ckpt in it, found {names}; say which with "
            "--pre_trained=<its name>"
        )
    return found[0]


def _run_to_the_end(config: Any, launch: Launch, job: JobConfig) -> int:
    base = _folder(config.output_path)
    base.mkdir(parents=True, exist_ok=True)
    print(f"the workers' folders are in {base}", flush=True)
    # Also while results are sent, after the workers have ended.
    signal.signal(signal.SIGTERM, exit_on_signal)
    started = run_to_the_end(base, lambda: launch(job, config, base))
    codes = exit_codes(base, started)
    for role, code in zip(started, codes):
        print(f"{role.role.label} ended with exit code {code}, log {role.log}", flush=True)
    return 1 if any(codes) else 0
