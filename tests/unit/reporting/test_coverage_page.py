"""The table of docs/coverage.md, from a report of coverage.py."""

import json

import pytest
from commands import refused, succeed

from src.reporting.coverage_page import coverage_table, read_coverage
from src.reporting.marked_page import BEGIN, END


@pytest.fixture
def report(tmp_path):
    counts = {"src/errors.py": (10, 9), "src/data/a.py": (30, 15), "src/data/b.py": (10, 10)}
    files = {
        name: {"summary": {"num_statements": all_of_them, "covered_lines": ran}}
        for name, (all_of_them, ran) in counts.items()
    }
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps({"files": files}))
    return path


def test_a_row_for_each_package_and_one_for_all(report):
    assert coverage_table(read_coverage(report)).splitlines()[2:] == [
        "| `src` | 10 | 90 % |",
        "| `src/data` | 40 | 62 % |",
        "| all | 50 | 68 % |",
    ]


def test_a_package_without_statements_has_no_share():
    assert coverage_table({"src/a/__init__.py": (0, 0)}).endswith("| all | 0 | - |")


def test_the_tool_writes_between_the_marks(report):
    page = report.with_name("page.md")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    said = succeed(report.parent, "tools/write_coverage.py", "coverage.json", "--write=page.md")
    assert page.read_text() == f"before\n{BEGIN}\n{said}{END}\nafter\n"


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"a": {}}}'])
def test_another_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    line = refused(tmp_path, "tools/write_coverage.py", "x.json")
    assert "x.json: not a json report of coverage.py" in line
