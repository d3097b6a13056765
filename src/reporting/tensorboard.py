"""Write a run as TensorBoard event files, one folder for each silo."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from src.files import write_whole
from src.reporting.run_folder import Silo

# In the names of our files, so that a second call replaces them and no others.
SUFFIX = ".cross_silo"
ROUND_KEYS = ("round_s", "upload_s", "wait_s", "download_s", "peak_rss_mb")

Scalar = tuple[str, float, int, float]


def write_events(silos: Sequence[Silo], folder: Path) -> list[Path]:
    """Write <folder>/worker_<n>/events.out.tfevents...; return those folders.

    Tags: loss/step, loss/epoch_mean, learning_rate, round/<key of rounds.jsonl> and
    metrics/<AP ...> by iteration.
    """
    folders = []
    for silo in silos:
        target = folder / silo.label
        target.mkdir(parents=True, exist_ok=True)
        earlier = set(target.glob(f"events.out.tfevents.*{SUFFIX}"))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}{SUFFIX}"
        # Not SummaryWriter: its thread dies on a full disk, and what waits for it never ends.
        write_whole(target / name, b"".join(map(_record, _event_list(silo))))
        for path in earlier - {target / name}:
            path.unlink()
        folders.append(target)
    return folders


def _event_list(silo: Silo) -> Iterator[Event]:
    yield Event(wall_time=time.time(), file_version="brain.Event:2")
    for tag, value, step, seconds in _scalars(silo):
        yield Event(wall_time=seconds, step=step, summary=scalar(tag, value))


def _record(event: Event) -> bytes:
    """Encode an event as a TFRecord: length, its checksum, data, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


def _scalars(silo: Silo) -> Iterator[Scalar]:
    """Yield tag, value, step and seconds since the epoch of each point."""
    seconds = [moment.timestamp() for moment in silo.times.tolist()]
    for number, (loss, rate) in enumerate(zip(silo.losses, silo.rates)):
        yield "loss/step", loss, number + 1, seconds[number]
        if np.isfinite(rate):
            yield "learning_rate", rate, number + 1, seconds[number]
    ends = {int(epoch): time for epoch, time in zip(silo.epochs, seconds)}
    for epoch, mean in zip(*silo.epoch_means()):
        yield "loss/epoch_mean", mean, int(epoch), ends[int(epoch)]
    last = seconds[-1] if seconds else 0.0
    yield from _of_lines(silo.rounds, "round", ROUND_KEYS, last)
    keys = [key for key in (silo.metrics or [{}])[-1] if key.startswith("A")]
    yield from _of_lines(silo.metrics, "metrics", keys, last)


def _of_lines(
    lines: Sequence[dict[str, Any]], group: str, keys: Sequence[str], time: float
) -> Iterator[Scalar]:
    """Yield the numbers under `keys` in JSON lines, by their iteration."""
    for line in lines:
        for key in keys:
            if isinstance(line.get(key), (int, float)):
                yield f"{group}/{key}", line[key], int(line["iteration"]), time
