"""Clipping, noise, what they spend, and the ledger that outlives a worker."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from src.errors import UserError
from src.federated.privacy import (
    PIECE,
    Privacy,
    PrivacyLedger,
    PrivacySettings,
    epsilon_of,
    fresh_generator,
    privacy_settings,
)
from src.federated.rounds import NotFiniteError, Round, SyncError
from src.job.checks import FAIL, PASS, WARN
from src.job.job_config import JobConfig
from src.launch.preflight.roles import privacy_check
from src.model_utils.config import load_config


def privacy(folder, clip=1.0, noise=0.0, delta=1e-5, log=print, most=0.0):
    folder.mkdir(exist_ok=True)
    settings = PrivacySettings(clip, noise, delta, most)
    return Privacy(settings, PrivacyLedger(folder, Path("/data/mindrecord_0")), log)


def models(*shapes, seed=0, update=0.01):
    """A global model, and weights that differ from it by normal values times `update`."""
    random = np.random.default_rng(seed)
    names = [f"w{number}" for number in range(len(shapes))]
    start = {n: random.normal(size=s).astype(np.float32) for n, s in zip(names, shapes)}
    steps = [random.normal(size=shape) * update for shape in shapes]
    return start, {n: (start[n] + step).astype(np.float32) for n, step in zip(names, steps)}


def update_of(upload, start):
    """All differences as one array, exactly."""
    parts = [upload[n].astype(np.float64) - start[n].astype(np.float64) for n in start]
    return np.concatenate([part.reshape(-1) for part in parts])


def test_an_update_within_the_norm_leaves_bit_for_bit(tmp_path):
    start, weights = models((7, 5), (11,), (PIECE + 3,))
    one = privacy(tmp_path, clip=1e9)
    one.remember(start)
    upload = one.protect(weights, 3, 1)
    for name, value in weights.items():
        np.testing.assert_array_equal(upload[name], value)
        assert upload[name].dtype == np.float32 and upload[name] is not value


@pytest.mark.parametrize("clip", [0.5, 3.0, 1e-3])
def test_a_longer_update_is_scaled_to_the_norm_over_all_values(tmp_path, clip):
    start, weights = models((400, 50), (PIECE + 100,), update=1.0)
    one = privacy(tmp_path, clip=clip)
    one.remember({name: np.zeros_like(value) for name, value in start.items()})
    upload = one.protect(weights, 1, 1)
    flat, trained = (np.concatenate([m[n].reshape(-1) for n in m]) for m in (upload, weights))
    norm = np.linalg.norm(trained.astype(np.float64))
    assert np.linalg.norm(flat.astype(np.float64)) == pytest.approx(clip, rel=1e-6)
    np.testing.assert_allclose(flat, trained * (clip / norm), rtol=1e-6)


def test_the_noise_is_gaussian_of_its_standard_deviation_on_each_value(tmp_path):
    start, weights = models((300, 1000), (2 * PIECE + 7,), update=1e-4)
    one = privacy(tmp_path, clip=2.0, noise=1.5)
    one.remember(start)
    noise = update_of(one.protect(weights, 1, 1), start) - update_of(weights, start)
    size = noise.size
    standard = noise / 3.0
    # Five standard errors of the mean, of the variance and of the fourth moment.
    assert abs(standard.mean()) < 5 / math.sqrt(size)
    assert abs(standard.var() - 1) < 5 * math.sqrt(2 / size)
    assert abs((standard**4).mean() - 3) < 5 * math.sqrt(96 / size)
    assert abs((np.abs(standard) < 1).mean() - 0.682689) < 5 * math.sqrt(0.2166 / size)
    # Neither neighbours nor the same place in the next piece share their noise.
    for lag in (1, PIECE):
        assert abs((standard[lag:] * standard[:-lag]).mean()) < 5 / math.sqrt(size - lag)


def test_the_noise_is_another_one_each_time(tmp_path):
    np.random.seed(1)
    first = fresh_generator().standard_normal(4)
    np.random.seed(1)
    assert not np.isin(first, fresh_generator().standard_normal(4)).any()
    start, weights = models((50,))
    one = privacy(tmp_path, noise=1.0)
    uploads = []
    for iteration in (1, 2):
        one.remember(start)
        uploads.append(one.protect(weights, 1, iteration)["w0"].copy())
    assert not np.isin(uploads[0], uploads[1]).any()


def test_an_update_counts_from_the_last_model_that_was_loaded(tmp_path):
    start, weights = models((50,))
    one = privacy(tmp_path, clip=1e-6)
    one.remember(start)
    one.remember({name: value + 1 for name, value in start.items()})
    upload = one.protect(weights, 1, 1)
    np.testing.assert_allclose(upload["w0"], start["w0"] + 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_neither_sent_nor_counted(tmp_path, bad):
    start, weights = models((5,))
    weights["w0"][2] = bad
    one = privacy(tmp_path, noise=1.0)
    one.remember(start)
    with pytest.raises(NotFiniteError, match="w0: 1 of 5 values .* nothing was sent"):
        one.protect(weights, 1, 1)
    assert one.epsilon == 0 and not (tmp_path / "privacy.jsonl").exists()


def exact_epsilon(noise, uploads, delta):
    """Of that many Gaussian mechanisms of sensitivity 2: Balle and Wang, 2018, theorem 8."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = 2 * math.sqrt(uploads) / noise

    def excess(epsilon):
        tail = norm.logcdf(-mu / 2 - epsilon / mu)
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + tail) - delta

    return brentq(excess, 0, 10_000)


