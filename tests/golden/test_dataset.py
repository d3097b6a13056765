"""Augmentation against the recorded samples, bit by bit, and the pipeline around it."""

import json
from pathlib import Path
from types import SimpleNamespace

import mindspore
import numpy as np
import pytest

from src.data.augmentation import preprocess_fn
from src.dataset import (
    create_coco_label,
    create_fasterrcnn_dataset,
    data_to_mindrecord_byte_image,
)
from src.model_utils.config import load_config

GOLDEN = Path(__file__).parent
RECORD = json.loads((GOLDEN / "dataset_cases.json").read_text())
CASES = list(enumerate(RECORD["cases"]))
CASE_KEYS = ("num_gts", "keep_ratio", "flip_ratio", "expand_ratio")


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDEN / "dataset.npz"))


def run_case(case, arrays, rng=None):
    size = {key: RECORD[key] for key in ("img_width", "img_height")}
    config = SimpleNamespace(**size, **{key: case[key] for key in CASE_KEYS})
    image = arrays[f"image_{case['image']}"]
    annotation = arrays[f"annotation_{case['annotation']}"]
    return preprocess_fn(image, annotation, case["training"], config, rng)


@pytest.mark.parametrize(("number", "case"), CASES)
def test_sample_is_bit_identical(number, case, arrays):
    np.random.seed(case["seed"])
    sample = run_case(case, arrays)
    assert np.random.rand() == case["next_rand"]
    for name, found in zip(("image", "image_shape", "box", "label"), sample):
        recorded = arrays[f"case{number:02d}_{name}"]
        assert found.dtype == recorded.dtype
        np.testing.assert_array_equal(found, recorded)
    assert sample[4].dtype == bool
    np.testing.assert_array_equal(sample[4], arrays[f"case{number:02d}_valid"])


def test_own_generator_gives_what_the_global_one_gives(arrays):
    case = RECORD["cases"][6]
    state = np.random.get_state()[1].copy()
    sample = run_case(case, arrays, np.random.RandomState(case["seed"]))
    np.testing.assert_array_equal(sample[0], arrays["case06_image"])
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_inputs_stay_as_they_are(arrays):
    kept = {name: array.copy() for name, array in arrays.items() if not name.startswith("case")}
    for _, case in CASES:
        run_case(case, arrays, np.random.RandomState(case["seed"]))
    for name, array in kept.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("shape", [(700, 3), (3, 700), (64, 640), (640, 64), (1, 1)])
@pytest.mark.parametrize(("width", "height"), [(160, 96), (96, 160)])
def test_any_proportion_fits_the_target(shape, width, height):
    config = SimpleNamespace(
        img_width=width, img_height=height, num_gts=4, keep_ratio=True, flip_ratio=1.0,
        expand_ratio=1.0,
    )  # fmt: skip
    image = np.full((*shape, 3), 200, np.uint8)
    box = np.array([[0, 0, shape[1], shape[0], 1, 0]], np.int32)
    for seed in range(4):
        found = preprocess_fn(image, box, True, config, np.random.RandomState(seed))
        assert found[0].shape == (3, height, width)
        assert (found[2] >= 0).all() and (found[2] <= max(width, height) - 1).all()


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Configuration and MindRecord of the five recorded images."""
    folder = tmp_path_factory.mktemp("data") / "mindrecord_0"
    config = load_config(
        instance_set=str(GOLDEN / "mindrecord" / "train_0.json"), mindrecord_dir=str(folder),
        img_width=RECORD["img_width"], img_height=RECORD["img_height"], num_gts=8,
    )  # fmt: skip
    data_to_mindrecord_byte_image(config, "coco", True, "FasterRcnn.mindrecord", 1)
    return config, folder / "FasterRcnn.mindrecord"


def batches(data, epochs=1):
    iterator = data.create_dict_iterator(num_epochs=epochs, output_numpy=True)
    return [batch for _ in range(epochs) for batch in iterator]


def test_training_batches_have_the_columns_of_the_network(shard):
    config, file = shard
    data = create_fasterrcnn_dataset(config, str(file), batch_size=2)
    assert data.get_dataset_size() == 2
    assert data.get_col_names() == ["image", "image_shape", "box", "label", "valid_num"]
    found = {name: (array.shape, array.dtype.name) for name, array in batches(data)[0].items()}
    assert found == {
        "image": ((2, 3, 96, 160), "float32"),
        "image_shape": ((2, 3), "float32"),
        "box": ((2, 8, 4), "float32"),
        "label": ((2, 8), "int32"),
        "valid_num": ((2, 8), "bool"),
    }


def test_evaluation_gives_every_image_once_in_file_order(shard):
    config, file = shard
    data = create_fasterrcnn_dataset(config, str(file), batch_size=2, is_training=False)
    found = batches(data)
    assert [len(batch["image"]) for batch in found] == [2, 2, 1]
    sizes = np.concatenate([batch["image_shape"] for batch in found])[:, :2]
    listed = json.loads((GOLDEN / "mindrecord" / "train_0.json").read_text())["images"]
    assert sizes.tolist() == [[image["height"], image["width"]] for image in listed]
    labels = create_coco_label(False, config)[1]
    first = next(iter(labels.values()))
    assert found[0]["label"][0, : len(first)].tolist() == first[:, 4].tolist()


def epochs_of(config, file, seed, workers, epochs=2):
    mindspore.set_seed(seed)
    changed = SimpleNamespace(**{**vars(config), "seed": seed})
    data = create_fasterrcnn_dataset(changed, str(file), 2, num_parallel_workers=workers)
    return np.stack([batch["image"] for batch in batches(data, epochs)])


def test_training_depends_on_the_seed_and_not_on_the_threads(shard):
    first = epochs_of(*shard, seed=3, workers=1)
    np.testing.assert_array_equal(first, epochs_of(*shard, seed=3, workers=2))
    assert not np.array_equal(first, epochs_of(*shard, seed=4, workers=1))


def test_a_second_iterator_draws_new_augmentations(shard):
    config, file = shard
    mindspore.set_seed(1)
    data = create_fasterrcnn_dataset(config, str(file), batch_size=2)
    first, second = (np.stack([b["image"] for b in batches(data)]) for _ in range(2))
    assert not np.array_equal(first, second)


def test_ranks_share_the_rows(shard):
    config, file = shard
    sizes = []
    for rank in range(2):
        data = create_fasterrcnn_dataset(config, str(file), 1, 2, rank, is_training=False)
        sizes += [tuple(b["image_shape"][0, :2]) for b in batches(data)]
    listed = json.loads((GOLDEN / "mindrecord" / "train_0.json").read_text())["images"]
    assert set(sizes) == {(image["height"], image["width"]) for image in listed}
