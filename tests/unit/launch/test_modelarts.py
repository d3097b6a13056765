"""A launcher as a job of ModelArts: how it ends when its workers fail or it is told to stop."""

import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
from commands import TINY

from src.job.job_record import read_record
from src.launch.foreground import launch_and_send
from src.launch.launchers import start_all
from src.launch.processes import Role
from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.usefixtures("own_index")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a launcher with the stand-in for moxing; handlers of signals are put back."""
    monkeypatch.setenv("MOXING_ROOT", str(tmp_path))
    monkeypatch.syspath_prepend(str(PROJECT_DIR / "tests" / "moxing_stand_in"))
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    values = dict.fromkeys(("data_url", "checkpoint_url", "pre_trained", "val_set"), "")
    values.update(dict.fromkeys(("image_dir", "coco_root", "data_path", "load_path"), ""))
    values.update(train_url="s3://results", output_path=str(tmp_path / "out"), given_flags=[])
    before = signal.getsignal(signal.SIGTERM)
    yield SimpleNamespace(enable_modelarts=True, config_path=str(TINY), **values)
    signal.signal(signal.SIGTERM, before)
    sys.modules.pop("moxing", None)


def launching(program: str):
    def launch(job, config, base):
        roles = [Role("worker", n, [sys.executable, "-c", program, str(n)]) for n in range(2)]
        return start_all(base, roles, 60, lambda started: True)

    return launch


def test_a_worker_that_fails_fails_the_job_and_its_log_is_sent(config, tmp_path, capsys):
    program = "import sys, time; time.sleep(2); sys.exit(3 * int(sys.argv[1]))"
    assert launch_and_send(launching(program), None, config) == 1
    said = capsys.readouterr().out
    assert "worker_0 ended with exit code 0" in said and "worker_1 ended with exit code 3" in said
    assert "exit code 3" in (tmp_path / "results" / "worker_1" / "worker.log").read_text()


def test_a_signal_stops_the_workers_and_their_logs_are_sent(config, tmp_path, capsys):
    def launch(job, config, base):
        started = launching("import time; time.sleep(300)")(job, config, base)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return started

    with pytest.raises(SystemExit) as ended:
        launch_and_send(launch, None, config)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not read_record(tmp_path / "out").running()
    assert (tmp_path / "results" / "worker_0" / "worker.log").is_file()
    assert "the training failed; sending what there is" in capsys.readouterr().out
