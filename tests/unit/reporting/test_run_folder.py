"""What is read from a run folder: losses, restarts, rounds, and what is refused."""

import os
import socket
from datetime import timedelta

import numpy as np
import pytest
from run_folders import BEGIN, own_line, stamp, write_metrics, write_rounds, write_worker

from src.errors import UserError
from src.job.job_record import FOLDER, write_json
from src.job.job_start import note_start
from src.reporting.run_folder import read_run, require_losses


def test_losses_rates_and_epoch_means_are_those_of_the_log(tmp_path):
    write_worker(tmp_path / "worker_0", [[5.0, 3.0], [2.0, 1.0, 0.0]])
    write_worker(tmp_path / "worker_10", [[1.0]])
    write_worker(tmp_path / "worker_2", [[1.0]])
    run = read_run(tmp_path)
    assert [silo.label for silo in run.silos] == ["worker_0", "worker_2", "worker_10"]
    silo = run.silos[0]
    assert silo.losses.tolist() == [5, 3, 2, 1, 0]
    assert silo.steps.tolist() == [1, 2, 1, 2, 3]
    assert np.allclose(silo.rates, [0.001, 0.001, 0.002, 0.002, 0.002])
    epochs, means = silo.epoch_means()
    assert epochs.tolist() == [1, 2] and means.tolist() == [4.0, 1.0]


def test_a_silo_is_called_by_its_workers_folder_and_the_name_that_it_was_given(tmp_path):
    for number, name in enumerate(("clinic a", socket.gethostname())):
        write_worker(tmp_path / f"worker_{number}", [[1.0]])
        command = {"argv": ["role.py", f"--silo_name={name}"]}
        write_json(tmp_path / FOLDER / "specs" / f"worker_{number}.json", command)
    write_metrics(tmp_path / "worker_0", [0.5])
    run = read_run(tmp_path)
    assert [silo.title for silo in run.silos] == ["worker_0 (clinic a)", "worker_1"]
    assert [name for name, _ in run.evaluations] == ["worker_0 (clinic a)"]


def test_a_silo_of_several_ranks_has_rank_0s_losses(tmp_path):
    folder = write_worker(tmp_path / "worker_distributed", [[5.0, 3.0]])
    (folder / "loss_1.log").write_text((folder / "loss_0.log").read_text())
    write_worker(tmp_path / "worker_1", [[1.0]])
    run = read_run(tmp_path)
    assert [silo.label for silo in run.silos] == ["worker_distributed", "worker_1"]
    assert run.silos[0].losses.tolist() == [5, 3]
    with pytest.raises(UserError, match="is one worker's folder"):
        read_run(folder)


def test_without_loss_file_the_lines_of_the_worker_log_count(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[5.0, 3.0]])
    (folder / "loss_0.log").unlink()
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5, 3]
    assert np.isnan(silo.rates).all()


def test_a_step_has_the_digits_and_the_time_of_the_worker_log(tmp_path):
    write_worker(tmp_path / "worker_0", [[5.1234567], [4.0]], seconds=3)
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5.1234567, 4.0]
    assert [f"{time:%Y-%m-%d %H:%M:%S}" for time in silo.times.tolist()] == [stamp(4), stamp(5)]


def test_steps_that_the_worker_log_lost_are_those_of_the_loss_file(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[5.1234567, 4.0, 3.0]], seconds=3)
    lines = (folder / "worker.log").read_text().splitlines()
    (folder / "worker.log").write_text("\n".join(lines[2:]) + "\n")
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5.12346, 4, 3]
    times = [f"{time:%Y-%m-%d %H:%M:%S}" for time in silo.times.tolist()]
    assert times == [stamp(4), stamp(5), stamp(6)]


