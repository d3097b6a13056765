"""Evaluation in the workers of a real federation of tiny detectors, and the tool on its files."""

import itertools
import json
import shutil

import pytest
from commands import WORKER, make_shards, refused, succeed
from launched_job import CONFIG, Job

from src.evaluation.metrics import FIGURES

pytestmark = pytest.mark.slow  # a whole job that evaluates: two minutes

ITERATIONS = 4


def grid_of_boxes(coco):
    """Boxes all over each image, so that a detector that knows nothing hits some of them."""
    places = itertools.product(range(0, 280, 40), range(0, 150, 40), (40, 90))
    boxes = [(x, y, side, side) for x, y, side in places]
    kinds = itertools.cycle(entry["id"] for entry in coco["categories"])
    return [
        {"id": n, "image_id": image["id"], "category_id": next(kinds), "bbox": box, "iscrowd": 0}
        for image in coco["images"]
        for n, box in enumerate(boxes)
    ]


def make_validation_sets(folder):
    """Two of them with the same images, all of which are broken in the second."""
    drawn = json.loads((folder / "coco/annotations/instances_val2017.json").read_text())
    drawn["annotations"] = grid_of_boxes(drawn)
    for number in range(2):
        images = folder / "validation" / f"val_{number}"
        shutil.copytree(folder / "coco/val2017", images)
        (folder / "validation" / f"val_{number}.json").write_text(json.dumps(drawn))
    for broken in images.iterdir():
        broken.write_bytes(broken.read_bytes()[:20])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A finished job that evaluated every second iteration, and the worker's refused start."""
    folder = tmp_path_factory.mktemp("evaluated")
    shards = make_shards(folder)
    make_validation_sets(folder)
    with Job(folder, shards) as job:
        job.write(ITERATIONS)
        job.scheduler()
        job.servers()
        flags = [f"--pre_trained={job.initial}", "--test_score_thr=0.001"]
        flags += ["--run_eval=True", "--interval=2"]
        gone = "--val_set=gone_{worker}.json"
        line = refused(folder, WORKER, *job.worker_flags, *flags, gone)
        job.workers(*flags, "--val_set=validation/val_{worker}.json")
        job.wait_for_end()
        yield job, line


@pytest.fixture(scope="module")
def job(evaluated):
    return evaluated[0]


def metrics(job):
    text = (job.folder / "worker_0" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def checkpoints(job):
    return job.folder / "worker_0" / "ckpt" / "mindrecord_0"


def test_a_missing_set_is_refused_before_anything_is_trained(evaluated):
    _, line = evaluated
    assert "val_set gone_" in line and "no such file" in line


def test_every_second_iteration_is_in_the_log_and_in_the_file(job):
    record = metrics(job)
    assert [line["iteration"] for line in record] == [2, 4]
    classes = ["per_class", "per_class_AP50", "confusion"]
    keys = ["iteration", *FIGURES, *classes, "images", "seconds", "time"]
    assert all(list(line) == keys and line["images"] == 2 for line in record)
    assert all(line["AP"] > 0 for line in record) and record[0]["AP"] != record[1]["AP"]
    lines = [line for line in job.log("worker_0").splitlines() if "]iteration: " in line]
    assert len(lines) == 2
    for line, said in zip(record, lines):
        assert f"[worker_0]iteration: {line['iteration']} AP: {line['AP']:.3f} AP50: " in said
        assert all(f" {name}: " in said for name in FIGURES)
    assert "evaluates on" in job.log("worker_0") and "2 images" in job.log("worker_0")


def test_the_status_file_has_the_last_figures(job):
    status, last = job.status("worker_0"), metrics(job)[-1]
    assert (status["ap"], status["ap50"], status["evaluated"]) == (last["AP"], last["AP50"], 4)
    assert status["phase"] == "finished"


def test_an_evaluation_that_fails_leaves_the_training_alone(job):
    log = job.log("worker_1")
    warnings = [line for line in log.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert "WARNING: evaluation of iteration 2 failed: " in warnings[0]
    assert "none of the 2 images decodes; training goes on" in warnings[0]
    left_out = [line for line in log.splitlines() if "is left out of the evaluation" in line]
    assert len(left_out) == 2 and "a JPEG without a sound header" in left_out[0]
    assert "training goes on" in warnings[1] and "Traceback" not in log
    assert not (job.folder / "worker_1" / "metrics.jsonl").exists()
    for number in range(ITERATIONS):
        name = f"mindrecord_{{}}-fast-rcnn-{number}epoch.ckpt"
        one = checkpoints(job) / name.format(0)
        other = job.folder / "worker_1/ckpt/mindrecord_1" / name.format(1)
        assert one.read_bytes() == other.read_bytes()


def test_everything_ended_with_code_0_and_no_silo_was_missed(job):
    assert list(job.exit_codes().values()) == [0] * 4  # scheduler, server and two workers
    assert "WARNING: not every silo" not in job.log("server_0")


def test_the_best_model_is_kept(job):
    record = metrics(job)
    best = json.loads((checkpoints(job) / "best.json").read_text())
    assert best == max(record, key=lambda line: (line["AP"], -line["iteration"]))
    name = f"mindrecord_0-fast-rcnn-{best['iteration'] - 1}epoch.ckpt"
    kept = (checkpoints(job) / "best.ckpt").read_bytes()
    assert kept == (checkpoints(job) / name).read_bytes()


def test_the_tool_finds_the_same_figures_in_the_files_of_worker_and_servers(job):
    """It is the aggregated model that was evaluated, of the iteration that is said."""
    folder = job.folder
    words = [CONFIG, "--json=validation/val_0.json", "--test_score_thr=0.001"]
    words += [f"--pre_trained={job.initial}"]
    last = metrics(job)[-1]
    frozen = f"--frozen_from={checkpoints(job) / 'best.ckpt'}"
    output = ["--output=server.json", f"--checkpoint={job.recovery(4)}", frozen]
    succeed(folder, "tools/evaluate.py", *words, *output)
    record = json.loads((folder / "server.json").read_text())
    assert {name: record[name] for name in FIGURES} == {name: last[name] for name in FIGURES}

    said = succeed(
        folder, "tools/evaluate.py", *words, "--watch=worker_0", "--output=watched.jsonl"
    )
    watched = [json.loads(line) for line in (folder / "watched.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in watched] == [1, 2, 3, 4]
    assert said.count("iteration: ") == 4
    for line in metrics(job):
        mine = watched[line["iteration"] - 1]
        assert {name: mine[name] for name in FIGURES} == {name: line[name] for name in FIGURES}


def test_another_image_size_is_refused_for_every_file_of_the_job(job):
    words = [CONFIG, "--json=validation/val_0.json", "--img_width=96"]
    frozen = f"--frozen_from={checkpoints(job) / 'best.ckpt'}"
    files = [[checkpoints(job) / "best.ckpt"], [job.initial], [job.recovery(4), frozen]]
    for path, *more in files:
        line = refused(job.folder, "tools/evaluate.py", *words, f"--checkpoint={path}", *more)
        assert f"{path}: was trained with other values of: img_width; give" in line
    line = refused(job.folder, "tools/evaluate.py", *words, "--watch=worker_0")
    assert "was trained with other values of: img_width; give" in line
