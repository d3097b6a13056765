"""A federation's file that was changed before --resume, on the real engine: what counts then."""

from __future__ import annotations

import pytest
from engine import Engine, wait_for
from members import Member, assert_mean, initial, together

from src.job.job_config import load_job
from src.job.recovery_files import list_recovery_files
from src.launch.redis_store import FINISHED, JobStore
from src.launch.server_start import prepare_job


@pytest.mark.slow
def test_servers_that_resume_go_by_the_file_as_it_is_now(tmp_path, capsys):
    with Engine(initial(), tmp_path, iterations=5) as engine:
        host, port = engine.redis_address.split(":")
        store = JobStore((host, int(port)), engine.fl_name)
        silos = [Member(engine, "a", 30), Member(engine, "b", 10)]
        assert_mean(silos, together(*silos))
        folder = tmp_path / "ckpt"
        wait_for(lambda: list_recovery_files(folder, engine.fl_name), 20, "the first file")
        text = engine.yaml_path.read_text()
        engine.yaml_path.write_text(text.replace("fl_iteration_num: 5", "fl_iteration_num: 2"))
        job = load_job(engine.yaml_path)

        prepare_job(job, store, folder, resume=True)
        said = capsys.readouterr().out
        assert said.startswith(f"WARNING: {engine.yaml_path} was changed: fl_iteration_num 5 -> 2;")
        assert store.settings()["fl_iteration_num"] == 5

        engine.kill("server_0")
        prepare_job(job, store, folder, resume=True)
        said = capsys.readouterr().out
        assert said.endswith(f"{engine.yaml_path} was changed: fl_iteration_num 5 -> 2\n")
        prepare_job(job, store, folder, resume=True)
        assert capsys.readouterr().out == "", "nothing differs any more"
        engine.start_server(0)
        assert_mean(silos, together(*silos))
        wait_for(lambda: store.status()["runningState"] == FINISHED, 20, "the end after 2 of 2")
