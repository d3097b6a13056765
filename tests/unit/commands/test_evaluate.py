"""Evaluation between training steps, any checkpoint as the model, and the command."""

import json
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from coco_files import coco_of, run_script, write_coco
from evaluation_sets import TINY, assert_same, tiny, validation
from mindspore import Tensor

from src.commands.load_detector import load_detector
from src.data.image_check import BrokenImageError
from src.errors import UserError
from src.evaluation.evaluator import Evaluator
from src.evaluation.metrics import FIGURES
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.federated.aggregation import SCAFFOLD, AdaptiveSettings, Aggregation
from src.federated.fingerprint import ASPECTS, FEATURE_NAME
from src.model_utils.config import load_config
from src.network_define import train_cell
from src.training import save_models, shared_aspects


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def inputs(config, seed):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
    shape = np.array([[64, 64, 1]] * 2, np.float32)
    box = np.tile(np.array([8, 8, 40, 40], np.float32), (2, config.num_gts, 1))
    label = np.full((2, config.num_gts), 1, np.int32)
    valid = np.zeros((2, config.num_gts), bool)
    valid[:, 0] = True
    return [Tensor(array) for array in (image, shape, box, label, valid)]


def train(config, evaluator_of=None):
    """Six steps, with an evaluation after each second one where there is an evaluator."""
    ms.set_seed(1)
    net = Faster_Rcnn_Resnet(config)
    net.set_train()
    step = train_cell(net, config, np.full(6, 0.02, np.float32))
    step.set_train()
    run = SimpleNamespace(net=net, step=step, losses=[], found=[], modes=[])
    run.evaluator = evaluator_of(net) if evaluator_of else None
    for number in range(6):
        run.losses.append(step(*inputs(config, number)).asnumpy())
        if run.evaluator and number % 2:
            run.found.append(run.evaluator.run())
            run.modes.append([cell.training for _, cell in net.cells_and_names()])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training with evaluations and without, and an evaluator of what the latter gave."""
    config = tiny(test_score_thr=0.0)
    data = validation(tmp_path_factory.mktemp("validation"))
    evaluated = train(config, lambda net: Evaluator(config, net, data))
    plain = train(config)
    plain.evaluator = Evaluator(config, plain.net, data)
    return SimpleNamespace(evaluated=evaluated, plain=plain, data=data)


def test_training_goes_on_bit_for_bit(runs):
    evaluated, plain = runs.evaluated, runs.plain
    np.testing.assert_array_equal(evaluated.losses, plain.losses)
    assert_same(evaluated.net, plain.net)
    assert len(evaluated.step.compile_cache) == 1
    assert all(all(modes) for modes in evaluated.modes)


def differ(one, other) -> bool:
    """Whether detections differ; a plain bool, for pytest would take minutes to show how."""
    return one.results != other.results


def test_each_evaluation_is_of_the_weights_of_its_moment(runs):
    first, second, third = runs.evaluated.found
    for evaluation in (first, second, third):
        assert list(evaluation.figures) == list(FIGURES) and evaluation.images == 5
        assert evaluation.results and list(evaluation.per_class) == ["dog"]
        kept = evaluation.record()
        assert list(kept["per_class_AP50"]) == ["dog"]
        assert kept["per_class_AP50"]["dog"] == evaluation.figures["AP50"]
        objects = sum(n for name, _, n in kept["confusion"]["counts"] if name == "dog")
        assert (kept["confusion"]["score"], objects) == (0.5, len(runs.data.truths))
    assert differ(first, second) and differ(second, third)
    alone = runs.plain.evaluator.run()
    assert not differ(alone, third) and alone.figures == third.figures


def test_weights_that_were_set_are_the_ones_evaluated(runs):
    """As the synchronisation sets them."""
    for mine, theirs in zip(runs.evaluated.net.get_parameters(), runs.plain.net.get_parameters()):
        values = theirs.asnumpy() * np.float32(1.1)
        mine.set_data(Tensor(values))
        theirs.set_data(Tensor(values))
    after = runs.evaluated.evaluator.run()
    assert differ(after, runs.evaluated.found[2])
    assert not differ(after, runs.plain.evaluator.run())


@pytest.mark.slow
def test_a_broken_image_costs_its_own_boxes_alone(runs, tmp_path, capsys):
    coco = coco_of(5)
    data = validation(tmp_path, coco)
    broken = tmp_path / data.source.stem / "2.jpg"
    broken.write_bytes(b"RIFF1234WEBPVP8 ")
    evaluator = Evaluator(runs.plain.evaluator._config, runs.plain.net, data)
    found = evaluator.run()
    assert "2.jpg is left out of the evaluation: a WebP image" in capsys.readouterr().err
    coco["images"].pop(2)
    coco["annotations"].pop(2)
    whole = validation(tmp_path / "whole", coco)
    for name in ("3.jpg", "4.jpg"):
        data_of = tmp_path / data.source.stem / name
        (tmp_path / "whole" / whole.source.stem / name).write_bytes(data_of.read_bytes())
    alone = Evaluator(runs.plain.evaluator._config, runs.plain.net, whole).run()
    assert (found.images, found.figures) == (4, alone.figures)
    assert found.results == alone.results and {e["image_id"] for e in found.results} == {1, 2, 4, 5}
    assert evaluator.run().images == 4 and not capsys.readouterr().err
    for number in range(5):
        (tmp_path / data.source.stem / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(BrokenImageError, match="none of the 5 images decodes"):
        evaluator.run()


def test_a_vanished_image_leaves_the_network_in_training(runs):
    runs.evaluated.net.set_train()
    (runs.data.source.parent / runs.data.source.stem / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        runs.evaluated.evaluator.run()
    assert all(cell.training for _, cell in runs.evaluated.net.cells_and_names())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A server's and a worker's file of the same tiny detector, and its configuration."""
    folder = tmp_path_factory.mktemp("models")
    config = load_config(TINY, seed=3)
    net = Faster_Rcnn_Resnet(config)
    server, worker = folder / "T_recovery_iteration_2_20260101_000000.ckpt", folder / "w.ckpt"
    save_models(net, config, server, worker, Aggregation())
    return SimpleNamespace(config=config, net=net, server=server, worker=worker, folder=folder)


