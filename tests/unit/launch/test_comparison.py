"""The comparison of training together and alone: equal conditions, and what is reported of it."""

import json
from dataclasses import replace

import pytest
import yaml

from src.errors import StartError
from src.launch import comparison
from src.launch.demo import DEMO_CONFIG, Demo, DemoPlan
from src.model_utils.config import PROJECT_DIR

BASE = DemoPlan(DEMO_CONFIG, iterations=4, interval=2, steps=5)


def test_runs_differ_in_silos_and_split_alone():
    plans = comparison.silo_plans(BASE)
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
    table = comparison.silo_table(comparison.run_all(comparison.silo_plans(BASE), tmp_path))
    assert "| two silos together, even split | 0.104 | 0.104 | 0.104 |" in table
    assert "| one of the two alone, skewed split | 0.504 |" in table


def test_finished_runs_are_not_repeated(demo, tmp_path):
    comparison.run_all(comparison.silo_plans(BASE), tmp_path)
    assert len(demo.runs) == 5
    comparison.run_all(comparison.silo_plans(BASE), tmp_path)
    assert len(demo.runs) == 5


def test_a_failed_run_ends_the_comparison(demo, tmp_path):
    demo.code = 3
    with pytest.raises(StartError, match="run_0"):
        comparison.run_all(comparison.silo_plans(BASE), tmp_path)


def test_algorithms_differ_in_nothing_else():
    plans = comparison.algorithm_plans(BASE, [1, 2])
    assert len(plans) == 8 and {p.alpha for p in plans.values()} == {comparison.SKEW}
    assert plans["FedProx, seed 2"].aggregation["aggregation_type"] == "FedProx"
    same = {repr(replace(p, aggregation={})) for name, p in plans.items() if "seed 1" in name}
    assert len(same) == 1


def test_seeds_of_an_algorithm_are_averaged(demo, tmp_path):
    results = comparison.run_all(comparison.algorithm_plans(BASE, [1, 2]), tmp_path)
    table = comparison.algorithm_table(comparison.mean_by_algorithm(results))
    # The fake's AP is a tenth of the run's number: FedAvg's are the first and the fifth.
    assert "| AP after iteration | 2 | 4 | spread of the last |" in table
    assert "| FedAvg | 0.302 | 0.304 | 0.400 |" in table
    assert "| FedNova | 0.602 | 0.604 | 0.400 |" in table


def test_the_demo_writes_the_algorithm_into_the_federations_file(tmp_path):
    keys = {"aggregation_type": "FedProx", "iid_rate": 0.5}
    Demo(tmp_path, replace(BASE, aggregation=keys))._write_yaml()
    written = yaml.safe_load((tmp_path / "default_yaml_config.yaml").read_text())
    shipped = yaml.safe_load((PROJECT_DIR / "default_yaml_config.yaml").read_text())
    assert written["aggregation"] == keys
    assert set(written) == set(shipped) and written["encrypt"] == shipped["encrypt"]
