"""Configuration of detector, data and training: YAML file, then flags, checked against one table.

`default_config.yaml` beside the scripts is that table: its keys are the keys that exist, its
values the defaults and the types. A user's file is laid over it, flags over both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import UserError
from src.model_utils.config_file import (
    DEFAULT_CONFIG,
    PROJECT_DIR,
    find_config_file,
    read_yaml_documents,
)
from src.model_utils.config_flags import (
    add_config_flags,
    merge,
    parse_bool,
    parse_cli_to_yaml,
    parse_known,
    script_parser,
)
from src.model_utils.config_values import check_values
from src.model_utils.flag_help import HELP

# Everything about the configuration is imported from here, as upstream's callers do.
__all__ = [
    "DEFAULT_CONFIG",
    "PROJECT_DIR",
    "Config",
    "check_values",
    "default_values",
    "feature_shapes_of",
    "find_config_file",
    "get_config",
    "load_config",
    "merge",
    "parse_bool",
    "parse_cli_to_yaml",
    "parse_known",
    "parse_yaml",
    "read_yaml_documents",
    "script_parser",
    "setting",
]


class Config:
    """Attribute access to a dict; dicts inside it, in lists too, are wrapped likewise.

    Args:
        cfg_dict: plain values, as `yaml.safe_load` gives them.
    """

    def __init__(self, cfg_dict: dict[str, Any]):
        for key, value in cfg_dict.items():
            setattr(self, key, _wrap(value))

    if TYPE_CHECKING:  # which keys there are is known when a file has been read

        def __getattr__(self, key: str) -> Any: ...

        def __setattr__(self, key: str, value: Any) -> None: ...

    def __repr__(self) -> str:
        return f"Config({self.__dict__})"


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Config(value)
    if isinstance(value, (list, tuple)):
        return [_wrap(item) for item in value]
    return value


def setting(config: Any, key: str) -> Any:
    """`config.key`, or the default file's value where `config` has no such key.

    For the keys that this suite adds to upstream's: a configuration made from upstream's keys
    alone, as `Config(dict)`, serves wherever the loaded one does.
    """
    return getattr(config, key) if hasattr(config, key) else default_values()[key]


def parse_yaml(yaml_path: str | Path) -> tuple[dict, dict, dict]:
    """(values, help texts, choices) of a file with one to three YAML documents, as upstream's.

    Raises:
        UserError: no file, broken YAML, or more than three documents.
    """
    path = find_config_file(yaml_path)
    documents = read_yaml_documents(path)
    if len(documents) > 3:
        raise UserError(
            f"{path}: {len(documents)} YAML documents, expected at most 3 (values, help, choices)"
        )
    values, helper, choices = documents + [{}] * (3 - len(documents))
    return values, helper, choices


def default_values() -> dict[str, Any]:
    """A fresh copy of the values of the default file."""
    return read_yaml_documents(PROJECT_DIR / DEFAULT_CONFIG)[0]


def load_config(path: str | Path | None = None, **overrides: Any) -> Config:
    """The checked configuration: defaults, the file at `path`, then `overrides`.

    Args:
        path: a YAML file; None takes the defaults alone.
        overrides: keys of the table with values of their type.

    Raises:
        UserError: no such file, broken YAML, unknown key, wrong type, shapes that do not fit.
    """
    defaults = default_values()
    values = dict(defaults)
    where = str(PROJECT_DIR / DEFAULT_CONFIG)
    if path is not None:
        file = find_config_file(path)
        where = str(file)
        values.update(check_values(parse_yaml(file)[0], defaults, where))
    values.update(check_values(overrides, defaults, "command line"))
    _derive(values, where)
    return Config(values)


def feature_shapes_of(height: int, width: int) -> list[list[int]]:
    """(h, w) of P2 to P6: strides 4 to 32 of the image, then every second pixel of P5."""
    shapes = [[-(-height // s), -(-width // s)] for s in (4, 8, 16, 32)]
    last = shapes[-1]
    return [*shapes, [-(-last[0] // 2), -(-last[1] // 2)]]


def _derive(values: dict[str, Any], where: str) -> None:
    """Fill in what follows from the image size, and check what the file says of it."""
    height, width = values["img_height"], values["img_width"]
    if height % 32 or width % 32:
        raise UserError(
            f"{where}: img_width x img_height is {width}x{height}, expected multiples of 32"
        )
    expected = feature_shapes_of(height, width)
    shapes = values.setdefault("feature_shapes", expected)
    if [list(shape) for shape in shapes] != expected:
        raise UserError(
            f"{where}: feature_shapes {shapes} does not fit {width}x{height} images, expected "
            f"{expected}; remove the key and it is derived"
        )
    if len(values["coco_classes"]) != values["num_classes"]:
        raise UserError(
            f"{where}: num_classes is {values['num_classes']}, but coco_classes lists "
            f"{len(values['coco_classes'])} names with the background; make them agree"
        )
    values["num_bboxes"] = values["num_anchors"] * sum(h * w for h, w in shapes)


def get_config(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> Config:
    """The configuration of a command: defaults, `--config_path`, then the other flags.

    Its attribute `given_flags` lists the keys that came from the command line.

    Args:
        argv: the command's words; None takes those of the process.
        parser: flags of the command itself; their values become attributes beside the keys.

    Raises:
        UserError: as `load_config`, or an unknown flag (names the nearest).
    """
    parser = parser or script_parser(None)
    if "--config_path" not in parser._option_string_actions:
        parser.add_argument("--config_path", default=DEFAULT_CONFIG, help="YAML file of the keys")
    own = {action.dest for action in parser._actions}
    defaults = default_values()
    add_config_flags(parser, defaults, HELP, {}, DEFAULT_CONFIG)
    args = vars(parse_known(parser, argv))
    given = {k: v for k, v in args.items() if k in defaults and v is not None}
    config = load_config(args["config_path"], **given)
    for key in own & set(args) - set(defaults):
        setattr(config, key, args[key])
    config.given_flags = sorted(given)
    return config
