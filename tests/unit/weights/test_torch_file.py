"""Files of torch.save and safetensors: what is in them, and that nothing of them is executed."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import (
    Built,
    Call,
    Name,
    Storage,
    TorchPickler,
    save_archive,
    save_old,
    state_dict,
    tensor,
)

from src.errors import UserError
from src.model_utils.config import PROJECT_DIR
from src.weights.files import read_weights
from src.weights.torch_file import load_pickle

SAVERS = pytest.mark.parametrize("save", [save_archive, save_old])
VALUES = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.running_var": np.array([0.5, 2.0], np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
}


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value.astype(np.float32))


@SAVERS
def test_state_dict(tmp_path, save):
    same(read_weights(save(tmp_path / "a.pth", state_dict(VALUES))), VALUES)


@SAVERS
@pytest.mark.parametrize("place", ["state_dict", "model", "model_state_dict"])
def test_in_a_training_checkpoint_of_a_wrapped_model(tmp_path, save, place):
    wrapped = state_dict({f"module.{name}": value for name, value in VALUES.items()})
    content = {"epoch": 3, place: wrapped, "best": 0.5, "names": ["a", ("b", None, True)]}
    same(read_weights(save(tmp_path / "a.pth", content)), VALUES)


@pytest.mark.parametrize("name", ["archive.pth", "old.pth"])
def test_what_torch_itself_saved(name):
    """A training checkpoint as scripts write it, with views, half precisions and parameters."""
    folder = PROJECT_DIR / "tests" / "torch_saved"
    with np.load(folder / "values.npz") as values:
        assert len(values.files) == 10
        same(read_weights(folder / name), dict(values))


@SAVERS
def test_a_tensor_next_to_the_state_dict(tmp_path, save):
    """A best accuracy, as PyTorch's ImageNet example keeps it."""
    best = tensor(Storage("best", np.ones(1, np.float32)), ())
    content = {"best_acc1": best, "state_dict": state_dict(VALUES)}
    same(read_weights(save(tmp_path / "a.pth", content)), VALUES)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.model.", "module._orig_mod."])
def test_wrappers_in_any_order_and_averages(tmp_path, wrapper):
    values = {f"{wrapper}{name}": value for name, value in VALUES.items()}
    values["n_averaged"] = np.array(4, np.int64)
    same(read_weights(save_archive(tmp_path / "a.pth", state_dict(values))), VALUES)


@SAVERS
def test_types(tmp_path, save):
    numbers = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    stored = {
        "double": numbers.astype(np.float64),
        "half": numbers.astype(np.float16),
        "bfloat": (numbers.view(np.uint32) >> 16).astype("<u2"),
    }
    content = state_dict(stored, {"bfloat": "BFloat16Storage"})
    same(read_weights(save(tmp_path / "a.pth", content)), dict.fromkeys(stored, numbers))


@SAVERS
def test_views_of_one_storage_and_parameters(tmp_path, save):
    storage = Storage("0", np.arange(12, dtype=np.float32))
    channels_last = tensor(storage, (2, 3), (1, 2), 4)
    rebuild = Name("torch._utils", "_rebuild_parameter")
    content = OrderedDict(
        a=channels_last, b=Call(rebuild, tensor(storage, (2,)), True, OrderedDict())
    )
    expected = {
        "a": np.array([[4, 6, 8], [5, 7, 9]], np.float32),
        "b": np.array([0, 1], np.float32),
    }
    same(read_weights(save(tmp_path / "a.pth", content)), expected)


@SAVERS
@pytest.mark.parametrize(
    "view", [((3,), None, 10), ((2, 2), (9, 9), 0), ((10**9,), (0,), 0)], ids=str
)
def test_a_view_beyond_its_storage(tmp_path, save, view):
    content = OrderedDict(a=tensor(Storage("0", np.zeros(12, np.float32)), *view))
    with pytest.raises(UserError, match="beyond its storage"):
        read_weights(save(tmp_path / "a.pth", content))


