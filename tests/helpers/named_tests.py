"""Find tests that a page names, as in `tests/unit/federated/test_silo.py::test_a_round`."""

import ast
import re

from src.model_utils.config import PROJECT_DIR

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def named_tests(text: str) -> list[tuple[str, str]]:
    """Return (file, function) of each."""
    return sorted(set(NAMED.findall(text)))


def missing_tests(text: str) -> list[str]:
    """Return those that do not exist, without importing anything."""
    return [f"{file}::{name}" for file, name in named_tests(text) if not _exists(file, name)]


def _exists(file: str, name: str) -> bool:
    path = PROJECT_DIR / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return name in functions