def test_the_servers_file_needs_the_frozen_tensors(models):
    net = Faster_Rcnn_Resnet(tiny(seed=4))
    count, frozen = len(list(net.get_parameters())), len(list(net.untrainable_params()))
    assert load_detector(net, models.config, models.worker).endswith(f"{count} of {count} tensors")
    assert_same(net, models.net)
    net = Faster_Rcnn_Resnet(tiny(seed=4))
    with pytest.raises(UserError, match=f"the {frozen} that are missing are frozen.*--frozen_from"):
        load_detector(net, models.config, models.server)
    said = load_detector(net, models.config, models.server, models.worker)
    assert f"{count - frozen} of {count} tensors, {frozen} frozen ones from" in said
    assert_same(net, models.net)


def test_frozen_tensors_and_settings_of_another_job_are_refused(models):
    other = Faster_Rcnn_Resnet(tiny(seed=9))
    path = models.folder / "other.ckpt"
    ms.save_checkpoint(other, str(path))
    net = Faster_Rcnn_Resnet(tiny())
    with pytest.raises(UserError, match="other values of: frozen weights"):
        load_detector(net, models.config, models.server, path)
    wrong = load_config(TINY, seed=3, anchor_scales=[8])
    with pytest.raises(UserError, match="other values of: anchor_scales;"):
        load_detector(net, wrong, models.server, models.worker)


def test_the_names_in_a_fingerprint_are_those_of_every_job(models):
    for aggregation in (Aggregation(), Aggregation(SCAFFOLD), Aggregation("FedProx", 0.1)):
        found = {**shared_aspects(models.config, models.net), **aggregation.aspects()}
        assert tuple(found) == ASPECTS


@pytest.mark.parametrize("file", ["worker", "server"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"img_width": 96, "img_height": 32}, "img_width, img_height"),
        ({"anchor_scales": [8]}, "anchor_scales"),
        ({"backbone": "resnet_v1_50"}, "backbone"),
        ({"keep_ratio": False, "roi_align_finest_scale": 28}, "keep_ratio, roi_align_finest_scale"),
        ({"anchor_ratios": [2.0, 1.0, 0.5]}, "anchor_ratios"),
        (
            {"rpn_target_stds": [2.0] * 4, "rcnn_target_stds": [0.2] * 4},
            "rpn_target_stds, rcnn_target_stds",
        ),
        (
            {"coco_classes": ["background", "pizza", "airplane", "book", "sports ball"]},
            "coco_classes",
        ),
        ({"num_classes": 2, "coco_classes": ["background", "pizza"]}, "coco_classes"),
        ({"resnet_block": [1, 2, 1, 1], "img_width": 96}, "img_width"),
    ],
)
def test_a_configuration_that_gives_other_boxes_is_refused(models, changes, named, file):
    """Where names or shapes do not fit either, the key says more."""
    config = load_config(TINY, **changes)
    net = Faster_Rcnn_Resnet(config)
    path = models.worker if file == "worker" else models.server
    with pytest.raises(UserError) as refused:
        load_detector(net, config, path, None if file == "worker" else models.worker)
    line = str(refused.value)
    assert f"{path}: was trained with other values of: {named}; give" in line
    assert "--config_path=" in line and "\n" not in line


def test_what_does_not_change_boxes_is_not_compared(models):
    """Seed, algorithm, sync_type, local_params: a whole detector is the same under all of them."""
    changed = load_config(TINY, seed=5, local_params="rcnn.*", sync_type="adaptive", batch_size=4)
    net = Faster_Rcnn_Resnet(changed)
    load_detector(net, changed, models.worker)
    assert_same(net, models.net)
    server, worker = models.folder / "S_recovery_0.ckpt", models.folder / "scaffold.ckpt"
    for aggregation in (Aggregation(SCAFFOLD), Aggregation(adaptive=AdaptiveSettings())):
        save_models(models.net, models.config, server, worker, aggregation)
        load_detector(Faster_Rcnn_Resnet(models.config), models.config, worker)


