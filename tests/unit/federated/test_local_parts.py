"""Checkpoints of a job whose silos keep a part of the detector."""

from types import SimpleNamespace

import mindspore as ms
import pytest

from src.commands.load_detector import load_detector
from src.errors import UserError
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.federated.aggregation import Aggregation
from src.federated.fingerprint import FEATURE_NAME, differing, fingerprint
from src.model_utils.config import load_config
from src.training import save_models, shared_aspects

TINY = "configs/tiny/default_config.yaml"
HEAD = "rcnn.*"


def tiny(seed, **keys):
    ms.set_seed(seed)
    return load_config(TINY, seed=seed, local_params=HEAD, **keys)


def values(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The servers' file, and the whole detector of a silo, of one job with a local head."""
    folder = tmp_path_factory.mktemp("models")
    config = tiny(3)
    net = Faster_Rcnn_Resnet(config)
    server, silo = folder / "T_recovery_iteration_0_20260101_000000.ckpt", folder / "w.ckpt"
    count = save_models(net, config, server, silo, Aggregation())
    return SimpleNamespace(config=config, net=net, server=server, silo=silo, count=count)


def test_the_servers_file_holds_neither_local_nor_frozen_parts(models):
    held = set(ms.load_checkpoint(str(models.server)))
    trained = {p.name for p in models.net.trainable_params()}
    local = {name for name in trained if name.startswith("rcnn.")}
    assert len(local) == 8
    assert held == trained - local | {FEATURE_NAME} and len(held) == models.count + 1
    assert set(ms.load_checkpoint(str(models.silo))) == {*values(models.net), FEATURE_NAME}


def test_the_servers_file_is_measured_with_a_silos_own_parts(models):
    net = Faster_Rcnn_Resnet(tiny(4))
    with pytest.raises(UserError, match=r"silos' own \(8 of local_params\): give a worker's"):
        load_detector(net, models.config, models.server)
    said = load_detector(net, models.config, models.server, models.silo)
    assert said.endswith("and 8 of the silo's own (local_params)")
    for name, value in values(models.net).items():
        assert (values(net)[name] == value).all(), name


def test_who_measures_must_know_what_stayed(models):
    config = load_config(TINY, seed=3)
    with pytest.raises(UserError, match=r"missing 8 trained ones.*--local_params"):
        load_detector(Faster_Rcnn_Resnet(config), config, models.server, models.silo)
    part = load_config(TINY, seed=3, local_params="rcnn.*,rpn_with_loss.*")
    with pytest.raises(UserError, match="other values of: local_params;"):
        load_detector(Faster_Rcnn_Resnet(part), part, models.server, models.silo)


def test_the_silos_own_parts_must_be_of_the_same_configuration(models, tmp_path):
    config = tiny(3, img_width=96)
    silo = tmp_path / "w.ckpt"
    save_models(models.net, config, tmp_path / "s.ckpt", silo, Aggregation())
    with pytest.raises(UserError, match=r"w.ckpt: was trained with other values of: img_width;"):
        load_detector(Faster_Rcnn_Resnet(models.config), models.config, models.server, silo)


def test_silos_agree_on_what_stays_and_not_on_its_values(models):
    config, other = models.config, Faster_Rcnn_Resnet(models.config)
    for param in other.trainable_params():
        if param.name.startswith("rcnn."):
            param.set_data(param + 1)
    aspects = shared_aspects(config, models.net)
    mine = fingerprint(aspects)
    for param in other.get_parameters():
        if not param.requires_grad:
            param.set_data(ms.Tensor(values(models.net)[param.name]))
    assert differing(list(aspects), mine, fingerprint(shared_aspects(config, other))) == []
    same = load_config(TINY, seed=3, local_params="*.bias, rcnn.*")
    theirs = fingerprint(shared_aspects(same, models.net))
    assert differing(list(aspects), mine, theirs) == ["local_params"]
    written = load_config(TINY, seed=3, local_params="rcnn.*.*")
    assert differing(list(aspects), mine, fingerprint(shared_aspects(written, models.net))) == []
