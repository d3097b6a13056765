"""Users' own scripts: classes and functions called with upstream's arguments and keys alone."""

import csv
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from coco_files import coco_of, write_coco
from mindspore import Tensor
from pycocotools.coco import COCO

import generate_mindrecord
from mindspore_hub_conf import create_network
from src import util
from src.dataset import create_fasterrcnn_dataset, data_to_mindrecord_byte_image
from src.errors import UserError
from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.FasterRcnn.proposal_generator import Proposal
from src.FasterRcnn.roi_align import SingleRoIExtractor
from src.model_utils.config import PROJECT_DIR, Config, load_config
from src.network_define import train_cell

TINY = "configs/tiny/default_config.yaml"
# What upstream's modules offered to scripts.
NAMES = {
    "generate_mindrecord": "generate_coco_mindrecord",
    "mindspore_hub_conf": "create_network",
    "test_fl_fasterrcnn": "start_one_server start_one_scheduler train_fasterrcnn_ start_one_worker",
    "src.convert_checkpoint": "load_weights",
    "src.dataset": "bbox_overlaps PhotoMetricDistortion Expand rescale_with_tuple "
    "rescale_with_factor rescale_column rescale_column_test resize_column resize_column_test "
    "impad_to_multiple_column imnormalize_column flip_column transpose_column photo_crop_column "
    "expand_column preprocess_fn create_coco_label parse_json_annos_from_txt "
    "create_train_data_from_txt data_to_mindrecord_byte_image create_fasterrcnn_dataset",
    "src.detecteval": "read_image save_image draw_rectangle draw_text draw_one_box DetectEval",
    "src.eval_callback": "EvalCallBack",
    "src.eval_utils": "create_eval_mindrecord apply_eval metrics_map",
    "src.lr_schedule": "linear_warmup_learning_rate a_cosine_learning_rate dynamic_lr multistep_lr",
    "src.network_define": "LossCallBack LossNet WithLossCell tensor_grad_scale TrainOneStepCell",
    "src.util": "write_list_to_csv coco_eval_method calculate_pr_rc_f1 xyxy2xywh "
    "bbox2result_1image proposal2json det2json segm2json results2json",
    "src.FasterRcnn": "ResNetFea BboxAssignSample BboxAssignSampleForRcnn FeatPyramidNeck "
    "Proposal Rcnn RPN SingleRoIExtractor AnchorGenerator",
    "src.FasterRcnn.faster_rcnn": "Faster_Rcnn FasterRcnn_Infer generator_img_meta",
    "src.FasterRcnn.faster_rcnn_resnet": "Faster_Rcnn_Resnet FasterRcnn_Infer",
    "src.FasterRcnn.faster_rcnn_resnet50v1": "Faster_Rcnn_Resnet FasterRcnn_Infer",
    "src.FasterRcnn.inceptionresnetv2": "BasicConv2d Mixed_5b Block35 Mixed_6a Block17 Mixed_7a "
    "Block8 InceptionResNetV2",
    "src.FasterRcnn.resnet": "weight_init_ones ResNetFea ResidualBlockUsing",
    "src.FasterRcnn.resnet50v1": "weight_init_ones ResNetFea ResidualBlockUsing_V1",
    "src.FasterRcnn.rcnn": "DenseNoTranpose Rcnn",
    "src.FasterRcnn.roi_align": "ROIAlign SingleRoIExtractor",
    "src.FasterRcnn.rpn": "RpnRegClsBlock RPN",
    "src.model_utils.config": "Config parse_cli_to_yaml parse_yaml merge get_config",
    "src.model_utils.local_adapter": "get_device_id get_device_num get_rank_id get_job_id",
    "src.model_utils.moxing_adapter": "get_device_id get_device_num get_rank_id get_job_id "
    "sync_data moxing_wrapper",
}
OWN_KEYS = ("seed", "threads", "strict", "grad_clip_norm", "train_set", "val_set", "num_bboxes")


