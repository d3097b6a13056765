"""The process beside each role, when its log cannot be written."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from src.launch.processes import SUPERVISOR
from src.launch.supervise import SuperviseSpec
from src.model_utils.config import PROJECT_DIR


def test_a_full_disk_does_not_stop_a_role_that_talks(tmp_path):
    spec = SuperviseSpec(
        label="worker_0",
        argv=[sys.executable, "-c", "print('line\\n' * 100_000)"],
        log="/dev/full",
        exit_file=str(tmp_path / "exit.json"),
    )
    (tmp_path / "spec.json").write_text(json.dumps(asdict(spec)))
    command = [sys.executable, str(SUPERVISOR), str(tmp_path / "spec.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    assert subprocess.run(command, env=environment, timeout=30, check=False).returncode == 0
