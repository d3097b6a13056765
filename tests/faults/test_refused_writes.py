"""Every place that writes a file, on a full disk and in a read-only folder.

What was whole stays whole, nothing half written is left, and the reason is said in one line.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import numpy as np
import pytest
from coco_files import coco_of, write_coco
from commands import TINY, wait_for
from models import save_model
from run_folders import write_worker
from small_disk import BALLAST, cannot_mount, small_disk

from src.errors import run_command
from src.launch.processes import SUPERVISOR
from src.model_utils.config import PROJECT_DIR

WORDS = {"full": "No space left on device", "read-only": "Read-only file system"}
LINE_LOGS = (".log", ".jsonl")


@pytest.fixture(scope="module", autouse=True)
def may_mount(tmp_path_factory):
    if reason := cannot_mount(tmp_path_factory.mktemp("mount") / "disk"):
        pytest.skip(reason)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.chdir(tmp_path)
        yield disk
        monkeypatch.undo()


def command(script: str, *words: str) -> Callable[[Path], None]:
    """Call a script in this process; {} in its words is the disk's folder."""

    def call(folder: Path) -> None:
        before = sys.argv
        sys.argv = [script, *(word.replace("{}", str(folder)) for word in words)]
        try:
            runpy.run_path(str(PROJECT_DIR / script), run_name="__main__")
        finally:
            sys.argv = before

    return call


def function(call: Callable[[Path], object]) -> Callable[[Path], None]:
    """Call it as a command does."""

    def main(folder: Path) -> int:
        call(folder)
        return 0

    return lambda folder: run_command(lambda: main(folder))


def outcome(call: Callable[[Path], None], folder: Path, capsys) -> tuple[int, str]:
    """Exit code and what was said on standard error, without displays of progress."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(folder)
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    lines = [line for line in said if line.startswith("error: ") or "Traceback" in line]
    return int(ended.value.code or 0), "\n".join(lines)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != BALLAST}


def assert_nothing_is_broken(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """What was there is the same; a log has whole lines more at most; nothing half is left."""
    # A lock is an empty file that stays.
    new = {name for name in after.keys() - before.keys() if after[name]}
    assert not new, new
    for name, data in before.items():
        if name.endswith(LINE_LOGS):
            assert after[name].startswith(data) and after[name].endswith(b"\n"), name
        else:
            assert after[name] == data, name


# ---- what ends the command or the worker ---------------------------------------------------------


def job_record(folder: Path) -> None:
    from src.job.job_record import update_record

    with update_record(folder) as record:
        record.fl_name = "job"


def federation_file(folder: Path) -> None:
    from src.job.job_config import load_job

    load_job(PROJECT_DIR / "default_yaml_config.yaml").write(folder / "job" / "yaml_config.yaml")


def marked_page(folder: Path) -> None:
    from src.reporting.marked_page import BEGIN, END, write_table

    page = folder / "page.md"
    if not page.exists():
        page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n" + "text\n" * 2000)
    write_table(page, "| a | table |")


def evaluation_results(folder: Path) -> None:
    from src.commands.evaluate import write

    write(folder / "results.json", [{"image_id": n} for n in range(500)])


def evaluation_lines(folder: Path) -> None:
    from src.commands.evaluate import append

    for number in range(100):
        append(folder / "metrics.jsonl", {"iteration": number, "AP": 0.5, "per_class": {"a": 0.1}})


def run_of(disk: Path) -> Path:
    """A run's folder next to the disk."""
    run = disk.parent / "run"
    if not run.exists():
        write_worker(run / "worker_0", [[3.0, 2.0], [1.5, 1.0]])
    return run


def comparison_figure_file(folder: Path) -> None:
    from src.errors import writing
    from src.reporting.plots import new_axes, save

    with writing(folder, "--folder"):
        save(new_axes("t", "x", "y")[0], folder, "figure")


