"""Output of images and pages: creates folders and reports write errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError, user_path
from src.files import reason


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
