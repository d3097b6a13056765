"""docs/flags.md says what the scripts and files say."""

from src.model_utils.config import PROJECT_DIR
from src.reporting.flags_page import commands, flags_page, options


def test_the_page_is_what_the_code_generates():
    page = (PROJECT_DIR / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == flags_page(), "python tools/write_flags.py writes it again"


def test_every_launcher_is_in_it():
    assert {name for name in commands() if name.startswith("run_")} == {
        f"run_cross_silo_fasterrcnn_{role}.py"
        for role in ("sched", "server", "worker", "worker_distribute", "worker_distributed")
    }


def test_flags_and_their_words_are_taken_from_a_help_text():
    text = "usage: x\n\noptional arguments:\n  -h, --help  show\n  --long_name VALUE\n"
    text += "              first | words\n              second\n  --short     third\n"
    assert options(text) == [("--long_name VALUE", "first \\| words second"), ("--short", "third")]
