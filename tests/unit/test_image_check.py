"""Whole and broken image files."""

import io

import numpy as np
import pytest
from coco_files import jpeg
from PIL import Image

from src.data.image_check import BrokenImageError, decode_fully, image_size


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
@pytest.mark.parametrize("tail", [b"", b"\0" * 500, b"appended"])
def test_whole_files_give_their_size(kind, tail):
    assert image_size(encoded(kind) + tail) == (48, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("missing", [1, 10, 400])
def test_cut_off_files_are_broken(kind, missing):
    with pytest.raises(BrokenImageError, match="cut off"):
        image_size(encoded(kind)[:-missing])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0" * 4000, "header"),
        (b"<html>404</html>", "header"),
        (encoded("GIF"), "header"),
        (jpeg()[:20], "header"),
        (jpeg()[:20] + jpeg()[-2:], "header"),
    ],
)
def test_other_files_are_broken(data, message):
    with pytest.raises(BrokenImageError, match=message):
        image_size(data)


def test_decoding_finds_damage_between_header_and_end():
    whole = jpeg(width=320, height=200)
    decode_fully(whole)
    damaged = bytearray(whole)
    middle = len(whole) // 2
    damaged[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    assert image_size(bytes(damaged)) == (320, 200)
    with pytest.raises(BrokenImageError, match="decode"):
        decode_fully(bytes(damaged))
