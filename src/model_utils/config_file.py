"""YAML files of keys: where one is looked up, and what is wrong with one that does not parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError, user_path

PROJECT_DIR = Path(__file__).resolve().parents[2]
DEFAULT_CONFIG = "default_config.yaml"


def find_config_file(path: str | Path, flag: str = "--config_path") -> Path:
    """Absolute path of a configuration file: as given, in the current folder, or by the scripts.

    Raises:
        UserError: it is in neither place.
    """
    given = user_path(path)
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
