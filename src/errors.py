"""The one error that a user's input can cause, and how a command reports it."""

from __future__ import annotations

import difflib
import importlib.util
import os
import select
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

from src.files import FIXES, reason
from src.printing import print, printable

STANDARD_OUTPUT = 1
LONGEST_LINE = 4000  # characters of an error


class UserError(Exception):
    """Something in the user's hands is wrong: a file, a key, a flag, a port.

    The message is one line: what was found where, what was expected, how to fix it.
    """

    def __init__(self, message: str):
        # What it quotes may come from a file or a peer, and be of any length.
        line = printable(message)
        if len(line) > LONGEST_LINE:
            half = LONGEST_LINE // 2
            line = f"{line[:half]} [...] {line[-half:]}"
        super().__init__(line)


def user_path(path: str | Path) -> Path:
    """A path that a user gave, with the home folder in place of ~ or ~name at its beginning.

    Raises:
        UserError: nobody knows that folder.
    """
    try:
        return Path(path).expanduser()
    except (KeyError, RuntimeError) as error:  # the first in Python 3.9, without an own entry
        begin = Path(path).parts[0]
        why = "HOME is not set, and the system does not know this user"
        if begin != "~":
            why = f"the system knows no user {begin[1:]}"
        raise UserError(
            f"{path}: the folder of {begin} is not known ({why}); write the whole path"
        ) from error


class StartError(Exception):
    """What a launcher started did not become ready.

    Attributes:
        code: the launcher's exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name closest to `word`, or '' where none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]}?)" if matches else ""


def require_packages(*packages: str) -> None:
    """End the command with one line when this Python lacks the installed packages.

    Called before a script imports anything that needs them.

    Args:
        packages: names to import; without any, the engine's.
    """
    for package in packages or ("mindspore", "mindspore_federated"):
        if importlib.util.find_spec(package) is None:
            print(
                f"error: {sys.executable} has no {package}: run make install in the suite's "
                "folder, then source .venv/bin/activate",
                file=sys.stderr,
            )
            sys.exit(2)


def run_command(main: Callable[[], int | None]) -> None:
    """Call `main` as a command: a UserError becomes one line on stderr and exit code 2.

    So does a write that the system refuses. A StartError brings its own code. Ctrl-C ends with
    130, as a shell expects, without a traceback.
    """
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StartError as error:
        # Behind its first line may stand the last ones of a log.
        print(*f"error: {error}".split("\n"), sep="\n", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # As in `... | head`; at exit Python would try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        sys.exit(141)
    except OSError as error:
        if error.errno not in FIXES:
            raise
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        print(f"error: {error.filename or 'standard output'}: {reason(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more; a broken connection elsewhere is not that."""
    poll = select.poll()
    poll.register(STANDARD_OUTPUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
