"""Configuration of detector, data and training: YAML file, then flags, checked against one table.

`default_config.yaml` beside the scripts is that table: its keys are the keys that exist, its
values the defaults and the types. A user's file is laid over it, flags over both.
"""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError, nearest
from src.model_utils.flag_help import HELP

PROJECT_DIR = Path(__file__).resolve().parents[2]
DEFAULT_CONFIG = "default_config.yaml"

# Keys that exist although the default file leaves them out, with a value of their type.
DERIVED_KEYS = {"feature_shapes": [[0, 0]]}

CHOICES = {
    "device_target": ("CPU", "GPU", "Ascend"),
    "backbone": ("resnet_v1.5_50", "resnet_v1_50"),
    "lr_type": ("dynamic", "step"),
    "opt_type": ("sgd",),
    "sync_type": ("fixed", "adaptive"),
    "dataset": ("coco", "other"),
}
POSITIVE = (
    "batch_size", "base_lr", "client_epoch_num", "loss_scale", "grad_clip_norm", "img_width",
    "img_height", "num_gts", "num_classes", "epoch_size", "num_parallel_workers", "interval",
    "test_batch_size", "num_expected_neg", "num_expected_pos", "rpn_proposal_max_num",
    "rpn_max_num", "data_size_unit", "observation_window_size", "frequency_increase_ratio",
)  # fmt: skip
NOT_NEGATIVE = (
    "sync_frequency", "threads", "keep_checkpoint_max", "warmup_step",
    "warmup_ratio", "weight_decay", "momentum", "device_id", "seed", "flip_ratio", "expand_ratio",
    "eval_limit", "min_consistent_rate", "min_consistent_rate_at_round", "unchanged_round",
    "dp_clip_norm", "dp_noise_multiplier",
)  # fmt: skip


# What upstream's files may ask for and this suite does not do: the neutral value, and the reason.
UNAVAILABLE = {
    "enable_modelarts": (False, "ModelArts is not supported yet"),
    "enable_profiling": (False, "it only ever profiled upstream's ModelArts runs"),
    "finetune": (False, "nothing reads it; pre_trained continues from any checkpoint"),
    "log_summary": (False, "no summary files are written"),
}


class Config:
    """Attribute access to a dict; dicts inside it, in lists too, are wrapped likewise.

    Args:
        cfg_dict: plain values, as `yaml.safe_load` gives them.
    """

    def __init__(self, cfg_dict: dict[str, Any]):
        for key, value in cfg_dict.items():
            setattr(self, key, _wrap(value))

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


def find_config_file(path: str | Path, flag: str = "--config_path") -> Path:
    """Absolute path of a configuration file: as given, in the current folder, or by the scripts.

    Raises:
        UserError: it is in neither place.
    """
    given = Path(path).expanduser()
    for candidate in (given, PROJECT_DIR / given):
        if candidate.is_file():
            return candidate.resolve()
    places = f"{given.absolute()}"
    if not given.is_absolute():
        places += f" nor {PROJECT_DIR / given}"
    raise UserError(f"{flag} {path}: no such file ({places}); give the path of a YAML file")


def read_yaml_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file, each a dict; broken YAML is a UserError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    try:
        documents = [doc for doc in yaml.safe_load_all(text) if doc is not None]
    except yaml.YAMLError as error:
        raise UserError(_yaml_fault(path, text, error)) from error
    if not documents or not all(isinstance(doc, dict) for doc in documents):
        hint = _missing_space(text)
        raise UserError(f"{path}: {hint or 'expected lines of the form key: value'}")
    return documents


def _yaml_fault(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{path}{where}: not valid YAML: {_missing_space(text) or problem}"


def _missing_space(text: str) -> str:
    """The message for `key:"value"`, which YAML does not take for a key with a value."""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"""\s*([A-Za-z_]\w*):(["'\w./-]\S*)""", line)
        if found:
            key, value = found.groups()
            return f"line {number}: a space is missing after '{key}:', write {key}: {value}"
    return ""


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


