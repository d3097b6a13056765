"""The files of a label folder: finds images by any name and their splits, and decodes text."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Tuple, Union
from urllib.parse import unquote

from src.errors import UserError

# Folders that say what kind of file is in them, not which images.
KINDS = frozenset(
    "annotation annotations xml xmls label labels jpegimages jpegs image images img imgs".split()
)
SPLITS = ("train", "val", "test")
# train, Validation, obj_train_data, val2017, train_images, images_train, test_list
SPLIT_NAME = re.compile(
    r"(?:obj_|images?_|labels?_)?(?:(train)(?:ing)?|(val)(?:id(?:ation)?)?|(test)(?:ing)?)"
    r"(?:[_-]?(?:data|images?|imgs?|labels?|annotations?|xmls?|set|list|\d{4}))?",
    re.IGNORECASE,
)
LOWEST = 3  # levels of folders in which a data set is searched

Folders = Tuple[str, ...]


def files_below(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    """Return the sorted files below `folder`, linked folders too; skip hidden and macOS ones."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name != "__MACOSX" and not _leads_back(Path(place, name))
        ]
        found += [
            Path(place, name)
            for name in names
            if name[0] != "." and (not suffixes or name.lower().endswith(tuple(suffixes)))
        ]
    return sorted(found)


def _leads_back(place: Path) -> bool:
    """Return whether a folder is a link to one of its parents."""
    return place.is_symlink() and place.resolve() in {above.resolve() for above in place.parents}


def split_of(names: Sequence[str]) -> str:
    """Return the split of the first of these folder or list names: train, val, test or ''."""
    for name in names:
        found = SPLIT_NAME.fullmatch(name)
        if found:
            return next(split for split, said in zip(SPLITS, found.groups()) if said)
    return ""


def folders_of(path: PurePosixPath) -> Folders:
    """Return the folders in a relative path that distinguish images, splits by usual names."""
    parts = [part for part in path.parent.parts if part.lower() not in KINDS]
    return tuple(split_of([part]) or part for part in parts)


def as_path(name: str) -> PurePosixPath:
    """Return a file name from a list, possibly another machine's, as relative and with slashes."""
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    return PurePosixPath(*(p for p in parts if p not in ("/", "//", ".", "..") and p[-1] != ":"))


class Notes:
    """Counts of irregularities, and where each occurred."""

    def __init__(self) -> None:
        self._cases: dict[str, list[Union[Path, str]]] = {}

    def add(self, what: str, where: Path | str) -> None:
        """Count an occurrence of `what`."""
        self._cases.setdefault(what, []).append(where)

    def lines(self) -> list[str]:
        """Return one line for each kind, with its count and the first case."""
        return [f"{len(where)} {what}, first {where[0]}" for what, where in self._cases.items()]

    def cases(self) -> list[str]:
        """Return one line for each case."""
        return [f"{what}: {one}" for what, where in self._cases.items() for one in where]


class FileIndex:
    """Finds files below one folder by the names in lists and labels.

    Args:
        folder: the folder of the files.
        paths: the files.
    """

    def __init__(self, folder: Path, paths: Sequence[Path]):
        self.folder = folder
        self.paths = list(paths)
        self.folders: dict[Path, Folders] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        self._alike: dict[str, list[Path]] = {}
        self._respelled: dict[Path, PurePosixPath] = {}
        for path in self.paths:
            self.folders[path] = folders_of(PurePosixPath(path.relative_to(folder)))
            self._by_name.setdefault(path.name, []).append(path)
            self._by_stem.setdefault(path.stem, []).append(path)
            for same in {alike(path.name), alike(path.stem)}:
                self._alike.setdefault(same, []).append(path)

    def named(self, name: PurePosixPath) -> list[Path]:
        """Return the files that a name with a suffix can refer to: none, one, or several."""
        return self._nearest(self._by_name.get(name.name, []), name)

    def with_stem(self, name: PurePosixPath) -> list[Path]:
        """Return the files that a name without a suffix can refer to."""
        return self._nearest(self._by_stem.get(name.name, []), name)

    def spelt(self, name: PurePosixPath) -> list[Path]:
        """Return the files of a name, ignoring case, Unicode form and percent-encoding."""
        found = self._nearest(self._alike.get(alike(name.name), []), name)
        if len(found) == 1:
            self._respelled.setdefault(found[0], name)
        return found

    def anywhere(self, name: str, folders: Folders) -> list[Path]:
        """Return the files of this name in any folder, except in another split."""
        split = split_of(folders)
        found = self._by_name.get(name, [])
        return [p for p in found if not split or split_of(self.folders[p]) in ("", split)]

    def note_respelled(self, notes: Notes) -> None:
        """Note the names that were found by another spelling."""
        for path, name in self._respelled.items():
            words = "names that are spelt otherwise (case, Unicode, %20) than the file, taken"
            notes.add(words, f"{name}: {path}")

    def hint(self, name: PurePosixPath) -> str:
        """Return where a file of this name is instead; '' if nowhere."""
        there = self._alike.get(alike(name.name), [])
        return f"; {there[0]} is there: if that is the image, correct the folder" if there else ""

    def _nearest(self, found: list[Path], name: PurePosixPath) -> list[Path]:
        """Return the best matches whose folders end the name's folders, or the reverse."""
        wanted, fitting = folders_of(name), []
        for path in found:
            there = self.folders[path]
            common = min(len(there), len(wanted))
            if there[len(there) - common :] == wanted[len(wanted) - common :]:
                fitting.append((common, there == wanted, path))
        best = max((one[:2] for one in fitting), default=None)
        return [path for *how, path in fitting if tuple(how) == best]


