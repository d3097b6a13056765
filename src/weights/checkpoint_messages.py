"""The messages that a MindSpore checkpoint is made of, without loading MindSpore."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MESSAGES = "mindspore.train.checkpoint_pb2"


def checkpoint_messages() -> ModuleType:
    """MindSpore's message classes from their file: importing its package takes seconds."""
    if MESSAGES in sys.modules:
        return sys.modules[MESSAGES]
    package: Any = importlib.util.find_spec("mindspore")  # `require_packages` has found it
    path = Path(package.submodule_search_locations[0]) / "train" / "checkpoint_pb2.py"
    spec: Any = importlib.util.spec_from_file_location("checkpoint_messages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
