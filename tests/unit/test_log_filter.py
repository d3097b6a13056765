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


def test_a_shown_line_comes_once_from_each_source_file():
    """The tutorial's scheduler.log has it from http_request_handler.cc, each thread says it."""
    log_filter = LogFilter()
    begin = "[INFO] FEDERATED(1,2,python):2026-01-01-00:00:00.000.000 [ccsrc/communicator"
    lines = [
        f"{begin}/http_server.cc:122] Start] Start http server!\n",
        *[f"{begin}/http_request_handler.cc:92] Run] Start http server!\n"] * 2,
    ]
    assert [log_filter.passes(line) for line in lines] == [True, True, False]
