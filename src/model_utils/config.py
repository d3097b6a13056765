"""Configuration of detector, data and training: defaults, then one file, then flags.

The keys, their defaults and their allowed values are in one table, `config_keys.py`. The file is
the one given as --config_path, or `default_config.yaml` in the current folder or next to the
scripts; it holds what differs from the defaults. All files and flags go through the same checks.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import UserError, nearest
from src.model_utils.config_file import (
    DEFAULT_CONFIG,
    PROJECT_DIR,
    find_config_file,
    read_yaml_documents,
    yaml_documents,
)
from src.model_utils.config_flags import (
    add_key_flags,
    merge,
    parse_bool,
    parse_cli_to_yaml,
    parse_known,
    script_parser,
)
from src.model_utils.config_keys import (
    ALIASES,
    BACKBONES,
    COCO_CLASSES,
    DERIVED,
    IDLE,
    KEYS,
    ONE_KIND,
    SECTIONS,
    Backbone,
    Key,
)

# Import everything about the configuration from here, as upstream's callers do.
__all__ = [
    "ALIASES",
    "BACKBONES",
    "COCO_CLASSES",
    "DEFAULT_CONFIG",
    "IDLE",
    "KEYS",
    "ONE_KIND",
    "PROJECT_DIR",
    "SECTIONS",
    "Backbone",
    "Config",
    "Key",
    "add_key_flags",
    "backbone_of",
    "check_values",
    "config",
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
    "trains_all_layers",
    "yaml_documents",
]

# A job with a higher base_lr and without grad_clip gets a warning. Measured with the demo's
# detector from random weights on one synthetic batch: 0.01 trains, 0.02 and 0.04 are nan after 43
# and 15 steps.
HIGH_LR = 0.01


class Config:
    """Attribute access to a dict; nested dicts, also in lists, are wrapped likewise.

    Args:
        cfg_dict: plain values, as `yaml.safe_load` returns them.
    """

    def __init__(self, cfg_dict: dict[str, Any]):
        for key, value in cfg_dict.items():
            setattr(self, key, _wrap(value))

    if TYPE_CHECKING:  # the keys are known only after reading a file

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


if TYPE_CHECKING:
    config: Config
else:

    def __getattr__(name: str) -> Any:
        """Return upstream's global `config`, created on first access.

        It is read only from the file `default_config.yaml`, in the current folder or next to the
        scripts; the command line is ignored.
        """
        if name != "config":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()["config"] = found = load_config(DEFAULT_CONFIG)
        return found


def setting(config: Any, key: str) -> Any:
    """Return `config.key`, or the key's default if `config` has no such key.

    It is for the keys that this suite adds to upstream's: a `Config(dict)` with upstream's keys
    only works wherever the loaded one does.
    """
    return getattr(config, key) if hasattr(config, key) else default_values()[key]


def parse_yaml(yaml_path: str | Path) -> tuple[dict, dict, dict]:
    """Return (values, help texts, choices) of a file with one to three YAML documents.

    Raises:
        UserError: the file is missing, is not valid YAML, or has more than three documents.
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
    """Return a fresh copy of every key's default."""
    return {name: copy.deepcopy(key.default) for name, key in KEYS.items()}


def check_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `values` with each key known and each value of its type and in its range.

    A None, as YAML returns for a key without a value, stands for the default and is left out.

    Raises:
        UserError: unknown key (names the nearest), wrong type, or out of range.
    """
    known = {**KEYS, **DERIVED}
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}: unknown key '{name}'{nearest(str(name), known)}")
        if value is not None:
            checked[name] = known[name].checked(name, value, where)
    return checked


def load_config(path: str | Path | None = None, **overrides: Any) -> Config:
    """Return the checked configuration: defaults, the file at `path`, then `overrides`.

    Its attribute `notes` tells the user of values that mean something else here than where the file
    comes from.

    Args:
        path: a YAML file; None uses the defaults only.
        overrides: keys of the table, with values of their type.

    Raises:
        UserError: missing file, invalid YAML, unknown key, wrong type, inconsistent shapes.
    """
    from_file: dict[str, Any] = {}
    where = "configuration"
    if path is not None:
        file = find_config_file(path)
        where = str(file)
        from_file = check_values(parse_yaml(file)[0], where)
    given = check_values(overrides, "command line")
    # A file's shapes are compared with its own image size before a flag changes that size.
    _complete({**default_values(), **from_file}, from_file, where)
    chosen = {**{k: v for k, v in from_file.items() if k not in DERIVED}, **given}
    values = {**default_values(), **chosen}
    _complete(values, chosen, where)
    loaded = Config(values)
    loaded.notes = _notes(values, chosen)
    return loaded


def feature_shapes_of(height: int, width: int) -> list[list[int]]:
    """Return (h, w) of P2 to P6: strides 4 to 32 of the image, then every second pixel of P5."""
    shapes = [[-(-height // s), -(-width // s)] for s in (4, 8, 16, 32)]
    last = shapes[-1]
    return [*shapes, [-(-last[0] // 2), -(-last[1] // 2)]]


def _complete(values: dict[str, Any], given: dict[str, Any], where: str) -> None:
    """Fill in the keys that follow from others, and check those that `given` sets."""
    height, width = values["img_height"], values["img_width"]
    if height % 32 or width % 32:
        raise UserError(
            f"{where}: img_width x img_height is {width}x{height}, expected multiples of 32"
        )
    shapes = feature_shapes_of(height, width)
    anchors = values["num_anchors"] * sum(h * w for h, w in shapes)
    for key, expected in (("feature_shapes", shapes), ("num_bboxes", anchors)):
        values[key] = expected
        if given.get(key, expected) != expected:
            raise UserError(
                f"{where}: {key} {given[key]} does not fit {width}x{height} images, expected "
                f"{expected}; remove the key and it is derived"
            )
    _complete_backbone(values, given, where)
    if len(values["coco_classes"]) != values["num_classes"]:
        raise UserError(
            f"{where}: num_classes is {values['num_classes']}, but coco_classes lists "
            f"{len(values['coco_classes'])} names with the background; make them agree"
        )


def backbone_of(name: str) -> Backbone:
    """Return what is known of a backbone.

    Raises:
        UserError: there is none of this name.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone is {name!r}, expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def trains_all_layers(config: Any) -> bool:
    """Return whether stem and first stage of the backbone are trained too."""
    return setting(config, "trainable_backbone_layers") == 5


