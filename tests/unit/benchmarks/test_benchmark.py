"""What `tools/benchmark.py` makes of its flags and of what its clients report."""

from __future__ import annotations

import argparse
import json

import pytest
from commands import processes_of, run

from src.benchmarks import sync
from src.errors import UserError
from src.model_utils.config import PROJECT_DIR

TINY = PROJECT_DIR / "configs" / "tiny" / "default_config.yaml"


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sync.add_flags(parser)
    return parser.parse_args(given)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ([], ["engine", "ours", "null"]),
        (["--clients=3"], ["engine", "ours", "null"]),
        (["--clients=8"], ["ours", "null"]),
        (["--only=ours"], ["ours", "null"]),
        (["--only=engine"], ["engine"]),
    ],
)
def test_the_kinds_of_clients_that_take_their_turns(given, kinds):
    assert sync.kinds_of(flags(*given)) == kinds


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--only=engine", "--clients=4"], "give 3 clients at most"),
        (["--rounds=1"], "2 rounds"),
        (["--clients=0"], "at least 1 client"),
    ],
)
def test_flags_that_do_not_go_together(given, words):
    with pytest.raises(UserError, match=words):
        sync.kinds_of(flags(*given))


def test_too_little_memory_is_told_before_the_start():
    with pytest.raises(UserError, match="give fewer --clients"):
        sync.require_memory(["ours"], 2, 10_000)


def reports(*rounds: tuple[float, float]) -> list[list[dict]]:
    """Two clients; the second begins 1 s later and ends `seconds` after the first began."""
    results = []
    for seconds, own in rounds:
        one = {"begin": 10.0, "end": 10.5, "client_s": own / 2, "added_gb": 0.1, "peak_gb": 0.9}
        two = {**one, "begin": 11.0, "end": 10.0 + seconds, "client_s": own, "added_gb": 0.2}
        results.append([{**r, "phases": {"join": 0.1, "wait": seconds - 0.5}} for r in (one, two)])
    return results


def test_the_summary_has_medians_without_the_first_round():
    measured = {
        "engine": reports((90, 9), (10, 4), (12, 5), (20, 6)),
        "ours": reports((50, 1), (4, 0.1), (3, 0.2), (2, 0.3)),
        "null": reports((40, 0), (2, 0), (2, 0), (2.5, 0)),
    }
    result = sync.summary(measured, [[1.5, 1.6]])
    assert result["ours"]["round_s"] == [50, 4, 3, 2]
    assert result["ours"]["client_s"] == [1, 0.1, 0.2, 0.3]
    assert result["ours"]["added_peak_gb"] == 0.2
    assert result["ratio"] == 0.25
    assert result["ratio_to_servers_share"] == 1.5
    said = sync.report(result, measured)
    assert "this suite by the engine's own client: 0.25" in said
    assert "1.50 1.60" in said


def test_kinds_that_were_not_measured_have_no_ratio():
    result = sync.summary({"engine": reports((1, 1), (2, 1))}, [])
    assert result["ours"] is result["ratio"] is result["ratio_to_servers_share"] is None
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow  # 30 s: all three kinds of clients, each of which loads MindSpore
def test_a_measurement_with_the_tiny_detector(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    given = ["sync", "--json", "--rounds=2", "--servers=1", f"--config_path={TINY}"]
    done = run(tmp_path, "tools/benchmark.py", *given, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for kind in ("ours", "engine", "null"):
        assert len(result[kind]["round_s"]) == 2 and min(result[kind]["round_s"]) > 0
    assert 0 < result["ratio"] < 1
    assert len(result["servers_gb"]) == 6
    assert not processes_of(tmp_path) and not list(tmp_path.iterdir())
