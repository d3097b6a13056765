"""Where pictures and pages are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError, user_path
from src.files import reason


def writable_folder(path: Path, flag: str) -> Path:
    """The absolute folder that `flag` names, made where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    folder = user_path(path).absolute()
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Turn what the system says while `path` is written into a UserError that names `flag`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{flag} {path}: {where} cannot be written: {reason(error)}") from error
