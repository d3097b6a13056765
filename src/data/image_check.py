"""Checks that an image file is an intact JPEG or PNG that training can decode, and decodes it."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Tuple

import cv2
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png")  # file extensions that a MindRecord accepts
OTHER_SUFFIXES = (
    ".avif", ".bmp", ".dcm", ".dicom", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pbm",
    ".pgm", ".pnm", ".ppm", ".svs", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
FORMATS = ("JPEG", "PNG")
Corners = Tuple[float, float, float, float]  # x1, y1, x2, y2

ORIENTATION = 0x0112  # EXIF 2.3, table 4
MAX_PIXELS = 89_000_000  # default of the key max_image_pixels; Pillow starts to warn there

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # offset of the bit depth in a PNG: its first chunk is always IHDR

# The beginning of a file, its format, and what to do about it.
CONVERT = "convert it to JPEG or PNG"
SIGNATURES = (
    (rb"RIFF....WEBP", "a WebP image", CONVERT),
    (rb"GIF8[79]a", "a GIF image", CONVERT),
    (rb"BM....\0\0\0\0", "a BMP image", CONVERT),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF or raw camera image", CONVERT),
    (rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", "a HEIC image", CONVERT),
    (rb"....ftypavi[fs]", "an AVIF image", CONVERT),
    (rb"....ftyp", "a video", "extract its frames as JPEG or PNG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", CONVERT),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image", CONVERT),
    (rb".{128}DICM", "a DICOM file", "export its pixels as PNG"),
    (rb"\x89HDF|CDF[\x01\x02]", "an HDF5 or NetCDF file", "export its pixels as PNG"),
    (rb"\x93NUMPY", "a NumPy array", "save it as PNG"),
    (rb"8BPS", "a Photoshop file", CONVERT),
    (rb"P[1-6]\s", "a Netpbm image", CONVERT),
    (rb"%PDF", "a PDF file", CONVERT),
    (rb"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb"\0\x05\x16[\0\x07]", "a file of macOS about another file", "delete it"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the image with git lfs pull"),
    (rb"\s*(?i:<!doctype html|<html|<head|<!--)", "an HTML page", "download the image again"),
    (rb"\s*(?i:<\?xml|<svg)", "an XML or SVG file", "give the image itself"),
)  # fmt: skip
# JPEG frame headers that training's decoder refuses (ITU-T T.81, table B.1; T.87).
UNUSUAL_FRAMES = {
    0xC3: "lossless", 0xC5: "differential", 0xC6: "differential", 0xC7: "differential lossless",
    0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded", 0xCB: "lossless", 0xCD: "differential",
    0xCE: "differential", 0xCF: "differential lossless",
    0xF7: "JPEG-LS",
}  # fmt: skip


class BrokenImageError(ValueError):
    """The bytes are not a JPEG or PNG that training can use; the message says what they are."""


class ImageHeader(NamedTuple):
    """The header of an image file.

    Attributes:
        size: (width, height) in stored pixels.
        orientation: EXIF's, 1 to 8; 1 means as stored.
        bits: bits per value; more than 8 are scaled, see `eight_bits`.
    """

    size: tuple[int, int]
    orientation: int
    bits: int

    @property
    def shown(self) -> tuple[int, int]:
        """Return (width, height) as a program shows it."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def drawn_as_shown(self, said: tuple[int, int] | None) -> bool:
        """Return whether labels with this (width, height) were drawn on the EXIF-rotated image.

        Labelling programs show it rotated. If the labels have the stored image's size, and that
        differs, the program did not.
        """
        return self.orientation != 1 and not (said == self.size != self.shown)

    def stored(self, corners: Corners) -> Corners:
        """Convert corners on the image as shown to stored pixels."""
        u1, v1, u2, v2 = corners
        (x1, y1), (x2, y2) = self._point(u1, v1), self._point(u2, v2)
        return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))

    def _point(self, u: float, v: float) -> tuple[float, float]:
        width, height = self.size
        turned = {
            2: (width - u, v),
            3: (width - u, height - v),
            4: (u, height - v),
            5: (v, u),
            6: (v, height - u),
            7: (width - v, height - u),
            8: (width - v, u),
        }
        return turned.get(self.orientation, (u, v))


