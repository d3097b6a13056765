"""Workers as a job of ModelArts: data fetched, training seen to its end, results sent.

There the script is the job: the machine is gone when it ends. So it waits for the workers that it
has started, where a launcher elsewhere returns when they have joined.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError, user_path
from src.job.job_config import JobConfig
from src.launch.foreground import exit_codes, exit_on_signal, launch_and_stay, run_to_the_end
from src.launch.processes import Started
from src.model_utils.config import find_config_file
from src.model_utils.moxing_adapter import moxing_wrapper
from src.printing import print

Launch = Callable[[JobConfig, Any, Path], "list[Started]"]


def launch_and_send(launch: Launch, job: JobConfig, config: Any) -> int:
    """Launch workers, and stay with them where `config.foreground` says so.

    With enable_modelarts fetch before, wait for their end and send after.

    Args:
        launch: `launch_workers` or `launch_ranks`.
        job: the federation's configuration.
        config: keys of default_config.yaml, and the launcher's own flags.

    Returns:
        Exit code: 0, or with enable_modelarts 1 when a worker ended with another one.

    Raises:
        UserError: as `launch`, or of the copying.
        StartError: as `launch`.
    """
    if not config.enable_modelarts:
        return launch_and_stay(config.foreground, lambda: launch(job, config, Path.cwd()))
    config.config_path = str(find_config_file(config.config_path))
    return moxing_wrapper(pre_process=use_fetched)(_run_to_the_end)(config, launch, job)


def use_fetched(config: Any) -> None:
    """Point the configuration at what was fetched, for this process and those that it starts.

    Relative paths of data count from data_path and that of pre_trained from load_path, where these
    were fetched; else from the current folder. Without pre_trained the one .ckpt of load_path is
    it. Folders that a worker writes lie in output_path.

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
    # Done here, once for all that is started from here.
    _set(config, "enable_modelarts", False)


def _folder(name: str) -> Path:
    return user_path(name).absolute()


def _set(config: Any, key: str, value: Any) -> None:
    """Change a key, and have the launcher hand it on like a flag of the command line."""
    setattr(config, key, value)
    if key != "dataset_path":  # handed on in any case
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
    # Also while the results are sent, after the workers.
    signal.signal(signal.SIGTERM, exit_on_signal)
    started = run_to_the_end(base, lambda: launch(job, config, base))
    codes = exit_codes(base, started)
    for role, code in zip(started, codes):
        print(f"{role.role.label} ended with exit code {code}, log {role.log}", flush=True)
    return 1 if any(codes) else 0
