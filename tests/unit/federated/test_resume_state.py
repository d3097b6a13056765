"""What a worker writes for --resume, and what it makes of a missing, broken or foreign file."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.errors import UserError
from src.federated.aggregation import AdaptiveSettings
from src.federated.algorithms import AdaptiveFrequency, Scaffold
from src.federated.resume import momentum_of, require_same_job, set_momentum
from src.federated.resume_state import ResumeState, load_state, save_state
from src.federated.rounds import Round
from src.files import drop_unfinished_line, finish_last_line
from src.launch.processes import continued_folder

TERMS = {"fl_name": "job", "shard": "mindrecord_0 of 12 images", "momentum": "0.9"}


def state(iteration=5, steps=48):
    arrays = {"momentum.w": np.arange(6, dtype=np.float32), "c_silo.w": np.ones(6, np.float32)}
    return ResumeState(iteration, steps, {"frequency": 3}, arrays)


def test_what_was_written_comes_back_and_one_file_is_kept(tmp_path):
    path = tmp_path / "ckpt" / "mindrecord_0" / "resume.safetensors"
    save_state(path, state(4, 36), TERMS)
    save_state(path, state(), TERMS)
    lines = []
    found = load_state(path, TERMS, lines.append)
    assert (found.iteration, found.steps, found.numbers) == (5, 48, {"frequency": 3})
    for name, array in state().arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert lines == [f"resume: {path}: continues from iteration 5, after 48 steps"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600  # it holds what has not left the silo


def test_a_missing_one_is_a_line(tmp_path):
    lines = []
    assert load_state(tmp_path / "none", TERMS, lines.append) is None
    assert len(lines) == 1 and "is not there: the worker begins without momentum" in lines[0]


def test_every_broken_one_is_a_warning(tmp_path):
    path = tmp_path / "resume.safetensors"
    save_state(path, state(), TERMS)
    content = path.read_bytes()
    corrupt = [content[:length] for length in range(len(content))]
    corrupt += [content[:-3] + b"abc", b"garbage" * 50, bytes(len(content)), content + b"more"]
    for one in corrupt:
        path.write_bytes(one)
        lines = []
        assert load_state(path, TERMS, lines.append) is None
        assert "going on without momentum" in lines[-1]


@pytest.mark.parametrize(
    ("key", "value"), [("fl_name", "other"), ("shard", "mindrecord_0 of 13 images")]
)
def test_a_foreign_one_is_refused_with_what_differs(tmp_path, key, value):
    path = tmp_path / "resume.safetensors"
    save_state(path, state(), TERMS)
    with pytest.raises(UserError, match=f"{key} is '{TERMS[key]}' there and '{value}' here"):
        load_state(path, {**TERMS, key: value}, print)


def test_a_disk_without_room_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "resume.safetensors"
    save_state(path, state(), TERMS)
    before = path.read_bytes()

    def full(partial, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("src.files._replace_durably", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(path, state(6), TERMS)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_place_in_the_run_follows_the_servers():
    assert state().steps_at(5, 12) == 48
    assert state().steps_at(7, 12) == 72
    assert state().steps_at(4, 12) == 36
    assert state().steps_at(1, 20) == 0


def test_a_job_that_was_begun_anew_is_refused():
    require_same_job(None, 1)
    require_same_job(state(2), 1)
    require_same_job(state(5), 3)
    with pytest.raises(UserError, match="begin with iteration 1, a new job"):
        require_same_job(state(5), 1)


def trained(steps, optimizer, weight):
    random = np.random.default_rng(steps)
    for _ in range(steps):
        optimizer((Tensor(random.normal(size=weight.shape).astype(np.float32)),))


def sgd(values):
    weight = Parameter(Tensor(values), name="w")
    return weight, nn.SGD([weight], learning_rate=0.1, momentum=0.9, weight_decay=1e-4)


def test_momentum_goes_on_to_the_last_bit():
    start = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    weight, optimizer = sgd(start)
    trained(3, optimizer, weight)
    arrays = {name: array.copy() for name, array in momentum_of(optimizer).items()}
    values = weight.asnumpy().copy()
    trained(2, optimizer, weight)
    other, resumed = sgd(values)
    set_momentum(resumed, arrays)
    trained(2, resumed, other)
    np.testing.assert_array_equal(other.asnumpy(), weight.asnumpy())
    without, fresh = sgd(values)
    trained(2, fresh, without)
    assert not np.array_equal(without.asnumpy(), weight.asnumpy())


def test_momentum_of_other_weights_is_refused():
    _, optimizer = sgd(np.ones((2, 3), np.float32))
    with pytest.raises(UserError, match="momentum is of 1 weights that are not the 1"):
        set_momentum(optimizer, {"momentum.v": np.zeros(6, np.float32)})


def test_scaffolds_variate_of_the_silo_is_kept():
    values = {"w": np.zeros(6, np.float32)}
    one = Scaffold([Parameter(Tensor(np.zeros((2, 3), np.float32)), name="w")])
    one.loaded(values)
    one._told, one._change = True, {"w": np.arange(6, dtype=np.float32)}
    one.ended(Round(1))
    other = Scaffold([Parameter(Tensor(np.zeros((2, 3), np.float32)), name="w")])
    other.restore(one.state())
    np.testing.assert_array_equal(other.state()["c_silo.w"], np.arange(6))


def test_an_adaptive_frequency_decides_as_if_it_had_never_stopped():
    settings = AdaptiveSettings(observation_window_size=1, unchanged_round=0)
    random = np.random.default_rng(3)
    rounds = []
    model = np.zeros(8, np.float32)
    for number in range(12):
        change = random.normal(size=8).astype(np.float32) / (1 + number % 3)
        model = model + change
        rounds.append({"w": model.copy(), "as_abs_grad.w": np.abs(change) * 1.5})

    def step(one, features):
        one.upload({"w": one._global["w"]})
        one.loaded(features)
        return one.frequency

    whole = AdaptiveFrequency(settings, 16, ["w"])
    whole.loaded({"w": np.zeros(8, np.float32)})
    expected = [step(whole, features) for features in rounds]
    assert len(set(expected)) > 2
    for stop in range(1, 11):
        first = AdaptiveFrequency(settings, 16, ["w"])
        first.loaded({"w": np.zeros(8, np.float32)})
        frequencies = [step(first, features) for features in rounds[:stop]]
        second = AdaptiveFrequency(settings, 16, ["w"])
        second.restore(*first.state())
        second.loaded(rounds[stop - 1])
        frequencies += [step(second, features) for features in rounds[stop:]]
        assert frequencies == expected


def test_a_folder_that_is_gone_on_in_keeps_its_lines(tmp_path):
    (tmp_path / "worker.log").write_bytes(b"one\nhalf a li")
    (tmp_path / "loss_0.log").write_bytes(b"one\n")
    (tmp_path / "rounds.jsonl").write_bytes(b'{"iteration": 1}\n{"itera')
    (tmp_path / "privacy.jsonl").write_bytes(b"")
    continued_folder(tmp_path)
    assert (tmp_path / "worker.log").read_bytes() == b"one\nhalf a li\n"
    assert (tmp_path / "loss_0.log").read_bytes() == b"one\n"
    assert (tmp_path / "rounds.jsonl").read_bytes() == b'{"iteration": 1}\n'
    assert (tmp_path / "privacy.jsonl").read_bytes() == b""


@pytest.mark.parametrize("fix", [drop_unfinished_line, finish_last_line])
@pytest.mark.parametrize("content", [b"", b"a\n", b"a\nb\n"])
def test_whole_lines_stay_as_they_are(tmp_path, fix, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    fix(path)
    assert path.read_bytes() == content


def test_the_newest_checkpoints_of_both_processes_are_kept(tmp_path):
    from src.federated.checkpoints import CheckpointKeeper

    config = SimpleNamespace(checkpoints_kept=2, save_checkpoint=True, run_eval=False, resume=True)
    folder = tmp_path / "ckpt" / "mindrecord_0"
    for iterations in ((9, 10, 11), (12,)):
        keeper = CheckpointKeeper("worker_0", nn.Dense(2, 3), folder, "mindrecord_0", config)
        keeper.require_room(iterations=12, workers=1)
        for iteration in iterations:
            keeper.save(iteration)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"mindrecord_0-fast-rcnn-{k}epoch.ckpt" for k in (10, 11)]
