"""A silo's task says what it has to learn from, and is not made where that is nothing."""

import numpy as np
import pytest
from coco_files import jpeg
from evaluation_sets import tiny

from src.data.coco import NO_BOX
from src.data.mindrecord import BASE_NAME, locked_folder, row, write_rows
from src.errors import UserError
from src.training import DetectorTask


def shard_of(folder, *images, dropped=0):
    """A shard with an image for each list of classes."""
    shard = folder / "mindrecord_0"
    boxes = [[[4, 4, 30, 20, category, 0] for category in classes] or NO_BOX for classes in images]
    rows = [row(jpeg(n), np.array(one), dropped) for n, one in enumerate(boxes)]
    with locked_folder(shard):
        write_rows(shard / BASE_NAME, [rows])
    return shard


def test_a_task_names_its_objects_by_class_and_what_was_lost(tmp_path):
    shard = shard_of(tmp_path, [2, 2, 1], [], dropped=7)
    task = DetectorTask(tiny(batch_size=1, num_gts=2), shard)
    counted, lost, crowded = task.remarks
    assert counted == "objects by class: dog 2, person 1; none of cat, bird"
    assert lost.startswith("WARNING: most boxes of the labels were left out: 14 of 17 (82%), 3 re")
    assert crowded.startswith("WARNING: 1 images have more than num_gts 2 objects")


def test_a_task_without_any_object_is_not_made(tmp_path):
    with pytest.raises(UserError, match="no box in its 2 images, so this silo has nothing to"):
        DetectorTask(tiny(batch_size=1), shard_of(tmp_path, [], []))