def _complete_backbone(values: dict[str, Any], given: dict[str, Any], where: str) -> None:
    """Set a backbone's blocks; refuse the blocks of a ResNet-50 under a deeper one's name."""
    backbone = values["backbone"]
    usual, shallow = list(backbone_of(backbone).blocks), KEYS["resnet_block"].default
    if "resnet_block" not in given:
        values["resnet_block"] = usual
    elif usual != shallow and values["resnet_block"] == shallow:
        raise UserError(
            f"{where}: backbone is {backbone!r} and resnet_block is {shallow}, a ResNet-50's; set "
            f"resnet_block: {usual}, or remove it from the file"
        )


def _notes(values: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return a line for each value that means something else here, or has no effect."""
    notes = []
    kept = values["keep_checkpoint_max"]
    if kept:
        notes.append(
            f"keep_checkpoint_max: {kept} deletes nothing here, as upstream's example never read "
            f"it: all checkpoints are kept; for the newest {kept} of each worker set "
            f"checkpoints_kept: {kept}"
        )
    rate, scale = values["base_lr"], values["loss_scale"]
    if rate > HIGH_LR and not values["grad_clip"]:
        notes.append(
            f"base_lr: {rate:g} without grad_clip may end in a loss of nan: upstream's example "
            f"divided the gradient by loss_scale twice, so that {rate:g} acted as "
            f"{rate / scale:g}, and here it is divided once; set base_lr: "
            f"{KEYS['base_lr'].default:g}, the default, or grad_clip: True"
        )
    idle = [
        f"{key}: {value}"
        for key, value in given.items()
        if key in IDLE and key != "keep_checkpoint_max" and value != KEYS[key].default
    ]
    if idle:
        notes.append(f"without effect here: {', '.join(idle)} (--help says what is read instead)")
    return notes


def get_config(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> Config:
    """Return the configuration of a command: defaults, `--config_path`, then the other flags.

    Its attribute `given_flags` lists the keys that came from the command line.

    Args:
        argv: the command's arguments; None uses the process's.
        parser: the command's own flags; their values become attributes next to the keys.

    Raises:
        UserError: see `load_config`; or a flag is unknown (names the nearest).
    """
    parser = parser or script_parser(None)
    if "--config_path" not in parser._option_string_actions:
        parser.add_argument("--config_path", default=DEFAULT_CONFIG, help="YAML file of the keys")
    own = {action.dest for action in parser._actions}
    add_key_flags(parser)
    args = vars(parse_known(parser, argv))
    for alias, key in ALIASES.items():
        if alias in args:
            args.setdefault(key, args[alias])
    given = {k: v for k, v in args.items() if k in KEYS and k not in own}
    loaded = load_config(args["config_path"], **given)
    # Only a command with rank flags has ranks, whatever the file says.
    for name in {"run_distribute", "device_num", "rank_id"} - own:
        setattr(loaded, name, KEYS[name].default)
    for name in own & set(args):
        # If a command's flag is also a key and was not given, the file's value is kept.
        if name not in KEYS:
            setattr(loaded, name, args[name])
        elif args[name] is not None:
            setattr(loaded, name, KEYS[name].checked(name, args[name], "command line"))
    loaded.given_flags = sorted(given)
    return loaded
