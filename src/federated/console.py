"""The suite's own lines in a role's log."""

from __future__ import annotations

import time


def say(label: str, text: str) -> None:
    """Print "[2026-11-22 08:00:00][worker_0]text", the form that the tutorial's grep looks for."""
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}][{label}]{text}", flush=True)
