"""Users' own scripts: classes and functions called with upstream's arguments and keys alone."""

import numpy as np
import pytest
from coco_files import coco_of, write_coco
from mindspore import Tensor

import generate_mindrecord
from mindspore_hub_conf import create_network
from src.dataset import create_fasterrcnn_dataset, data_to_mindrecord_byte_image
from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.FasterRcnn.proposal_generator import Proposal
from src.FasterRcnn.roi_align import SingleRoIExtractor
from src.model_utils.config import Config, load_config
from src.network_define import train_cell

TINY = "configs/tiny/default_config.yaml"
OWN_KEYS = ("seed", "threads", "strict", "grad_clip_norm", "train_set", "val_set", "num_bboxes")


def upstream_config(**changes):
    """A configuration without the keys that this suite adds."""
    values = vars(load_config(TINY, **changes))
    return Config({key: value for key, value in values.items() if key not in OWN_KEYS})


def test_detector_and_training_step():
    config = upstream_config()
    net = Faster_Rcnn_Resnet(config)
    cell = train_cell(net, config, np.full(2, 0.1, np.float32))
    seeded = Faster_Rcnn_Resnet(load_config(TINY))
    for one, other in zip(net.get_parameters(), seeded.get_parameters()):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
    assert len(cell.optimizer.parameters) == len(net.trainable_params())


def test_hub_network_by_keyword():
    config = upstream_config()
    assert isinstance(create_network("faster_rcnn", config=config), Faster_Rcnn_Resnet)
    assert create_network("faster_rcnn", config, num_classes=7).num_classes == 7


def test_data(tmp_path):
    coco = {**coco_of(3), "categories": [{"id": 18, "name": "pizza"}]}
    path = write_coco(tmp_path, coco)
    folder = tmp_path / "mindrecord_0"
    config = upstream_config(instance_set=str(path), mindrecord_dir=str(folder))
    data_to_mindrecord_byte_image(config, "coco", True, "FasterRcnn.mindrecord", 1)
    data = create_fasterrcnn_dataset(config, str(folder / "FasterRcnn.mindrecord"), 2, 1, 0, False)
    assert [len(batch["image"]) for batch in data.create_dict_iterator(1)] == [2, 1]


def test_generating_without_arguments_reads_the_command_line(tmp_path, monkeypatch):
    write_coco(tmp_path, coco_of(2))
    monkeypatch.chdir(tmp_path)
    words = ["--mindrecord_dir=mindrecord_4", "--instance_set=train_0.json"]
    monkeypatch.setattr("sys.argv", ["generate_mindrecord.py", *words])
    assert "2 images, 2 boxes" in generate_mindrecord.generate_coco_mindrecord()[0]


def test_flags_of_assigned_anchors_serve_as_masks():
    config = upstream_config(num_expected_pos=2, num_expected_neg=4)
    boxes = np.array([[0, 0, 9, 9], [40, 40, 49, 49], [41, 40, 50, 49]], np.float32)
    inputs = boxes[:1], np.ones(1, np.int32), np.ones(3, bool), boxes, np.ones(1, bool)
    cell = BboxAssignSample(config, 1, 3, False)
    targets, counted, labels, used = (x.asnumpy() for x in cell(*map(Tensor, inputs)))
    assert (counted.dtype, used.dtype) == (np.bool_, np.bool_)
    assert (counted.tolist(), used.tolist()) == ([True, False, False], [True, True, True])
    np.testing.assert_allclose(targets[counted], np.zeros((1, 4)), atol=1e-6)
    assert labels[used].tolist() == [1, 0, 0]


def test_extractor_is_told_of_training():
    config = upstream_config()
    extractor = SingleRoIExtractor(config, 8, config.roi_align_featmap_strides, 1, 56)
    extractor.set_train_local(config, True)
    assert extractor.num_inputs() == 4


@pytest.mark.parametrize(("anchors", "candidates"), [(1, 4), (3, 12), (6, 12)])
def test_three_candidates_of_a_position_at_most(anchors, candidates):
    """Of anchors that do not overlap, as many are kept as were candidates."""
    config = upstream_config(rpn_proposal_max_num=50)
    corner = 2.0 * np.arange(4 * anchors)[:, None]
    level = np.concatenate([corner, corner, corner + 1, corner + 1], 1).astype(np.float32)
    scores = np.linspace(-1, 1, 4 * anchors, dtype=np.float32).reshape(1, anchors, 2, 2)
    offsets = np.zeros((1, 4 * anchors, 2, 2), np.float32)
    cell = Proposal(config, 1, 2, True)
    boxes, masks = cell((Tensor(scores),), (Tensor(offsets),), (Tensor(level),))
    assert masks[0].asnumpy().sum() == candidates
    best = np.sort(scores.ravel())[::-1][:candidates]
    found = boxes[0].asnumpy()[masks[0].asnumpy(), 4]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-best)), rtol=1e-5)
