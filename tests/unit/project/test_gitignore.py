"""What the documented commands leave in the project's folder is not committed by accident."""

import shutil
import subprocess

import pytest

from src.model_utils.config import PROJECT_DIR

LEFT = [
    "certificates/ca.key",
    "deploy/machines/certificates/passwords",
    "deploy/compose/certificates/ca.key",
    "renewed/server.p12",
    "gate/nginx.conf",
    "detections/1.png",
    "detected/detections.json",
    "found.json",
    "metrics.jsonl",
    "detector.onnx",
    "out/detector.mindir",
    "backbone.ckpt",
    "resnet50.pth",
    "worker_0/worker.log",
    "worker_0.1/worker.log",
    "server_0/metrics.json",
    ".federation/job.json",
    "plots/loss.svg",
]
KEPT = [
    "deploy/gate/gate.js",
    "src/security/certificates.py",
    "tests/torch_saved/old.pth",
    "tests/golden/config.json",
]


@pytest.mark.skipif(shutil.which("git") is None, reason="git alone reads .gitignore")
def test_what_commands_leave_is_ignored_and_the_projects_files_are_not(tmp_path):
    shutil.copy(PROJECT_DIR / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    command = ["git", "-C", str(tmp_path), "check-ignore", "--", *LEFT, *KEPT]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert said.splitlines() == LEFT
