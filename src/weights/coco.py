"""COCO's 80 categories; their ids go to 90, and torchvision's detectors have a class for each."""

from __future__ import annotations

from src.model_utils.config import COCO_CLASSES

UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in UNUSED_IDS]
CLASSES_OF_IDS = 91

# Class names, the background first, and the column of each in a head with a class for every id.
CLASSES = COCO_CLASSES
COLUMNS = [0, *IDS]
