"""What a user does to a job besides letting it finish: stop, start again, kill, start twice."""

import pytest
from commands import (
    DISTRIBUTED,
    FINISH,
    SERVER,
    WORKER,
    processes_of,
    refused,
    run,
    succeed,
    wait_for,
)
from launched_job import Job
from models import read_model

from src.federated.replies import Outcome
from src.federated.transport import Client
from src.job.job_record import FOLDER
from src.launch.redis_store import JobStore
from src.reporting.run_folder import read_run


@pytest.fixture
def job(tmp_path, shards):
    with Job(tmp_path / "job", shards) as job:
        job.write(iterations=200)
        yield job


@pytest.fixture
def store(job):
    store = JobStore(("127.0.0.1", job.redis_port), "FasterRCNN")
    yield store
    store.close()


@pytest.mark.slow  # two whole jobs, one after the other
def test_finish_in_the_middle_then_a_new_start_in_the_same_folder(job, tmp_path):
    job.scheduler()
    job.servers()
    job.workers()
    job.at_iteration(3)

    line = refused(job.folder, WORKER, *job.worker_flags)
    assert "worker_0 of this folder is running already (pid" in line
    ranks = [*job.worker_flags, "--device_num=2", "--run_distribute=True"]
    line = refused(job.folder, DISTRIBUTED, *ranks)
    assert "worker_0 of this folder (pid" in line and "--first_worker_id=2" in line
    with job.elsewhere(tmp_path / "other") as other:
        other.write(iterations=200)
        line = refused(other.folder, WORKER, *other.worker_flags)
    assert f"worker_0 of {job.folder} (pid" in line and "would be the same silo" in line

    said = job.finish()
    assert "stopped worker_0, worker_1, server_0, scheduler" in said
    assert not processes_of(job.folder)
    assert job.redis.wait(timeout=5) == 0
    assert job.finish().startswith("nothing to stop")

    job.start_redis()
    job.write(iterations=2)
    said = job.servers()
    assert "moved the recovery files of an earlier run to" in said
    assert "iteration 1 of 2 begins" in said
    job.workers()
    job.wait_for_end()
    assert (job.folder / "worker_0.1" / "worker.log").is_file()
    kept = {path.name for path in (job.folder / "worker_0" / "ckpt" / "mindrecord_0").iterdir()}
    models = {f"mindrecord_0-fast-rcnn-{number}epoch.ckpt" for number in range(2)}
    assert kept == {*models, "resume.safetensors"}


@pytest.mark.slow  # two whole jobs, one after the other
def test_everything_killed_then_a_new_start_without_cleaning(job, store):
    # Every role reads the file that the launcher was given, not the one of the current folder.
    (job.folder / "default_config.yaml").write_text("not_a_key: 1\n")
    job.servers()
    job.workers()
    job.at_iteration(2)
    job.kill_supervisors()
    # A role does not outlive its supervisor.
    assert [process.pid for process in processes_of(job.folder)] == [job.redis.pid]
    assert store.status()["runningState"] == "0"

    job.write(iterations=1)
    said = job.servers()
    assert "Redis keys of an earlier job" in said
    job.workers()
    job.wait_for_end()
    assert job.status("worker_1")["phase"] == "finished"


@pytest.mark.slow  # two jobs side by side
def test_servers_of_another_folder_with_the_same_name_are_not_disturbed(job, store, tmp_path):
    job.servers()
    with job.elsewhere(tmp_path / "other") as other:
        other.write(iterations=2)
        other.server_port += 1
        line = refused(other.folder, SERVER, *other.server_flags())
        assert "servers of a job named FasterRCNN are alive" in line
        assert "1 server(s) of other take requests" in other.servers(1, "--fl_name=other")
        assert "left running: it holds" in other.finish()
    assert store.status()["runningState"] == "0"
    assert job.running() == ["server_0"]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_and_the_server_stays(job):
    job.servers()
    job.workers("--local_worker_num=1")
    job.kill("worker_0")
    assert (job.folder / FOLDER / "status" / "worker_0.exit.json").is_file()
    assert "killed by SIGKILL; exit code 137" in job.log("worker_0")
    assert job.running() == ["server_0"]


def test_workers_without_a_server_give_up_in_bounded_time(job):
    flags = [*job.worker_flags, "--local_worker_num=1", "--join_timeout=3"]
    result = run(job.folder, WORKER, *flags)
    assert result.returncode == 1
    assert job.address in result.stderr
    assert "ended; exit code 1" in job.log("worker_0")


@pytest.mark.slow  # two folders of one job
def test_finish_of_a_silo_that_joined_from_another_folder_leaves_the_job_alone(
    job, store, tmp_path
):
    job.servers()
    said = job.workers("--local_worker_num=1")
    assert "iteration 1 begins when 1 more silo has joined (1 of 2 have)" in said
    with job.elsewhere(tmp_path / "other") as other:
        other.write(iterations=200)
        said = other.workers("--local_worker_num=1", "--first_worker_id=1")
        assert "begins when" not in said
        assert "worker_1 has joined" in said
        keys = len(store.keys())
        said = other.finish()
    assert "stopped worker_1" in said
    assert "its Redis is untouched" in said
    assert len(store.keys()) >= keys > 0
    assert job.running() == ["server_0", "worker_0"]


