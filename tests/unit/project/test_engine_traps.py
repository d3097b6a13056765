"""docs/engine_traps.md names tests and modules that exist, and a test for each trap."""

import re

from named_tests import missing_tests, named_tests

from src.model_utils.config import PROJECT_DIR

PAGE = PROJECT_DIR / "docs" / "engine_traps.md"
HEADING = ["trap", "what a user would see", "our guard", "test"]


def rows() -> list[list[str]]:
    """The cells of each trap."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row != HEADING and set(row) != {"---"}]


def test_every_trap_has_four_cells_that_say_something():
    assert len(rows()) > 40
    assert [row for row in rows() if len(row) != len(HEADING) or not all(row)] == []


def test_every_named_test_exists():
    text = PAGE.read_text(encoding="utf-8")
    assert len(named_tests(text)) > 40
    assert missing_tests(text) == []


def test_every_trap_names_a_test():
    assert [row[0] for row in rows() if "::test_" not in row[-1]] == []


def test_every_guard_is_a_module():
    modules = {path.name for path in (PROJECT_DIR / "src").rglob("*.py")}
    named = {name for row in rows() for name in re.findall(r"`(\w+\.py)`", row[2])}
    assert len(named) > 15
    assert named - modules == set()
