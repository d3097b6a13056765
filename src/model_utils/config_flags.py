"""Flags of a command: one for each scalar key, and the error for a wrong one."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from src.errors import UserError, nearest
from src.model_utils.config_file import DEFAULT_CONFIG
from src.model_utils.config_keys import GONE_FLAGS, IDLE, SECTIONS, Key

IDLE_TITLE = "accepted from upstream's and ModelZoo's files, without effect here"


def parse_bool(text: str) -> bool:
    """Parse True or False from a flag's text.

    Raises:
        argparse.ArgumentTypeError: it is any other word.
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
    """Add a flag to `parser` for each scalar key of `cfg` that it lacks, and parse `argv`.

    A flag that was not given is absent from the result, so that `merge` keeps the file's value.
    Lists and dicts are set in the file only.
    """
    group = parser.add_argument_group(f"keys of {Path(cfg_path).name}")
    helper, choices = helper or {}, choices or {}
    for key, value in cfg.items():
        if isinstance(value, (list, dict)) or f"--{key}" in parser._option_string_actions:
            continue
        group.add_argument(
            f"--{key}",
            type=parse_bool if isinstance(value, bool) else type(value),
            choices=choices.get(key),
            default=argparse.SUPPRESS,
            metavar=type(value).__name__.upper(),
            help=helper.get(key, f"default {value!r}".replace("%", "%%")),
        )
    return parser.parse_args(argv)


def add_key_flags(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add a `--key` to `parser` for each scalar key that it lacks, in a group for each section.

    Args:
        names: the keys; None adds all of them.
    """
    for title, keys in {**SECTIONS, IDLE_TITLE: IDLE}.items():
        wanted = [name for name in keys if names is None or name in names]
        if wanted:
            group = parser.add_argument_group(title)
            for name in wanted:
                _add_flag(parser, group, name, keys[name])


def _add_flag(parser: argparse.ArgumentParser, group: Any, name: str, key: Key) -> None:
    flag, default = f"--{name}", key.default
    if isinstance(default, (list, dict)) or flag in parser._option_string_actions:
        return
    choices = ",".join(map(str, key.choices)) if len(key.choices) > 1 else ""
    group.add_argument(
        flag,
        type=parse_bool if isinstance(default, bool) else type(default),
        default=argparse.SUPPRESS,
        metavar=f"{{{choices}}}" if choices else type(default).__name__.upper(),
        help=f"{key.help} (default {default!r})".replace("%", "%%"),
    )


def merge(args: argparse.Namespace, cfg: dict[str, Any]) -> dict[str, Any]:
    """Return `cfg` with the given flags overriding its values."""
    merged = copy.deepcopy(cfg)
    merged.update(vars(args))
    return merged


class _ScriptParser(argparse.ArgumentParser):
    """A parser whose usage is one line, because there may be hundreds of flags.

    The line has the required ones; the others are listed below it.
    """

    def format_help(self) -> str:
        """Return the help text, the script's description first."""
        needed = argparse.ArgumentParser(prog="%(prog)s [flags]", usage=None, add_help=False)
        for action in self._actions:
            if action.required or not action.option_strings:
                needed._add_action(action)
        self.usage = " ".join(needed.format_usage().split()[1:])
        return super().format_help()


def script_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Make a parser whose help is the script's unchanged docstring; flags cannot be abbreviated.

    Args:
        prog: the name of the command, if it is more than the script's name.
    """
    return _ScriptParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_known(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """Call `parser.parse_args`, but report a wrong flag in one line, without usage.

    Raises:
        UserError: a flag is unknown (names the nearest), has the wrong type, or is missing.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    parser.error = refuse  # type: ignore[method-assign]  # of this parser only
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        if flag in GONE_FLAGS:
            raise UserError(f"{flag}: {GONE_FLAGS[flag]}")
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        raise UserError(f"unknown flag {flag}{nearest(flag, known)}; --help lists them")
    return args
