"""Finds the file that a name in labels refers to: exactly, or as labelling programs spell it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from src.errors import UserError

PROBED_IMAGES = 10
OUTSIDE = "that lie outside of"  # beginning of the note on images outside the folder
LOOKED_AT = 200  # subfolders that are searched for missing images

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio prefixes an uploaded file's name with it


class Found(NamedTuple):
    """A file, and the other spelling of its name by which it was found; '' for the exact name."""

    path: Path
    spelling: str = ""


class ImageFolder:
    """Finds the files of one folder by their names in a json.

    Args:
        folder: the folder of the images.
    """

    def __init__(self, folder: Path):
        self.path = folder
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Found | None:
        """Return the file that `name` refers to; None if that is ambiguous or missing."""
        if is_image_file(self.path / name):
            return Found(self.path / name)
        for spelling, other in _spellings(name):
            if is_image_file(self.path / other):
                return Found(self.path / other, spelling)
            found = self._whatever_case(other)
            if found:
                how = spelling or "differs in upper and lower case or in Unicode form"
                return Found(found, how)
            parts = PurePosixPath(other).parts
            for count in range(1, len(parts)):
                if self.path.parts[-count:] == parts[:count]:
                    path = self.path.joinpath(*parts[count:])
                    if is_image_file(path):
                        return Found(path, "begins with the folder that the images are in")
        last = _last_part(name)
        found = self._whatever_case(last) if last else None
        return (
            Found(found, "is a path or URL of another machine: by its last part") if found else None
        )

    def _whatever_case(self, name: str) -> Path | None:
        """Return the only file of this name, ignoring case and Unicode form."""
        place = self.path
        for part in PurePosixPath(name).parts:
            if part in ("..", "/"):
                return None
            if place not in self._listings:
                self._listings[place] = _listing(place)
            same = self._listings[place].get(_folded(part), [])
            if len(same) != 1:
                return None
            place /= same[0]
        return place if is_image_file(place) else None

    def hint(self, name: str) -> str:
        """Return what exists instead of a missing image, and how to fix it; or ''."""
        spellings = [other for _, other in _spellings(name)]
        for other in spellings:
            for place in _folders_within(self.path):
                if is_image_file(place / other):
                    return f"{place / other} is there: set image_dir to {place}"
        last = PurePosixPath(spellings[-1]).name
        short = UPLOAD.sub("", last, count=1)
        for other in dict.fromkeys((last, short)):
            same = self._listings.setdefault(self.path, _listing(self.path)).get(_folded(other), [])
            if len(same) > 1:
                return f"{' and '.join(same[:3])} are there: write one of them into file_name"
            if same:
                return (
                    f"{self.path / same[0]} is there: if that is the image, write {same[0]!r} into "
                    "file_name"
                )
        stem = _folded(PurePosixPath(last).stem)
        for names in self._listings[self.path].values():
            if names and _folded(PurePosixPath(names[0]).stem) == stem:
                return f"{names[0]} is there: if that is the image, write it into file_name"
        return ""


def is_image_file(path: Path) -> bool:
    """Return whether a file exists; a name that the file system refuses does not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def folder_of(names: Sequence[str], folders: list[Path], source: Path) -> Path:
    """Return the first of `folders` that holds any of the first few images of `source`.

    Args:
        names: the names of all its images.
        source: the label file.

    Raises:
        UserError: none of them does; names the folders, and what exists instead.
    """
    probe = names[:PROBED_IMAGES]
    looked_in = [ImageFolder(folder) for folder in dict.fromkeys(folders)]
    for exactly in (True, False):
        for folder in looked_in:
            found = (folder.find(name) for name in probe)
            if any(one and not (exactly and one.spelling) for one in found):
                return folder.path
    hint = next(filter(None, (folder.hint(probe[0]) for folder in looked_in)), "")
    raise UserError(
        f"{source}: its images are not found, first {probe[0]} (looked in "
        f"{', '.join(str(folder.path) for folder in looked_in)}); "
        + (hint or "set image_dir to their folder")
    )


