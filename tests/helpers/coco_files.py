"""Write small COCO data sets for tests, and run the scripts as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def jpeg(number: int = 0, width: int = 48, height: int = 32) -> bytes:
    """Return a JPEG of noise."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def coco_of(count: int, boxes=((4, 4, 20, 20),)) -> dict:
    """Return the COCO content of `count` images of 48x32, each with `boxes`."""
    images = [
        {"id": i + 1, "file_name": f"{i}.jpg", "width": 48, "height": 32} for i in range(count)
    ]
    annotations = [
        {"id": 10 * image["id"] + k, "image_id": image["id"], "category_id": 18, "bbox": list(box)}
        for image in images
        for k, box in enumerate(boxes)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [dict(one) for one in CATEGORIES],
    }


def write_coco(folder: Path, coco: dict, name: str = "train_0.json") -> Path:
    """Write the JSON to `folder`, and an image for each of its entries next to it."""
    images = folder / Path(name).stem
    images.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(coco["images"]):
        (images / entry["file_name"]).write_bytes(jpeg(number))
    path = folder / name
    path.write_text(json.dumps(coco))
    return path


def run_script(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script of the project in its own process, with `cwd` as the current folder."""
    return subprocess.run(
        [sys.executable, str(PROJECT / script), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
