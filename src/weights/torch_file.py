"""Files of torch.save: the zip archive of PyTorch 1.6 and later, and the form before it.

The archive holds `data.pkl`, a pickle of the object, and `data/KEY`, the numbers of each storage.
The older form is a row of pickles (a magic number, a version, the machine, the object, the keys of
the storages), then for each storage the count of its numbers in 8 bytes, and the numbers.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.errors import UserError
from src.weights.element_types import decode, element_bytes
from src.weights.state_dict_pickle import Storage, StoredTensor, load_pickle

ZIP_START = b"PK\x03\x04"
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
OLD_MAGIC = 0x1950A86A20F9469CFC6C
# A pickle of names and shapes: that of a detector has 30 kB.
PICKLE_LIMIT = 64 * 2**20
# Where training scripts put the state dict among other things, in the order of preference.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")


def is_torch_file(path: Path) -> bool:
    """Whether `path` begins as torch.save begins a file."""
    with path.open("rb") as file:
        start = file.read(len(OLD_START))
    return start.startswith(ZIP_START) or start == OLD_START


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, float32.

    A state dict among other things of a training checkpoint is found in its usual places.

    Raises:
        UserError: not a file of torch.save, broken, or with anything but plain tensors in it.
    """
    try:
        if zipfile.is_zipfile(path):
            found, storages = _read_archive(path)
        else:
            found, storages = _read_old(path)
        tensors = _state_dict(found, str(path))
        return {name: _values(tensor, storages) for name, tensor in tensors.items()}
    except (
        zipfile.BadZipFile, EOFError, LookupError, OSError, RuntimeError, ValueError, OverflowError,
        MemoryError,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: not a whole file of torch.save: {error}") from error


def _read_archive(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, and the numbers of its storages by key."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = _root(path, entries)
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")
        order = f"{root}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise UserError(f"{path}: its numbers are not little-endian; save it on such a machine")
        pickled = io.BytesIO(archive.read(f"{root}data.pkl"))
        found = load_pickle(pickled, str(path))
        kinds = {storage.key: storage.elements for storage in _storages(found)}
        storages = {key: decode(archive.read(f"{root}data/{key}"), k) for key, k in kinds.items()}
    return found, storages


def _root(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive, with a slash; torch.save names it after the file."""
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise UserError(f"{path}: a zip file, but not one of torch.save: no data.pkl in it")
    if f"{roots[0]}constants.pkl" in entries:
        raise UserError(
            f"{path}: a TorchScript program; save its weights alone, with "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    if entries[f"{roots[0]}data.pkl"].file_size > PICKLE_LIMIT:
        raise UserError(f"{path}: its pickle has more than {PICKLE_LIMIT} bytes: not of weights")
    for name, entry in entries.items():
        # torch.save does not compress; a small file that unpacks to a huge one is no such file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {name} in it is compressed, which torch.save never does")
    return roots[0]


def _read_old(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """As `_read_archive`, of the form before the archive."""
    with path.open("rb") as file:
        magic, version, machine = (load_pickle(file, str(path)) for _ in range(3))
        if magic != OLD_MAGIC or version != 1001 or not isinstance(machine, dict):
            raise UserError(f"{path}: not a file of torch.save")
        if machine.get("little_endian") is not True:
            raise UserError(f"{path}: its numbers are not little-endian; save it on such a machine")
        found = load_pickle(file, str(path))
        kinds = {storage.key: storage.elements for storage in _storages(found)}
        storages = {}
        for key in load_pickle(file, str(path)):
            size = int.from_bytes(_exactly(file, 8), "little", signed=True)
            kind = kinds.get(key)
            if kind is None:
                raise ValueError(f"storage {key!r} belongs to no tensor")
            storages[key] = decode(_exactly(file, size * element_bytes(kind)), kind)
    return found, storages


def _exactly(file: BinaryIO, size: int) -> bytes:
    """The next `size` bytes.

    Raises:
        EOFError: there are fewer.
    """
    rest = Path(file.name).stat().st_size - file.tell()
    if not 0 <= size <= rest:
        raise EOFError(f"{size} bytes of numbers are expected and {rest} are there")
    return file.read(size)


def _storages(found: Any) -> Iterator[Storage]:
    """Those of all tensors in nested dicts, lists and tuples."""
    waiting, seen = [found], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield item.storage
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _state_dict(found: Any, path: str) -> dict[str, StoredTensor]:
    """The tensors by name in what the file holds.

    Raises:
        UserError: none are there.
    """
    # The places first: a training checkpoint may have tensors of its own, a best accuracy.
    for candidate in (*(found.get(p) for p in PLACES if isinstance(found, dict)), found):
        if isinstance(candidate, dict):
            tensors = {
                str(name): value
                for name, value in candidate.items()
                if isinstance(value, StoredTensor)
            }
            if tensors:
                return tensors
    held = ", ".join(map(str, list(found)[:5])) if isinstance(found, dict) else type(found).__name__
    raise UserError(
        f"{path}: no state dict in it (found: {held}); save one with "
        "torch.save(model.state_dict(), FILE)"
    )


def _values(tensor: StoredTensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """The numbers of one tensor, float32.

    Raises:
        ValueError: it reaches beyond its storage.
    """
    numbers = storages[tensor.storage.key][tensor.storage.start :]
    count = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride))
    if count and (last >= len(numbers) or count > len(numbers)):
        raise ValueError(f"a tensor of {count} numbers reaches beyond its storage")
    if not count:
        return np.zeros(tensor.shape, np.float32)
    strides = [step * numbers.itemsize for step in tensor.stride]
    view = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, strides, writeable=False
    )
    return np.ascontiguousarray(view).reshape(tensor.shape)
