"""What the pages for engineers name is there: files, tests, other pages."""

import re

import pytest
from named_tests import missing_tests, named_tests

from src.model_utils.config import PROJECT_DIR

PAGES = sorted(
    path.relative_to(PROJECT_DIR).as_posix()
    for path in [*PROJECT_DIR.glob("C*.md"), *(PROJECT_DIR / "docs").glob("*.md")]
)
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|toml|txt|lock|md))`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
# It tells of files that were, too.
OF_NOW = [page for page in PAGES if page != "CHANGELOG.md"]
# Of other formats, and of a conversion, which docs/data.md explains.
THEIRS = {"our_config.yaml", "classes.txt", "data.yaml", "val.txt", "ImageSets/Main/train.txt"}
THEIRS |= {"label_notes.txt"}  # which convert_labels.py writes
THEIRS |= {"skipped_images.txt"}
# Which make_certificates.py and make_gate.py write.
THEIRS |= {"silos.yaml", "certificates/silos.yaml", "gate/federation.yaml"}
FOLDERS = ("src", "tools", "tests", "docs", "configs", "deploy", ".github")


def text_of(page: str) -> str:
    return (PROJECT_DIR / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def files() -> set[str]:
    """The end of every path of a file: a.py, b/a.py and src/b/a.py."""
    found = [path for path in PROJECT_DIR.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (PROJECT_DIR / folder).rglob("*") if path.is_file()]
    ends = set()
    for path in found:
        parts = path.relative_to(PROJECT_DIR).parts
        ends.update("/".join(parts[start:]) for start in range(len(parts)))
    return ends


@pytest.mark.parametrize("page", OF_NOW)
def test_a_named_file_is_there(page, files):
    assert set(FILE.findall(text_of(page))) - files - THEIRS == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file(page):
    folder = (PROJECT_DIR / page).parent
    links = LINK.findall(text_of(page))
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_named_test_exists(page):
    assert missing_tests(text_of(page)) == []


def test_the_pages_name_enough_to_look_for():
    everything = "".join(map(text_of, PAGES))
    assert len(set(FILE.findall(everything))) > 50
    assert len(named_tests(everything)) > 50


def test_each_attack_that_an_auditor_reads_of_names_a_test():
    text = text_of("docs/security.md")
    tables = re.findall(r"(?m)^\| attack \|.*\n\|---.*\n((?:\|.*\n)+)", text)
    assert len(tables) == 5
    for line in "".join(tables).splitlines():
        assert named_tests(line), line


def test_nobody_is_told_to_bring_the_scheduler_to_a_browser():
    """It obeys any page that reaches it."""
    for page in PROJECT_DIR.rglob("*.md"):
        if ".venv" not in page.parts:
            assert not re.search(r"ssh[^`\n]* -[LDR]\b", page.read_text(encoding="utf-8")), page
