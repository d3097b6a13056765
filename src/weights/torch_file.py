"""Read files of torch.save: the zip archive of PyTorch 1.6 and later, and the format before it.

The archive holds `data.pkl`, a pickle of the object, and `data/KEY`, the numbers of each storage.
The older format is a sequence of pickles (a magic number, a version, the machine, the object, the
keys of the storages), then for each storage the count of its numbers in 8 bytes, and the numbers.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable

import numpy as np

from src.errors import UserError

# Pickle instructions for dicts, lists, tuples, numbers and text, for names and for calling them.
INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ "
    "BUILD BINPERSID".split()
)
# Most levels of nested tuples; PyTorch's have three. A tuple as a key of a dict is hashed
# recursively, and thousands of levels would exhaust the interpreter's stack.
DEEPEST = 50
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# What training scripts save next to the weights: arguments, a schedule's milestones, metrics.
IGNORED = (
    "argparse.Namespace",
    "collections.Counter",
    "pathlib.PosixPath",
    "torch.device",
    "torch.Size",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
)


@dataclass(frozen=True)
class StorageKind:
    """Stand in for a storage class; `elements` is the type of its numbers."""

    __slots__ = ("elements",)

    elements: str


@dataclass(frozen=True)
class Storage:
    """Describe one block of numbers in the file.

    Attributes:
        key: key of the storage in the file.
        elements: type of its numbers, a key of `ELEMENT_TYPES`.
        start: index of the block's first number in what the file has under `key`.
        count: how many numbers it has.
    """

    __slots__ = ("key", "elements", "start", "count")

    key: str
    elements: str
    start: int
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """Describe a view of a storage: element (i, j, ..) is number `offset + i * stride[0] + ...`."""

    __slots__ = ("storage", "offset", "shape", "stride")

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dict(dict):
    """Stand in for OrderedDict, and ignore what PyTorch sets on one, its `_metadata`."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Ignored:
    """Stand in for a class or function that is no weight; ignore all of its content."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _Ignored:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any):
        """Accept any arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Rebuild:
    """Stand in for one of PyTorch's functions that make a tensor; its attributes are fixed."""

    __slots__ = ("_make",)

    _make: Callable[..., StoredTensor]

    def __init__(self, make: Callable[..., StoredTensor]):
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a stand-in is fixed")

    def __call__(self, *arguments: Any) -> StoredTensor:
        return self._make(*arguments)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> StoredTensor:
    shape, steps = tuple(size), tuple(stride)
    numbers = (offset, *shape, *steps)
    if not isinstance(storage, Storage) or len(shape) != len(steps):
        raise ValueError("a tensor without a storage, or with a shape that is none")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor with a shape that is none")
    return StoredTensor(storage, offset, shape, steps)


def _parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError("a parameter without a tensor")
    return data


ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor_v2": _Rebuild(_tensor),
    "torch._utils._rebuild_tensor": _Rebuild(_tensor),
    "torch._utils._rebuild_parameter": _Rebuild(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Rebuild(_parameter),
    **{f"torch.{name}": StorageKind(kind) for name, kind in STORAGES.items()},
    **{f"torch.{kind}": kind for kind in STORAGES.values()},
    **dict.fromkeys(IGNORED, _Ignored),
}


