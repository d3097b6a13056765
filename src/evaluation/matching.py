"""Match detections with objects at an IoU of 0.5, and count by class what was found.

The matching is COCO's (https://cocodataset.org/#detection-eval), done by pycocotools: within a
class, the detection with the highest score takes the object that it overlaps most and that no other
has taken. A detection of a crowd counts neither for nor against the detector.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from src.evaluation.metrics import MAX_DETECTIONS, coco_index, with_area

IOU = 0.5
SCORE = 0.5  # detections below it do not count as found

# The class of an object and of its detection, and how often; None for no object or no detection.
Confusion = list[tuple[Any, Any, int]]


@dataclass(frozen=True)
class Matches:
    """Tell what became of each object and each detection, by their positions in the lists.

    Attributes:
        found: detection -> object of the same class.
        confused: detection -> object of another class, which no detection of its class found.
        missed: objects that no detection of their class found, also confused ones; no crowds.
        false: detections that found no object of their class, also confused ones.
    """

    found: dict[int, int]
    confused: dict[int, int]
    missed: frozenset[int]
    false: frozenset[int]


def match(
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: Sequence[int],
    classes: dict[int, str],
) -> Matches:
    """Match detections with objects, then those that are left across the classes.

    Args: as for `metrics.box_figures`; categories that are not in `classes` do not count. A caller
    leaves out the detections with a low score.
    """
    truths = [{**entry, "place": place} for place, entry in enumerate(truths)]
    detections = [{**entry, "place": place} for place, entry in enumerate(detections)]
    found, false = _pairs(truths, detections, images, classes)
    taken = set(found.values())
    objects = [t for t in truths if not t.get("iscrowd") and t["category_id"] in classes]
    missed = [t for t in objects if t["place"] not in taken]
    left = [detections[place] for place in false]
    confused, _ = _pairs(missed, left, images, classes, by_class=False)
    return Matches(found, confused, frozenset(t["place"] for t in missed), frozenset(false))


def _pairs(
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: Sequence[int],
    classes: dict[int, str],
    by_class: bool = True,
) -> tuple[dict[int, int], list[int]]:
    """Return the places of matched detections -> objects, and of detections without a match."""
    pairs, alone = {}, []
    entries = _evaluated(truths, detections, images, classes, len(detections), by_class)
    for entry in entries:
        matched, ignored = entry["dtMatches"][0], entry["dtIgnore"][0]
        for id_, truth_id, is_ignored in zip(entry["dtIds"], matched, ignored):
            place = detections[int(id_) - 1]["place"]
            if is_ignored:
                continue
            if truth_id > 0:
                pairs[place] = truths[int(truth_id) - 1]["place"]
            else:
                alone.append(place)
    return pairs, alone


def _evaluated(
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: Sequence[int],
    classes: dict[int, str],
    most: int = MAX_DETECTIONS,
    by_class: bool = True,
) -> list[dict[str, Any]]:
    """Return pycocotools' matches at `IOU`, for each image and class with an object or detection.

    Args:
        most: number of detections of a class on an image that count, best score first.
    """
    # pycocotools prints its progress, which would end up between the lines of a log.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco_index(truths, list(images), classes),
            coco_index(with_area(detections), list(images), classes),
            "bbox",
        )
        settings = evaluation.params
        settings.iouThrs, settings.maxDets, settings.useCats = np.array([IOU]), [most], by_class
        settings.areaRng, settings.areaRngLbl = settings.areaRng[:1], settings.areaRngLbl[:1]
        evaluation.evaluate()
    return [entry for entry in evaluation.evalImgs if entry is not None]


def confusion_of(
    matches: Matches,
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    classes: dict[int, str],
) -> Confusion:
    """Count objects and detections by the classes of both, in the order of `classes`.

    An object counts once, and so does a detection. Classes without either are not in the result.
    """

    def name(entries: list[dict[str, Any]], place: int) -> str:
        return classes[entries[place]["category_id"]]

    pairs = [*matches.found.items(), *matches.confused.items()]
    counts: Counter[Any] = Counter((name(truths, t), name(detections, d)) for d, t in pairs)
    alone = matches.missed - set(matches.confused.values())
    counts.update((name(truths, t), None) for t in alone)
    counts.update((None, name(detections, d)) for d in matches.false - set(matches.confused))
    order = {name: place for place, name in enumerate([*classes.values(), None])}
    keys = sorted(counts, key=lambda key: (order[key[0]], order[key[1]]))
    return [(truth, found, counts[truth, found]) for truth, found in keys]


@dataclass
class ClassCount:
    """Count what was found of one class.

    Attributes:
        found: objects with a detection of this class.
        missed: objects without one.
        false: detections of this class where no such object is.
    """

    found: int = 0
    missed: int = 0
    false: int = 0

    @property
    def recall(self) -> float:
        """Return the share of the objects that were found; NaN without an object."""
        return _ratio(self.found, self.found + self.missed)

    @property
    def precision(self) -> float:
        """Return the share of the detections that are right; NaN without a detection."""
        return _ratio(self.found, self.found + self.false)


def counts_by_class(confusion: Confusion) -> dict[str, ClassCount]:
    """Return the counts of each class in a confusion table, by name."""
    counts: dict[str, ClassCount] = {}
    for truth, detected, count in confusion:
        if truth is not None:
            one = counts.setdefault(truth, ClassCount())
            one.found += count if truth == detected else 0
            one.missed += count if truth != detected else 0
        if detected is not None and detected != truth:
            counts.setdefault(detected, ClassCount()).false += count
    return counts


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def class_counts(
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: Sequence[int],
    classes: dict[int, str],
) -> list[list[Any]]:
    """Count what was found of each class, whatever the scores.

    Args: as for `metrics.box_figures`.

    Returns:
        For each class its name, matched detections, objects, detections, precision, recall, the
        highest F1 over all score thresholds, and that threshold. Detections of crowds do not count;
        a metric that would divide by 0 is 0.
    """
    entries = _evaluated(truths, detections, images, classes)
    rows = []
    for id_, name in classes.items():
        found = [e for e in entries if e["category_id"] == id_]
        objects = sum(int((np.asarray(e["gtIgnore"]) == 0).sum()) for e in found)
        counted = [~np.asarray(e["dtIgnore"][0], bool) for e in found]
        scores = np.concatenate([[], *(np.array(e["dtScores"])[c] for e, c in zip(found, counted))])
        hits = np.concatenate([[], *(e["dtMatches"][0][c] > 0 for e, c in zip(found, counted))])
        order = np.argsort(-scores, kind="stable")
        matched, taken = np.cumsum(hits[order]), np.arange(1, len(order) + 1)
        f1 = 2 * matched / (taken + objects)
        best = int(np.argmax(f1)) if len(f1) else None
        total = int(hits.sum())
        rows.append(
            [
                name,
                total,
                objects,
                len(order),
                total / max(len(order), 1),
                total / max(objects, 1),
                0.0 if best is None else float(f1[best]),
                0.0 if best is None else float(scores[order][best]),
            ]
        )
    return rows
