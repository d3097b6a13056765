"""The engine's messages: what is written can be read, and any bytes give a value or one error."""

import flatbuffers
import numpy as np
import pytest
from flatbuffers.table import Table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.federated import messages
from src.federated.messages import BadMessageError, WeightsBody, decode, encode

FEATURES = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "scalar": np.float32([7.5]),
    "bias": np.linspace(-1, 1, 5, dtype=np.float32),
}


def reply(features=FEATURES, factor: int = 1, **fields) -> bytes:
    """A ResponseGetModel: its fields have the numbers of a RequestUpdateModel's."""
    values = {0: fields.get("code", 200), 1: fields.get("reason", ""), 2: fields.get("at", 3)}
    return b"".join(bytes(piece) for piece in WeightsBody(values, features, factor))


def test_fields_are_where_the_schema_has_them():
    data = encode({0: "job", 1: "silo", 3: 1180, 4: "123"})
    root = Table(bytearray(data), int.from_bytes(data[:4], "little"))
    assert root.String(root.Pos + root.Offset(4)) == b"job"
    assert root.String(root.Pos + root.Offset(6)) == b"silo"
    assert root.Offset(8) == 0
    assert root.Get(flatbuffers.number_types.Int32Flags, root.Pos + root.Offset(10)) == 1180


@pytest.mark.parametrize("factor", [1, 1180])
def test_arrays_travel_multiplied_and_come_back_as_views(factor):
    data = reply(factor=factor, reason="ok", at=12)
    message = decode(data, 2, 3, 5)
    assert (message.code, message.reason, message.iteration) == (200, "ok", 12)
    assert list(message.features) == list(FEATURES)
    for name, array in FEATURES.items():
        got = message.features[name]
        np.testing.assert_array_equal(got, array.reshape(-1) * np.float32(factor))
        assert got.base is not None and got.dtype == np.float32


def test_pieces_are_small_and_make_the_announced_length(monkeypatch):
    monkeypatch.setattr(messages, "PIECE", 8)
    body = WeightsBody({0: 200}, FEATURES, 2)
    for _ in range(2):
        pieces = [bytes(piece) for piece in body]
        assert sum(map(len, pieces)) == body.length
        assert max(map(len, pieces[1:])) <= 32
        message = decode(b"".join(pieces), -1, 3)
        np.testing.assert_array_equal(message.features["bias"], 2 * FEATURES["bias"])


def test_no_features_is_a_message_too():
    assert decode(reply({}), 2, 3).features == {}


def test_more_than_the_engine_takes_is_refused(monkeypatch):
    monkeypatch.setattr(messages, "LARGEST_MESSAGE", 200)
    with pytest.raises(ValueError, match="the engine takes 2 GiB at most"):
        WeightsBody({0: 200}, FEATURES, 1)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * 64)
@example(b"The cluster is in safemode.")
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_a_value_or_one_error(data):
    try:
        message = decode(data, 2, 3, 5)
    except BadMessageError as error:
        assert str(len(data)) in str(error)
    else:
        assert message.code in messages.CODES


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_reply_gives_a_value_or_one_error(data):
    damaged = bytearray(reply())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        message = decode(damaged, 2, 3, 3)
    except BadMessageError:
        return
    assert all(array.nbytes <= len(damaged) for array in message.features.values())
