"""The comparison of training together and alone: equal conditions, and what is reported of it."""

import json

import pytest

from src.errors import StartError
from src.launch import comparison
from src.launch.demo import DEMO_CONFIG, DemoPlan

BASE = DemoPlan(DEMO_CONFIG, iterations=4, interval=2, steps=5)


def test_runs_differ_in_silos_and_split_alone():
    plans = comparison.plans(BASE)
    assert {(p.shards, p.silos, p.alpha is None) for p in plans.values()} == {
        (2, 2, True), (2, 1, True), (1, 1, True), (2, 2, False), (2, 1, False),
    }  # fmt: skip
    shared = ("steps", "iterations", "images", "val_images", "seed", "config")
    for name in shared:
        assert {getattr(plan, name) for plan in plans.values()} == {getattr(BASE, name)}


class FakeDemo:
    """Writes what a run leaves, with an AP that names the run."""

    runs = []
    code = 0

    def __init__(self, folder, plan):
        self.folder, self.plan = folder, plan

    def run(self):
        FakeDemo.runs.append(self.folder.name)
        (self.folder / "worker_0").mkdir(parents=True)
        with (self.folder / "worker_0" / "metrics.jsonl").open("w") as file:
            for iteration in (2, 4):
                ap = len(FakeDemo.runs) / 10 + iteration / 1000
                figures = {"iteration": iteration, "AP": ap, "AP50": ap, "AP75": ap}
                file.write(json.dumps(figures) + "\n")
        return FakeDemo.code


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setattr(comparison, "Demo", FakeDemo)
    FakeDemo.runs, FakeDemo.code = [], 0
    return FakeDemo


def test_last_evaluation_of_each_run_is_in_the_table(demo, tmp_path):
    table = comparison.table(comparison.compare(BASE, tmp_path))
    assert "| two silos together, even split | 0.104 | 0.104 | 0.104 |" in table
    assert "| one of the two alone, skewed split | 0.504 |" in table


def test_finished_runs_are_not_repeated(demo, tmp_path):
    comparison.compare(BASE, tmp_path)
    assert len(demo.runs) == 5
    comparison.compare(BASE, tmp_path)
    assert len(demo.runs) == 5


def test_a_failed_run_ends_the_comparison(demo, tmp_path):
    demo.code = 3
    with pytest.raises(StartError, match="run_0"):
        comparison.compare(BASE, tmp_path)
