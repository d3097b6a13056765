"""The data set: COCO json to MindRecord, MindRecord to batches; implemented in `src.data`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import cv2
import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision

from src.data.augmentation import Expand, objects_first, preprocess_fn, rescale_with_tuple
from src.data.coco import create_coco_label
from src.data.conversion import data_to_mindrecord_byte_image
from src.data.labels.text import create_train_data_from_txt, parse_json_annos_from_txt
from src.data.mindrecord import (
    ObjectCounts,
    check_mindrecord,
    indexed_objects,
    shard_number,
)
from src.model_utils.config import setting

__all__ = [
    "Expand",
    "check_mindrecord",
    "create_coco_label",
    "create_fasterrcnn_dataset",
    "create_train_data_from_txt",
    "data_to_mindrecord_byte_image",
    "parse_json_annos_from_txt",
    "preprocess_fn",
    "rescale_with_tuple",
    "shard_number",
]

COLUMNS = ["image", "image_shape", "box", "label", "valid_num"]
PREFETCHED = 2  # batches; one of four images at 1280x768 is 47 MB


class _Draws:
    """Yields (epoch, position) of each sample: the key of its random numbers.

    A copy is the same object: every iterator over a data set copies it, and the epochs must be
    counted across iterators.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[np.ndarray]]:
        epoch = self.epoch
        self.epoch += 1
        for position in range(self.rows):
            yield (np.array([epoch, position], np.int64),)

    def __deepcopy__(self, memo: dict) -> _Draws:
        return self


def _preparation(config: Any, is_training: bool, rank_id: int) -> Callable[..., tuple]:
    """Return `preprocess_fn` with the sample's own random generator."""

    seed = setting(config, "seed")

    def prepare(image: np.ndarray, annotation: np.ndarray, draw: np.ndarray) -> tuple:
        rng = np.random.RandomState([seed, rank_id, *draw.tolist()])
        rows = objects_first(annotation, config.num_gts)
        return preprocess_fn(image, rows, is_training, config, rng)

    return prepare


def _later_than(batches_done: int, batches: int, batch_size: int) -> Callable[..., bool]:
    """Return a filter for samples after the first `batches_done`, if an epoch has `batches`."""
    first_epoch, first_batch = divmod(batches_done, batches)

    def comes(draw: np.ndarray) -> bool:
        return tuple(draw) >= (first_epoch, first_batch * batch_size)

    return comes


def create_fasterrcnn_dataset(
    config: Any,
    mindrecord_file: str | Path,
    batch_size: int = 2,
    device_num: int = 1,
    rank_id: int = 0,
    is_training: bool = True,
    num_parallel_workers: int = 8,
    python_multiprocessing: bool = False,
    distributed: bool = False,
    batches_done: int = 0,
) -> ds.Dataset:
    """Make the data set of a MindRecord file's batches, as the network takes them.

    Training shuffles, augments and drops the last, incomplete batch. Evaluation does none of these:
    every image comes once, in file order, and the last batch may be smaller.

    A sample's augmentation depends only on config.seed, rank_id, the epoch and its position, not on
    the number of threads; the order of the samples depends on mindspore.set_seed. A second iterator
    over the same data set repeats the order of the first, with other augmentations.

    Args:
        config: seed and the keys of `preprocess_fn`.
        mindrecord_file: .../FasterRcnn.mindrecord.
        batch_size: images in a batch.
        device_num: number of ranks that share the file; this one takes every device_num-th row.
        rank_id: this rank's number.
        num_parallel_workers: number of threads, at most one per core.
        python_multiprocessing: use processes instead of threads for the augmentation.
        distributed: from the original signature; only device_num and rank_id matter here.
        batches_done: skip this many batches without decoding; a skipped epoch is present but empty.

    Returns:
        Columns image (B, 3, img_height, img_width), image_shape (B, 3; 4 in evaluation) and box
        (B, num_gts, 4) float32; label (B, num_gts) int32; valid_num (B, num_gts) bool.

    Raises:
        UserError: there is no usable MindRecord, its class list differs, or it has too few images
            for a batch.
    """
    least = batch_size * device_num if is_training else 1
    rows = check_mindrecord(mindrecord_file, least, setting(config, "coco_classes"))
    cv2.setNumThreads(0)
    ds.config.set_prefetch_size(PREFETCHED)
    workers = min(num_parallel_workers, os.cpu_count() or 1)
    share = -(-rows // device_num)
    data = _rows_with_draws(str(mindrecord_file), share, workers, is_training, device_num, rank_id)
    batches = share // batch_size
    if batches_done:
        data = data.filter(_later_than(batches_done, batches, batch_size), ["draw"], 1)
    data = data.map(vision.Decode(), ["image"], num_parallel_workers=workers)
    data = data.map(
        _preparation(config, is_training, rank_id), ["image", "annotation", "draw"], COLUMNS,
        num_parallel_workers=workers, python_multiprocessing=python_multiprocessing,
    )  # fmt: skip
    data = data.project(COLUMNS).batch(batch_size, drop_remainder=is_training)
    if batches_done:
        # Unless the filtered size is known, it is counted by running through the whole data set.
        data.dataset_size = batches
    return data


def count_objects(mindrecord_file: str | Path) -> ObjectCounts:
    """Count the objects of a MindRecord file.

    The counts come from its index; a file whose index has no classes is read completely.
    """
    indexed = indexed_objects(Path(mindrecord_file))
    if indexed is not None and indexed.per_class is not None:
        return indexed
    data = ds.MindDataset(str(mindrecord_file), columns_list=["annotation"], shuffle=False)
    rows = data.create_dict_iterator(num_epochs=1, output_numpy=True)
    found = ObjectCounts()
    for row in rows:
        found.add(row["annotation"])
    return found


def _rows_with_draws(
    mindrecord_file: str, share: int, workers: int, shuffle: bool, ranks: int, rank: int
) -> ds.Dataset:
    """Make the data set of a rank's rows, each with the key of its random numbers."""
    rows = ds.MindDataset(
        mindrecord_file,
        columns_list=["image", "annotation"],
        num_parallel_workers=workers,
        shuffle=shuffle,
        num_shards=ranks,
        shard_id=rank,
    )
    draws = ds.GeneratorDataset(
        _Draws(share), ["draw"], shuffle=False, num_parallel_workers=1,
        python_multiprocessing=False,
    )  # fmt: skip
    return ds.zip((rows, draws))
