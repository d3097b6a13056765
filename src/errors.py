"""The error for wrong user input, and how a command reports it."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import select
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

from src.files import FIXES, reason
from src.printing import print, printable

STANDARD_OUTPUT = 1
LONGEST_LINE = 4000  # characters of an error


class UserError(Exception):
    """Something that the user controls is wrong: a file, a key, a flag, a port.

    The message is one line: what was found where, what was expected, how to fix it.
    """

    def __init__(self, message: str):
        # Text quoted in it may come from a file or a peer, and have any length.
        line = printable(message)
        if len(line) > LONGEST_LINE:
            half = LONGEST_LINE // 2
            line = f"{line[:half]} [...] {line[-half:]}"
        super().__init__(line)


def user_path(path: str | Path) -> Path:
    """Return a user's path, with the home folder in place of a leading ~ or ~name.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except (KeyError, RuntimeError) as error:  # KeyError: Python 3.9, for a user without an entry
        begin = Path(path).parts[0]
        why = "HOME is not set, and the system does not know this user"
        if begin != "~":
            why = f"the system knows no user {begin[1:]}"
        raise UserError(
            f"{path}: the folder of {begin} is not known ({why}); write the whole path"
        ) from error


class StartError(Exception):
    """A process that a launcher started did not become ready.

    Attributes:
        code: the launcher's exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known name closest to `word`, or '' if none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]}?)" if matches else ""


def require_packages(*packages: str) -> None:
    """End the command with a one-line error if this Python lacks the packages.

    Call it before a script imports anything that needs them. From then on Ctrl-C ends the command
    without a traceback, also during these imports.

    Args:
        packages: names to import; default: the engine's.
    """
    sys.excepthook = _show_error
    for package in packages or ("mindspore", "mindspore_federated"):
        if importlib.util.find_spec(package) is None:
            print(
                f"error: {sys.executable} has no {package}: run make install in the suite's "
                "folder, then source .venv/bin/activate",
                file=sys.stderr,
            )
            sys.exit(2)


def _show_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an exception that ends the process, as Python does, but one word for Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def run_command(main: Callable[[], int | None]) -> None:
    """Call `main` as a command: a UserError becomes one line on stderr and exit code 2.

    So does a write that the system refuses. A StartError has its own code. Ctrl-C ends with 130, as
    a shell expects, without a traceback.
    """
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StartError as error:
        # The last lines of a log may follow its first line.
        print(*f"error: {error}".split("\n"), sep="\n", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # As in `... ¦ head`; at exit Python would try to write the rest.
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
    """Return whether standard output has lost its reader; other broken connections do not count."""
    poll = select.poll()
    poll.register(STANDARD_OUTPUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def writable_folder(path: Path, flag: str) -> Path:
    """Return the absolute folder that `flag` names, created if missing.

    Raises:
        UserError: it cannot be created.
    """
    folder = user_path(path).absolute()
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Turn a system error while `path` is written into a UserError that names `flag`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{flag} {path}: {where} cannot be written: {reason(error)}") from error
