"""What the environment says of this process: its device, its rank, the job that it is part of.

A scheduler of jobs sets DEVICE_ID, RANK_SIZE, RANK_ID and JOB_ID, ModelArts among them.
"""

from __future__ import annotations

import os

from src.errors import UserError

LOCAL_JOB = "Local Job"


def get_device_id() -> int:
    """Number of the device, from DEVICE_ID; 0 where it is not set."""
    return _whole_number("DEVICE_ID", 0, 0)


def get_device_num() -> int:
    """Number of devices that train together, from RANK_SIZE; 1 where it is not set."""
    return _whole_number("RANK_SIZE", 1, 1)


def get_rank_id() -> int:
    """Number of this process among them, from RANK_ID; 0 where it is not set."""
    return _whole_number("RANK_ID", 0, 0)


def get_job_id() -> str:
    """The job's id, from JOB_ID; `LOCAL_JOB` where it is not set or empty."""
    return os.environ.get("JOB_ID") or LOCAL_JOB


def _whole_number(name: str, default: int, least: int) -> int:
    """The value of an environment variable.

    Raises:
        UserError: it is no whole number, or less than `least`.
    """
    text = os.environ.get(name) or str(default)
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(
            f"environment variable {name} is {text!r}, expected a whole number of {least} or more; "
            "set it so, or unset it"
        )
    return int(text)
