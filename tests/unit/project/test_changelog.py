"""CHANGELOG.md and the version in pyproject.toml go together."""

import re

from src.model_utils.config import PROJECT_DIR

HEADING = re.compile(r"(?m)^## (.+)$")
RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+) - \d{4}-\d{2}-\d{2}")


def headings() -> list[str]:
    return HEADING.findall((PROJECT_DIR / "CHANGELOG.md").read_text(encoding="utf-8"))


def test_newest_first_each_with_its_date():
    unreleased, *releases = headings()
    assert unreleased == "Unreleased"
    numbers = [tuple(map(int, RELEASE.fullmatch(line).groups())) for line in releases]
    assert numbers
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_newest_is_the_projects_version():
    project = (PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'(?m)^version = "(.+)"$', project)
    assert headings()[1].split(" - ")[0] == version
