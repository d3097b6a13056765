"""The engine's messages as FlatBuffers tables: requests to bytes, replies to values.

Weights are never turned into lists or gathered in one buffer: an upload is a short head and then
the arrays themselves, scaled piece by piece while they are sent; a reply's arrays are views into
the bytes that were received.

A message is one FlatBuffer, all numbers little-endian:

    message   uint32 at byte 0: where the root table begins, from the message's first byte
    table     int32: the table's position less that of its vtable; then its fields
    vtable    uint16 bytes of the vtable, uint16 bytes of the table, then for each field number n,
              at byte 4 + 2 n, a uint16: where the field is from the table's begin, 0 for a field
              that is absent and has its default
    int32     stands in the table itself
    others    strings, vectors and tables stand elsewhere: the field, or the vector's element, is a
              uint32, the distance from itself forward to them
    string    uint32 bytes, UTF-8, a zero byte
    vector    uint32 elements, then the elements
    FeatureMap  a table: field 0 the weight's name, field 1 a vector of float32, its values

Distances only lead forward, so that the values can stand behind everything else. This is an upload:

    head      root table, strings, the vector of FeatureMap, a FeatureMap for each weight; its bytes
              are a multiple of 4
    data      for each weight, in the order of the FeatureMaps: uint32 count, count float32

`flatbuffers` builds the head with a placeholder in field 1 of each FeatureMap. Then the distances
to the data, known from the sizes alone, are written over the placeholders, and the data follows
while it is sent. Every item of data has 4 bytes, so all of it is aligned to 4 bytes as FlatBuffers
asks, without padding between the arrays.

Field numbers are those of the engine's schema `fl_job.fbs`; the callers in transport.py give them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

import flatbuffers
import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table

SUCCEED, NOT_READY, OUT_OF_TIME, REQUEST_ERROR, SYSTEM_ERROR = 200, 201, 300, 400, 500
CODES = (SUCCEED, NOT_READY, OUT_OF_TIME, REQUEST_ERROR, SYSTEM_ERROR)

# Words of 4 bytes that are scaled and sent at a time, 2 MiB: large enough for few system calls,
# small enough to stay in the processor's cache.
PIECE = 1 << 19
LARGEST_MESSAGE = (1 << 31) - 1  # the engine's reader refuses more

_UINT32 = struct.Struct("<I")

Fields = Mapping[int, Union[str, int]]


class BadMessageError(Exception):
    """Raised where bytes are not a message of the engine."""


@dataclass
class Message:
    """Hold what a reply says; a field that the reply leaves out keeps its default.

    Attributes:
        code: one of CODES.
        reason: the server's words; "" for none.
        iteration: the server's iteration; 0 where the reply has none.
        iterations: number of iterations of the whole job, as the servers know it.
        features: name -> float32 array, 1-D, a view into the reply's bytes.
    """

    code: int
    reason: str = ""
    iteration: int = 0
    iterations: int = 0
    features: dict[str, np.ndarray] = field(default_factory=dict)


def encode(fields: Fields) -> bytes:
    """Return one table with these fields: field number -> string or int32."""
    return _build(fields, {}, -1)


class WeightsBody:
    """Make one table with a vector of FeatureMap, as pieces of bytes to send one after another.

    Iterating yields buffers that are valid until the next one is requested: the arrays are
    multiplied into one small buffer, so that sending takes 2 MiB of memory and not a copy of the
    model. It can be iterated again, for a second attempt.

    Args:
        fields: the table's strings and integers.
        features: name -> float32 array of any shape.
        factor: every value is multiplied by it.
        slot: field number of the vector of FeatureMap.

    Attributes:
        length: bytes of the whole message.

    Raises:
        ValueError: the message is larger than the engine's reader takes.
    """

    def __init__(
        self, fields: Fields, features: Mapping[str, np.ndarray], factor: int, slot: int = 3
    ):
        self._factor = np.float32(factor)
        self._arrays = [
            np.ascontiguousarray(array, np.float32).reshape(-1) for array in features.values()
        ]
        sizes = {name: array.size for name, array in zip(features, self._arrays)}
        self._head = _with_data_behind(_build(fields, sizes, slot), sizes, slot)
        # Each array has its count before it, 4 bytes.
        self.length = len(self._head) + sum(4 + array.nbytes for array in self._arrays)
        if self.length > LARGEST_MESSAGE:
            raise ValueError(f"a message of {self.length} bytes; the engine takes 2 GiB at most")

    def __iter__(self) -> Iterator[memoryview]:
        yield memoryview(self._head)
        buffer = np.empty(PIECE, np.float32)
        # The same memory as words: the counts are written through it between the floats.
        words, used = buffer.view("<u4"), 0
        for array in self._arrays:
            if used == PIECE:
                yield buffer.data.cast("B")
                used = 0
            words[used] = array.size
            used += 1
            done = 0
            while done < array.size:
                if used == PIECE:
                    yield buffer.data.cast("B")
                    used = 0
                count = min(PIECE - used, array.size - done)
                part = buffer[used : used + count]
                np.multiply(array[done : done + count], self._factor, out=part)
                used, done = used + count, done + count
        yield buffer[:used].data.cast("B")


def decode(
    data: Any, iteration_slot: int = -1, features_slot: int = -1, plan_slot: int = -1
) -> Message:
    """Decode a reply: code in field 0, reason in field 1, the others where the caller says.

    Args:
        data: bytes-like; the arrays of the result keep it alive.
        iteration_slot, features_slot, plan_slot: field numbers of the iteration, of the vector
            of FeatureMap and of the job's plan; -1 where the table has no such field.

    Raises:
        BadMessageError: these are not the bytes of such a table.
    """
    try:
        root = Table(data, _UINT32.unpack_from(data, 0)[0])
        code = _int32(root, 0)
        if code not in CODES:
            raise ValueError(f"code {code}")
        return Message(
            code=code,
            reason=_string(root, 1),
            iteration=_int32(root, iteration_slot) if iteration_slot >= 0 else 0,
            iterations=_iterations(root, plan_slot) if plan_slot >= 0 else 0,
            features=_features(root, features_slot, len(data)) if features_slot >= 0 else {},
        )
    except (struct.error, TypeError, ValueError, IndexError, OverflowError) as error:
        raise BadMessageError(f"{len(data)} bytes that are no reply of the engine ({error})") from (
            error
        )


def begins_as_reply(data: bytes) -> bool:
    """Tell by the code alone whether these are the first bytes of a reply of the engine."""
    try:
        return _int32(Table(data, _UINT32.unpack_from(data, 0)[0]), 0) in CODES
    except (struct.error, TypeError, ValueError, IndexError, OverflowError):
        return False


def _offset(slot: int) -> int:
    """Return where a field's entry is in its table's vtable."""
    return 4 + 2 * slot


def _int32(table: Table, slot: int) -> int:
    return table.GetSlot(_offset(slot), 0, number_types.Int32Flags)


def _string(table: Table, slot: int) -> str:
    place = table.Offset(_offset(slot))
    return table.String(table.Pos + place).decode("utf-8") if place else ""


def _iterations(root: Table, slot: int) -> int:
    """Return the number of iterations of the job, field 2 of its plan; 0 without a plan."""
    place = root.Offset(_offset(slot))
    return _int32(Table(root.Bytes, root.Indirect(root.Pos + place)), 2) if place else 0


def _tables(parent: Table, slot: int, length: int) -> list[Table]:
    """Return the tables of a vector of tables; [] where the field is absent.

    Raises:
        ValueError: the vector would be longer than the message of `length` bytes.
    """
    place = parent.Offset(_offset(slot))
    if not place:
        return []
    count, start = parent.VectorLen(place), parent.Vector(place)
    if count * 4 > length:
        raise ValueError(f"a vector of {count} tables in {length} bytes")
    return [Table(parent.Bytes, parent.Indirect(start + 4 * index)) for index in range(count)]


def _features(root: Table, slot: int, length: int) -> dict[str, np.ndarray]:
    features = {}
    for table in _tables(root, slot, length):
        place = table.Offset(_offset(1))
        data = np.empty(0, np.float32)
        if place:
            data = table.GetVectorAsNumpy(number_types.Float32Flags, place).view(np.float32)
        features[_string(table, 0)] = data
    return features


def _build(fields: Fields, sizes: Mapping[str, int], slot: int) -> bytes:
    """Build a finished table; its FeatureMaps, one for each of `sizes`, still point nowhere.

    A FlatBuffer is built back to front, so what the table points at is made before it.
    """
    builder = flatbuffers.Builder(1024)
    strings = {
        number: builder.CreateString(value)
        for number, value in fields.items()
        if isinstance(value, str)
    }
    vector = _feature_vector(builder, sizes) if slot >= 0 else 0
    # Argument: how many fields the vtable has.
    builder.StartObject(max([slot, *fields]) + 1)
    for number, value in fields.items():
        if number in strings:
            builder.PrependUOffsetTRelativeSlot(number, strings[number], 0)
        else:
            builder.PrependInt32Slot(number, value, 0)
    if slot >= 0:
        builder.PrependUOffsetTRelativeSlot(slot, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _feature_vector(builder: flatbuffers.Builder, sizes: Mapping[str, int]) -> int:
    tables = []
    for name in sizes:
        text = builder.CreateString(name)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, text, 0)
        builder.PrependUint32Slot(1, 1, 0)  # placeholder, see `_with_data_behind`
        tables.append(builder.EndObject())
    # Prepended, so the last one first: the vector is in the order of `sizes`.
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return builder.EndVector()


def _with_data_behind(head: bytes, sizes: Mapping[str, int], slot: int) -> bytes:
    """Return the head with each FeatureMap pointing at its count and values behind the head."""
    patched = bytearray(head + b"\0" * (-len(head) % 4))
    root = Table(patched, _UINT32.unpack_from(patched, 0)[0])
    target = len(patched)
    for table, size in zip(_tables(root, slot, len(patched)), sizes.values()):
        place = table.Pos + table.Offset(_offset(1))
        _UINT32.pack_into(patched, place, target - place)
        target += 4 + 4 * size
    return bytes(patched)
