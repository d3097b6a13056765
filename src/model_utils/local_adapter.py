"""Reads from the environment this process's device, rank and job.

A job scheduler such as ModelArts sets DEVICE_ID, RANK_SIZE, RANK_ID and JOB_ID.
"""

from __future__ import annotations

import os

from src.errors import UserError

LOCAL_JOB = "Local Job"


def get_device_id() -> int:
    """Return the number of the device, from DEVICE_ID; 0 if it is not set."""
    return _whole_number("DEVICE_ID", 0, 0)


def get_device_num() -> int:
    """Return the number of devices that train together, from RANK_SIZE; 1 if it is not set."""
    return _whole_number("RANK_SIZE", 1, 1)


def get_rank_id() -> int:
    """Return the number of this process among them, from RANK_ID; 0 if it is not set."""
    return _whole_number("RANK_ID", 0, 0)


def get_job_id() -> str:
    """Return the job's id, from JOB_ID; `LOCAL_JOB` if it is not set or empty."""
    return os.environ.get("JOB_ID") or LOCAL_JOB


def _whole_number(name: str, default: int, least: int) -> int:
    """Return the value of an environment variable as an integer.

    Raises:
        UserError: it is not an integer, or less than `least`.
    """
    text = os.environ.get(name) or str(default)
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(
            f"environment variable {name} is {text!r}, expected a whole number of {least} or more; "
            "set it so, or unset it"
        )
    return int(text)
