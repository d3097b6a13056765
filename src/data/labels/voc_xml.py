"""Reads one XML file of Pascal VOC: its image and objects, in the encoding that it declares."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from src.data.image_check import Corners
from src.data.labels.files import decode_text
from src.errors import UserError

LARGEST = 10 * 2**20  # bytes of an XML file
YES = ("1", "true", "yes")
ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


class Object(NamedTuple):
    """An <object>: its class, xmin, ymin, xmax, ymax as written, and its flags."""

    name: str
    bounds: Corners
    flags: tuple[str, ...]


@dataclass
class Annotation:
    """The content of an XML file.

    Attributes:
        path: the file's path.
        filename: its image's name; "" if missing.
        size: the image's (width, height); 0 if missing.
        objects: its objects, in the file's order.
        faults: what cannot be read, one line each.
    """

    path: Path
    filename: str = ""
    size: tuple[int, int] = (0, 0)
    objects: list[Object] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_annotation(path: Path) -> Annotation:
    """Read an XML file; list what cannot be read in `faults`."""
    try:
        root = read_xml(path)
    except UserError as error:
        return Annotation(path, faults=[str(error)])
    if root.tag == "annotations" and root.find("image") is not None:
        fault = f"{path}: is CVAT's XML of all images, not VOC's; export as Pascal VOC or COCO"
        return Annotation(path, faults=[fault])
    found = Annotation(path, (root.findtext("filename") or "").strip())
    found.size = (_side(root, "width"), _side(root, "height"))
    for number, entry in enumerate(root.iter("object"), 1):
        try:
            found.objects.append(_object(entry, f"{path}: object {number}"))
        except UserError as error:
            found.faults.append(str(error))
    return found


def _object(entry: Element, where: str) -> Object:
    name = (entry.findtext("name") or "").strip()
    bounds = entry.find("bndbox")
    if not name or bounds is None:
        raise UserError(f"{where} has no {'name' if not name else 'bndbox'}, expected both")
    if len(entry.findall("bndbox")) > 1:
        raise UserError(f"{where} has several bndbox, expected one; write an object for each")
    x1, y1, x2, y2 = (_number(bounds, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    edges = (x1, y1, x2, y2)
    if all(0 <= edge <= 1 for edge in edges) and not all(edge.is_integer() for edge in edges):
        raise UserError(
            f"{where}: {x1:g} {y1:g} {x2:g} {y2:g} are parts of the image, expected pixels; "
            "multiply by its width and height"
        )
    flags = [key for key in ("difficult", "truncated") if _flag(entry, key)]
    return Object(name, edges, tuple(flags))


def _side(root: Element, side: str) -> int:
    text = root.findtext(f"size/{side}") or "0"
    return int(text) if re.fullmatch(r"\s*\d{1,9}\s*", text) else 0


def _number(bounds: Element, key: str, where: str) -> float:
    text = bounds.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {key} is {text!r}, expected a number of pixels")
    return value


def _flag(entry: Element, key: str) -> bool:
    """Return whether a flag is set; "Unspecified", which converters write, does not set it."""
    return (entry.findtext(key) or "").strip().lower() in YES


def read_xml(path: Path) -> Element:
    """Return the root of an XML file; refuse a document type, and so its entities, unread.

    Raises:
        UserError: it cannot be read, is too large, declares a document type, or is not XML.
    """
    # Expat supports five encodings; Python supports those that users write.
    builder, parser = TreeBuilder(), expat.ParserCreate("utf-8")

    def refuse(*_: Any) -> int:
        raise UserError(
            f"{path}: declares a document type or entities, which labels have no need of; remove "
            "the declaration"
        )

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name, attributes)
    parser.EndElementHandler = lambda name: builder.end(name)
    parser.CharacterDataHandler = lambda text: builder.data(text)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: more than {LARGEST // 2**20} MiB, no labels of one image")
        data = path.read_bytes()
        declared = ENCODING.match(data[:200])
        text = decode_text(data, path, declared[1].decode("ascii") if declared else "")
        parser.Parse(text.lstrip("\ufeff").encode("utf-8"), True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (expat.ExpatError, ValueError) as error:
        raise UserError(f"{path}: not valid XML: {error}") from error
    return builder.close()