def check_values(values: dict[str, Any], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` with each key known and each value of its default's type.

    A None, as YAML gives for a key with nothing behind it, stands for the default.

    Raises:
        UserError: unknown key (names the nearest), wrong type, or out of range.
    """
    known = {**defaults, **DERIVED_KEYS}
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
        if value is not None:
            checked[key] = check_value(key, value, known[key], where)
    return checked


def check_value(key: str, value: Any, default: Any, where: str) -> Any:
    """`value`, converted without loss to the type of `default`, and in the key's range."""
    converted = _convert(value, default)
    if converted is None:
        kind = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}.get(
            type(default), f"a {type(default).__name__} like {default}"
        )
        raise UserError(f"{where}: {key} is {value!r}, expected {kind}")
    if key in CHOICES and converted not in CHOICES[key]:
        raise UserError(f"{where}: {key} is {value!r}, expected one of {', '.join(CHOICES[key])}")
    if key in UNAVAILABLE and converted != UNAVAILABLE[key][0]:
        neutral, reason = UNAVAILABLE[key]
        raise UserError(f"{where}: {key} is {value!r}, expected {neutral!r}: {reason}")
    if key in POSITIVE and not converted > 0:
        raise UserError(f"{where}: {key} is {value!r}, expected more than 0")
    if key in NOT_NEGATIVE and not converted >= 0:
        raise UserError(f"{where}: {key} is {value!r}, expected 0 or more")
    return converted


def _convert(value: Any, default: Any) -> Any:
    """`value` as the type of `default`, or None where it is not of that type."""
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, int):
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(default, float):
        return _as_float(value)
    return value if isinstance(value, type(default)) else None


def _as_float(value: Any) -> float | None:
    """A float; YAML 1.1 reads 1e-5, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def parse_bool(text: str) -> bool:
    """True or False from a flag's text.

    Raises:
        argparse.ArgumentTypeError: any other word.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.strip().lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is not True or False")
    return words[text.strip().lower()]


def parse_cli_to_yaml(
    parser: argparse.ArgumentParser,
    cfg: dict[str, Any],
    helper: dict[str, str] | None = None,
    choices: dict[str, list] | None = None,
    cfg_path: str = DEFAULT_CONFIG,
    argv: list[str] | None = None,
) -> argparse.Namespace:
    """Give `parser` a flag for each scalar key of `cfg` that it lacks, and parse `argv`.

    A flag that was not given is absent from the result, so that `merge` keeps the file's value.
    Lists and dicts are set in the file only.
    """
    add_config_flags(parser, cfg, helper or {}, choices or {}, cfg_path)
    return parser.parse_args(argv)


def add_config_flags(
    parser: argparse.ArgumentParser,
    cfg: dict[str, Any],
    helper: dict[str, str],
    choices: dict[str, list],
    cfg_path: str,
) -> None:
    """A `--key` for each scalar of `cfg` that `parser` does not have yet."""
    group = parser.add_argument_group(f"keys of {Path(cfg_path).name}")
    taken = set(parser._option_string_actions)
    for key, value in cfg.items():
        if isinstance(value, (list, dict)) or f"--{key}" in taken:
            continue
        group.add_argument(
            f"--{key}",
            type=parse_bool if isinstance(value, bool) else type(value),
            choices=choices.get(key),
            default=argparse.SUPPRESS,
            metavar=type(value).__name__.upper(),
            help=helper.get(key, f"default {value!r}".replace("%", "%%")),
        )


def merge(args: argparse.Namespace, cfg: dict[str, Any]) -> dict[str, Any]:
    """`cfg` with the given flags laid over it."""
    merged = copy.deepcopy(cfg)
    merged.update(vars(args))
    return merged


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
    parser = parser or argparse.ArgumentParser(add_help=True, allow_abbrev=False)
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


def parse_known(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """`parser.parse_args`, except that a wrong flag is one line, without a page of usage.

    Raises:
        UserError: an unknown flag (names the nearest), one of a wrong type, or one that is missing.
    """

    def refuse(message: str) -> None:
        raise UserError(f"{message}; --help lists the flags")

    parser.error = refuse
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        raise UserError(f"unknown flag {flag}{nearest(flag, known)}; --help lists them")
    return args
