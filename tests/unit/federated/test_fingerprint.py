"""Which keys of the configuration silos compare, asked of every key there is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from commands import PROJECT_DIR, TINY
from models import save_resnet

from src.errors import UserError
from src.export.onnx_model import detector_model
from src.FasterRcnn.config_check import EQUAL, check_config
from src.federated.aggregation import aggregation_of
from src.federated.fingerprint import (
    ASPECTS,
    FREE_KEYS,
    FROZEN_ASPECT,
    KEYS_OF_ASPECTS,
    LOCAL_ASPECT,
    SHARED_KEYS,
    SYNC_ASPECT,
    TOLD_BY_SIZES,
    UNIT_ASPECT,
    VIEW_OF_BOXES,
    differing,
    fingerprint,
    key_aspects,
)
from src.job.job_config import load_job
from src.model_utils.config import DERIVED, IDLE, KEYS, Config, load_config
from src.training import build_detector, shared_aspects
from src.weights.parameter_shapes import parameter_shapes, trained_shapes

ANSWERS = {
    "SHARED_KEYS": SHARED_KEYS,
    **{f"KEYS_OF_ASPECTS[{name!r}]": keys for name, keys in KEYS_OF_ASPECTS.items()},
    **{f"FREE_KEYS[{reason!r}]": keys for reason, keys in FREE_KEYS.items()},
    "IDLE": tuple(IDLE),
}
# A value that stands in for any other, where the key's type does not tell one.
OTHER = {
    "img_width": 96,
    "img_height": 96,
    "roi_layer": {"type": "RoIAlign", "out_size": 3, "sample_num": 1},
    "num_classes": 4,
    "local_params": "rcnn.*",
}


@pytest.fixture(scope="module")
def net():
    return build_detector(load_config(TINY))[0]


def other_value(key: str, value: Any) -> Any:
    """Another value of the key's type, from its choices where it has some."""
    if key in OTHER:
        return OTHER[key]
    if KEYS[key].choices:
        return next(choice for choice in KEYS[key].choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, list) and isinstance(value[0], str):
        return [value[0], *reversed(value[1:])]
    if isinstance(value, list):
        return [value[0] + 1, *value[1:]]
    return value + 1


def changed(key: str) -> dict[str, Any]:
    """Another value of the key, and of those that always equal it."""
    names, more = {key}, True
    while more:
        more = [pair for pair in EQUAL if len(names.intersection(pair)) == 1]
        names.update(name for pair in more for name in pair)
    config = load_config(TINY)
    return {name: other_value(name, plain(getattr(config, name))) for name in names}


def plain(value: Any) -> Any:
    return dict(vars(value)) if isinstance(value, Config) else value


def all_aspects(config: Config, net: Any) -> dict[str, object]:
    own = aggregation_of(load_job(PROJECT_DIR / "default_yaml_config.yaml"), config).aspects()
    return {**shared_aspects(config, net), **own}


def unlike(mine: dict[str, object], theirs: dict[str, object]) -> list[str]:
    return differing(list(mine), fingerprint(mine), fingerprint(theirs))


def test_of_every_key_it_is_said_whether_silos_compare_it():
    said = {key: [name for name, keys in ANSWERS.items() if key in keys] for key in KEYS}
    silent = [key for key, names in said.items() if not names]
    assert not silent, (
        f"{silent}: put each into SHARED_KEYS of src/federated/fingerprint.py where another value "
        "gives a box or a weight another meaning, else into FREE_KEYS by the reason why not"
    )
    twice = {key: names for key, names in said.items() if len(names) > 1}
    assert not twice, f"said twice: {twice}"
    gone = {key for keys in ANSWERS.values() for key in keys} - set(KEYS)
    assert not gone, f"no keys any more: {sorted(gone)}"
    assert set(KEYS_OF_ASPECTS) | set(SHARED_KEYS) < set(ASPECTS)


@pytest.mark.parametrize("key", SHARED_KEYS)
def test_another_value_of_a_compared_key_is_named(key):
    config = load_config(TINY)
    theirs = load_config(TINY, **{key: other_value(key, plain(getattr(config, key)))})
    assert unlike(key_aspects(config), key_aspects(theirs)) == [key]


def test_a_number_is_the_same_however_it_is_written():
    mine = load_config(TINY, rpn_target_stds=[1, 1, 1, 1], anchor_scales=[4])
    theirs = load_config(TINY, rpn_target_stds=[1.0, 1.0, 1.0, 1.0], anchor_scales=[4.0])
    theirs.roi_layer.type = "ROIAlign"  # nothing reads it
    assert unlike(key_aspects(mine), key_aspects(theirs)) == []


@pytest.mark.parametrize("key", KEYS_OF_ASPECTS[SYNC_ASPECT])
def test_another_value_of_a_key_of_the_adaptive_frequency_is_named(net, key):
    base = {} if key == "sync_type" else {"sync_type": "adaptive"}
    mine = load_config(TINY, **base)
    value = getattr(mine, key)
    other = value / 2 if key == "ema_alpha" else other_value(key, value)
    theirs = load_config(TINY, **{**base, key: other})
    assert unlike(all_aspects(mine, net), all_aspects(theirs, net)) == [SYNC_ASPECT]


def test_another_value_of_a_key_that_is_compared_in_an_aspect_is_named(net, tmp_path):
    checkpoint = save_resnet(tmp_path / "resnet.ckpt")
    others = {
        LOCAL_ASPECT: [{"local_params": "rcnn.*"}],
        UNIT_ASPECT: [{"data_size_unit": 2}],
        FROZEN_ASPECT: [{"seed": 5}, {"pre_trained": str(checkpoint)}],
    }
    mine = all_aspects(load_config(TINY), net)
    for aspect, cases in others.items():
        assert {key for case in cases for key in case} == set(KEYS_OF_ASPECTS[aspect])
        for values in cases:
            config = load_config(TINY, **values)
            own = build_detector(config)[0] if aspect == FROZEN_ASPECT else net
            assert unlike(mine, all_aspects(config, own)) == [aspect], values


def sizes(config: Config) -> list[dict[str, int]]:
    """The sizes of all weights, and of those that are trained."""
    return [
        {name: math.prod(shape) for name, shape in shapes(config).items()}
        for shapes in (parameter_shapes, trained_shapes)
    ]


@pytest.mark.parametrize("key", FREE_KEYS[TOLD_BY_SIZES])
def test_of_a_key_that_is_said_to_show_in_the_weights_another_value_shows_or_is_refused(key):
    try:
        config = load_config(TINY, **changed(key))
        check_config(config)
    except UserError as error:
        assert key in str(error)
    else:
        assert sizes(config) != sizes(load_config(TINY))


class Watched(Config):
    """A configuration that notes which of its keys are read."""

    def __init__(self, config: Config):
        self.__dict__.update(vars(config))
        self.__dict__["read"] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in KEYS:
            self.__dict__["read"].add(name)
        return super().__getattribute__(name)


def test_what_a_finished_detector_is_built_from_is_compared_or_is_a_choice_of_the_view():
    """Keys of the silo's data, training and files have no part in what the weights find."""
    config = Watched(load_config(TINY))
    shapes = parameter_shapes(load_config(TINY))
    detector_model({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, config)
    answered = {*SHARED_KEYS, *FREE_KEYS[TOLD_BY_SIZES], *FREE_KEYS[VIEW_OF_BOXES]}
    assert {"anchor_ratios", "rcnn_target_stds", "roi_align_finest_scale"} < config.read
    assert config.read - answered - set(IDLE) - set(DERIVED) == set()
