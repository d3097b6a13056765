"""The measure of the test of long runs: it must see what it is there to see."""

import pytest
from process_growth import PAGE, Sample, growth, limits, row_of


def samples(**rates):
    return [Sample(i, {k: 1000.0 + v * i for k, v in rates.items()}) for i in range(100, 190)]


def test_growth_is_per_iteration():
    found = growth(samples(memory=40.0, threads=0.0))
    assert found == {"memory": pytest.approx(40.0), "threads": 0.0}


def test_a_single_sample_of_a_busy_moment_does_not_count():
    taken = samples(memory=0.0)
    taken[-2].values["memory"] = 1e9
    assert growth(taken)["memory"] == 0.0


def test_a_file_that_begins_late_counts():
    taken = samples(memory=0.0)
    for one in taken[-8:]:
        one.values["event.txt"] = 740.0
    assert growth(taken)["event.txt"] > 5


def test_what_shares_a_row():
    names = ("memory, worker 1", "memory, supervisor of worker 1", "threads, server 0")
    assert [row_of(name) for name in names] == [
        "memory, a worker", "memory, a supervisor", "threads, a server",
    ]  # fmt: skip


def test_the_page_states_a_limit_for_all_that_is_sampled():
    stated = limits(PAGE)
    assert stated["file handles, a worker"] == 0
    assert 0 < stated["memory, a worker"] < 100_000
    for kind in ("memory", "file handles", "threads"):
        for who in ("a worker", "a server", "scheduler", "a supervisor", "Redis"):
            assert f"{kind}, {who}" in stated
