"""Which of a role's lines reach its log."""

import pytest

from src.launch.log_filter import LogFilter

NATIVE = "(1,2,python):2026-01-01-00:00:00.000.000 [file.cc:1] Run] "


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("[2026-01-01 00:00:00][worker_0]epoch: 1 step: 1 total_loss: 5.2\n", True),
        (f"[INFO] FEDERATED{NATIVE}Scheduler started successfully.\n", True),
        (f"[INFO] FEDERATED{NATIVE}Begin to lock server\n", False),
        (f"[INFO] PIPELINE{NATIVE}Start http server!\n", False),
        (f"[WARNING] ME{NATIVE}something is odd\n", True),
        (f"[WARNING] ME{NATIVE}LoadDynamicLib] no libcublas.so\n", False),
        (f"[ERROR] FEDERATED{NATIVE}it broke\n", True),
        ("Traceback (most recent call last):\n", True),
    ],
)
def test_which_lines_reach_the_log(line, passes):
    assert LogFilter().passes(line) is passes


def test_a_shown_line_comes_once():
    log_filter = LogFilter()
    line = f"[INFO] FEDERATED{NATIVE}Start http server!\n"
    assert [log_filter.passes(line) for _ in range(3)] == [True, False, False]
