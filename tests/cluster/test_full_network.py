"""Two silos train the full network on small images through real servers."""

import threading

import numpy as np
import pytest
from commands import make_shards
from engine import Engine

from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.rounds import Deadlines
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client
from src.model_utils.config import PROJECT_DIR, load_config
from src.training import DetectorTask

pytestmark = pytest.mark.slow  # 41.5 million weights are compiled and sent: a minute and more

CONFIG = PROJECT_DIR / "configs" / "demo" / "default_config.yaml"
IMAGES = (4, 6)  # what the two silos declare: their weights in the mean


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Initial weights, aspects, and each silo's weights after two steps on its own shard."""
    shards = make_shards(tmp_path_factory.mktemp("data"), images=8, config=CONFIG)
    weights, initial, aspects = [], None, None
    for number in range(2):
        config = load_config(CONFIG, img_width=96, img_height=64)
        task = DetectorTask(config, shards / f"mindrecord_{number}")
        travelling = task.network.trainable_params()
        initial = {p.name: p.asnumpy().copy() for p in travelling}
        aspects = task.aspects
        step = task.training_step(task.rates(2, 1), 0)
        step.set_train()
        losses = [float(step(*batch).asnumpy().mean()) for batch in task.dataset]
        assert np.isfinite(losses).all()
        weights.append({p.name: p.asnumpy().copy() for p in travelling})
    return initial, aspects, weights


def test_the_global_model_is_the_weighted_mean_of_what_the_silos_sent(trained, tmp_path):
    initial, aspects, weights = trained
    assert sum(array.size for array in initial.values()) == 41_527_712
    model = {**initial, FEATURE_NAME: fingerprint(aspects)}
    received = [{}, {}]
    with Engine(model, tmp_path, servers=2, iterations=1) as engine:

        def take_part(number: int) -> None:
            silo = Silo(
                Client(engine.addresses[number:], engine.fl_name, f"silo {number}"),
                received[number].update,
                {name: array.size for name, array in initial.items()},
                SiloSettings(
                    IMAGES[number],
                    iterations=1,
                    threshold=2,
                    aspects=aspects,
                    deadlines=Deadlines(join=60, request=60, wait=120),
                ),
            )
            silo.join()
            silo.exchange(weights[number])
            assert silo.finished

        threads = [threading.Thread(target=take_part, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=200)
    for name in initial:
        mean = sum(n * w[name].astype(np.float64) for n, w in zip(IMAGES, weights)) / sum(IMAGES)
        for model in received:
            np.testing.assert_allclose(
                model[name].reshape(mean.shape), mean, rtol=1e-5, atol=1e-8, err_msg=name
            )
    moved = [n for n in initial if (weights[0][n] != weights[1][n]).any()]
    assert len(moved) > 100
