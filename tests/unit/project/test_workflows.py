"""The workflows run the gate and the slow tests, may read only, and end by themselves."""

import re

import pytest
import yaml

from src.model_utils.config import PROJECT_DIR

FOLDER = PROJECT_DIR / ".github" / "workflows"
ON = True  # YAML 1.1, which PyYAML reads, takes the key `on` for a boolean.


def workflow(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def steps(name: str) -> list:
    (job,) = workflow(name)["jobs"].values()
    return job["steps"]


def commands(name: str) -> list:
    return [step["run"] for step in steps(name) if "run" in step]


def test_there_are_no_others():
    assert sorted(path.name for path in FOLDER.iterdir()) == ["ci.yml", "slow.yml"]


def test_what_lands_and_what_is_proposed_goes_through_the_gate():
    assert commands("ci.yml") == ["bash .ci/run"]
    assert set(workflow("ci.yml")[ON]) == {"push", "pull_request"}
    gate = (PROJECT_DIR / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "make check" in gate
    assert "make test" in gate


def test_the_slow_tests_run_every_night_and_on_demand():
    assert commands("slow.yml") == ["make test-slow"]
    triggers = workflow("slow.yml")[ON]
    assert set(triggers) == {"workflow_dispatch", "schedule"}
    (nightly,) = triggers["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", nightly["cron"])


@pytest.mark.parametrize("name", ["ci.yml", "slow.yml"])
def test_a_workflow_reads_only_ends_and_has_the_python_of_the_project(name):
    assert workflow(name)["permissions"] == {"contents": "read"}
    (job,) = workflow(name)["jobs"].values()
    assert "permissions" not in job
    assert 0 < job["timeout-minutes"] <= 180
    assert job["runs-on"] == "ubuntu-22.04"
    (python,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    wanted = (PROJECT_DIR / ".python-version").read_text(encoding="utf-8").strip()
    assert python["python-version"] == wanted
    assert (PROJECT_DIR / python["cache-dependency-path"]).is_file()


@pytest.mark.parametrize("name", ["ci.yml", "slow.yml"])
def test_each_make_target_exists(name):
    lines = "\n".join(commands(name))
    if ".ci/run" in lines:
        lines = (PROJECT_DIR / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (PROJECT_DIR / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?m)^make ([\w-]+)", lines)
    assert targets
    assert [target for target in targets if f"\n{target}: $(STAMP)" not in makefile] == []