def image_header(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Return the header of a JPEG or PNG that is valid and has its end marker.

    Reads no pixels. Data after the end marker, as phones append it, is ignored. Damage between
    header and end is not detected; `decode_fully` finds it.

    Args:
        data: the content of the file.
        max_pixels: images with more are refused, as decoding takes 3 bytes of memory per pixel.

    Raises:
        BrokenImageError: it is empty, another format, too large or truncated, or its header is
            broken.
    """
    header = _header(data)
    width, height = header.size
    if 0 in header.size:
        raise BrokenImageError(f"its header says {width}x{height} pixels")
    if width * height > max_pixels:
        raise BrokenImageError(
            f"{width}x{height} pixels are {width * height / 1e6:.1f} million, more than "
            f"max_image_pixels {max_pixels:,}; scale or cut it, or raise that key"
        )
    if not _is_whole(data):
        kind = "PNG" if data.startswith(PNG_START) else "JPEG"
        raise BrokenImageError(f"a {kind} that is cut off: no end marker")
    return header


def peek(path: Path) -> ImageHeader | None:
    """Read an image file's header, without the whole file; return None if it has no valid one."""
    try:
        with path.open("rb") as file:
            return _parsed(file)
    except (OSError, SyntaxError, ValueError):
        return None


def _header(data: bytes) -> ImageHeader:
    if not data:
        raise BrokenImageError("the file is empty")
    try:
        header = _parsed(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError(_what_it_is(data)) from error
    unusual = _unusual_jpeg(data)
    if unusual:
        raise BrokenImageError(unusual)
    return header


def _parsed(file: IO[bytes]) -> ImageHeader:
    """Read the header of the image in `file`, which is positioned at its start."""
    first = file.read(PNG_DEPTH + 1)
    file.seek(0)
    with _no_pixel_limit(), Image.open(file, formats=FORMATS) as image:
        exif = _png_exif(file) if image.format == "PNG" else image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        return ImageHeader(
            size=image.size,
            orientation=orientation if orientation in range(1, 9) else 1,
            bits=16 if _has_16_bits(first) else 8,
        )


def _png_exif(file: IO[bytes]) -> Image.Exif:
    """Read a PNG's EXIF, before or after its pixels; Pillow would decode the pixels for that."""
    exif = Image.Exif()
    for name, place, length in _chunks(file):
        if name == b"eXIf":
            file.seek(place)
            exif.load(b"Exif\0\0" + file.read(length))
    return exif


def _has_16_bits(data: bytes) -> bool:
    return data.startswith(PNG_START) and data[PNG_DEPTH] == 16


@contextlib.contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Let Pillow open images of any size without its warning: here a key sets the limit."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _what_it_is(data: bytes) -> str:
    """Return what a file that is not JPEG or PNG is, by its beginning."""
    for pattern, name, fix in SIGNATURES:
        if re.match(pattern, data[:256], re.DOTALL):
            return f"{name}, not a JPEG or PNG; {fix}"
    if not data.strip(b"\0"):
        return "zero bytes only, as an interrupted copy leaves; copy it again"
    if data.startswith(PNG_START):
        return "a PNG without a sound header"
    if data.startswith(JPEG_START):
        return _unusual_jpeg(data) or "a JPEG without a sound header"
    if data[:256].isascii() and b"\0" not in data[:256]:
        return "text, not a JPEG or PNG"
    return "no JPEG or PNG header"


def _unusual_jpeg(data: bytes) -> str:
    """Return why decoders refuse a JPEG with a valid header; '' if they do not."""
    if data.startswith(JPEG_START):
        for marker, body in _segments(data):
            if marker in UNUSUAL_FRAMES:
                return f"a {UNUSUAL_FRAMES[marker]} JPEG; convert it to a usual JPEG or to PNG"
            if marker in (0xC0, 0xC1, 0xC2) and body[:1] not in (b"", b"\x08"):
                return f"a JPEG of {body[0]} bits; convert it to 8 bits or to PNG"
    return ""


def _is_whole(data: bytes) -> bool:
    """Return whether the image's own end marker is anywhere in the file."""
    if data.startswith(PNG_START):
        return any(name == b"IEND" for name, *_ in _chunks(io.BytesIO(data)))
    scan = 2
    for marker, body in _segments(data):
        if marker == 0xDA:
            scan = len(data) - len(body)
    if data.endswith(JPEG_END) and scan < len(data) - 2:
        return True  # the usual case; the search below would scan the whole file
    # Within a scan, 0xff is never followed by this code, so the first one is the end; a thumbnail
    # has its own end marker, in a segment before the scan.
    return data.find(JPEG_END, scan) >= 0


def _segments(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield marker and content of each segment of a JPEG, up to the first scan.

    For the scan, which comes last, the content is the rest of the file.
    """
    view, place = memoryview(data), 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in (0x01, *range(0xD0, 0xD9)):  # markers without a length
            place += 2
            continue
        if marker == 0xDA:
            yield marker, view[place:]
            return
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, view[place + 4 : place + 2 + length]
        place += 2 + max(length, 2)


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and length of each complete chunk of a PNG, of which IEND is the last."""
    size = file.seek(0, io.SEEK_END)
    place, name = len(PNG_START), b""
    while place + 12 <= size and name != b"IEND":
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if place + 12 + length <= size:
            yield name, place + 8, length
        place += 12 + length


def decode_fully(data: bytes) -> None:
    """Decode the image, once with Pillow and once with the decoder that training uses.

    Pillow comes first: MindSpore's decoder ends the process on some broken tables.

    Raises:
        BrokenImageError: either decoder refuses it.
    """
    try:
        with _no_pixel_limit(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
        decoded(data)
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise BrokenImageError("its pixels do not decode") from error


def decoded(data: bytes) -> np.ndarray:
    """Decode an intact image as training sees it, (h, w, 3) uint8 RGB: stored pixels, 8 bits."""
    from mindspore.dataset import vision

    return vision.Decode()(np.frombuffer(eight_bits(data), np.uint8))


def rgb_image(data: bytes, turned: bool) -> Image.Image:
    """Return an intact image in RGB as training sees it, or, with `turned`, as EXIF rotates it.

    Raises:
        BrokenImageError: its header is invalid, or it does not decode.
    """
    header = _header(data)
    try:
        with _no_pixel_limit():
            image = Image.open(io.BytesIO(eight_bits(data)), formats=FORMATS)
            # Set from the header, because a PNG loses it when it is scaled to 8 bits.
            image.getexif()[ORIENTATION] = header.orientation if turned else 1
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError("its pixels do not decode") from error


def eight_bits(data: bytes) -> bytes:
    """Convert a 16-bit PNG to 8 bits, scaled by its own range; return other images unchanged.

    Decoders keep the upper 8 bits, of which the 12-bit values of a radiograph leave 16 levels. Here
    the smallest value of the image becomes 0 and the largest 255, with one range for all channels
    to keep colours; an image of a single value keeps its upper 8 bits. An alpha channel is dropped,
    as decoders do.

    Raises:
        BrokenImageError: it does not decode.
    """
    if not _has_16_bits(data):
        return data
    # Without EXIF orientation, which training ignores.
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with _no_pixel_limit(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()  # the checksums: OpenCV accepts partial images
        values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (OSError, SyntaxError, ValueError, cv2.error) as error:
        raise BrokenImageError("its pixels do not decode") from error
    if values is None:
        raise BrokenImageError("its pixels do not decode")
    return cv2.imencode(".png", _scaled(values))[1].tobytes()


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low == high:
        return (values >> 8).astype(np.uint8)
    # A table: 65,536 divisions instead of one per pixel.
    levels = (np.arange(2**16, dtype=np.float64) - low) * (255.0 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[values]