@pytest.mark.parametrize(
    "module, name, arguments",
    [
        ("os", "system", ("touch {}",)),
        ("posix", "system", ("touch {}",)),
        ("builtins", "exec", ("open('{}', 'w')",)),
        ("builtins", "getattr", ({}, "keys")),
        ("pathlib", "Path", ("{}",)),
        ("torch.nn.modules.container", "Sequential", ()),
        ("torch._utils", "_rebuild_tensor_v2.__globals__", ()),
        ("numpy", "load", ("{}",)),
    ],
)
@SAVERS
def test_other_names_are_refused_and_not_called(tmp_path, save, module, name, arguments):
    target = tmp_path / "was_executed"
    arguments = [a.format(target) if isinstance(a, str) else a for a in arguments]
    content = {"state_dict": state_dict(VALUES), "x": Call(Name(module, name), *arguments)}
    path = save(tmp_path / "a.pth", content)
    with pytest.raises(UserError, match="not part of a state dict") as caught:
        read_weights(path)
    assert f"{module}.{name}" in str(caught.value) and str(path) in str(caught.value)
    assert not target.exists()


FIRST = tensor(Storage("0", np.arange(12, dtype=np.float32)), (3,))


@SAVERS
@pytest.mark.parametrize(
    "state", [{"stride": (-1,)}, {"offset": -8}, (None, {"shape": (10**9,)})], ids=str
)
def test_a_tensor_is_not_changed_once_it_was_checked(tmp_path, save, state):
    path = save(tmp_path / "a.pth", OrderedDict(a=Built(FIRST, state)))
    with pytest.raises(UserError, match="corrupt"):
        read_weights(path)


@pytest.mark.parametrize("state", [{"elements": "float64"}, (None, {"elements": "float64"})])
def test_a_stand_in_is_not_changed(tmp_path, state):
    stream = io.BytesIO()
    pickle._Pickler(stream, protocol=2).dump(state)
    pickled = b"\x80\x02ctorch\nFloatStorage\n" + stream.getvalue()[2:-1] + b"b."
    with pytest.raises(UserError, match="corrupt"):
        read_weights(save_archive(tmp_path / "a.pth", None, pickled))
    same(read_weights(save_archive(tmp_path / "b.pth", state_dict(VALUES))), VALUES)


@SAVERS
@pytest.mark.parametrize("name", ["collections.OrderedDict", "argparse.Namespace"])
def test_attributes_of_what_stands_next_to_the_weights_are_not_kept(tmp_path, save, name):
    state = {"values": "x", "items": None, "__class__": None}
    ignored = Built(Call(Name(*name.rsplit(".", 1))), state)
    content = {"x": ignored, "model": state_dict(VALUES)}
    same(read_weights(save(tmp_path / "a.pth", content)), VALUES)


