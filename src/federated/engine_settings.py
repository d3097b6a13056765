"""Makes the engine read the federation's file with this suite's checks, not its own loader.

The engine reads the file by itself, some seconds after a role has checked it, with a YAML loader
that executes code named in the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from mindspore_federated.startup import yaml_config

from src.job.job_config import load_job


@contextlib.contextmanager
def checked_settings() -> Iterator[None]:
    """Make the engine read federation files as `load_job` does, within the block.

    Raises:
        UserError: from a call within the block, if the file was replaced by an invalid one.
    """
    own = yaml_config._load_yaml_config_file
    yaml_config._load_yaml_config_file = _items_of_file
    try:
        yield
    finally:
        yaml_config._load_yaml_config_file = own


def _items_of_file(path: str) -> dict[str, Any]:
    return dict(_items(load_job(path).values))


def _items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values for the engine's binding; skip keys without a value."""
    for key, value in values.items():
        if value is None:
            continue
        item = yaml_config.YamlConfigItem_()
        if isinstance(value, dict):
            item.set_dict()
            yield from _items(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            item.set_bool_val(value)
        elif isinstance(value, int):
            item.set_int_val(value)
        elif isinstance(value, float):
            item.set_float_val(value)
        else:
            item.set_str_val(value)
        yield f"{prefix}{key}", item
