"""Upstream's two configuration files in the place of ours, unchanged: every command works on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coco_files import coco_of, write_coco
from ports import free_port_range

from mindspore_hub_conf import create_network
from src.model_utils.config import PROJECT_DIR, load_config
from tools.export import read_command_line

UPSTREAM = PROJECT_DIR / "tests" / "upstream_files"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A copy of the suite with upstream's two files over ours."""
    folder = tmp_path_factory.mktemp("suite")
    for path in [*PROJECT_DIR.glob("*.py"), *PROJECT_DIR.glob("*.txt")]:
        shutil.copy(path, folder)
    for name in ("src", "tools"):
        shutil.copytree(
            PROJECT_DIR / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in UPSTREAM.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name == "default_yaml_config.yaml":
            text = text.replace("127.0.0.1:2345", f"127.0.0.1:{free_port_range(1)}")
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def call(suite: Path, script: str, *flags: str) -> subprocess.CompletedProcess:
    """Call a script of the copy from another folder."""
    elsewhere = suite / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(suite / script), *flags],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(suite / "state"), "PYTHONPATH": ""},
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("run_cross_silo_fasterrcnn_sched.py", "Redis does not answer"),
        ("run_cross_silo_fasterrcnn_server.py", "Redis does not answer"),
        ("run_cross_silo_fasterrcnn_worker.py", "mindrecord_0"),
        ("run_cross_silo_fasterrcnn_worker_distributed.py", "--run_distribute=True"),
        ("generate_mindrecord.py", "instance_set annotations/instances_{}.json: no such file"),
    ],
)
def test_a_command_reads_the_file_and_asks_for_the_next_thing(suite, script, message):
    done = call(suite, script)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    notes = ("keep_checkpoint_max: 5 deletes nothing", "0.04 without grad_clip")
    told = script.startswith("run_") and "sched" not in script and "distributed" not in script
    assert [note in done.stdout for note in notes] == [told, told], done.stdout


def test_the_preflight_lists_what_means_something_else(suite):
    done = call(suite, "tools/preflight.py", "--role=worker")
    assert "Traceback" not in done.stderr
    assert "keep_checkpoint_max: 5 deletes nothing" in done.stdout
    assert f"{suite}/default_config.yaml: 80 categories, images of 1280x768, batch 4" in done.stdout


def test_data_is_converted(suite, tmp_path):
    write_coco(tmp_path, coco_of(2))
    flags = [f"--mindrecord_dir={tmp_path}/mindrecord_0", f"--instance_set={tmp_path}/train_0.json"]
    done = call(suite, "generate_mindrecord.py", *flags, "--coco_root=")
    assert done.returncode == 0, done.stderr
    assert "2 images, 2 boxes" in done.stdout


def test_a_checkpoint_that_the_file_names_gives_way_to_the_flag(monkeypatch):
    words = [f"--config_path={UPSTREAM}/default_config.yaml", "--checkpoint=a.ckpt"]
    monkeypatch.setattr("sys.argv", ["export.py", *words])
    assert read_command_line().checkpoint == Path("a.ckpt")
    monkeypatch.setattr("sys.argv", ["export.py", *words[:1]])
    assert read_command_line().checkpoint.name == "faster_rcnn-12_7393.ckpt"


def test_the_hub_makes_the_detector_and_loads_nothing(monkeypatch):
    monkeypatch.chdir(UPSTREAM)
    assert load_config("default_config.yaml").ckpt_file.startswith("/cache/")
    net = create_network("faster_rcnn")
    assert len(net.trainable_params()) == 156
