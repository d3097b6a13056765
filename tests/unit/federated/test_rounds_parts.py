"""Fingerprints, declared sizes, deadlines and the other parts of a round."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from src.errors import UserError
from src.federated import rounds
from src.federated.fingerprint import ASPECTS as FINGERPRINT_ASPECTS
from src.federated.fingerprint import common_factor, differing, digest, fingerprint, unlike_aspects
from src.federated.rounds import (
    Deadlines,
    GaveUpError,
    NotFiniteError,
    Patience,
    Round,
    check_finite,
    declared_size,
    difference,
    sample,
)

ASPECTS = {"backbone": "resnet", "class list": ["cat", "dog"], "image size": (192, 320)}


def test_a_fingerprint_is_whole_numbers_that_follow_their_aspects():
    numbers = fingerprint(ASPECTS)
    assert numbers.dtype == np.float32 and len(numbers) == 4
    np.testing.assert_array_equal(numbers, fingerprint(dict(ASPECTS)))
    np.testing.assert_array_equal(numbers, np.round(numbers))
    changed = fingerprint({**ASPECTS, "image size": (320, 192)})
    np.testing.assert_array_equal(numbers != changed, [False, False, False, True])


def test_fingerprints_stay_the_same_from_version_to_version():
    """Other numbers would part silos of different versions, and every checkpoint from its job."""
    assert fingerprint(ASPECTS).tolist() == [65135, 63221, 53689, 60944]
    arrays = {"b": np.ones(2, np.float32), "a": np.arange(6, dtype=np.float32)}
    assert digest(arrays) == "30da2fc89463cbc69a7277215dd8a13d"


def test_a_mark_of_a_job_names_what_a_detector_is_told_differently():
    known = {name: 1 for name in FINGERPRINT_ASPECTS}
    mark = fingerprint(known)
    first, *_, last = FINGERPRINT_ASPECTS
    assert unlike_aspects(known, mark) == []
    assert unlike_aspects({**known, first: 2, last: 2}, mark) == [first, last]
    assert unlike_aspects({first: 2}, mark) == [first]
    assert unlike_aspects(known, mark[:-1]) == []


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 2, 13])
def test_a_fingerprint_that_came_back_multiplied_gives_the_factor(factor):
    mine = fingerprint(ASPECTS)
    assert common_factor(mine, mine * np.float64(factor)) == pytest.approx(factor)
    rounded = np.float32(mine * np.float32(factor))
    assert common_factor(mine, rounded) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("change", [
    lambda mine: mine,
    lambda mine: mine * 1.0005,
    lambda mine: mine * 0.9995,
    lambda mine: mine * -2,
    lambda mine: mine * 0,
    lambda mine: mine * [2, 2, 2, 2.001],
    lambda mine: mine * [2, 2, 2, 1.999],
    lambda mine: mine * np.nan,
    lambda mine: np.append(mine, 1) * 2,
    lambda mine: fingerprint({**ASPECTS, "backbone": "other"}),
])  # fmt: skip
def test_another_fingerprint_has_no_factor(change):
    mine = fingerprint(ASPECTS)
    assert common_factor(mine, change(np.float64(mine))) == 1.0


def test_differing_names_the_aspects():
    mine = fingerprint(ASPECTS)
    theirs = fingerprint({**ASPECTS, "backbone": "other", "image size": (1, 1)})
    assert differing(list(ASPECTS), mine, mine) == []
    assert differing(list(ASPECTS), mine, theirs) == ["backbone", "image size"]
    assert differing(list(ASPECTS), mine, mine + [0.4, -0.4, 0.4, 0.6]) == ["image size"]
    for other in (fingerprint({"backbone": "resnet"}), mine * np.nan, mine + [1, 0, 0, 0]):
        assert differing(list(ASPECTS), mine, other) == ["version of this software"]


@pytest.mark.parametrize("silos", [2, 7, 100])
def test_a_weighted_mean_of_equal_fingerprints_is_still_equal(silos):
    random = np.random.default_rng(silos)
    mine = fingerprint({f"aspect {number}": number for number in range(200)})
    sizes = random.integers(1, 65536, silos)
    total = np.zeros_like(mine)
    for size in sizes:
        total += mine * np.float32(size)
    mean = total / np.float32(sizes.sum())
    assert differing([f"aspect {number}" for number in range(200)], mine, mean) == []


def test_a_digest_covers_names_shapes_and_values():
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float32)}
    assert digest(arrays) == digest(dict(reversed(arrays.items())))
    others = [
        {**arrays, "a": arrays["a"].reshape(2, 3)},
        {**arrays, "a": arrays["a"] + 1},
        {"x": arrays["a"], "b": arrays["b"]},
    ]
    assert len({digest(arrays), *(digest(other) for other in others)}) == 4


def test_declared_size_counts_in_units():
    assert declared_size(1180) == 1180
    assert declared_size(118287, 10) == 11829
    assert declared_size(3, 10) == 1
    with pytest.raises(UserError, match="data_size_unit: 118287 images .* set it to 2 or more"):
        declared_size(118287)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_check_finite_names_the_first_bad_array(value):
    features = {"good": np.ones(3, np.float32), "bad": np.float32([1, value, 2])}
    with pytest.raises(NotFiniteError, match=r"bad: 1 of 3 values .* after step 5"):
        check_finite(features, 5, 1180)
    check_finite({"good": features["good"]}, 5, 65535)


def test_sample_and_difference():
    features = {"a": np.arange(1000, dtype=np.float32).reshape(10, 100), "b": np.ones(2)}
    assert 60 <= len(sample(features, ["a"])) <= 70
    assert len(sample(features, ["b"])) == 2
    assert difference({"a": 1}, {}) == "1 weights are not in it, first a"
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "1 of its weights are unknown here, first b"
    assert difference({"a": 1}, {"a": 2}) == "a has 2 values there and 1 here"


def test_patience_reports_and_ends():
    lines: list[str] = []
    patience = Patience(0.3, lines.append)
    begin = time.monotonic()
    with pytest.raises(GaveUpError, match="waiting for the servers"):
        while True:
            patience.pause("the servers", 0.05, report_at_once=True)
    assert 0.3 <= time.monotonic() - begin < 0.6
    assert lines == ["waiting for the servers, 0 s, gives up in 0 s"]
    patience.renew()
    patience.pause("the servers", 0.01)
    assert len(lines) == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that begins early and that only sleeping moves, with how long each sleep was."""
    clock = SimpleNamespace(now=0.5, slept=[])

    def sleep(seconds):
        clock.slept.append(round(seconds, 6))
        clock.now += seconds

    time = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(rounds, "time", time)
    return clock


