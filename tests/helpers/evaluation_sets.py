"""Make tiny detectors and small evaluation sets for tests."""

import itertools

import numpy as np
from coco_files import coco_of, write_coco

from src.evaluation.validation_set import open_validation
from src.model_utils.config import load_config

TINY = "configs/tiny/default_config.yaml"
CLASSES = ["background", "person", "dog", "cat", "bird"]
NAMES = itertools.count()


def tiny(**changes):
    config = load_config(TINY, **changes)
    config.coco_classes = CLASSES
    return config


def assert_same(net, other):
    for one, two in zip(net.get_parameters(), other.get_parameters()):
        np.testing.assert_array_equal(one.asnumpy(), two.asnumpy(), err_msg=one.name)


def validation(folder, coco=None, **changes):
    path = write_coco(folder, coco or coco_of(5), f"val_{next(NAMES)}.json")
    return open_validation(tiny(val_set=str(path), **changes))
