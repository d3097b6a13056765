"""Write folders of labels for tests, with generated images, and read them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from coco_files import jpeg

from src.data.labels.source import Source

WIDTH, HEIGHT = 64, 48


def png(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Return a black PNG."""
    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def write_files(folder: Path, files: dict) -> Path:
    """Write the files; None is an image of 64x48."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = png() if name.endswith(".png") else jpeg(0, WIDTH, HEIGHT)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def boxes_of(source: Source) -> dict:
    """Return split -> image's path below its dataset -> (class, corners) of each box."""
    return {
        split: {
            image.path.name: [
                (box.name, tuple(round(v, 3) for v in box.corners)) for box in image.boxes
            ]
            for image in images
        }
        for split, images in source.splits.items()
    }


def voc_xml(
    filename: str = "a.jpg", name: str = "cell", box=(11, 11, 30, 25), extra: str = ""
) -> str:
    """Return an annotation with one object."""
    bounds = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return (
        f"<annotation><filename>{filename}</filename><size><width>64</width><height>48</height>"
        f"</size><object><name>{name}</name>{extra}<bndbox>{bounds}</bndbox></object></annotation>"
    )