def test_a_checkpoint_that_carries_no_fingerprint_loads_as_before(models):
    path = models.folder / "older.ckpt"
    ms.save_checkpoint(models.net, str(path))
    config = load_config(TINY, img_width=96)
    net = Faster_Rcnn_Resnet(config)
    load_detector(net, config, path)
    assert_same(net, models.net)


def test_a_fingerprint_of_another_version_loads_as_before(models):
    path = models.folder / "version.ckpt"
    mark = {FEATURE_NAME: Tensor(np.array([7, 8, 9], np.float32))}
    ms.save_checkpoint(models.net, str(path), append_dict=mark)
    config = load_config(TINY, img_width=96)
    load_detector(Faster_Rcnn_Resnet(config), config, path)


def test_another_detector_of_the_same_keys_is_told_by_its_names(models):
    config = load_config(TINY, resnet_block=[1, 2, 1, 1])
    with pytest.raises(UserError, match="not a trained detector of this configuration"):
        load_detector(Faster_Rcnn_Resnet(config), config, models.worker)


def test_a_backbone_is_no_detector(models):
    path = models.folder / "backbone.ckpt"
    parameters = [p for p in models.net.get_parameters() if p.name.startswith("backbone.")]
    ms.save_checkpoint([{"name": p.name, "data": p} for p in parameters], str(path))
    count = len(parameters)
    with pytest.raises(UserError, match=f"{count} of its {count} names match.*not a trained"):
        load_detector(Faster_Rcnn_Resnet(models.config), models.config, path, models.worker)


def command(folder, *words):
    return run_script("tools/evaluate.py", f"--config_path={TINY}", *words, cwd=folder)


def test_the_command_prints_a_table_and_writes_its_files(tmp_path, models):
    coco = coco_of(5)
    coco["categories"] = [{"id": 18, "name": "pizza"}]
    path = write_coco(tmp_path, coco, "val.json")
    words = [f"--checkpoint={models.worker}", f"--json={path}", "--limit=3"]
    outputs = ["--results=found.json", "--output=figures.json", "--test_score_thr=0.0"]
    done = command(tmp_path, *words, *outputs)
    assert done.returncode == 0, done.stderr
    table = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert set(FIGURES) <= set(table) and "pizza" in table
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["images"] == 3 and f"{record['AP50']:.3f}" == table["AP50"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {entry["image_id"] for entry in found} <= {1, 2, 3}
    assert {entry["category_id"] for entry in found} == {18}


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("evaluate", ("--json=val.json",)),
        ("detect", ("--images", "val", "--out=found")),
        ("export", ("--file_format=ONNX", "--file_name=net")),
    ],
)
def test_no_tool_takes_a_worker_checkpoint_of_another_image_size(tmp_path, models, tool, words):
    coco = coco_of(2)
    coco["categories"] = [{"id": 18, "name": "pizza"}]
    write_coco(tmp_path, coco, "val.json")
    flags = [f"--config_path={TINY}", f"--checkpoint={models.worker}", "--img_width=96", *words]
    done = run_script(f"tools/{tool}.py", *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "was trained with other values of: img_width; give" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("net*"))


@pytest.mark.slow
def test_watching_a_folder_where_no_job_runs(tmp_path, models):
    coco = coco_of(2)
    coco["categories"] = [{"id": 18, "name": "pizza"}]
    path = write_coco(tmp_path, coco, "val.json")
    folder = tmp_path / "worker_0" / "ckpt" / "mindrecord_0"
    folder.mkdir(parents=True)
    for number in range(2):
        name = f"mindrecord_0-fast-rcnn-{number}epoch.ckpt"
        (folder / name).write_bytes(models.worker.read_bytes())
    done = command(tmp_path, f"--json={path}", "--watch=worker_0", "--output=m.jsonl")
    assert done.returncode == 0, done.stderr
    record = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in record] == [1, 2]
    assert record[0]["AP"] == record[1]["AP"]
    assert "2 checkpoints of worker_0 evaluated" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --checkpoint=FILE.ckpt or --watch=FOLDER"),
        (("--checkpoint=a.ckpt", "--watch=b"), "give either --checkpoint"),
        (("--checkpoint=a.ckpt", "--json=a", "--mindrecord=b"), "not both"),
        (("--checkpoint=a.ckpt",), "nothing to evaluate on"),
        (("--checkpoint=a.ckpt", "--json=a", "--limit=-1"), "eval_limit is -1, expected 0 or more"),
        (("--watch=b", "--json=a", "--results=r.json"), "--results is of one --checkpoint"),
        (("--chekpoint=a.ckpt",), "did you mean --checkpoint?"),
        (("--checkpoint=a.ckpt", "--mindrecord=gone"), "--mindrecord gone: no such file"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, words, message):
    done = command(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