class _Runs:
    """A pickle that runs a command, as Python's own pickler writes it."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickles_of_every_protocol(tmp_path, protocol):
    target = tmp_path / "was_executed"
    pickled = pickle.dumps(_Runs(f"touch {target}"), protocol)
    pickle.loads(pickled)  # it does run where nothing stops it
    assert target.exists()
    target.unlink()
    with pytest.raises(UserError, match="nothing of it was"):
        read_weights(save_archive(tmp_path / "a.pth", None, pickled))
    with pytest.raises(UserError, match="nothing of it was"):
        load_pickle(io.BytesIO(pickled), "a.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled, words",
    [
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
        (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "corrupt"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "remembers object"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x05_makeNs\x86b.", "corrupt"),
        (b"\x80\x02}q\x00X\x01", "corrupt"),
    ],
)
def test_instructions_that_no_state_dict_needs(pickled, words):
    with pytest.raises(UserError, match=words) as caught:
        load_pickle(io.BytesIO(pickled), "a.pth")
    assert str(caught.value).isprintable()


def nested_key(levels):
    """A dict whose one key is tuples within tuples; hashing it goes through all of them."""
    return b"\x80\x02})" + b"\x85" * levels + b"K\x01s."


def by_memory(levels):
    """Each tuple holds the one before, which the program remembers."""
    return b"\x80\x02}(K\x01)q\0" + b"h\0\x85q\0" * levels + b"t."


@pytest.mark.parametrize("pickled", [nested_key(10**6), by_memory(10**5)], ids=["key", "memory"])
def test_tuples_that_would_exhaust_the_stack_are_refused_before_they_are_made(pickled):
    with pytest.raises(UserError, match="more than 50 tuples one within the other"):
        load_pickle(io.BytesIO(pickled), "a.pth")


@SAVERS
@pytest.mark.parametrize(
    "found",
    [tensor(Storage("0", np.zeros(4, np.float32)), (1,), (2**62,)),
     tensor(Storage("0", np.zeros(4, np.float32)), (1,) * 41)],
    ids=["stride", "dimensions"],
)  # fmt: skip
def test_shapes_that_no_array_can_have(tmp_path, save, found):
    with pytest.raises(UserError, match="not a whole file of torch.save"):
        read_weights(save(tmp_path / "a.pth", OrderedDict(w=found)))


def test_a_safetensors_file_of_41_dimensions(tmp_path):
    path = tmp_path / "a.safetensors"
    shape = ",".join("1" * 41)
    head = f'{{"x":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(UserError, match="x has no shape of a tensor"):
        read_weights(path)


def test_archives_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a.txt", "no weights")
    script = save_archive(tmp_path / "b.pt", state_dict(VALUES), **{"constants.pkl": b""})
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", b"\0" * 1000)
    empty = save_archive(tmp_path / "d.pt", {"epoch": 3})
    for path, words in (
        (tmp_path / "a.pt", "no data.pkl"),
        (script, "TorchScript"),
        (tmp_path / "c.pt", "compressed"),
        (empty, r"no state dict in it \(found: epoch\)"),
    ):
        with pytest.raises(UserError, match=words):
            read_weights(path)


@SAVERS
def test_corrupt_files_are_refused_in_a_line(tmp_path, save):
    whole = save(tmp_path / "whole.pth", state_dict(VALUES)).read_bytes()
    rng = np.random.default_rng(0)
    target, refused = tmp_path / "a.pth", 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[at] = rng.integers(256)
        if rng.integers(3) == 0:
            del content[rng.integers(len(content)) :]
        target.write_bytes(bytes(content))
        try:
            read_weights(target)
        except UserError as error:
            assert str(error).isprintable() and str(target) in str(error)
            refused += 1
    assert refused > 100


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((2, 3), np.float16), "b": np.arange(3, dtype=np.int64)}, path)
    same(read_weights(path), {"a": np.ones((2, 3)), "b": np.arange(3.0)})
    head = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    numbers = (np.array([1.5, -2], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    path.write_bytes(len(head).to_bytes(8, "little") + head + numbers)
    same(read_weights(path), {"x": np.array([1.5, -2.0])})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_weights(path)


def test_what_is_no_file_of_weights(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nothing of the kind")
    (tmp_path / "b.ckpt").write_bytes(b"nothing of the kind")
    infinite = {"a": np.array([1, np.inf], np.float32)}
    save_archive(tmp_path / "c.pth", state_dict(infinite))
    for name, words in (
        ("a.pth", "neither a file of torch.save"),
        ("b.ckpt", "not a MindSpore checkpoint"),
        ("c.pth", "infinite or not a number"),
        ("d.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            read_weights(tmp_path / name)


def test_the_writer_writes_as_torch_does():
    """The beginning of a state dict's pickle, as PyTorch 1.13 writes it."""
    stream = io.BytesIO()
    TorchPickler(stream).dump(state_dict({"w": np.zeros(1, np.float32)}))
    assert stream.getvalue().startswith(
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00wq\x02"
        b"ctorch._utils\n_rebuild_tensor_v2\n"
    )
