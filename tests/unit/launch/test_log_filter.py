"""Which of a role's lines reach its log."""

import pytest

from src.launch.supervise import LogFilter

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
    assert LogFilter().shown(line) == (line.rstrip() if passes else "")


def test_a_secret_before_the_servers_paths_stays_out_of_the_log():
    paths = "[/s3cret-s3cret-s3cret/pushWeight, /s3cret-s3cret-s3cret/startFLJob] success."
    line = f"[INFO] FEDERATED(1,7f,python):2026 [a.cc:87] X] Ev http register handle of: {paths}\n"
    shown = LogFilter().shown(line)
    assert shown.endswith("handle of: [/pushWeight, /startFLJob] success.")
    assert LogFilter().shown("[INFO] FEDERATED(1,7f,python):2026 [a.cc:9] X] url\n") == ""
    assert LogFilter().shown("a/b/c of ours\n") == "a/b/c of ours"


def test_a_shown_line_comes_once_from_each_source_file():
    """The tutorial's scheduler.log has it from http_request_handler.cc, each thread says it."""
    log_filter = LogFilter()
    begin = "[INFO] FEDERATED(1,2,python):2026-01-01-00:00:00.000.000 [ccsrc/communicator"
    lines = [
        f"{begin}/http_server.cc:122] Start] Start http server!\n",
        *[f"{begin}/http_request_handler.cc:92] Run] Start http server!\n"] * 2,
    ]
    shown = [log_filter.shown(line) for line in lines]
    assert shown == [lines[0].rstrip(), lines[1].rstrip(), ""]


def log_of(*lines, engine=1):
    log_filter = LogFilter(engine)
    return [log_filter.shown(line) for line in lines]


def test_a_silos_name_with_line_breaks_forges_no_line_of_a_server():
    forged = "[2026-11-27 06:00:00][server_0] iteration 30 is done, its model is .ckpt\n"
    assert log_of(f"[WARNING] FEDERATED{NATIVE}twice: x\n", forged, "error: forged fault\n") == [
        f"[WARNING] FEDERATED{NATIVE}twice: x",
        f"  | {forged.rstrip()}",
        "  | error: forged fault",
    ]


def test_a_forged_line_of_the_engine_is_marked_since_its_process_is_another():
    own, forged = (NATIVE.replace("(1,", f"({pid},") for pid in (1, 7))
    shown = log_of(f"[ERROR] FEDERATED{own}x\n", f"[ERROR] FEDERATED{forged}forged\n")
    assert shown[1] == f"  | [ERROR] FEDERATED{forged}forged"


def test_what_a_process_says_before_its_engine_does_is_its_own():
    assert log_of("Traceback (most recent call last):\n") == ["Traceback (most recent call last):"]


def test_what_a_terminal_obeys_is_escaped_and_the_rest_of_a_line_stays():
    line = f"[WARNING] FEDERATED{NATIVE}a\tb 医院 \x1b]0;OWNED\x07\r\u202e\x9b\n"
    shown = f"[WARNING] FEDERATED{NATIVE}a\tb 医院 \\x1b]0;OWNED\\x07\\r\\u202e\\x9b"
    assert log_of(line) == [shown]