def test_a_step_that_a_resumed_worker_repeated_counts_once_as_it_was_the_second_time(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[5.0, 4.0]])
    again = ("epoch: 1 step: 2 total_loss: 3.5", "epoch: 2 step: 1 total_loss: 3.0")
    with (folder / "worker.log").open("a") as log, (folder / "loss_0.log").open("a") as losses:
        for number, line in enumerate(again):
            log.write(f"[{stamp(60 + number)}][worker_0]{line}000000\n")
            losses.write(f"{number} s | {line}0000  lr: 0.003000\n")
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5, 3.5, 3]
    assert silo.rates.tolist() == [0.001, 0.003, 0.003]
    assert f"{silo.times.tolist()[1]:%Y-%m-%d %H:%M:%S}" == stamp(60)


def test_a_loss_file_alone_is_as_old_as_it_is(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[5.0, 3.0]])
    (folder / "worker.log").unlink()
    last = (BEGIN + timedelta(hours=1)).timestamp()
    os.utime(folder / "loss_0.log", (last, last))
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5, 3]
    times = [f"{time:%Y-%m-%d %H:%M:%S}" for time in silo.times.tolist()]
    assert times == [stamp(3599), stamp(3600)]


def test_a_loss_file_of_an_earlier_version_is_read(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[5.0, 3.0]])
    lines = [
        f"[{stamp(n)}][worker_0]epoch: 1 step: {n} total_loss: {7 - n:.7f} lr: 0.00012500"
        for n in (1, 2)
    ]
    (folder / "loss_0.log").write_text("\n".join(lines) + "\n")
    (folder / "worker.log").unlink()
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [6, 5] and silo.rates.tolist() == [0.000125] * 2
    assert f"{silo.times.tolist()[0]:%Y-%m-%d %H:%M:%S}" == stamp(1)


def test_a_loss_that_is_not_finite_is_read_as_such(tmp_path):
    write_worker(tmp_path / "worker_0", [[1.0, float("nan"), float("inf")]])
    (silo,) = read_run(tmp_path).silos
    assert silo.losses[0] == 1 and np.isnan(silo.losses[1]) and np.isinf(silo.losses[2])


def test_a_silo_started_again_is_one_silo(tmp_path):
    first = write_worker(tmp_path / "worker_0.1", [[5.0], [4.0]])
    write_rounds(first, [1])
    write_worker(tmp_path / "worker_0.2", [], first_iteration=2)
    last = write_worker(tmp_path / "worker_0", [[3.0], [2.0]], first_iteration=3)
    write_rounds(last, [3, 4])
    write_metrics(first, [0.1, 0.2])
    (silo,) = read_run(tmp_path).silos
    assert [folder.name for folder in silo.folders] == ["worker_0.1", "worker_0.2", "worker_0"]
    assert silo.epochs.tolist() == [1, 2, 3, 4]
    assert [entry["iteration"] for entry in silo.rounds] == [1, 3, 4]
    assert [entry["AP"] for entry in silo.metrics] == [0.1, 0.2]


def test_an_earlier_run_in_the_same_folder_does_not_count(tmp_path):
    write_worker(tmp_path / "worker_0.1", [[9.0]])
    write_worker(tmp_path / "worker_0", [[3.0]])
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [3]


def test_a_run_that_was_resumed_twice_stops_at_the_run_before(tmp_path):
    write_worker(tmp_path / "worker_0.1", [[9.0], [9.0], [9.0], [9.0]])
    write_worker(tmp_path / "worker_0.2", [[5.0]])
    write_worker(tmp_path / "worker_0", [[3.0]], first_iteration=2)
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5, 3]


def test_a_silo_that_the_new_job_refused_is_not_shown_with_the_losses_of_the_job_before(tmp_path):
    write_worker(tmp_path / "worker_1.1", [[9.0], [9.0], [9.0]])
    write_worker(tmp_path / "worker_0.1", [[9.0], [9.0]])
    write_worker(tmp_path / "worker_2", [[9.0]])
    note_start(tmp_path)
    refused = write_worker(tmp_path / "worker_1", [], seconds=100)
    (refused / "worker.log").write_text(own_line(101, "worker_1", "ended; exit code 2") + "\n")
    write_worker(tmp_path / "worker_0", [[3.0]], seconds=100)
    run = read_run(tmp_path)
    assert [silo.label for silo in run.silos] == ["worker_0", "worker_1"]
    assert [silo.losses.tolist() for silo in run.silos] == [[3], []]
    assert any("left out as of an earlier job: worker_2" in note for note in run.notes)