def test_a_long_wait_is_told_of_ever_more_rarely_and_ends_in_time(clock):
    lines: list[str] = []
    patience = Patience(200.25, lines.append)
    with pytest.raises(GaveUpError, match="gave up after 200 s of waiting for the others"):
        while True:
            patience.pause("the others", 0.5)
    told = [5, 10, 20, 40, 80, 140, 200]
    due = [f"waiting for the others, {t} s, gives up in {200.25 - t:.0f} s" for t in told]
    assert lines == due
    # The last sleep is the rest.
    assert clock.slept == [0.5] * 400 + [0.25]
    assert clock.now == 0.5 + 200.25


def test_a_wait_that_should_not_be_is_told_of_at_once_and_then_as_others(clock):
    lines: list[str] = []
    patience = Patience(100.0, lines.append)
    for _ in range(24):
        patience.pause("the servers", 0.5, report_at_once=True)
    waited = [int(line.split(", ")[1][:-2]) for line in lines]
    assert waited == [0, 10]


def test_a_round_says_seconds_sizes_and_memory(clock, monkeypatch, tmp_path):
    usage = SimpleNamespace(ru_maxrss=2_500_000)
    monkeypatch.setattr(rounds.resource, "getrusage", lambda who: usage)
    record = Round(3)
    clock.now = 90.0
    record.close(8.0)
    zeros = ("bytes_up", "bytes_down", "upload_s", "wait_s", "download_s", "client_s")
    assert [getattr(record, name) for name in zeros] == [0] * len(zeros)
    assert (record.round_s, record.peak_rss_mb) == (82.0, 2560.0)
    record.bytes_up, record.upload_s, record.wait_s = 166_149_999, 0.12345, 0.5
    assert record.line() == (
        "iteration 3 aggregated: received 0.0 MB in 0.0 s; round 82.0 s, of it waiting 0.5 s; "
        "sent 166.1 MB in 0.1 s; peak memory 2.56 GB"
    )
    record.append_to(tmp_path / "rounds.jsonl")
    values = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert values["upload_s"] == 0.123 and values["bytes_up"] == 166_149_999
    assert "epsilon" not in values


def test_deadlines_are_those_of_the_documentation():
    assert Deadlines() == Deadlines(join=600, request=300, wait=4200)


def test_the_largest_size_that_the_engine_takes_is_taken():
    assert declared_size(65535) == 65535
    with pytest.raises(UserError, match="are 65536, and the engine takes 65535"):
        declared_size(65536)


def test_values_up_to_what_float32_holds_so_often_are_sent():
    limit = np.float32(np.finfo(np.float32).max / 4)
    check_finite({"a": np.float32([limit, -limit])}, 1, 4)
    bad = np.float32([limit * 1.01, np.nan, 0, limit, -limit])
    with pytest.raises(NotFiniteError, match="a: 2 of 5 values"):
        check_finite({"a": bad}, 1, 4)


def test_the_first_weight_that_differs_is_named():
    mine = {"a": 2, "b": 2, "c": 2}
    assert difference(mine, {"x": 1}) == "3 weights are not in it, first a"
    theirs = {**mine, "x": 1, "y": 1}
    assert difference(mine, theirs) == "2 of its weights are unknown here, first x"
    assert difference(mine, {**mine, "b": 3}) == "b has 3 values there and 2 here"
    assert len(sample({}, [])) == 0
    assert len(sample({"a": np.zeros((64, 64), np.float32)}, ["a"])) == 64


def test_a_round_as_a_line_and_as_json(tmp_path):
    record = Round(3, bytes_up=166_100_000, bytes_down=166_100_000, upload_s=0.9, download_s=0.4)
    record.wait_s = 14.2
    record.close(time.monotonic() - 81.3)
    assert record.line().startswith(
        "iteration 3 aggregated: received 166.1 MB in 0.4 s; round 81.3 s, of it waiting 14.2 s"
    )
    record.append_to(tmp_path / "rounds.jsonl")
    values = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert values["iteration"] == 3 and values["round_s"] == pytest.approx(81.3, abs=0.1)