@pytest.mark.parametrize(
    ("noise", "uploads", "delta"), [(2, 1, 1e-5), (1, 10, 1e-5), (5, 100, 1e-6), (20, 10, 1e-5)]
)
def test_epsilon_is_at_least_the_exact_one_and_hardly_more(noise, uploads, delta):
    exact = exact_epsilon(noise, uploads, delta)
    assert exact <= epsilon_of([float(noise)] * uploads, delta) <= 1.12 * exact


def test_epsilon_of_one_upload_of_effective_multiplier_one():
    # Twice the clip norm is what two updates may differ by; 4.377 is the Gaussian mechanism's own.
    assert exact_epsilon(2, 1, 1e-5) == pytest.approx(4.377, abs=1e-3)
    assert epsilon_of([2.0], 1e-5) == pytest.approx(4.7285, abs=1e-3)
    assert epsilon_of([], 1e-5) == 0
    assert epsilon_of([2.0, 0.0], 1e-5) == math.inf
    assert epsilon_of([4.0, 2.0], 1e-5) > epsilon_of([2.0], 1e-5) > epsilon_of([4.0], 1e-5)


def test_each_upload_is_on_the_disk_and_in_the_log_with_what_is_spent(tmp_path):
    lines = []
    start, weights = models((50,))
    one = privacy(tmp_path, clip=0.5, noise=3.0, log=lines.append)
    for iteration in (4, 5):
        one.remember(start)
        one.protect(weights, 1, iteration)
    entries = [json.loads(line) for line in (tmp_path / "privacy.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in entries] == [4, 5]
    assert entries[1]["epsilon"] == one.epsilon == epsilon_of([3.0, 3.0], 1e-5)
    assert lines[0] == "privacy: no earlier upload of /data/mindrecord_0 is known; counting from 0"
    assert "noise of standard deviation 1.5 on each value" in lines[2]
    assert f"epsilon {one.epsilon:.4g} at delta 1e-05 in 2 upload(s)" in lines[2]


def test_uploads_of_earlier_processes_count_with_their_own_noise(tmp_path):
    start, weights = models((50,))
    for folder, noise in (("worker_0.1", 4.0), ("worker_0.2", 3.0)):
        one = privacy(tmp_path / folder, noise=noise)
        one.remember(start)
        one.protect(weights, 1, 1)
    with (tmp_path / "worker_0.2" / "privacy.jsonl").open("a") as file:
        file.write('{"noise_multiplier": 1.0, "data": "/data/mindrecord_9"}\n')
        file.write('{"noise_multiplier": 1.0, "da')  # killed while it wrote, before it sent
    unprotected = tmp_path / "worker_0.3"
    unprotected.mkdir()
    (unprotected / "rounds.jsonl").write_text("{}\n")
    (tmp_path / "worker_01.1").mkdir()
    lines = []
    one = privacy(tmp_path / "worker_0", noise=2.0, log=lines.append)
    assert one.epsilon == epsilon_of([4.0, 3.0], 1e-5)
    one.remember(start)
    one.protect(weights, 1, 2)
    assert one.epsilon == epsilon_of([4.0, 3.0, 2.0], 1e-5)
    assert f"WARNING: {unprotected} is of an earlier run without dp_clip_norm" in lines[0]
    assert lines[1] == "privacy: 2 earlier upload(s) of this data count"
    assert (tmp_path / "worker_0" / "privacy.jsonl").stat().st_mode & 0o777 == 0o600


def test_an_update_that_cannot_be_clipped_is_not_sent(tmp_path):
    start, weights = models((50,))
    start["w0"][7] = np.nan
    one = privacy(tmp_path / "worker_0", noise=1.0)
    one.remember(start)
    with pytest.raises(NotFiniteError, match="the update's norm is nan after step 1"):
        one.protect(weights, 1, 1)
    assert not (tmp_path / "worker_0" / "privacy.jsonl").exists()


def test_a_broken_ledger_is_not_counted_as_nothing(tmp_path):
    (tmp_path / "worker_0.1").mkdir()
    (tmp_path / "worker_0.1" / "privacy.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"worker_0\.1/privacy\.jsonl, line 1: no entry"):
        privacy(tmp_path / "worker_0", noise=1.0)


def test_beyond_the_budget_the_global_model_goes_back_as_it_came(tmp_path):
    lines = []
    start, weights = models((50,))
    budget = epsilon_of([3.0] * 2, 1e-5) + 0.01
    for folder in ("worker_0.1", "worker_0"):  # the second process finds the budget spent
        one = privacy(tmp_path / folder, noise=3.0, most=budget, log=lines.append)
        for iteration in range(1, 5):
            one.remember({name: value + iteration for name, value in start.items()})
            upload = one.protect(weights, 1, iteration)
            same = np.array_equal(upload["w0"], start["w0"] + iteration)
            assert same == (folder == "worker_0" or iteration > 2)
            assert one.epsilon <= budget
        said = [line for line in lines if line.startswith("privacy: dp_max_epsilon is")]
        assert len(said) == 1 and "goes on receiving" in said[0] and "in 2 upload(s)" in said[0]
        lines.clear()
    assert len((tmp_path / "worker_0.1" / "privacy.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "worker_0" / "privacy.jsonl").exists()


def test_what_cannot_be_entered_is_not_sent(tmp_path):
    start, weights = models((5,))
    one = privacy(tmp_path, noise=1.0)
    one.remember(start)
    (tmp_path / "privacy.jsonl").mkdir()
    with pytest.raises(SyncError, match="could not be written, nothing was sent"):
        one.protect(weights, 1, 1)


def test_clipping_alone_is_called_not_private(tmp_path):
    lines = []
    start, weights = models((5,))
    one = privacy(tmp_path, log=lines.append)
    one.remember(start)
    one.protect(weights, 1, 1)
    assert "WARNING: dp_noise_multiplier is 0" in lines[0] and one.epsilon == math.inf
    assert json.loads((tmp_path / "privacy.jsonl").read_text())["epsilon"] is None
    Round(1, epsilon=one.epsilon).append_to(tmp_path / "rounds.jsonl")
    Round(2, epsilon=1.5).append_to(tmp_path / "rounds.jsonl")
    told = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert "epsilon" not in told[0] and told[1]["epsilon"] == 1.5


def job(kind=None):
    values = {"aggregation": {"aggregation_type": kind, "iid_rate": 0.1}} if kind else {}
    return JobConfig(Path("job.yaml"), values)


def keys(clip=1.0, noise=1.0, delta=1e-5, sync_type="fixed", most=0.0):
    config = load_config()
    values = {"clip_norm": clip, "noise_multiplier": noise, "delta": delta, "max_epsilon": most}
    for name, value in values.items():  # set directly: load_config refuses some of them
        setattr(config, f"dp_{name}", value)
    config.sync_type = sync_type
    return config


@pytest.mark.parametrize("kind", [None, "FedAvg", "FedProx"])
def test_where_only_weights_leave_it_is_available(kind):
    assert privacy_settings(job(kind), keys()) == PrivacySettings(1.0, 1.0, 1e-5)
    assert privacy_settings(job(kind), keys(clip=0.0, noise=0.0)) is None


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (
            "Scaffold",
            keys(),
            "aggregation_type Scaffold and sync_type fixed, expected FedAvg or FedProx",
        ),
        (
            "FedNova",
            keys(),
            "aggregation_type FedNova and sync_type fixed, expected FedAvg or FedProx",
        ),
        (
            "FedAvg",
            keys(sync_type="adaptive"),
            "sync_type adaptive, expected FedAvg or FedProx and fixed",
        ),
        ("FedAvg", keys(clip=0.0), "dp_noise_multiplier is 1.0 and dp_clip_norm 0"),
        ("FedAvg", keys(clip=math.inf), "dp_clip_norm is inf, expected a finite number"),
        ("FedAvg", keys(noise=math.nan), "dp_noise_multiplier is nan, expected a finite"),
        ("FedAvg", keys(noise=0.0, most=8.0), "dp_max_epsilon is 8.0 and dp_noise_multiplier 0.0"),
        ("FedAvg", keys(most=math.inf), "dp_max_epsilon is inf, expected a finite number"),
        ("FedAvg", keys(delta=0.0), "dp_delta is 0.0, expected more than 0"),
        ("FedAvg", keys(delta=1.0), "dp_delta is 1.0, expected more than 0 and less than 1"),
    ],
)
def test_settings_that_cannot_protect_are_refused(kind, config, words):
    with pytest.raises(UserError, match=words):
        privacy_settings(job(kind), config)


def test_the_check_before_the_start_tells_what_is_done():
    found = [privacy_check(job(), keys(*values)).run() for values in ((2.0, 0.5), (0.0, 0.0))]
    assert [finding.level for finding in found] == [PASS, PASS]
    assert "noise of standard deviation 1 " in found[0].text and "as they are" in found[1].text
    assert privacy_check(job(), keys(most=8.0)).run().text.endswith(", until epsilon is 8")
    clipped = privacy_check(job(), keys(2.0, 0.0)).run()
    assert clipped.level == WARN and "not private" in clipped.text
    assert privacy_check(job("Scaffold"), keys()).run().level == FAIL