def test_workers_in_another_time_zone_than_the_servers_are_of_their_job(tmp_path):
    write_worker(tmp_path / "worker_0.1", [[9.0], [9.0]], seconds=5 * 3600)
    note_start(tmp_path)
    write_worker(tmp_path / "worker_0", [[3.0]], seconds=-9 * 3600)
    run = read_run(tmp_path)
    assert run.silos[0].losses.tolist() == [3] and run.notes == []


def test_a_silo_started_again_within_the_noted_job_keeps_its_lines(tmp_path):
    write_worker(tmp_path / "worker_0.1", [[9.0], [9.0]])
    note_start(tmp_path)
    write_worker(tmp_path / "worker_0.2", [[5.0], [4.0]], seconds=100)
    write_worker(tmp_path / "worker_0", [[3.0]], first_iteration=2, seconds=110)
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == [5, 4, 3]


def test_before_a_new_jobs_first_worker_the_job_before_is_shown_and_said(tmp_path):
    write_worker(tmp_path / "worker_0", [[9.0]])
    note_start(tmp_path)
    run = read_run(tmp_path)
    assert run.silos[0].losses.tolist() == [9]
    assert any("no worker of the job that began at" in note for note in run.notes)


@pytest.mark.parametrize(
    ("more", "entered", "expected"),
    [
        ((), "", [9, 9]),  # nothing tells: as before a refusal within the job
        (("the job is finished: all 2 iterations are done",), "", []),
        (("the job is finished: all 2 iterations are done",), "joined iteration 2 of 9", []),
        (("the job is finished: all 2 iterations are done",), "joined iteration 3 of 9", [9, 9]),
        ((), "joined iteration 1 of 9", []),
        ((), "kept the place in iteration 1 of 9", [9, 9]),
    ],
)
def test_without_a_noted_start_the_logs_decide(tmp_path, more, entered, expected):
    lines = [own_line(3, "worker_0", line) for line in more]
    write_worker(tmp_path / "worker_0.1", [[9.0], [9.0]], more=lines)
    log = write_worker(tmp_path / "worker_0", [], seconds=100) / "worker.log"
    log.write_text(own_line(101, "worker_0", f"{entered} as silo 0 with 12 images") + "\n")
    (silo,) = read_run(tmp_path).silos
    assert silo.losses.tolist() == expected


def test_a_line_that_a_kill_has_torn_is_left_out_and_noted(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[3.0]])
    write_rounds(folder, [1, 2], tail='{"iteration": 3, "res')
    run = read_run(tmp_path)
    assert [entry["iteration"] for entry in run.silos[0].rounds] == [1, 2]
    (note,) = run.notes
    assert "rounds.jsonl: line 3 is left out" in note


def test_metrics_from_elsewhere_are_sorted_and_stand_beside_the_silos(tmp_path):
    write_worker(tmp_path / "worker_0", [[3.0]])
    lines = ['{"iteration": 2, "AP": 0.2}', '{"iteration": 1, "AP": 0.1}']
    (tmp_path / "watched.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path, tmp_path / "watched.jsonl")
    ((label, entries),) = run.evaluations
    assert label == "watched.jsonl" and [entry["AP"] for entry in entries] == [0.1, 0.2]
    with pytest.raises(UserError, match=r"--metrics .*other\.jsonl: no such file"):
        read_run(tmp_path, tmp_path / "other.jsonl")


def test_folders_that_hold_no_run_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="nothing: no such folder"):
        read_run(tmp_path / "nothing")
    (tmp_path / "server_0").mkdir()
    with pytest.raises(UserError, match=r"no folder worker_<number> in it \(found: server_0\)"):
        read_run(tmp_path)
    folder = write_worker(tmp_path / "run" / "worker_0", [])
    with pytest.raises(UserError, match=r"one worker's folder; give the one above, .*run$"):
        read_run(folder)
    with pytest.raises(UserError, match=r"no loss line in loss_0.log or worker.log of worker_0"):
        require_losses(read_run(folder.parent))