def files_of(names: Sequence[str], folder: Path, source: Path, notes: Counter) -> list[Path]:
    """Return the file of each image of `source`, all of them in `folder`.

    Args:
        notes: counts images found by another spelling of their name, and images outside `folder`,
            with an example of each.

    Raises:
        UserError: some are missing, or two names refer to one file; names the first.
    """
    finder = ImageFolder(folder)
    found = [finder.find(name) for name in names]
    missing = [name for name, one in zip(names, found) if one is None]
    if missing:
        hint = finder.hint(missing[0]) or (
            "set image_dir to the folder that has them all, or take them out of the labels"
        )
        raise UserError(
            f"{folder / missing[0]}: no such image ({len(missing)} of the {len(names)} images of "
            f"{source} are missing in {folder}); {hint}"
        )
    _require_one_name_each(names, found, source)
    firsts: dict[str, str] = {}
    counts = Counter(one.spelling for one in found if one and one.spelling)
    for name, one in zip(names, found):
        if one and one.spelling:
            firsts.setdefault(one.spelling, f"{name!r} is {one.path}")
    for spelling, count in counts.items():
        notes[f"whose name in the labels {spelling}, first {firsts[spelling]}"] += count
    paths = [one.path for one in found if one]
    _note_those_outside(paths, folder, notes)
    return paths


def _note_those_outside(paths: Sequence[Path], folder: Path, notes: Counter) -> None:
    """Count images outside `folder`, reached by "..", an absolute name or a link.

    A folder of links is common, so none is refused. But labels from others could include any image
    that this user can read.
    """
    within = folder.resolve()
    places: dict[Path, Path] = {}
    outside = []
    for path in paths:
        if path.is_symlink():
            real = path.resolve()
        else:
            if path.parent not in places:
                places[path.parent] = path.parent.resolve()
            real = places[path.parent] / path.name
        if not real.is_relative_to(within):
            outside.append(real)
    if outside:
        notes[f"{OUTSIDE} {folder}, first {outside[0]}"] += len(outside)


def _require_one_name_each(
    names: Sequence[str], found: Sequence[Found | None], source: Path
) -> None:
    """Raise a UserError if two names refer to one file, one of them by another spelling."""
    if not any(one and one.spelling for one in found):
        return
    first: dict[Path, str] = {}
    for name, one in zip(names, found):
        if one and first.setdefault(one.path, name) != name:
            raise UserError(
                f"{source}: {first[one.path]!r} and {name!r} would both be {one.path}; write into "
                "file_name where each lies below image_dir"
            )


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    """Yield spellings of a name and how they differ, starting with the name itself."""
    yield "", name
    slashed = name.replace("\\", "/")
    if slashed != name:
        yield "has backslashes", slashed
    plain = unquote(slashed)
    if plain != slashed:
        yield "is percent-encoded", plain


def _last_part(name: str) -> str:
    """Return the file's own name, without the folders of another machine."""
    slashed = name.replace("\\", "/")
    if URL.match(name) or slashed.startswith("/") and "?" in slashed:
        parsed = urlsplit(slashed)
        # Label Studio's local files have the path in the query.
        slashed = (parse_qs(parsed.query).get("d") or [unquote(parsed.path)])[0]
    elif not (slashed.startswith("/") or DRIVE.match(name) or ".." in slashed.split("/")):
        return ""
    return PurePosixPath(slashed).name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _listing(folder: Path) -> dict[str, list[str]]:
    """Return the names in a folder, grouped by their form without case."""
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            names.setdefault(_folded(name), []).append(name)
    except OSError:
        return {}
    return names


def _folders_within(folder: Path) -> Iterator[Path]:
    """Yield the folders one and two levels below, up to a limit, and the one above."""
    for pattern in ("*/", "*/*/"):
        try:
            yield from islice((path for path in folder.glob(pattern) if path.is_dir()), LOOKED_AT)
        except OSError:
            return
    yield folder.parent
