"""The process above a silo's ranks, with short Python programs as ranks; and the ranks' flags."""

import argparse
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from commands import wait_for

from src.errors import UserError
from src.launch.launchers import RUNNER
from src.launch.rank_flags import add_local_rank_flags, add_rank_flags, local_ranks
from src.model_utils.config import PROJECT_DIR

# A rank's last words of the command are --rank=<n> and, but for the first, --status_file= .
WHO = "import os, sys, time; rank = int(sys.argv[1].split('=')[1]); "


def command(folder, program, count=3):
    words = [sys.executable, str(RUNNER), str(folder), "0", str(count), "0", "0"]
    return [*words, sys.executable, "-uc", WHO + program]


def started(folder, program, count=3):
    return subprocess.Popen(
        command(folder, program, count),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
    )


def output_of(folder, rank):
    return (folder / "log_output" / "1" / f"rank.{rank}" / "stdout").read_text()


def test_each_rank_has_its_own_output_and_the_first_is_echoed(tmp_path):
    runner = started(tmp_path, "print('epoch: 1 of rank', rank, sys.argv[2:])")
    said, _ = runner.communicate(timeout=30)
    assert runner.returncode == 0
    assert said == "epoch: 1 of rank 0 []\n"
    assert output_of(tmp_path, 2) == "epoch: 1 of rank 2 ['--status_file=']\n"


def test_the_rank_that_failed_first_gives_the_reason(tmp_path):
    runner = started(
        tmp_path,
        "time.sleep(1.5 if rank != 1 else 0); print(f'error: {rank} is broken'); sys.exit(1)",
    )
    said, _ = runner.communicate(timeout=30)
    assert runner.returncode == 1
    assert said.splitlines()[-1] == "error: rank 1 failed: 1 is broken"
    assert "rank 1 failed: 1 is broken; the silo's other ranks end too" in said
    assert "after that, rank 0 failed: 0 is broken" in said


def test_a_rank_that_is_killed_after_it_was_finished_takes_nothing_of_the_success(tmp_path):
    last_line = "[2026-01-01 00:00:00][worker_0] finished: 3 iterations in this process"
    runner = started(tmp_path, f"print('{last_line}'); rank == 1 and os.kill(os.getpid(), 9)")
    said, _ = runner.communicate(timeout=30)
    assert runner.returncode == 0, said
    assert said == f"{last_line}\n"


def test_what_the_user_can_mend_keeps_its_code(tmp_path):
    runner = started(tmp_path, "print('error: --img_width is odd'); sys.exit(2)")
    said, _ = runner.communicate(timeout=30)
    assert runner.returncode == 2
    assert said.splitlines()[-1].endswith("failed: --img_width is odd")


def test_ranks_that_hang_after_a_kill_are_ended(tmp_path):
    words = command(tmp_path, "print('ready'); time.sleep(600)")
    impatient = "import src.launch.rank_runner as r; r.GRACE_S = 0.5; r.sys.exit(r.main())"
    runner = subprocess.Popen(
        [sys.executable, "-c", impatient, *words[2:]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
    )
    ranks = ranks_of(runner, tmp_path)
    ranks[2].kill()
    said, _ = runner.communicate(timeout=30)
    assert runner.returncode == 1
    assert said.splitlines()[-1] == "error: rank 2 was killed by SIGKILL"
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_runner(tmp_path, number):
    runner = started(tmp_path, "print('ready'); time.sleep(600)")
    ranks = ranks_of(runner, tmp_path)
    os.kill(runner.pid, number)
    runner.communicate(timeout=30)
    psutil.wait_procs(ranks, timeout=10)
    assert not any(rank.is_running() for rank in ranks)


def ranks_of(runner, folder) -> list[psutil.Process]:
    def ready() -> bool:
        try:
            return all("ready" in output_of(folder, rank) for rank in range(3))
        except FileNotFoundError:
            return False

    wait_for(ready, 20, "the ranks")
    time.sleep(0.1)
    children = psutil.Process(runner.pid).children()
    return sorted(children, key=lambda child: child.cmdline()[3])


def parsed(*flags):
    parser = argparse.ArgumentParser()
    add_rank_flags(parser, device_num=4)
    add_local_rank_flags(parser)
    config = parser.parse_args(flags)
    config.device_target = "CPU"
    return config


def test_ranks_of_one_machine_and_of_several():
    assert local_ranks(parsed("--run_distribute=True")) == range(4)
    assert local_ranks(parsed("--run_distribute", "--local_rank_num=3")) == range(3)
    assert local_ranks(parsed("--run_distribute", "--first_rank=3")) == range(3, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--device_num 4 without --run_distribute=True"),
        (["--run_distribute=True", "--device_num=0"], "--device_num is 0, expected 1 or more"),
        (["--run_distribute=True", "--first_rank=4"], "expected ranks within 0 to 3"),
        (["--run_distribute=True", "--first_rank=-1"], "expected ranks within 0 to 3"),
        (["--run_distribute=True", "--first_rank=2", "--local_rank_num=3"], "within 0 to 3"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        local_ranks(parsed(*flags))


def test_mpirun_starts_the_ranks_of_all_machines_at_once():
    config = parsed("--run_distribute=True", "--first_rank=2")
    config.device_target = "GPU"
    with pytest.raises(UserError, match="OMPI_MCA_orte_default_hostfile"):
        local_ranks(config)
