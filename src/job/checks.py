"""Checks with a verdict, which the launchers and tools/preflight.py run.

A check is a function that returns a `Finding`. It raises a UserError for a fatal fault, whose
message says how to fix it. The launchers stop at the first one, the tool lists them all.
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
    """The result of a check.

    Attributes:
        level: PASS, WARN or FAIL.
        subject: what was checked, as one word.
        text: what was found, and for WARN and FAIL how to fix it.
    """

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}  {self.subject:14} {self.text}"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        subject: what it checks, as one word.
        look: returns text for a PASS, or a Finding of any level.
        after: subject of a check whose failure would also be the reason for this one's.
    """

    subject: str
    look: Callable[[], str | Finding]
    after: str = ""

    def run(self) -> Finding:
        """Run the check and return its finding; a UserError is a FAIL."""
        try:
            found = self.look()
        except UserError as error:
            return Finding(FAIL, self.subject, str(error))
        return found if isinstance(found, Finding) else Finding(PASS, self.subject, found)


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks and yield each finding as it is made."""
    failed = set()
    for check in checks:
        if check.after in failed:
            continue
        finding = check.run()
        if finding.level == FAIL:
            failed.add(finding.subject)
        yield finding


def require(checks: Iterable[Check]) -> None:
    """Run the checks and print the warnings.

    Raises:
        UserError: the first fatal fault.
    """
    for finding in run_checks(checks):
        if finding.level == FAIL:
            raise UserError(finding.text)
        if finding.level == WARN:
            print(finding, flush=True)
