"""Parts of a silo's rounds: errors, deadlines, waiting, checks, the record of a round."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from src.errors import UserError
from src.files import append_line

LARGEST_DATA_SIZE = 65535  # the engine keeps it in 16 bits

Features = Mapping[str, np.ndarray]


class SyncError(Exception):
    """The silo cannot continue; the message says why in one line."""


class GaveUpError(SyncError):
    """A wait has reached its deadline."""


class UploadRefusedError(SyncError):
    """The servers do not accept this silo's weights."""


class NotFiniteError(SyncError):
    """A weight or the loss is NaN or infinite; nothing was sent."""


class JobRestartedError(SyncError):
    """The servers work on an earlier iteration than this silo has seen."""


@dataclass(frozen=True)
class Deadlines:
    """Time limits in seconds.

    Attributes:
        join: wait for servers that are not up, in safemode or disabled.
        request: duration of one request, including the transfer of the whole model.
        wait: wait for an iteration to end. It is longer than the servers' own time windows, so that
            these decide.
        join_window, upload_window: the servers' time windows from the first silo that joins and the
            first that sends, for messages; 0 if unknown.
    """

    join: float = 600.0
    request: float = 300.0
    wait: float = 4200.0
    join_window: float = 0.0
    upload_window: float = 0.0


@dataclass
class Round:
    """The record of one iteration; a line of rounds.jsonl.

    Attributes:
        result: "aggregated"; "missed": aggregated without this silo; "lost": failed at the servers.
        client_s: this process's own work: checking, scaling, decoding, loading.
        round_s: from the request to join to the loaded model.
        peak_rss_mb: largest resident memory of this process so far, 10**6 bytes.
        epsilon: privacy budget spent so far; None without differential privacy. The file has it if
            it is finite.
    """

    iteration: int
    result: str = "aggregated"
    bytes_up: int = 0
    bytes_down: int = 0
    upload_s: float = 0.0
    wait_s: float = 0.0
    download_s: float = 0.0
    client_s: float = 0.0
    round_s: float = 0.0
    peak_rss_mb: float = 0.0
    epsilon: float | None = None

    def close(self, began: float) -> None:
        """Fill in what is known at the end; `began` is a value of time.monotonic()."""
        self.round_s = time.monotonic() - began
        self.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    def line(self) -> str:
        """Return the round as a log line."""
        outcome = {
            "aggregated": f"iteration {self.iteration} aggregated",
            "missed": f"iteration {self.iteration} ended without this silo's weights",
            "lost": f"iteration {self.iteration} failed at the servers, this silo's training in "
            "it is lost; going on from the global model",
        }[self.result]
        return (
            f"{outcome}: received {traffic(self.bytes_down, self.download_s)}; "
            f"round {self.round_s:.1f} s, of it waiting {self.wait_s:.1f} s; "
            f"sent {traffic(self.bytes_up, self.upload_s)}; "
            f"peak memory {self.peak_rss_mb / 1000:.2f} GB"
        )

    def append_to(self, path: Path) -> None:
        """Add the round as one JSON line; seconds and MB to three decimals."""
        given = {k: v for k, v in asdict(self).items() if v not in (None, math.inf)}
        values = {k: round(v, 3) if isinstance(v, float) else v for k, v in given.items()}
        append_line(path, json.dumps(values))


class Patience:
    """A wait with a deadline: each `pause` sleeps, and at times logs the reason and the deadline.

    Args:
        seconds: time from now until `pause` raises GaveUpError.
    """

    def __init__(self, seconds: float, log: Callable[[str], None]):
        self._seconds = seconds
        self._log = log
        self.renew()

    def renew(self) -> None:
        """Restart the deadline."""
        self._begin = time.monotonic()
        self._next_report = 5.0

    def pause(
        self, what: str | Callable[[], str], seconds: float, report_at_once: bool = False
    ) -> None:
        """Sleep, and report the wait if it is due.

        Args:
            what: what is waited for, to follow "waiting for"; or a function that returns these
                words when needed.
            report_at_once: report before sleeping, for an unexpected wait; others are reported
                after 5 s.
        """
        waited = time.monotonic() - self._begin
        over = waited >= self._seconds
        if over or waited >= self._next_report or (report_at_once and self._next_report == 5.0):
            words = what if isinstance(what, str) else what()
            if over:
                raise GaveUpError(f"gave up after {waited:.0f} s of waiting for {words}")
            left = self._seconds - waited
            self._log(f"waiting for {words}, {waited:.0f} s, gives up in {left:.0f} s")
            self._next_report = min(2 * max(waited, 5.0), waited + 60.0)
        time.sleep(min(seconds, self._seconds - waited))


def steps_per_iteration(config: Any, steps_per_epoch: int) -> int:
    """Return the number of local steps between two synchronisations.

    `sync_frequency` counts epochs with dataset_sink_mode and steps without; 0 is
    `client_epoch_num` epochs.
    """
    if not config.sync_frequency:
        return config.client_epoch_num * steps_per_epoch
    return config.sync_frequency * (steps_per_epoch if config.dataset_sink_mode else 1)


def declared_size(images: int, unit: int = 1) -> int:
    """Return a silo's weight in the mean: its number of images in units of `unit` images.

    Raises:
        UserError: the weight is more than the engine accepts.
    """
    size = max(1, round(images / unit))
    if size > LARGEST_DATA_SIZE:
        raise UserError(
            f"data_size_unit: {images} images in units of {unit} are {size}, and the engine takes "
            f"{LARGEST_DATA_SIZE} at most; set it to {-(-images // LARGEST_DATA_SIZE)} or more, "
            "the same for all silos and the servers"
        )
    return size


def check_finite(features: Features, step: int, factor: int) -> None:
    """Raise NotFiniteError for the first array whose `factor`-fold exceeds float32.

    Args:
        step: the silo's training step, for the message.
    """
    limit = float(np.finfo(np.float32).max) / factor
    for name, array in features.items():
        if array.min() >= -limit and array.max() <= limit:
            continue
        bad = array.size - int((np.abs(array) <= limit).sum())
        raise NotFiniteError(
            f"{name}: {bad} of {array.size} values are NaN, infinite or beyond {limit:.1e} after "
            f"step {step}; nothing was sent"
        )


def sample(features: Features, names: Iterable[str], each: int = 64) -> np.ndarray:
    """Return about `each` evenly spaced values per array: enough to see whether it changed."""
    parts = []
    for name in names:
        flat = features[name].reshape(-1)
        parts.append(flat[:: max(1, flat.size // each)])
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def difference(expected: Mapping[str, int], received: Mapping[str, int]) -> str:
    """Describe briefly how two models differ, by the names and sizes of their weights."""
    missing = [name for name in expected if name not in received]
    unknown = [name for name in received if name not in expected]
    if missing:
        return f"{len(missing)} weights are not in it, first {missing[0]}"
    if unknown:
        return f"{len(unknown)} of its weights are unknown here, first {unknown[0]}"
    name = next(name for name in expected if expected[name] != received[name])
    return f"{name} has {received[name]} values there and {expected[name]} here"


def traffic(size: int, seconds: float) -> str:
    """Format an amount and its time, as in: 166.1 MB in 0.9 s."""
    return f"{size / 1e6:.1f} MB in {seconds:.1f} s"
