"""Whole and broken image files."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from coco_files import jpeg
from PIL import Image, ImageOps

from src.data.image_check import (
    ORIENTATION,
    BrokenImageError,
    decode_fully,
    decoded,
    eight_bits,
    image_header,
    peek,
    rgb_image,
)


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\0" * 500,
        b"appended",
        b"\xff" * 500,
        b"Image_UTC_Data1669536000000" + b"\0" * 80 + b"SEFT",
        b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 80,
    ],
    ids=["none", "zeros", "text", "0xff", "Samsung", "Motion Photo"],
)
def test_whole_files_give_their_size(kind, tail):
    assert image_header(encoded(kind) + tail).size == (48, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("missing", [1, 10, 400])
def test_cut_off_files_are_broken(kind, missing):
    with pytest.raises(BrokenImageError, match="cut off"):
        image_header(encoded(kind)[:-missing])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0" * 4000, "zero bytes only"),
        (np.random.default_rng(3).bytes(500), "no JPEG or PNG header"),
        (b"<html>404</html>", "an HTML page"),
        (b"\n<!DOCTYPE html>", "an HTML page"),
        (b"Access denied", "text, not a JPEG or PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08123", "gunzip"),
        (b"\0" * 128 + b"DICM" + b"\2" * 99, "a DICOM file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x1cftypavif", "an AVIF image"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (encoded("GIF"), "a GIF image"),
        (encoded("WEBP"), "a WebP image"),
        (encoded("BMP"), "a BMP image"),
        (encoded("TIFF"), "a TIFF"),
        (encoded("JPEG2000"), "a JPEG 2000 image"),
        (jpeg()[:20], "a JPEG without a sound header"),
        (encoded("PNG")[:20], "a PNG without a sound header"),
        (jpeg()[:20] + jpeg()[-2:], "header"),
        (jpeg().replace(b"\xff\xc0", b"\xff\xc3"), "a lossless JPEG"),
        (jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "a JPEG of 12 bits"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_other_files_are_broken(data, message):
    with pytest.raises(BrokenImageError, match=message):
        image_header(data)


def test_a_thumbnails_end_is_not_that_of_a_cut_off_photo():
    thumbnail = jpeg(1)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    photo = jpeg()[:2] + segment + jpeg()[2:]
    assert photo.count(b"\xff\xd9") == 2 and image_header(photo).size == (48, 32)
    with pytest.raises(BrokenImageError, match="cut off"):
        image_header(photo[:-100] + b"\0" * 100)


def test_an_image_above_the_limit_says_how_large_it_is_without_a_warning():
    large = cv2.imencode(".png", np.zeros((14000, 14000), np.uint8))[1].tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BrokenImageError, match=r"14000x14000 pixels are 196\.0 million, more"):
            image_header(large)
        assert image_header(large, 14000**2).size == (14000, 14000)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_header_tells_how_exif_turns_an_image(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (48, 32)).save(tmp_path / "a", kind, exif=exif)
    header = image_header((tmp_path / "a").read_bytes())
    assert header == peek(tmp_path / "a") == ((48, 32), orientation, 8)
    assert header.shown == ImageOps.exif_transpose(Image.open(tmp_path / "a")).size


def with_orientation(png: bytes, orientation: int, is_last: bool) -> bytes:
    """A PNG with EXIF behind its header, or behind its pixels."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    place = len(png) - 12 if is_last else 33
    return png[:place] + chunk + png[place:]


def test_exif_behind_the_pixels_of_a_large_png_is_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    png = with_orientation(cv2.imencode(".png", noise)[1].tobytes(), 6, is_last=True)
    assert len(png) > 150_000
    (tmp_path / "a.png").write_bytes(png)
    assert image_header(png) == peek(tmp_path / "a.png") == ((300, 200), 6, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_of_any_depth_is_turned_by_exif_where_it_is_to_be(dtype, orientation, monkeypatch):
    values = np.arange(48 * 32, dtype=dtype).reshape(32, 48)
    png = with_orientation(cv2.imencode(".png", values)[1].tobytes(), orientation, is_last=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    stored = decoded(png)
    np.testing.assert_array_equal(rgb_image(png, False), stored)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    monkeypatch.undo()
    np.testing.assert_array_equal(rgb_image(png, True), ImageOps.exif_transpose(Image.open(file)))


def test_16_bits_become_8_by_the_range_of_the_image():
    values = np.random.default_rng(0).integers(100, 4096, (32, 48, 3), dtype=np.uint16)
    values[0, 0], values[0, 1] = 100, 4095
    png = cv2.imencode(".png", values)[1].tobytes()
    assert image_header(png).bits == 16
    expected = np.rint((values[:, :, ::-1] - 100.0) * 255 / 3995)
    np.testing.assert_array_equal(decoded(png), expected)
    flat = cv2.imencode(".png", np.full((8, 8), 0x1234, np.uint16))[1].tobytes()
    assert (decoded(flat) == 0x12).all()
    eight = encoded("PNG")
    assert eight_bits(eight) is eight
    with pytest.raises(BrokenImageError, match="do not decode"):
        eight_bits(png[:-30])


def test_decoding_finds_damage_between_header_and_end():
    whole = jpeg(width=320, height=200)
    decode_fully(whole)
    damaged = bytearray(whole)
    middle = len(whole) // 2
    damaged[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    assert image_header(bytes(damaged)).size == (320, 200)
    with pytest.raises(BrokenImageError, match="decode"):
        decode_fully(bytes(damaged))
