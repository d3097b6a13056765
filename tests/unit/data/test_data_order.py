"""The data of a worker that goes on: the batches that come after those it has trained."""

import numpy as np
import pytest
from commands import TINY, make_shards
from mindspore import set_seed

from src.dataset import create_fasterrcnn_dataset
from src.model_utils.config import load_config

EPOCHS = 3
BATCHES = 3  # of two images; a seventh image is left out in each epoch


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    shards = make_shards(tmp_path_factory.mktemp("data"), images=7, silos=1)
    return shards / "mindrecord_0" / "FasterRcnn.mindrecord"


def batches(shard, batches_done=0, ranks=1, rank=0):
    """The batches of each epoch, and the number that an epoch is said to have."""
    set_seed(1)
    config = load_config(str(TINY))
    data = create_fasterrcnn_dataset(
        config, shard, 2 // ranks, ranks, rank, num_parallel_workers=1, batches_done=batches_done
    )
    size = data.get_dataset_size()
    rows = data.create_dict_iterator(num_epochs=EPOCHS, output_numpy=True)
    return [[{k: v.copy() for k, v in row.items()} for row in rows] for _ in range(EPOCHS)], size


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_left_out_changes_nothing_in_the_rest(shard, ranks):
    whole, size = batches(shard, ranks=ranks, rank=ranks - 1)
    assert [len(epoch) for epoch in whole] == [size] * EPOCHS
    first_images = [epoch[0]["image"] for epoch in whole]
    assert not np.array_equal(first_images[0], first_images[1])
    for done in (1, size, size + 1, 2 * size + 2):
        rest, said = batches(shard, done, ranks, ranks - 1)
        assert said == size
        expected = [row for epoch in whole for row in epoch][done:]
        found = [row for epoch in rest for row in epoch]
        assert [len(epoch) for epoch in rest][: done // size] == [0] * (done // size)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            for column in other:
                np.testing.assert_array_equal(one[column], other[column])