def alike(name: str) -> str:
    """Normalise a name's case, Unicode form and percent-encoding."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def folders_with(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the folders up to three levels below `folder` with one of these files or folders."""
    for depth in range(1, LOWEST + 1):
        for place in sorted(folder.glob("/".join("*" * depth))):
            if place.is_dir() and any((place / name).exists() for name in names):
                yield place


def plain_path(path: Path) -> Path:
    """Return `path` without "..", if the result is the same place; keep links."""
    plain = Path(os.path.normpath(path))
    return plain if plain.exists() and plain.samefile(path) else path


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, or the encoding of its byte order mark.

    Raises:
        UserError: it cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror}") from error
    return decode_text(data, path)


def decode_text(data: bytes, path: Path, declared: str = "") -> str:
    """Decode text in UTF-8, in the encoding of its byte order mark, or in the declared one.

    Args:
        data: the content of `path`.
        declared: encoding that the content itself names; "" for none.

    Raises:
        UserError: it has another encoding; says how to fix it.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return _decoded(data, encoding, path, "its byte order mark")
    if not declared:
        return _decoded(data, "utf-8", path, "")
    try:
        encoding = codecs.lookup(declared).name
    except LookupError as error:
        raise UserError(
            f"{path}: declares the encoding {declared!r}, which is unknown; save it as UTF-8 and "
            'declare encoding="utf-8"'
        ) from error
    if not encoding.startswith("utf-8") and _is_utf8(data, encoding):
        raise UserError(
            f'{path}: declares the encoding {declared} and is UTF-8; declare encoding="utf-8"'
        )
    wider = "gb18030" if encoding in ("gb2312", "gbk") else encoding  # as browsers read them
    return _decoded(data, wider, path, f"encoding={declared!r}")


def _decoded(data: bytes, encoding: str, path: Path, said_by: str) -> str:
    try:
        return data.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise UserError(_other_encoding(data, encoding, path, said_by)) from error


def _other_encoding(data: bytes, encoding: str, path: Path, said_by: str) -> str:
    """Describe what is wrong with text that does not decode, and how to fix it."""
    is_said = f"is not {encoding}, as {said_by} says" if said_by else "is not UTF-8"
    fix = "save it as UTF-8"
    if data[:1] == b"\0" or data[1:2] == b"\0":
        return f"{path}: {is_said}, it looks like UTF-16 without a byte order mark; {fix}"
    try:
        is_gbk = any("\u4e00" <= letter <= "\u9fff" for letter in data.decode("gb18030"))
    except UnicodeDecodeError:
        is_gbk = False
    return f"{path}: {is_said}{', it may be GBK' if is_gbk else ''}; {fix}"


def _is_utf8(data: bytes, encoding: str) -> bool:
    """Return whether bytes that declare another encoding can only be UTF-8."""
    if encoding.startswith(("utf-16", "utf-32")):
        return b"\0" not in data[:200]  # its declaration was read byte by byte
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    # Two bytes of GBK can form a UTF-8 character by chance; three in a row hardly can.
    return any(letter > "\u07ff" for letter in text)
