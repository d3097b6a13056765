"""How long a job takes, as preflight and the launcher of workers tell it."""

import json

import pytest
from commands import TINY, make_shards, run

from src.job.job_config import load_job
from src.launch.preflight.cost import StepCost, job_time, remember, remembered
from src.launch.preflight.network import line_seconds
from src.model_utils.config import PROJECT_DIR, load_config


def launched(shards, **keys):
    config = load_config("configs/tiny/default_config.yaml", batch_size=2, **keys)
    config.dataset_path, config.local_worker_num = str(shards), 2
    return config


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), images=12)  # 6 in each


@pytest.fixture
def job():
    return load_job(PROJECT_DIR / "default_yaml_config.yaml", {"fl_iteration_num": 100})


def test_the_time_is_that_of_steps_and_synchronisations(job, shards):
    cost = StepCost(step_s=2.0, first_s=20.0, line_s=5.0)
    said = job_time(job, launched(shards), range(2), cost)
    # 3 steps of an epoch and 10 s on the line, a hundred times.
    begin = (
        "2 s a step, 3 steps and about 10 s of synchronisation in an iteration, 100 iterations: "
    )
    assert said == f"{begin}about 27 min; slower silos make it longer"
    said = job_time(job, launched(shards, sync_frequency=10, run_eval=True), range(2), cost)
    assert "10 steps and" in said and "about 50 min and the evaluations of run_eval" in said


def test_a_measurement_holds_for_the_settings_that_it_was_made_with(tmp_path, shards):
    config, cost = launched(shards), StepCost(1.5, 12.0)
    assert remembered(tmp_path, config) is None
    remember(tmp_path, config, cost)
    assert remembered(tmp_path, config) == cost
    assert remembered(tmp_path, launched(shards, base_lr=0.02)) == cost
    for keys in ({"batch_size": 3}, {"img_width": 96}, {"threads": 3}):
        other = load_config("configs/tiny/default_config.yaml", **{"batch_size": 2, **keys})
        other.local_worker_num = 2
        assert remembered(tmp_path, other) is None, keys
    config.local_worker_num = 1
    assert remembered(tmp_path, config) is None


def test_servers_that_do_not_run_yet_leave_the_line_out(job, shards):
    config = launched(shards)
    config.http_server_address, config.server_num = "127.0.0.1:1", 2
    assert line_seconds(job, config) == 0.0


@pytest.mark.slow  # 30 s: two processes load MindSpore and compile
def test_the_tool_trains_steps_when_asked_and_tells_the_time_from_then_on(tmp_path, shards):
    words = ["--role=worker", f"--config_path={TINY}", f"--dataset_path={shards}"]
    words += ["--batch_size=3", "--http_server_address=127.0.0.1:1", "--json"]

    def time_line(*more):
        found = json.loads(run(tmp_path, "tools/preflight.py", *words, *more).stdout)["findings"]
        return next(line["text"] for line in found if line["subject"] == "time")

    assert time_line().startswith("no step was measured")
    assert not list(tmp_path.iterdir())
    measured = time_line("--measure_step")
    assert " s a step, 2 steps and about 0 s of synchronisation in an iteration, 30 " in measured
    assert time_line() == measured
    assert time_line("--num_gts=9").startswith("no step was measured")
