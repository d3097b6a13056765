"""Which weights stay in a silo, and that the checks before a start know them."""

import pytest

from src.errors import UserError
from src.job.checks import FAIL
from src.launch.preflight.machine import PROCESS_BYTES, server_bytes
from src.launch.preflight.roles import federated_check
from src.model_utils.config import load_config
from src.training import build_detector
from src.weights.local_params import local_names
from src.weights.parameter_shapes import count_values, federated_shapes, trained_shapes

NAMES = ["fpn.weight", "rcnn.cls.weight", "rcnn.cls.bias", "rcnn.reg.weight"]
TINY = "configs/tiny/default_config.yaml"


@pytest.mark.parametrize(
    ("patterns", "local"),
    [
        ("", []),
        (" , ", []),
        ("rcnn.*", NAMES[1:]),
        ("rcnn.cls.*, *.reg.weight", NAMES[1:]),
        ("rcnn.cls.bias", ["rcnn.cls.bias"]),
    ],
)
def test_patterns_name_what_stays(patterns, local):
    assert local_names(NAMES, patterns) == local


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("rcnn", r"'rcnn' matches none of the 4 trained weights \(did you mean rcnn\.\*\?\)"),
        ("rcnn.*, rccn.cls.bias", r"'rccn.cls.bias' matches none.*did you mean rcnn\.cls\.bias"),
        ("RCNN.*", "matches none"),
        ("*", "keeps all 4 trained weights in the silo"),
        ("fpn.*,rcnn.*", "keeps all 4"),
    ],
)
def test_patterns_that_keep_nothing_or_everything(patterns, words):
    with pytest.raises(UserError, match=words):
        local_names(NAMES, patterns)


def test_the_check_before_the_start_knows_the_networks_trained_weights():
    config = load_config(TINY)
    net, _ = build_detector(config)
    trained = {p.name: tuple(p.shape) for p in net.trainable_params()}
    assert trained_shapes(config) == trained == federated_shapes(config)
    kept = load_config(TINY, local_params="rcnn.*")
    names = [name for name in trained if not name.startswith("rcnn.")]
    assert set(federated_shapes(kept)) == set(names) and len(names) == len(trained) - 8
    assert f"{len(names)} of {len(trained)} trained weights" in federated_check(kept).run().text
    wrong = federated_check(load_config(TINY, local_params="rcn")).run()
    assert wrong.level == FAIL and wrong.text.startswith("local_params: 'rcn' matches none")


def test_servers_need_less_memory_for_a_part():
    whole, part = load_config(), load_config(local_params="rcnn.*")
    assert count_values(federated_shapes(whole)) == 41_527_712
    share = count_values(federated_shapes(part)) / 41_527_712
    assert 0.5 < share < 0.9
    expected = (server_bytes(whole) - PROCESS_BYTES) * share
    assert server_bytes(part) - PROCESS_BYTES == pytest.approx(expected)
