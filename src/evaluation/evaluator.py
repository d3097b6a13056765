"""Evaluate a detector on a validation set, again each time its weights change."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from mindspore import Tensor, nn

from src.data.image_check import BrokenImageError
from src.evaluation.class_tables import confusion_record
from src.evaluation.detect import detect
from src.evaluation.image_files import ImageCheck
from src.evaluation.matching import IOU, SCORE, Confusion, confusion_of, match
from src.evaluation.metrics import box_figures, coco_results
from src.evaluation.validation_set import ValidationSet
from src.FasterRcnn.faster_rcnn_resnet import FasterRcnn_Infer
from src.model_utils.config import setting


@dataclass
class Evaluation:
    """Hold the result of one evaluation.

    Attributes:
        figures: the twelve metrics of `metrics.FIGURES`; None where there is nothing to measure.
        per_class: AP of each class that has an object, by name.
        per_class_50: its AP50.
        confusion: objects and detections by the classes of both, see `matching`.
        images: number of images that were evaluated.
        seconds: duration, without the compilation before the first evaluation.
        results: detections in COCO's result format, with the file's own ids.
    """

    figures: dict[str, float | None]
    per_class: dict[str, float]
    per_class_50: dict[str, float]
    confusion: Confusion
    images: int
    seconds: float
    results: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """Return the record for a metrics file: everything except the detections."""
        return {
            **self.figures,
            "per_class": self.per_class,
            "per_class_AP50": self.per_class_50,
            "confusion": confusion_record(self.confusion, SCORE, IOU),
            "images": self.images,
            "seconds": round(self.seconds, 3),
        }


class Evaluator:
    """Evaluate a network, which may be trained in between.

    Evaluation and training share the parameters; evaluation compiles one graph of its own.

    Args:
        config: the detector's configuration.
        network: a `Faster_Rcnn`.
        data: the validation set.
    """

    def __init__(self, config: Any, network: nn.Cell, data: ValidationSet):
        self.data = data
        self._config = config
        self._network = network
        self._infer: nn.Cell | None = None
        self._has_said = False

    def run(self, progress: Callable[[Iterable], Iterator] = iter) -> Evaluation:
        """Evaluate the weights that the network has now.

        Args:
            progress: yields the images that it gets, and may show how many.

        Images that do not decode are left out, with their annotations; standard error says so once.

        Raises:
            OSError: an image cannot be read any more.
            BrokenImageError: none of them decodes.
        """
        was_training = self._network.training
        self._network.set_train(False)
        try:
            self._compile()
            begin = time.perf_counter()
            numbers, detections = self._detections(progress)
        finally:
            self._network.set_train(was_training)
        names = {place: name for place, (_, name) in self.data.categories.items()}
        sound = set(numbers)
        truths = [truth for truth in self.data.truths if truth["image_id"] in sound]
        by_name = box_figures(truths, detections, numbers, names)
        counted = [entry for entry in detections if entry["score"] >= SCORE]
        matches = match(truths, counted, numbers, names)
        confusion = confusion_of(matches, truths, counted, names)
        seconds = time.perf_counter() - begin
        results = self.data.as_results(detections)
        return Evaluation(*by_name, confusion, len(numbers), seconds, results)

    def _compile(self) -> None:
        """Compile the graph of evaluation, once."""
        if self._infer is not None:
            return
        config = self._config
        infer = FasterRcnn_Infer(config, self._network)
        shape = (config.test_batch_size, 3, config.img_height, config.img_width)
        metas = np.ones((config.test_batch_size, 4), np.float32)
        infer.compile(Tensor(np.zeros(shape, np.float32)), Tensor(metas))
        self._infer = infer

    def _detections(self, progress: Callable) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the numbers of the images that decode, from 1, and the detections on them."""
        places = list(range(1, self._config.num_classes))
        limit = setting(self._config, "max_image_pixels")
        check = ImageCheck(progress(self.data.encoded()), limit)
        found = detect(self._infer, self._config, check)
        detections = [
            entry
            for place, (boxes, labels) in enumerate(found)
            for entry in coco_results(check.sound[place][0], boxes, labels, places)
        ]
        if not self._has_said:
            check.report()
            self._has_said = True
        if not check.sound:
            raise BrokenImageError(f"none of the {len(self.data)} images decodes")
        return [number for number, _ in check.sound], detections
