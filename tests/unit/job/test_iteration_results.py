"""How many iterations of a job came to something, from what servers and silos have written."""

import json

import pytest

from src.job.iteration_results import (
    counts_of,
    has_failed,
    note_refused,
    results_in,
    results_of_rounds,
    summary_of,
)
from src.job.job_start import job_start, note_start

GOOD, BAD = "success", "fail"


def write(folder, *entries, tail=""):
    """The engine's file of a server's folder; an entry is (iteration, result)."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"currentIteration": n, "iterationResult": r}) for n, r in entries]
    path = folder / "metrics.json"
    path.write_text("".join(f"{line}\n" for line in lines) + tail)
    return path


@pytest.mark.parametrize(
    ("counts", "words", "failed"),
    [
        ((30, 0), "30 of 30 iterations aggregated", False),
        ((28, 2), "28 of 30 iterations aggregated, 2 failed", False),
        ((1, 1), "1 of 2 iterations aggregated, 1 failed", False),
        ((2, 3), "2 of 5 iterations aggregated, 3 failed", True),
        ((0, 6), "0 of 6 iterations aggregated, 6 failed", True),
        ((3, 0, 2), "3 of 3 iterations aggregated (of 2 more nothing is known)", False),
    ],
)
def test_a_job_has_failed_when_less_than_half_of_it_was_aggregated(counts, words, failed):
    assert summary_of(*counts) == words
    assert has_failed(*counts[:2]) == failed


def test_the_engines_lines_tell_what_became_of_an_iteration(tmp_path):
    path = write(tmp_path / "server_0", (1, GOOD), (2, BAD), (3, GOOD), tail='7\n{"currentIter')
    assert results_in(path) == {1: True, 2: False, 3: True}
    assert counts_of(results_in(path)) == (2, 1)
    assert results_in(tmp_path / "server_1" / "metrics.json") == {}


def test_servers_that_go_on_count_with_those_before_them(tmp_path):
    write(tmp_path / "server_0.2", (3, BAD), (4, BAD))
    write(tmp_path / "server_0.10", (5, GOOD))
    # The models of the iterations 4 and 5 were lost.
    path = write(tmp_path / "server_0", (4, GOOD))
    write(tmp_path / "server_0.1", (1, GOOD), (2, GOOD))
    assert results_in(path) == {1: True, 2: True, 3: False, 4: True}


def test_a_model_that_the_server_did_not_keep_is_a_failed_iteration(tmp_path):
    path = write(tmp_path / "server_0", (1, GOOD), (2, GOOD), (3, BAD))
    note_refused(path, 2)
    assert results_in(path) == {1: True, 2: False, 3: False}
    # Servers that have gone back to iteration 2 have aggregated it later.
    again = {"currentIteration": 2, "iterationResult": GOOD, "startTime": "2999-01-01 00:00:00.000"}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    (tmp_path / "server_0" / "refused_models.jsonl").open("a").write('{"iterat')
    assert results_in(path) == {1: True, 2: True}


def test_an_earlier_jobs_lines_do_not_count(tmp_path):
    path = write(tmp_path / "server_0", (1, BAD), (2, BAD), (3, BAD))
    assert len(results_in(path, job_start(tmp_path))) == 3
    note_start(tmp_path)
    assert results_in(path, job_start(tmp_path)) == {}
    (tmp_path / "server_0").rename(tmp_path / "server_0.1")
    write(tmp_path / "server_0")
    assert results_in(path, job_start(tmp_path)) == {}
    # Also where nothing tells when the job began, as soon as it has an iteration.
    write(tmp_path / "server_0", (1, GOOD))
    assert results_in(path) == {1: True}


def test_what_was_aggregated_without_a_silo_was_aggregated():
    rounds = [{"iteration": n, "result": r} for n, r in ((1, "aggregated"), (2, "missed"))]
    lost = [{"iteration": n, "result": "lost"} for n in (1, 3)]
    assert results_of_rounds([*rounds, *lost]) == {1: True, 2: True, 3: False}