class _StateDictUnpickler(pickle.Unpickler):
    """Return stand-ins for the names of `ADMITTED`, and refuse all others."""

    def __init__(self, stream: BinaryIO, path: str):
        super().__init__(stream, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name; the unpickler calls this for every name in the pickle.

        Raises:
            UserError: the name does not belong in a state dict.
        """
        _require_admitted(self._path, f"{module}.{name}")
        return ADMITTED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        """Return the description of a block of numbers that the file has outside its pickle."""
        tag, kind, key, _, count, *view = pid
        start = 0
        if view and view[0] is not None:
            _, start, count = view[0]
        numbers = (start, count)
        if tag != "storage" or not isinstance(kind, StorageKind) or not isinstance(key, str):
            raise ValueError("something outside the pickle that is no storage")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a storage with a size that is none")
        return Storage(key, kind.elements, start, count)


def load_pickle(stream: BinaryIO, path: str) -> Any:
    """Load the pickle at the stream's position; tensors become `StoredTensor`.

    The stream's position is then behind the pickle.

    Raises:
        UserError: names or instructions that no state dict needs, before any of it is executed,
            or no pickle.
    """
    start = stream.tell()
    try:
        _look_through(stream, path)
        stream.seek(start)
        return _StateDictUnpickler(stream, path).load()
    except UserError:
        raise
    # A corrupt pickle may raise any exception; reading it executes nothing of the file.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its pickle is corrupt or cut short: {reason}") from error


def _look_through(stream: BinaryIO, path: str) -> None:
    """Check the instructions without executing them."""
    length, depths = 0, _TupleDepths()
    for length, (code, argument, _) in enumerate(pickletools.genops(stream), 1):
        if code.name == "GLOBAL":
            _require_admitted(path, str(argument).replace(" ", ".", 1))
        if code.name not in INSTRUCTIONS:
            raise UserError(
                f"{path}: its pickle has the instruction {code.name}, which no state dict needs; "
                "nothing of it was carried out"
            )
        # The unpickler allocates memory up to the highest number of a remembered object.
        if code.name == "LONG_BINPUT" and int(argument or 0) > length:
            raise UserError(f"{path}: its pickle is corrupt: it remembers object {argument}")
        if depths.after(code, argument) > DEEPEST:
            raise UserError(
                f"{path}: its pickle has more than {DEEPEST} tuples one within the other, which no "
                "state dict needs; nothing of it was carried out"
            )


class _TupleDepths:
    """Track how deep tuples are nested in what a pickle would have on its stack."""

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # None is a mark
        self._kept: dict[int, int] = {}

    def after(self, code: pickletools.OpcodeInfo, argument: Any) -> int:
        """Return the depth of the stack's top after an instruction; 0 for all but tuples."""
        stack = self._stack
        if code.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            top = stack[-1] if stack else None
            self._kept[len(self._kept) if argument is None else argument] = top or 0
            return 0
        if code.name in ("BINGET", "LONG_BINGET"):
            stack.append(self._kept.get(argument, 0))
            return 0
        if code.name == "MARK":
            stack.append(None)
            return 0
        taken = [depth for depth in self._taken(code) if depth is not None]
        made = 1 + max(taken, default=0) if "TUPLE" in code.name else 0
        stack.extend(made for _ in code.stack_after)
        return made

    def _taken(self, code: pickletools.OpcodeInfo) -> Iterator[int | None]:
        """Pop what an instruction uses from the stack and return its depths."""
        below = list(code.stack_before)
        if pickletools.markobject in below:
            below = below[: below.index(pickletools.markobject)]
            while self._stack and (depth := self._stack.pop()) is not None:
                yield depth
        for _ in below:
            if self._stack:
                yield self._stack.pop()


def _require_admitted(path: str, name: str) -> None:
    if name not in ADMITTED:
        raise UserError(
            f"{path}: its pickle names {name}, which is not part of a state dict; nothing of it "
            "was executed. Save the weights alone, with torch.save(model.state_dict(), FILE)"
        )


# Little-endian; bfloat16 has no numpy type and is the upper half of a float32.
ELEMENT_TYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "<i1",
    "uint8": "<u1",
    "bool": "<u1",
}


def element_bytes(kind: str) -> int:
    """Return the bytes of one number of type `kind`, a key of `ELEMENT_TYPES`."""
    return np.dtype(ELEMENT_TYPES[kind]).itemsize


def decode(data: bytes, kind: str) -> np.ndarray:
    """Return the numbers in `data`, 1-D float32.

    Args:
        data: a whole number of values of type `kind`, little-endian.
        kind: a key of `ELEMENT_TYPES`.
    """
    values = np.frombuffer(data, ELEMENT_TYPES[kind])
    if kind == "bfloat16":
        return (values.astype("<u4") << 16).view("<f4").astype(np.float32)
    # A value beyond float32's range becomes infinite, which the conversion refuses by name.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


ZIP_START = b"PK\x03\x04"
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
OLD_MAGIC = 0x1950A86A20F9469CFC6C
# Bytes of a pickle of names and shapes; that of a detector has 30 kB.
PICKLE_LIMIT = 64 * 2**20
# Keys under which training scripts save the state dict among other things, preferred ones first.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")


def is_torch_file(path: Path) -> bool:
    """Tell whether `path` begins as torch.save begins a file."""
    with path.open("rb") as file:
        start = file.read(len(OLD_START))
    return start.startswith(ZIP_START) or start == OLD_START


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict by name, float32.

    In a training checkpoint with other content, the state dict is searched under its usual keys.

    Raises:
        UserError: not a file of torch.save, corrupt, or with anything but plain tensors in it.
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
    """Return the object, and the numbers of its storages by key."""
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
    """Return the archive's folder, with a slash, which torch.save names after the file."""
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
        # torch.save does not compress; this also refuses a small file that unpacks to a huge one.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {name} in it is compressed, which torch.save never does")
    return roots[0]


def _read_old(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read what `_read_archive` reads, from the format before the archive."""
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
    """Read the next `size` bytes.

    Raises:
        EOFError: there are fewer.
    """
    rest = Path(file.name).stat().st_size - file.tell()
    if not 0 <= size <= rest:
        raise EOFError(f"{size} bytes of numbers are expected and {rest} are there")
    return file.read(size)


def _storages(found: Any) -> Iterator[Storage]:
    """Yield the storages of all tensors in nested dicts, lists and tuples."""
    waiting, seen = [found], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield item.storage
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _state_dict(found: Any, path: str) -> dict[str, StoredTensor]:
    """Return the tensors by name in what the file holds.

    Raises:
        UserError: it has none.
    """
    # Check PLACES first: a training checkpoint may have tensors of its own, e.g. a best accuracy.
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
    """Return the numbers of one tensor, float32.

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
