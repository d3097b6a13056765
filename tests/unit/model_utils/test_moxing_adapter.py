"""ModelArts' adapters: the environment, fetching once, sending in any case, what is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import WORKER, refused, run, wait_for, write_job

from src.errors import UserError
from src.launch.foreground import use_fetched
from src.model_utils import device_adapter, local_adapter, moxing_adapter
from src.model_utils.config import PROJECT_DIR, get_config, load_config
from src.model_utils.moxing_adapter import moxing_wrapper, sync_data

STAND_IN = PROJECT_DIR / "tests" / "moxing_stand_in"
FETCH = "import sys; from src.model_utils.moxing_adapter import sync_data; sync_data(*sys.argv[1:])"

pytestmark = pytest.mark.usefixtures("own_index")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The object store, and moxing for this process and those that it starts."""
    store = tmp_path / "store"
    for name in ("data", "slow"):
        (store / name).mkdir(parents=True)
        (store / name / "a.txt").write_text(name)
    monkeypatch.setenv("MOXING_ROOT", str(store))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT_DIR), str(STAND_IN)]))
    monkeypatch.delenv("JOB_ID", raising=False)
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    yield store
    sys.modules.pop("moxing", None)


def copies(store: Path) -> list[str]:
    log = store / "copies.txt"
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def fetching(source: str, target: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, source, str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("adapter", [device_adapter, local_adapter, moxing_adapter])
def test_the_environment_says_what_this_process_is(adapter, monkeypatch):
    for name in ("DEVICE_ID", "RANK_SIZE", "RANK_ID", "JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    read = [adapter.get_device_id, adapter.get_device_num, adapter.get_rank_id]
    assert [one() for one in read] == [0, 1, 0] and adapter.get_job_id() == "Local Job"
    monkeypatch.setenv("JOB_ID", "")
    assert adapter.get_job_id() == "Local Job"
    for name, value in zip(("DEVICE_ID", "RANK_SIZE", "RANK_ID", "JOB_ID"), ("3", "8", "5", "j1")):
        monkeypatch.setenv(name, value)
    assert [one() for one in read] == [3, 8, 5] and adapter.get_job_id() == "j1"
    for value in ("two", "-1", "0"):
        monkeypatch.setenv("RANK_SIZE", value)
        with pytest.raises(UserError, match="RANK_SIZE is .*expected a whole number of 1"):
            adapter.get_device_num()


def test_a_job_fetches_once_and_another_one_anew(store, tmp_path, monkeypatch):
    target = tmp_path / "cache"
    monkeypatch.setenv("JOB_ID", "one")
    for _ in range(3):
        sync_data("s3://data", str(target))
    assert (target / "a.txt").read_text() == "data" and len(copies(store)) == 1
    sync_data("s3://slow", str(target))
    monkeypatch.setenv("JOB_ID", "two")
    sync_data("s3://slow", str(target))
    monkeypatch.delenv("JOB_ID")
    sync_data("s3://slow", str(target))
    assert len(copies(store)) == 4
    assert (target / ".sync").stat().st_mode & 0o777 == 0o700


def test_of_several_processes_one_fetches(store, tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_ID", "one")
    processes = [fetching("s3://slow", tmp_path / "cache") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(copies(store)) == 1
    assert (tmp_path / "cache" / "a.txt").read_text() == "slow"


def test_who_waited_takes_what_was_fetched_meanwhile(store, tmp_path):
    first = fetching("s3://slow", tmp_path / "cache")
    wait_for(lambda: copies(store), what="the copy begins")
    first.send_signal(signal.SIGSTOP)
    second = fetching("s3://slow", tmp_path / "cache")
    assert f"waiting for process {first.pid}" in second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert "is there already" in second.stdout.read() and len(copies(store)) == 1


def test_a_killed_holder_leaves_no_lock_and_no_half_data(store, tmp_path):
    process = fetching("s3://slow", tmp_path / "cache")
    wait_for(lambda: copies(store), what="the copy begins")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not (tmp_path / "cache" / "a.txt").exists()
    sync_data("s3://slow", str(tmp_path / "cache"), timeout_s=5)
    assert (tmp_path / "cache" / "a.txt").exists() and len(copies(store)) == 2


def test_a_wait_ends_and_says_for_whom(store, tmp_path):
    process = fetching("s3://slow", tmp_path / "cache")
    wait_for(lambda: copies(store), what="the copy begins")
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} is still copying s3://slow"):
            sync_data("s3://slow", str(tmp_path / "cache"), timeout_s=0.5)
    finally:
        process.kill()
        process.wait(10)


def test_links_and_open_folders_are_no_place_for_a_lock(store, tmp_path):
    target, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir(mode=0o700)
    (target / ".sync").symlink_to(elsewhere)
    with pytest.raises(UserError, match="belongs to this user alone"):
        sync_data("s3://data", str(target))
    (target / ".sync").unlink()
    (target / ".sync").mkdir()
    (target / ".sync").chmod(0o777)
    with pytest.raises(UserError, match="belongs to this user alone"):
        sync_data("s3://data", str(target))
    (target / ".sync").chmod(0o700)
    (target / ".sync" / "lock").symlink_to(elsewhere / "made")
    with pytest.raises(UserError, match="cannot be made or written"):
        sync_data("s3://data", str(target))
    assert not list(elsewhere.iterdir()) and not copies(store)


def test_an_upload_waits_for_nobody_and_a_failed_copy_is_one_line(store, tmp_path):
    (tmp_path / "out").mkdir()
    sync_data(str(tmp_path / "out"), "s3://results")
    assert [p.name for p in (store / "results").iterdir()] == []
    with pytest.raises(UserError, match="s3://none could not be copied to .*no such folder"):
        sync_data("s3://none", str(tmp_path / "cache"))
    assert not (tmp_path / "cache" / ".sync" / "fetched.json").exists()


def on_modelarts(tmp_path: Path, **values) -> SimpleNamespace:
    paths = {"data_path": "data", "load_path": "load", "output_path": "out"}
    urls = {"data_url": "", "checkpoint_url": "", "train_url": "s3://results"}
    paths = {key: str(tmp_path / name) for key, name in paths.items()}
    return SimpleNamespace(enable_modelarts=True, **{**paths, **urls, **values})


def test_the_wrapper_fetches_before_sends_after_and_returns_what_it_wraps(store, tmp_path):
    seen = []

    @moxing_wrapper(
        pre_process=lambda: seen.append("before"), post_process=lambda config: seen.append(config)
    )
    def train(steps, config):
        seen.append(Path(config.data_path, "a.txt").read_text())
        Path(config.output_path).mkdir()
        Path(config.output_path, "model").write_text("weights")
        return steps

    config = on_modelarts(tmp_path, data_url="s3://data", checkpoint_url="s3://data")
    assert train(7, config=config) == 7 and seen == ["before", "data", config]
    assert (store / "results" / "model").read_text() == "weights"
    assert (tmp_path / "load" / "a.txt").exists()


def test_without_modelarts_the_wrapper_only_calls(monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    wrapped = moxing_wrapper(pre_process=lambda: 1 / 0)(lambda config: "trained")
    assert wrapped(load_config()) == "trained"


def test_files_are_sent_though_the_training_failed(store, tmp_path, capsys):
    def fail(config):
        Path(config.output_path).mkdir(exist_ok=True)
        Path(config.output_path, "log").write_text("why")
        raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        moxing_wrapper()(fail)(on_modelarts(tmp_path))
    assert (store / "results" / "log").read_text() == "why"
    assert "the training failed; sending what there is" in capsys.readouterr().out
    (store / "file").touch()
    with pytest.raises(FloatingPointError):
        moxing_wrapper()(fail)(on_modelarts(tmp_path, train_url="s3://file"))
    assert "s3://file: " in capsys.readouterr().err
    with pytest.raises(FloatingPointError):
        moxing_wrapper()(fail)(on_modelarts(tmp_path, train_url=""))
    assert f"the files stay in {tmp_path / 'out'}" in capsys.readouterr().out


def test_paths_count_from_what_was_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load").mkdir()
    flags = ["--enable_modelarts=True", "--data_url=s3://d", "--checkpoint_url=s3://c"]
    flags += [f"--{key}_path={tmp_path / key}" for key in ("data", "load")]

    def used(*more: str):
        config = get_config([*flags, *more])
        config.dataset_path = "split"
        use_fetched(config)
        return config

    with pytest.raises(UserError, match="expected one .ckpt in it, found none"):
        used()
    (tmp_path / "load" / "a.ckpt").touch()
    config = used("--val_set=val.json")
    assert config.dataset_path == str(tmp_path / "data" / "split")
    assert config.pre_trained == str(tmp_path / "load" / "a.ckpt")
    assert config.val_set == str(tmp_path / "data" / "val.json")
    assert not config.enable_modelarts
    assert {"pre_trained", "val_set", "enable_modelarts"} <= set(config.given_flags)
    (tmp_path / "load" / "b.ckpt").touch()
    with pytest.raises(UserError, match=r"found a.ckpt, b.ckpt; say which with --pre_trained"):
        used()
    assert used("--pre_trained=b.ckpt").pre_trained == str(tmp_path / "load" / "b.ckpt")
    assert used("--pre_trained=/x/c.ckpt").pre_trained == "/x/c.ckpt"


@pytest.mark.parametrize("script", [WORKER, "test_fl_fasterrcnn.py"])
def test_a_machine_without_moxing_is_one_line(tmp_path, script):
    write_job(tmp_path, 1, 1)
    line = refused(tmp_path, script, "--enable_modelarts=True")
    assert "needs the package moxing" in line


def test_the_launcher_sends_what_a_failed_start_has_left(store, tmp_path):
    write_job(tmp_path, 1, 1)
    paths = [f"--{key}_path={tmp_path / key}" for key in ("data", "output")]
    urls = ["--data_url=s3://data", "--train_url=s3://results"]
    flags = ["--enable_modelarts=True", *paths, *urls]
    ended = run(tmp_path, WORKER, *flags)
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1
    assert f"--dataset_path {tmp_path / 'data'}: no complete FasterRcnn.mindrecord" in ended.stderr
    assert "the training failed; sending what there is" in ended.stdout
    assert copies(store)[0].startswith("s3://data ") and (store / "results").is_dir()
