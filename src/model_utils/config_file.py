"""YAML files of keys: finds, reads and writes them, and explains why one does not parse."""

from __future__ import annotations

import json
import re
import textwrap
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from src.errors import UserError, user_path
from src.model_utils.config_keys import SECTIONS, Key

# Of a file of settings; COCO's own list of classes has 2 kB.
LARGEST_BYTES, MOST_VALUES, DEEPEST, LONGEST_NUMBER = 2**20, 100_000, 30, 400
PROJECT_DIR = Path(__file__).resolve().parents[2]
DEFAULT_CONFIG = "default_config.yaml"


def find_config_file(path: str | Path, flag: str = "--config_path") -> Path:
    """Return a configuration file's absolute path: as given, in the current or scripts' folder.

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


class SettingsLoader(yaml.SafeLoader):
    """Loads text, numbers, True and False, lists and mappings; dates are text.

    A few lines of aliases can expand to more values than fit into memory, and brackets can nest
    deeper than the interpreter's stack: both are refused.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # number of values in a node, aliases expanded

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        """Scan a bracket, and limit the open ones, which slow down scanning."""
        if self.flow_level > DEEPEST:
            raise self._too_deep(self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Return the next value; refuse one that is too deep or too large."""
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._too_deep(mark)
        node = super().compose_node(parent, index)
        assert node is not None  # a value begins here
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise ConstructorError(None, None, "an alias of what it stands in", mark)
        if node not in self._sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = chain.from_iterable(p if isinstance(p, tuple) else (p,) for p in inner)
            self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        if self._sizes[node] > MOST_VALUES:
            words = f"more than {MOST_VALUES} values, with those that aliases stand for"
            raise ConstructorError(None, None, words, mark)
        return node

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number; explain an invalid one."""
        kind = node.tag.rpartition(":")[2]
        make = {"int": self.construct_yaml_int, "float": self.construct_yaml_float}[kind]
        try:
            if len(node.value) <= LONGEST_NUMBER:
                return make(node)
        except (ValueError, LookupError, OverflowError) as error:
            raise self._no_number(node) from error
        raise self._no_number(node)

    @staticmethod
    def _too_deep(mark: yaml.Mark) -> ConstructorError:
        return ConstructorError(None, None, f"nested more than {DEEPEST} deep", mark)

    @staticmethod
    def _no_number(node: yaml.ScalarNode) -> ConstructorError:
        return ConstructorError(None, None, f"{node.value[:40]!r} is no number", node.start_mark)


TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
SettingsLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in TAGS
}
SettingsLoader.add_constructor("tag:yaml.org,2002:int", SettingsLoader.number)
SettingsLoader.add_constructor("tag:yaml.org,2002:float", SettingsLoader.number)
SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def yaml_documents(text: str) -> list[Any]:
    """Return the documents of a YAML text.

    Raises:
        yaml.YAMLError: it is invalid, or exceeds the limits of a settings file.
    """
    loader, documents = SettingsLoader(text), []
    try:
        while loader.check_data():
            documents.append(loader.get_data())
    finally:
        loader.dispose()
    return documents


def read_yaml_documents(path: Path) -> list[dict[str, Any]]:
    """Read the documents of a YAML file, each a dict; a UserError names an invalid line."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise UserError(f"{path}: has more than {LARGEST_BYTES} bytes: no file of settings")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    try:
        documents = [doc for doc in yaml_documents(text) if doc is not None]
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
    """Return the message for `key:"value"`, which YAML does not read as a key with a value."""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"""\s*([A-Za-z_]\w*):(["'\w./-]\S*)""", line)
        if found:
            key, value = found.groups()
            return f"line {number}: a space is missing after '{key}:', write {key}: {value}"
    return ""


CONFIG_HEAD = """\
# Detector, data and training. Edit this file, or give one of your own as --config_path: a key that
# is left out has the value that stands here. Every scalar key is also a flag (--img_width=640),
# which wins over the file. tools/write_default_config.py wrote it from config_keys.py.
"""
WIDTH, COMMENT_COLUMNS = 100, (28, 36, 48, 64)


def default_config_text() -> str:
    """Return default_config.yaml: every key that does something, its default and its meaning."""
    parts = [CONFIG_HEAD]
    for title, keys in SECTIONS.items():
        parts.append(f"# ---- {title} ".ljust(WIDTH, "-"))
        parts += [_line(name, key) for name, key in keys.items()]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _line(name: str, key: Key) -> str:
    """Return a key with its comment, which continues on the next lines where it is long."""
    setting = f"{'# ' if key.follows else ''}{name}: {_as_yaml(key.default)}"
    words = f"{key.help} ({', '.join(map(str, key.choices))})" if key.choices else key.help
    if len(setting) > WIDTH:
        # No line is broken within a name.
        unbroken = re.sub(r'"[^"]*"', lambda name: name[0].replace(" ", "\0"), setting)
        listed = textwrap.fill(unbroken, WIDTH, subsequent_indent="  ").replace("\0", " ")
        return f"# {words}\n{listed}"
    column = next((c for c in COMMENT_COLUMNS if len(setting) + 2 <= c), 0)
    if not column:
        return "\n".join([*(f"# {line}" for line in textwrap.wrap(words, WIDTH - 2)), setting])
    first, *more = textwrap.wrap(words, WIDTH - column - 2)
    lines = [f"{setting.ljust(column)}# {first}", *(" " * column + f"# {line}" for line in more)]
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    """Return a value as a line of YAML: without the exponents, which YAML 1.1 reads as text."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return json.dumps(value) if isinstance(value, str) else str(value)
