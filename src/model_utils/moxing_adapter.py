"""Data and results of a job on ModelArts: fetched before training, sent after it.

`moxing` copies between the object store and the machine; it is part of ModelArts' images and is
imported only here. This module keeps its files in the fetched folder's own `.sync`, which only its
owner can enter: a kernel lock, which is released when its process ends, and a note of what was
fetched.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import inspect
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError, user_path
from src.files import parsed_json, write_whole
from src.model_utils.config import get_config
from src.model_utils.local_adapter import (
    LOCAL_JOB,
    get_device_id,
    get_device_num,
    get_job_id,
    get_rank_id,
)
from src.printing import print

__all__ = [
    "get_device_id",
    "get_device_num",
    "get_job_id",
    "get_rank_id",
    "moxing_wrapper",
    "sync_data",
]

WAIT_S = 3600.0  # maximum wait for another process that fetches the same
POLL_S = 0.2


def sync_data(from_path: str, to_path: str, timeout_s: float = WAIT_S) -> None:
    """Copy a folder; if several processes fetch the same into one folder, one does it.

    The others wait and use its copy; if it ends without finishing, the next one fetches. Under a
    JOB_ID, a folder that this job has already fetched is not fetched again.

    Args:
        from_path: a folder, local or in the object store.
        to_path: likewise; in the object store, processes do not wait for each other.
        timeout_s: how long to wait for the process that fetches.

    Raises:
        UserError: moxing is missing, the copy failed, the wait timed out, or to_path belongs to
            another user.
    """
    if "://" in str(to_path):
        _copy(from_path, to_path)
        return
    asked = time.time()
    with _locked(user_path(to_path), from_path, timeout_s) as folder:
        note = folder / "fetched.json"
        if _was_fetched(note, str(from_path), asked):
            print(f"{to_path}: {from_path} is there already", flush=True)
            return
        note.unlink(missing_ok=True)
        _copy(from_path, to_path)
        told = {"from": str(from_path), "job": get_job_id(), "time": time.time()}
        write_whole(note, json.dumps(told))


def _was_fetched(note: Path, from_path: str, asked: float) -> bool:
    """Return whether `note` records the same copy, by this job or while this process waited."""
    try:
        fetched = parsed_json(note.read_text(encoding="utf-8"))
        job, when, source = str(fetched["job"]), float(fetched["time"]), fetched["from"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no note, or a partial one: fetch
    same_job = job == get_job_id() != LOCAL_JOB
    return source == from_path and (same_job or when >= asked)


@contextlib.contextmanager
def _locked(target: Path, from_path: str, timeout_s: float) -> Iterator[Path]:
    """Lock `target`/.sync, created if missing, and yield that folder."""
    folder = target / ".sync"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _require_own(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(folder / "lock", flags, 0o600)
    except OSError as error:
        raise UserError(f"{target}: cannot be made or written: {error.strerror}") from error
    try:
        _take(handle, target, from_path, timeout_s)
        yield folder
    finally:
        os.close(handle)


def _require_own(folder: Path) -> None:
    """Raise a UserError unless `folder` is a real folder that only this user can enter."""
    state = folder.lstat()
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    if not own or state.st_mode & 0o077:
        raise UserError(
            f"{folder}: is no folder that belongs to this user alone, and so may be a trap; remove "
            "it, or choose another data_path or load_path"
        )


def _take(handle: int, target: Path, from_path: str, timeout_s: float) -> None:
    """Lock the open file and write this process's pid to it; give up after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        if time.monotonic() > deadline:
            raise UserError(
                f"{target}: process {holder} is still copying {from_path} there after "
                f"{timeout_s:.0f} s of waiting; end it if it hangs, and start again"
            )
        if not told:
            print(f"waiting for process {holder}, which copies {from_path} to {target}", flush=True)
            told = True
        time.sleep(POLL_S)
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def _copy(from_path: str, to_path: str) -> None:
    moxing = _moxing()
    print(f"copying {from_path} to {to_path}", flush=True)
    try:
        moxing.file.copy_parallel(str(from_path), str(to_path))
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{from_path} could not be copied to {to_path}: {words[-1]}; correct the address or "
            "the job's access to it"
        ) from error


def _moxing() -> Any:
    try:
        return importlib.import_module("moxing")
    except ImportError as error:
        raise UserError(
            "enable_modelarts: True needs the package moxing, which ModelArts' images have and "
            f"this Python has not ({error}); run on ModelArts, or give --enable_modelarts=False"
        ) from error


def moxing_wrapper(
    pre_process: Callable | None = None, post_process: Callable | None = None
) -> Callable[[Callable], Callable]:
    """Make a decorator for a training function: fetch before it, send its files after it.

    The configuration is the decorated function's first argument that has enable_modelarts, else
    that of the command line. Without enable_modelarts the function is only called. With it,
    data_url is fetched to data_path and checkpoint_url to load_path, if they are set. At the end
    output_path is sent to train_url, if that is set, even if the function raised. The function's
    result is returned.

    Args:
        pre_process: called after fetching, with the configuration if it takes an argument.
        post_process: called likewise after the function, unless that raised.
    """

    def wrapper(run_func: Callable) -> Callable:
        @functools.wraps(run_func)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            config = _config_among(args, kwargs)
            if not config.enable_modelarts:
                return run_func(*args, **kwargs)
            _moxing()
            if config.data_url:
                sync_data(config.data_url, config.data_path)
            if config.checkpoint_url:
                sync_data(config.checkpoint_url, config.load_path)
            with _sent_at_the_end(config.output_path, config.train_url):
                _call(pre_process, config)
                result = run_func(*args, **kwargs)
                _call(post_process, config)
            return result

        return wrapped

    return wrapper


def _config_among(args: tuple, kwargs: dict[str, Any]) -> Any:
    given = [value for value in (*args, *kwargs.values()) if hasattr(value, "enable_modelarts")]
    return given[0] if given else get_config()


def _call(function: Callable | None, config: Any) -> None:
    if function is not None:
        function(*([config] if inspect.signature(function).parameters else []))


@contextlib.contextmanager
def _sent_at_the_end(output_path: str, train_url: str) -> Iterator[None]:
    """Send output_path to train_url when the block ends, even with an error."""
    try:
        yield
    except BaseException:
        try:
            _send(output_path, train_url, "the training failed; ")
        except UserError as error:
            # The user needs first the error that is already being raised.
            print(f"and {error}", file=sys.stderr, flush=True)
        raise
    _send(output_path, train_url)


def _send(output_path: str, train_url: str, why: str = "") -> None:
    folder = user_path(output_path)
    if not train_url:
        print(f"{why}train_url is empty: the files stay in {folder}", flush=True)
    elif folder.is_dir():
        print(f"{why}sending what there is in {folder}", flush=True)
        _copy(str(folder), train_url)