COCO = ["--json={}/../data/train_0.json", "--image_dir={}/../data/train_0"]
MINDRECORD = ["--instance_set={}/../data/train_0.json", "--mindrecord_dir={}/mindrecord_0"]
REFUSES = {
    "job record": function(job_record),
    "federation's file for the engine": function(federation_file),
    "benchmark page": function(marked_page),
    "evaluate --results, --output": function(evaluation_results),
    "evaluate --watch --output": function(evaluation_lines),
    "figures": function(comparison_figure_file),
    "plot_loss": command("tools/plot_loss.py", "{}/../run", "--out={}/plots"),
    "plot_loss --tensorboard": command(
        "tools/plot_loss.py", "{}/../run", "--out={}/../plots", "--tensorboard={}/tb"
    ),
    "report": command("tools/report.py", "{}/../run", "--out={}/report.html"),
    "make_demo_coco": command(
        "tools/make_demo_coco.py", "--out={}/coco", "--images=3", "--val_images=1", "--overwrite"
    ),
    "split_coco": command(
        "tools/split_coco.py", *COCO, "--num_shards=2", "--out={}/split", "--overwrite"
    ),
    "show_detections": command(
        "tools/show_detections.py", *COCO, "--results={}/../results.json", "--out={}/pictures"
    ),
    "create_initial_checkpoint": command(
        "tools/create_initial_checkpoint.py", f"--config_path={TINY}", "--checkpoint_dir={}/ckpt"
    ),
}
# Commands that overwrite nothing begin in an empty folder.
REFUSES_ANEW = {
    "make_certificates": command("tools/make_certificates.py", "--out={}/certificates"),
    "generate_mindrecord": command("generate_mindrecord.py", *MINDRECORD),
}


@pytest.fixture
def inputs(tmp_path):
    """Next to the disk: a run, images with labels, detections."""
    run_of(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    write_coco(tmp_path / "data", coco_of(4))
    found = [{"image_id": n, "category_id": 18, "bbox": [4, 4, 9, 9], "score": 0.9} for n in (1, 2)]
    (tmp_path / "results.json").write_text(json.dumps(found))


@pytest.mark.parametrize("place", REFUSES)
def test_a_refused_write_ends_the_command_with_one_line(disk, inputs, place, capsys):
    call = REFUSES[place]
    assert outcome(call, disk.folder, capsys) == (0, "")
    for kind, begin, end in (
        ("full", disk.fill, disk.empty),
        ("read-only", disk.read_only, lambda: disk.read_only(False)),
    ):
        before = content(disk.folder)
        assert before
        begin()
        code, said = outcome(call, disk.folder, capsys)
        end()
        assert code == 2 and said.count("\n") == 0, said
        assert WORDS[kind] in said and str(disk.folder) in said, said
        assert "; " in said and "choose another place" in said
        assert_nothing_is_broken(before, content(disk.folder))
    assert outcome(call, disk.folder, capsys) == (0, "")


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("place", REFUSES_ANEW)
def test_a_refused_first_write_leaves_nothing(disk, inputs, place, kind, capsys, monkeypatch):
    roomy = shutil.disk_usage(disk.folder)._replace(free=10**12)
    # As if the disk filled up after it was looked at.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: roomy)
    disk.fill() if kind == "full" else disk.read_only()
    code, said = outcome(REFUSES_ANEW[place], disk.folder, capsys)
    assert code == 2 and said.count("\n") == 0, said
    # The engine's writer has words of its own.
    assert WORDS[kind] in said or "No free disk to be used" in said, said
    assert str(disk.folder) in said and "choose another place" in said
    assert content(disk.folder) == {}


def resume_state(folder: Path) -> Callable[[], object]:
    from mindspore import Parameter, Tensor, nn

    from src.federated.resume import StateKeeper

    weight = Parameter(Tensor(np.ones(5000, np.float32)), name="w")
    manager = SimpleNamespace(iteration=2, state=lambda: ({"x": np.ones(5000, np.float32)}, {}))
    optimizer = nn.SGD([weight], 0.1, momentum=0.9)
    return StateKeeper(folder / "resume.safetensors", {}, manager, optimizer, print).save


@pytest.mark.parametrize("kind", WORDS)
def test_a_state_for_resume_that_cannot_be_written_is_said(disk, kind, capsys):
    write = resume_state(disk.folder)
    write()
    before = content(disk.folder)
    assert before
    disk.fill() if kind == "full" else disk.read_only()
    capsys.readouterr()
    write()
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "WARNING: " in line)
    assert str(disk.folder) in said and "--resume will miss it" in said
    assert content(disk.folder) == before
    disk.empty() if kind == "full" else disk.read_only(False)
    write()
    assert "WARNING" not in capsys.readouterr().out


