"""What a worker keeps of its evaluations, and the checkpoints of a running job."""

import json

import pytest

from src.commands import evaluate
from src.evaluation.metrics import FIGURES
from src.federated.journal import Journal
from src.job.job_record import StatusFile


def figures(ap):
    return {
        **dict.fromkeys(FIGURES, 0.5), "AP": ap, "APl": None, "per_class": {"dog": 0.5},
        "images": 4, "seconds": 2.0,
    }  # fmt: skip


def journal(folder, values, interval=1):
    """Journal of evaluations with these APs (or errors), and the list of what it saved."""
    values, saved = iter(values), []

    def evaluate():
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return figures(value)

    status = StatusFile(None)
    one = Journal(
        "worker_0", evaluate, interval, folder / "metrics.jsonl", folder / "best.json",
        lambda: saved.append(len(saved)), status,
    )  # fmt: skip
    return one, saved, status


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_nth_iteration_is_kept_and_the_best_one_apart(tmp_path, capsys):
    one, saved, status = journal(tmp_path, [0.2, 0.4, 0.3], interval=2)
    for iteration in range(1, 7):
        one.after(iteration)
    assert [(line["iteration"], line["AP"]) for line in lines(tmp_path)] == [
        (2, 0.2), (4, 0.4), (6, 0.3),
    ]  # fmt: skip
    assert lines(tmp_path)[0]["APl"] is None
    assert json.loads((tmp_path / "best.json").read_text()) == lines(tmp_path)[1]
    assert len(saved) == 2
    assert (status.fields["ap"], status.fields["ap50"], status.fields["phase"]) == (
        0.3, 0.5, "evaluate",
    )  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert "][worker_0]iteration: 2 AP: 0.200 AP50: 0.500 AP75: 0.500 APs: 0.500" in said[0]
    assert "APl: - AR1: 0.500" in said[0] and said[0].endswith("(4 images, 2.0 images/s)")


@pytest.mark.parametrize(("ap", "kept"), [(0.3, 0), (0.4, 0), (0.5, 1)])
def test_a_restarted_worker_keeps_a_better_earlier_best(tmp_path, ap, kept):
    journal(tmp_path, [0.4])[0].after(1)
    one, saved, _ = journal(tmp_path, [ap])
    one.after(2)
    assert len(saved) == kept and len(lines(tmp_path)) == 2
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["AP"], best["iteration"]) == (max(ap, 0.4), 1 + kept)


def test_a_best_json_that_is_broken_counts_as_none(tmp_path):
    (tmp_path / "best.json").write_text('{"AP": 0.')
    one, saved, _ = journal(tmp_path, [0.1])
    one.after(1)
    assert len(saved) == 1


def test_a_failing_evaluation_is_one_line(tmp_path, capsys):
    one, saved, status = journal(tmp_path, [FileNotFoundError(2, "No such file", "7.jpg"), 0.1])
    one.after(1)
    one.after(2)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "AP: 0.100" in said[1]
    assert "WARNING: evaluation of iteration 1 failed: [Errno 2] No such file: '7.jpg'" in said[0]
    assert [line["iteration"] for line in lines(tmp_path)] == [2]
    assert status.fields["ap"] == 0.1


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_global_checkpoints_of_workers_and_servers(tmp_path):
    for number in (0, 1, 10, 9):
        touch(tmp_path / f"worker_0/ckpt/mindrecord_0/mindrecord_0-fast-rcnn-{number}epoch.ckpt")
    touch(tmp_path / "worker_0/ckpt/mindrecord_0/best.ckpt")
    for name in ("F_recovery_iteration_0_20260101_000000.ckpt", "F_initial.ckpt", "x.ckpt"):
        touch(tmp_path / "fl_ckpt" / name)
    touch(tmp_path / "fl_ckpt/earlier_1/F_recovery_iteration_7_20260101_000000.ckpt")
    for place in ("worker_0", "worker_0/ckpt", "worker_0/ckpt/mindrecord_0"):
        found = evaluate.global_checkpoints(tmp_path / place)
        assert [checkpoint.iteration for checkpoint in found] == [1, 2, 10, 11]
    assert [c.iteration for c in evaluate.global_checkpoints(tmp_path / "fl_ckpt")] == [0]
    assert evaluate.job_folder(tmp_path / "fl_ckpt") is None
    (tmp_path / ".federation").mkdir()
    assert evaluate.job_folder(tmp_path / "worker_0/ckpt") == tmp_path


def test_following_ends_with_the_job_and_gives_each_checkpoint_once(tmp_path, monkeypatch):
    moments = iter(range(100))

    def runs(job):
        """The job writes a file at each look, and another when it has ended."""
        moment = next(moments)
        touch(tmp_path / f"m-fast-rcnn-{moment}epoch.ckpt")
        return moment < 3

    monkeypatch.setattr(evaluate, "job_runs", runs)
    monkeypatch.setattr(evaluate, "SETTLED_S", 0.0)
    monkeypatch.setattr(evaluate, "POLL_S", 0.0)
    found = [checkpoint.iteration for checkpoint in evaluate.follow(tmp_path, tmp_path)]
    assert found == [1, 2, 3, 4]


def test_a_file_that_is_being_written_is_left_for_later(tmp_path, monkeypatch):
    running = iter([True, True, False])
    touch(tmp_path / "m-fast-rcnn-0epoch.ckpt")
    monkeypatch.setattr(evaluate, "job_runs", lambda job: next(running))
    monkeypatch.setattr(evaluate, "SETTLED_S", 1000.0)
    monkeypatch.setattr(evaluate, "POLL_S", 0.0)
    assert [c.iteration for c in evaluate.follow(tmp_path, tmp_path)] == [1]
    assert next(running, None) is None
