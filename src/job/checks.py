"""Checks with a verdict, as the launchers and tools/preflight.py make them.

A check is a function that returns a `Finding`; what is fatal it raises as UserError, whose message
says how to fix it. The launchers stop at the first one, the tool lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable

from src.errors import UserError
from src.printing import print

PASS, WARN, FAIL = LEVELS = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: PASS, WARN or FAIL.
        subject: what was looked at, a word.
        text: what was found, and for WARN and FAIL how to fix it.
    """

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}  {self.subject:14} {self.text}"


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        subject: its word.
        look: returns what was found where that is fine, or a Finding of any level.
        after: subject of a check without which this one would only fail for the same reason.
    """

    subject: str
    look: Callable[[], str | Finding]
    after: str = ""

    def run(self) -> Finding:
        """The finding; a UserError is a FAIL."""
        try:
            found = self.look()
        except UserError as error:
            return Finding(FAIL, self.subject, str(error))
        return found if isinstance(found, Finding) else Finding(PASS, self.subject, found)


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings one after the other, each when it is made."""
    failed = set()
    for check in checks:
        if check.after in failed:
            continue
        finding = check.run()
        if finding.level == FAIL:
            failed.add(finding.subject)
        yield finding


def require(checks: Iterable[Check]) -> None:
    """Print what is worth a warning.

    Raises:
        UserError: the first thing that is fatal.
    """
    for finding in run_checks(checks):
        if finding.level == FAIL:
            raise UserError(finding.text)
        if finding.level == WARN:
            print(finding, flush=True)