def worker_keeper(folder: Path):
    from mindspore import nn

    from src.federated.checkpoints import CheckpointKeeper

    config = SimpleNamespace(checkpoints_kept=0, save_checkpoint=True, run_eval=False)
    return CheckpointKeeper("worker_0", nn.Dense(40, 40), folder, "mindrecord_0", config)


def worker_checkpoint(folder: Path) -> None:
    worker_keeper(folder).save(1)


def best_checkpoint(folder: Path) -> None:
    worker_keeper(folder).save_best()


def privacy_ledger(folder: Path) -> None:
    from src.federated.privacy import PrivacyLedger, PrivacySettings

    ledger = PrivacyLedger(folder, Path("data"))
    for number in range(100):
        ledger.add(number, PrivacySettings(1.0, 1.0, 1e-5), 1.0)


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("write", [worker_checkpoint, best_checkpoint, privacy_ledger])
def test_a_refused_write_that_ends_the_worker(disk, write, kind):
    from src.federated.rounds import SyncError

    write(disk.folder)
    before = content(disk.folder)
    disk.fill() if kind == "full" else disk.read_only()
    with pytest.raises(SyncError) as refused:
        write(disk.folder)
    assert WORDS[kind] in str(refused.value) and str(disk.folder) in str(refused.value)
    assert "\n" not in str(refused.value) and "choose another place" in str(refused.value)
    assert_nothing_is_broken(before, content(disk.folder))


# ---- what costs a line in the log and no more ----------------------------------------------------


def status_file(folder: Path) -> Callable[[], object]:
    from src.job.job_record import StatusFile

    status = StatusFile(folder / "status" / "worker_0.json")
    return lambda: status.update(phase="train")


def loss_log(folder: Path) -> Callable[[], object]:
    from mindspore import Tensor

    from src.network_define import LossCallBack

    callback = LossCallBack(folder=folder)
    params = SimpleNamespace(cur_step_num=1, batch_num=1, net_outputs=Tensor([1.0]))
    context = SimpleNamespace(original_args=lambda: params)
    return lambda: callback.step_end(context)


def rounds_file(folder: Path) -> Callable[[], object]:
    from src.federated.rounds import Round
    from src.files import Lossy

    lossy = Lossy("rounds.jsonl", print)
    return lambda: lossy.do(lambda: Round(1).append_to(folder / "rounds.jsonl"))


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("place", [status_file, loss_log, rounds_file])
def test_a_refused_write_that_training_survives(disk, place, kind, capsys):
    write = place(disk.folder)
    write()
    before = content(disk.folder)
    disk.fill() if kind == "full" else disk.read_only()
    capsys.readouterr()
    for _ in range(100):
        write()
    said = [line for line in capsys.readouterr().out.splitlines() if "WARNING: " in line]
    assert len(said) == 1, said
    assert WORDS[kind] in said[0] and str(disk.folder) in said[0]
    assert_nothing_is_broken(before, content(disk.folder))
    disk.empty() if kind == "full" else disk.read_only(False)
    write()
    assert "is written again; " in capsys.readouterr().out
    assert content(disk.folder) != before


@pytest.mark.parametrize("kind", WORDS)
def test_an_evaluation_that_cannot_be_kept_is_said(disk, kind, capsys):
    from src.evaluation.metrics import FIGURES
    from src.federated.journal import Journal
    from src.job.job_record import StatusFile

    keeper = worker_keeper(disk.folder)
    precision = iter(np.linspace(0.1, 0.9, 200))
    figures = dict.fromkeys((*FIGURES, "seconds"), 0.5)
    journal = Journal(
        "worker_0",
        lambda: {**figures, "AP": next(precision), "images": 1, "per_class": {}},
        1,
        disk.folder / "metrics.jsonl",
        disk.folder / "best.json",
        keeper.save_best,
        StatusFile(None),
    )
    journal.after(1)
    before = content(disk.folder)
    assert set(before) == {"metrics.jsonl", "best.ckpt", "best.json"}
    disk.fill() if kind == "full" else disk.read_only()
    capsys.readouterr()
    journal.after(2)
    said = [line for line in capsys.readouterr().out.splitlines() if "WARNING: " in line]
    assert len(said) == 1 and WORDS[kind] in said[0] and "training goes on" in said[0]
    assert_nothing_is_broken(before, content(disk.folder))


