"""The pickle inside a PyTorch file, read without PyTorch and without calling what it names.

A pickle is a program: it may import and call anything. A state dict needs very little of that, so
only the instructions and the names of `ADMITTED` pass, and each name stands for an inert object of
this module, on which the program can set nothing: it could otherwise change a shape behind the
checks, or a stand-in for every later file. What torch.save writes: torch/serialization.py and
torch/_utils.py of PyTorch.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable

from src.errors import UserError

# The instructions of dicts, lists, tuples, numbers and text, of names and of calling them.
INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ "
    "BUILD BINPERSID".split()
)
# Tuples within tuples; PyTorch's have three. As a key of a dict they are hashed one within the
# other, and thousands would exhaust the interpreter's stack.
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
# What training scripts keep beside the weights: their arguments, a schedule's milestones, figures.
BESIDE = (
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
    """Stands for a storage class; `elements` is the type of its numbers."""

    __slots__ = ("elements",)

    elements: str


@dataclass(frozen=True)
class Storage:
    """One block of numbers in the file.

    Attributes:
        key: under which the file keeps it.
        elements: type of its numbers, a key of `ELEMENT_TYPES`.
        start: number of the block's first element in what is kept under `key`.
        count: its numbers.
    """

    __slots__ = ("key", "elements", "start", "count")

    key: str
    elements: str
    start: int
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: element (i, j, ..) is number `offset + i * stride[0] + ...`."""

    __slots__ = ("storage", "offset", "shape", "stride")

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dict(dict):
    """Stands for OrderedDict, and leaves out what PyTorch sets on one, its `_metadata`."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


class _Beside:
    """Stands for what is no weight and is not looked at, a class or a function; keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _Beside:
        """Whatever the call's arguments are."""
        return super().__new__(cls)

    def __init__(self, *_: Any):
        """Whatever the call's arguments are."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


class _Rebuild:
    """Stands for one of PyTorch's functions that make a tensor; nothing can be set on it."""

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
    **dict.fromkeys(BESIDE, _Beside),
}


class _StateDictUnpickler(pickle.Unpickler):
    """Gives stand-ins for the names of `ADMITTED`, and refuses all others."""

    def __init__(self, stream: BinaryIO, path: str):
        super().__init__(stream, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in; called for every name in the pickle.

        Raises:
            UserError: the name has no place in a state dict.
        """
        _require_admitted(self._path, f"{module}.{name}")
        return ADMITTED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        """The block of numbers that the file keeps outside its pickle."""
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
    """What the pickle at the stream's position holds; tensors as `StoredTensor`.

    The stream then stands behind the pickle.

    Raises:
        UserError: names or instructions that no state dict needs, before any of it is carried
            out, or no pickle.
    """
    start = stream.tell()
    try:
        _look_through(stream, path)
        stream.seek(start)
        return _StateDictUnpickler(stream, path).load()
    except UserError:
        raise
    # Whatever a spoilt program of data may cause; the reading itself executes nothing.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its pickle is spoilt or cut short: {reason}") from error


def _look_through(stream: BinaryIO, path: str) -> None:
    """Read the instructions without carrying them out."""
    length, depths = 0, _TupleDepths()
    for length, (code, argument, _) in enumerate(pickletools.genops(stream), 1):
        if code.name == "GLOBAL":
            _require_admitted(path, str(argument).replace(" ", ".", 1))
        if code.name not in INSTRUCTIONS:
            raise UserError(
                f"{path}: its pickle has the instruction {code.name}, which no state dict needs; "
                "nothing of it was carried out"
            )
        # Memory for the remembered objects is taken up to the highest number.
        if code.name == "LONG_BINPUT" and int(argument or 0) > length:
            raise UserError(f"{path}: its pickle is spoilt: it remembers object {argument}")
        if depths.after(code, argument) > DEEPEST:
            raise UserError(
                f"{path}: its pickle has more than {DEEPEST} tuples one within the other, which no "
                "state dict needs; nothing of it was carried out"
            )


class _TupleDepths:
    """How deep tuples are nested in what a pickle's program would have on its stack."""

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # None is a mark
        self._kept: dict[int, int] = {}

    def after(self, code: pickletools.OpcodeInfo, argument: Any) -> int:
        """The depth of what stands on top after an instruction; 0 of anything but a tuple."""
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
        """Take what an instruction uses off the stack."""
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