@pytest.mark.slow
def test_finish_all_finds_the_job_from_another_folder(job, tmp_path):
    job.servers()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert succeed(elsewhere, FINISH).startswith("nothing to stop")
    assert "stopped server_0" in succeed(
        elsewhere, FINISH, "--all", f"--redis_port={job.redis_port}"
    )


def one_iteration(job):
    """A silo that takes part in the job's only iteration and leaves."""
    client = Client([job.address], "FasterRCNN", "silo")
    assert client.start(5, 10).outcome is Outcome.ACCEPTED
    assert client.update(1, read_model(job.recovery(0)), 5, 10).outcome is Outcome.ACCEPTED
    wait_for(lambda: client.get_model(1, 10).outcome is Outcome.ACCEPTED, 30, "the model")
    client.close()


@pytest.mark.slow  # a whole job, half a minute
def test_a_job_with_upstreams_federation_file_ends_as_a_success(job):
    windows = {"start_fl_job": 30_000_000, "update_model": 30_000_000}
    windows["global_iteration"] = 60_000_000
    values = {f"{name}_time_window": value for name, value in windows.items()}
    job.write(1, start_fl_job_threshold=1, data_rate_dir='".."', **values)
    job.scheduler()
    assert 'note: summary.data_rate_dir: ".." is left out' in job.servers()
    one_iteration(job)
    job.wait_for_end()
    assert job.exit_codes() == {"scheduler": 0, "server_0": 0}
    for label in job.exit_codes():
        assert "killing it" not in job.log(label)
    said = run(job.folder, "tools/status.py")
    assert said.returncode == 10
    line = "FasterRCNN: finished, iteration 1 of 1, 1 of 1 iterations aggregated\n"
    assert line in said.stdout
    assert said.stdout.count("ended 0") == 2
    assert "Run] Start http server!" in job.log("scheduler")
    assert not list(job.folder.parent.glob("*_flow_server*"))


@pytest.mark.slow  # the engine sleeps up to a minute before it ends
def test_a_folder_for_traffic_files_is_heeded_and_waited_for(job):
    job.write(1, start_fl_job_threshold=1, data_rate_dir="traffic")
    assert "takes up to a minute to end" in job.servers()
    one_iteration(job)
    job.wait_for_end()
    assert job.exit_codes() == {"server_0": 0}
    said = "job finished, every silo has left; 1 of 1 iterations aggregated; exit code 0"
    assert said in job.log("server_0")
    # It holds the seconds of whole minutes: nothing yet of a job that was shorter.
    assert list((job.folder / "traffic").glob("*_flow_server*.json"))


@pytest.mark.slow
def test_a_silo_that_never_fetches_the_last_model_is_named_and_the_servers_end(job):
    job.write(1, start_fl_job_threshold=1)
    job.servers(1, "--fetch_timeout=3")
    weights = read_model(job.recovery(0))
    client = Client([job.address], "FasterRCNN", "slow silo")
    assert client.start(5, 10).outcome is Outcome.ACCEPTED
    assert client.update(1, weights, 5, 10).outcome is Outcome.ACCEPTED
    job.wait_for_end()
    log = job.log("server_0")
    assert "WARNING: not every silo has fetched the last model within 3 s" in log
    assert "silos of iteration 1: slow silo" in log
    assert "job finished; 1 of 1 iterations aggregated; exit code 0" in log
    client.close()


@pytest.mark.slow  # two whole jobs, one after the other
def test_a_report_of_the_second_job_in_a_folder_shows_nothing_of_the_first(job):
    job.servers()
    job.workers()
    job.at_iteration(3, "worker_0")
    job.at_iteration(3, "worker_1")
    job.finish()

    job.start_redis()
    job.write(iterations=200, start_fl_job_threshold=1)
    assert "begins when 1 silo has joined" in job.servers()
    job.workers("--local_worker_num=1")
    flags = [*job.worker_flags, "--local_worker_num=1", "--first_worker_id=1"]
    assert "img_width" in refused(job.folder, WORKER, *flags, "--img_width=128")
    job.at_iteration(2)
    silos = read_run(job.folder).silos
    assert [[folder.name for folder in silo.folders] for silo in silos] == [
        ["worker_0"], ["worker_1"]
    ]  # fmt: skip
    assert silos[0].rounds and not silos[1].rounds

    job.kill("worker_0")
    job.workers("--local_worker_num=1")
    (silo, _) = read_run(job.folder).silos
    assert [folder.name for folder in silo.folders] == ["worker_0.2", "worker_0"]
