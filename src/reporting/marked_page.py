"""Replace a table of measured metrics in a page of the docs, between two marks."""

from __future__ import annotations

from pathlib import Path

from src.errors import UserError, writing
from src.files import write_whole

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def split_page(page: Path) -> tuple[str, str]:
    """Return the text before and after the table, including the marks.

    Raises:
        UserError: no such file, or not one begin mark and one end mark in this order.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--write {page}: cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"--write {page}: expected the lines {BEGIN} and {END}, in this order")
    return before + begin, end + after


def write_table(page: Path, text: str) -> None:
    """Write `text` between the marks of `page`.

    Raises:
        UserError: as `split_page`, or the file cannot be written.
    """
    before, after = split_page(page)
    with writing(page, "--write"):
        write_whole(page, f"{before}\n{text}\n{after}")