def upstream_config(**changes):
    """A configuration without the keys that this suite adds."""
    values = vars(load_config(TINY, **changes))
    return Config({key: value for key, value in values.items() if key not in OWN_KEYS})


def gone_names():
    """(module, name) of the rows in docs/upstream.md."""
    page = (PROJECT_DIR / "docs" / "upstream.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(src[\w.]*)`: (.*?) \|", page)
    return {(module, name) for module, cell in rows for name in re.findall(r"`(\w+)`", cell)}


def is_there(module, name):
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def test_each_name_is_there_or_in_the_list_of_those_that_are_gone():
    pairs = {(module, name) for module, names in NAMES.items() for name in names.split()}
    assert {pair for pair in pairs if not is_there(*pair)} == gone_names()


def test_the_detectors_parts_come_without_the_cost_of_those_not_asked_for():
    script = (
        "import sys, src.FasterRcnn; assert 'mindspore' not in sys.modules\n"
        "from src.FasterRcnn import AnchorGenerator, rpn\n"
        "print(AnchorGenerator.__module__, rpn.RPN.__name__, 'src.FasterRcnn.rcnn' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "src.FasterRcnn.anchor_generator RPN False\n", done.stderr


def test_a_part_that_never_was_is_an_import_error():
    with pytest.raises(ImportError, match="RPNN"):
        from src.FasterRcnn import RPNN  # noqa: F401


@pytest.fixture
def annotations(tmp_path):
    """Two images of 48x32; a dog (18) on the first, a person (1) on the second."""
    coco = coco_of(2)
    coco["annotations"][1].update(category_id=1, bbox=[2, 3, 10, 8])
    return write_coco(tmp_path, coco)


def detected(found_dog=0.9, found_person=0.8):
    """Both objects, exactly, and a box where nothing is."""
    dog = np.array([[4, 4, 24, 24, found_dog]], np.float32)
    person = np.array([[30, 20, 40, 30, 0.6], [2, 3, 12, 11, found_person]], np.float32)
    return [
        util.bbox2result_1image(dog, np.array([1]), 3),
        util.bbox2result_1image(person, np.array([[0], [0]]), 3),
    ]


def test_boxes_of_an_image_by_class():
    first, second = detected()[1]
    assert first.shape == (2, 5) and second.shape == (0, 5) and first.dtype == np.float32
    nothing = util.bbox2result_1image(np.zeros((0, 5)), np.zeros(0), 81)
    assert [rows.shape for rows in nothing] == [(0, 5)] * 80
    rows = util.bbox2result_1image(Tensor([[1.0, 2, 3, 4, 0.5]]), Tensor([1]), 3)
    assert [len(part) for part in rows] == [0, 1]


def test_a_box_that_equals_a_label_has_its_width():
    assert util.xyxy2xywh(np.array([4, 4, 24, 24, 0.9])) == [4, 4, 20, 20]


def test_a_script_of_upstreams_evaluation(annotations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco = COCO(str(annotations))
    files = util.results2json(coco, detected(), "results.pkl")
    assert files == {"bbox": "results.pkl.bbox.json", "proposal": "results.pkl.bbox.json"}
    entries = json.loads((tmp_path / files["bbox"]).read_text())
    assert [(e["image_id"], e["category_id"]) for e in entries] == [(1, 18), (2, 1), (2, 1)]
    assert entries[0]["bbox"] == [4, 4, 20, 20]
    found = util.coco_eval_method(None, files, ["bbox"], str(annotations))
    assert found["Precision/mAP"] == pytest.approx(1)
    assert found["Recall/AR@1"] == pytest.approx(1)
    assert found["Precision/mAP (large)"] == -1
    assert list(found)[6:9] == ["Recall/AR@1", "Recall/AR@10", "Recall/AR@100"]


def test_the_empty_box_before_the_right_one_costs_precision(annotations, tmp_path):
    coco = COCO(str(annotations))
    files = util.results2json(coco, detected(found_person=0.5), str(tmp_path / "r"))
    found = util.coco_eval_method(None, files, ["bbox"], coco)
    assert found["Precision/mAP"] == pytest.approx(0.75)
    assert found["Recall/AR@1"] == pytest.approx(0.5)


def test_nothing_found_is_measured_too(annotations, tmp_path):
    files = util.results2json(COCO(str(annotations)), [], str(tmp_path / "r"))
    found = util.coco_eval_method(None, files, ["bbox"], str(annotations))
    assert found["Precision/mAP"] == 0 and found["Recall/AR@100"] == 0


def test_only_images_with_a_detection_count_where_that_is_asked(annotations, tmp_path):
    coco = COCO(str(annotations))
    files = util.results2json(coco, detected()[:1], str(tmp_path / "r"))
    found = util.coco_eval_method(None, files, ["bbox"], coco, single_result=True)
    assert found["Precision/mAP"] == pytest.approx(1)
    assert util.coco_eval_method(None, files, ["bbox"], coco)["Precision/mAP"] == pytest.approx(0.5)


def test_proposals_are_measured_without_their_class(annotations, tmp_path):
    coco = COCO(str(annotations))
    rows = [np.array([[4, 4, 24, 24, 0.5]]), np.array([[0, 0, 5, 5, 0.7], [2, 3, 12, 11, 0.5]])]
    files = util.results2json(coco, rows, str(tmp_path / "r"))
    assert files == {"proposal": f"{tmp_path}/r.proposal.json"}
    found = util.coco_eval_method(None, files, ["proposal"], coco, max_dets=(1, 100, 1000))
    assert (found["Recall/AR@1"], found["Recall/AR@1000"]) == (0.5, 1)


def test_the_counts_of_each_class_are_written(annotations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco = COCO(str(annotations))
    files = util.results2json(coco, detected(), "r")
    figure = util.coco_eval_method(None, files, ["bbox"], coco, plot_detect_result=True)
    assert figure == pytest.approx(1)
    with (tmp_path / "eval_result" / "statistics.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "Precision/mAP" and float(rows[1][0]) == 1
    person, dog = rows[-2:]
    assert person[:6] == ["person", "1", "1", "2", "0.5", "1.0"] and person[6] == "1.0"
    assert float(person[7]) == pytest.approx(0.8)
    assert dog[:6] == ["dog", "1", "1", "1", "1.0", "1.0"]
    found = coco.loadRes(files["bbox"])
    assert util.calculate_pr_rc_f1(None, coco, found, [1], "bbox") == pytest.approx(1)


def test_what_cannot_be_measured_is_one_line(annotations, tmp_path):
    coco = COCO(str(annotations))
    with pytest.raises(UserError, match="no masks"):
        util.results2json(coco, [([], [])], str(tmp_path / "r"))
    with pytest.raises(UserError, match="results of 3 images, and the annotations have 2"):
        util.results2json(coco, [*detected(), []], str(tmp_path / "r"))
    with pytest.raises(UserError, match="a box of class 3, and the annotations have 2"):
        util.det2json(coco, [[*detected()[0], np.ones((1, 5))]])
    with pytest.raises(UserError, match="expected 'bbox' or 'proposal'"):
        util.coco_eval_method(None, {}, ["segm"], coco)
    path = tmp_path / "other.json"
    path.write_text('[{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    with pytest.raises(UserError, match="other.json: 1 boxes of images .* first image_id 7"):
        util.coco_eval_method(None, {"bbox": str(path)}, ["bbox"], coco)
    path.write_text("[")
    with pytest.raises(UserError, match="other.json: no file of results"):
        util.coco_eval_method(None, {"bbox": str(path)}, ["bbox"], coco)


def test_hub_network_with_upstreams_checkpoint_of_another_machine():
    config = upstream_config(ckpt_file="/cache/train/fasterrcnn/faster_rcnn-12_7393.ckpt")
    with pytest.warns(UserWarning, match="/cache/train/.* is not there"):
        assert isinstance(create_network("faster_rcnn", config), Faster_Rcnn_Resnet)


def test_hub_network_of_another_name():
    with pytest.raises(NotImplementedError, match="no network 'yolo' here"):
        create_network("yolo")


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
