"""Write files as torch.save does, without PyTorch, to test their readers.

Based on torch/serialization.py of PyTorch: `_save` for the zip archive, `_legacy_save` for the form
before it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "<f8": "DoubleStorage",
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "|u1": "ByteStorage",
}


class Name:
    """Name a module's member as a pickle refers to it, whether or not the module exists."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self) -> None:
        """Do nothing: the pickler requires a callable."""


class Call:
    """Represent an object whose pickle is a call of a name."""

    def __init__(self, name: Name, *arguments: Any):
        self.name, self.arguments = name, arguments

    def __reduce__(self) -> tuple:
        return self.name, self.arguments


class Built:
    """Represent the result of a call, on which the pickle then sets attributes."""

    def __init__(self, call: Call, state: Any):
        self.call, self.state = call, state

    def __reduce__(self) -> tuple:
        return (*self.call.__reduce__(), self.state)


class Storage:
    """Hold numbers next to the pickle."""

    def __init__(self, key: str, values: np.ndarray, kind: str | None = None):
        self.key, self.values = key, values
        self.kind = kind or STORAGES[values.dtype.str]


class TorchPickler(pickle._Pickler):
    """Write `Name` as a global and `Storage` as a persistent id."""

    def __init__(self, stream: io.BytesIO, old: bool = False):
        super().__init__(stream, protocol=2)
        self.storages: dict[str, Storage] = {}
        self._old = old

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        pid = ("storage", Name("torch", obj.kind), obj.key, "cpu", obj.values.size)
        return (*pid, None) if self._old else pid

    def save(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(obj, Name):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, *args, **kwargs)


def tensor(storage: Storage, shape: tuple, stride: tuple | None = None, offset: int = 0) -> Call:
    """Return a view of a storage, contiguous unless `stride` says otherwise."""
    if stride is None:
        stride = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, stride, False, OrderedDict())


def state_dict(values: dict[str, np.ndarray], kinds: dict[str, str] | None = None) -> OrderedDict:
    """Return what `model.state_dict()` returns, with its `_metadata`."""
    result = OrderedDict()
    for number, (name, value) in enumerate(values.items()):
        storage = Storage(str(number), value.reshape(-1), (kinds or {}).get(name))
        result[name] = tensor(storage, value.shape)
    result._metadata = OrderedDict([("", {"version": 1})])
    return result


def save_archive(path: Path, obj: Any, pickled: bytes | None = None, **entries: bytes) -> Path:
    """Write the zip archive of PyTorch 1.6 and later.

    Args:
        pickled: replaces the object's pickle.
        entries: further files of the archive.
    """
    stream = io.BytesIO()
    pickler = TorchPickler(stream)
    pickler.dump(obj)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickled or stream.getvalue())
        archive.writestr(f"{path.stem}/byteorder", b"little")
        for key, storage in pickler.storages.items():
            archive.writestr(f"{path.stem}/data/{key}", storage.values.tobytes())
        for name, content in entries.items():
            archive.writestr(f"{path.stem}/{name}", content)
        archive.writestr(f"{path.stem}/version", b"3\n")
    return path


def save_old(path: Path, obj: Any) -> Path:
    """Write the format before the archive."""
    stream = io.BytesIO()
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    for head in (0x1950A86A20F9469CFC6C, 1001, machine):
        pickle.dump(head, stream, protocol=2)
    pickler = TorchPickler(stream, old=True)
    pickler.dump(obj)
    keys = sorted(pickler.storages)
    pickle.dump(keys, stream, protocol=2)
    for key in keys:
        values = pickler.storages[key].values
        stream.write(values.size.to_bytes(8, "little") + values.tobytes())
    path.write_bytes(stream.getvalue())
    return path