@pytest.mark.parametrize("kind", WORDS)
def test_a_recovery_file_that_cannot_be_written_is_said(disk, kind, capsys):
    from mindspore_federated.startup.feature_map import FeatureMap

    from src.federated.server import ServerJob

    job = object.__new__(ServerJob)
    job._partial = disk.folder / ".server.partial.ckpt"
    job.fl_name, job._folder, job._label, job._not_ours = "job", disk.folder, "server_0", set()
    features = FeatureMap()
    features.add_feature("w", np.ones(5000, np.float32), require_aggr=True)
    assert job._save_feature_map(features, 1)
    before = content(disk.folder)
    disk.fill() if kind == "full" else disk.read_only()
    capsys.readouterr()
    assert job._save_feature_map(features, 2) == ""
    said = [line for line in capsys.readouterr().out.splitlines() if "][server_0]" in line]
    assert len(said) == 1 and WORDS[kind] in said[0] and str(disk.folder) in said[0]
    assert content(disk.folder) == before
    disk.empty() if kind == "full" else disk.read_only(False)
    assert job._save_feature_map(features, 2)


@pytest.mark.parametrize("kind", WORDS)
def test_the_model_that_a_job_counts_anew_from(disk, kind):
    from src.job.recovery_files import begin_from_newest

    newest = disk.folder / "job_recovery_iteration_3_20260101_000000.ckpt"
    save_model(newest, {"w": np.ones(5000, np.float32)})
    before = content(disk.folder)
    disk.fill() if kind == "full" else disk.read_only()
    with pytest.raises(OSError, match=WORDS[kind]) as refused:
        begin_from_newest(disk.folder, "job")
    assert str(disk.folder) in refused.value.filename
    assert content(disk.folder) == before


def test_a_role_s_log_on_a_full_disk_says_what_it_lost(disk):
    from src.job.log_files import RotatingLog
    from src.launch.supervise import SuperviseSpec, Supervisor

    path = disk.folder / "worker.log"
    supervisor = Supervisor(
        SuperviseSpec("worker_0", [], str(path), str(path.parent / "exit.json")),
        RotatingLog(path, 10**6),
    )
    supervisor.say("before")
    disk.fill()
    for number in range(200):
        supervisor.say(f"within {number} " + "x" * 80)
    disk.empty()
    supervisor.say("after")
    lines = path.read_text().splitlines()
    assert all(line.startswith("[20") for line in lines)
    (said,) = (n for n, line in enumerate(lines) if "WARNING: " in line)
    lost = 200 - sum("within" in line for line in lines[:said])
    words = f"WARNING: {lost} line(s) found no room (No space left on device); the last of them:"
    assert lines[said].endswith(words)
    assert [line.split()[3] for line in lines[said + 1 : -1]] == [str(n) for n in range(180, 200)]
    assert lines[-1].endswith("] after")


def test_a_role_that_ends_on_a_full_disk_says_why_and_leaves_its_code(disk):
    folder = disk.folder / "status"
    waits = f"import time, pathlib\nwhile pathlib.Path({str(disk.folder / 'go')!r}).exists(): "
    waits += "time.sleep(0.05)\nprint('error: why it ends', flush=True)\nraise SystemExit(1)"
    spec = {
        "label": "worker_0",
        "argv": [sys.executable, "-c", waits],
        "log": str(disk.folder / "worker.log"),
        "exit_file": str(folder / "worker_0.exit.json"),
    }
    (disk.folder / "go").touch()
    (disk.folder / "spec.json").write_text(json.dumps(spec))
    supervisor = subprocess.Popen(
        [sys.executable, str(SUPERVISOR), str(disk.folder / "spec.json")],
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
    )
    wait_for(lambda: list(folder.glob("*.reserve")), 30, "the supervisor")
    disk.fill()
    (disk.folder / "go").unlink()
    assert supervisor.wait(60) == 1
    assert json.loads((folder / "worker_0.exit.json").read_text())["code"] == 1
    assert [path.name for path in folder.iterdir()] == ["worker_0.exit.json"]
    *lines, end = (disk.folder / "worker.log").read_text().splitlines()
    assert lines[-1] == "error: why it ends" and end.endswith("ended; exit code 1")


def test_standard_output_on_a_full_disk(tmp_path):
    run = run_of(tmp_path / "disk")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, str(PROJECT_DIR / "tools/plot_loss.py"), str(run)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: standard output: No space left on device; ")
