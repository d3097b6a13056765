"""Evaluation in the workers of a real federation of tiny detectors, and the tool on its files."""

import itertools
import json
import shutil

import pytest
from commands import (
    TINY,
    make_shards,
    processes_of,
    refused,
    start_redis,
    succeed,
    wait_for_end,
    write_job,
)
from ports import free_port_range

from src.evaluation.coco_metrics import FIGURES

ITERATIONS = 4
YAML = "--yaml_config=default_yaml_config.yaml"
CONFIG = f"--config_path={TINY}"


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
    """Two of them with the same images, one of which is broken in the second."""
    drawn = json.loads((folder / "coco/annotations/instances_val2017.json").read_text())
    drawn["annotations"] = grid_of_boxes(drawn)
    for number in range(2):
        images = folder / "validation" / f"val_{number}"
        shutil.copytree(folder / "coco/val2017", images)
        (folder / "validation" / f"val_{number}.json").write_text(json.dumps(drawn))
    broken = images / drawn["images"][-1]["file_name"]
    broken.write_bytes(broken.read_bytes()[:20])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished run that evaluated every second iteration, and the worker's refused start."""
    folder = tmp_path_factory.mktemp("evaluated")
    shards = make_shards(folder)
    make_validation_sets(folder)
    port = free_port_range(8)
    write_job(folder, port, ITERATIONS)
    redis = start_redis(folder, port)
    address = f"--http_server_address=127.0.0.1:{port + 2}"
    sched = f"--scheduler_manage_address=127.0.0.1:{port + 1}"
    succeed(folder, "run_cross_silo_fasterrcnn_sched.py", YAML, sched)
    server = [YAML, CONFIG, address, "--local_server_num=1"]
    succeed(folder, "run_cross_silo_fasterrcnn_server.py", *server)
    initial = next((folder / "fl_ckpt").glob("*_initial.ckpt"))
    words = ["run_cross_silo_fasterrcnn_worker.py", YAML, CONFIG, address, "--local_worker_num=2"]
    words += [f"--dataset_path={shards}", f"--pre_trained={initial}", "--test_score_thr=0.001"]
    words += ["--run_eval=True", "--interval=2"]
    line = refused(folder, *words, "--val_set=gone_{worker}.json")
    succeed(folder, *words, "--val_set=validation/val_{worker}.json")
    wait_for_end(folder)
    yield folder, line
    succeed(folder, "finish_cross_silo_fasterrcnn.py", f"--redis_port={port}")
    redis.kill()
    redis.wait()
    assert not processes_of(folder)


def log_of(folder, worker):
    return (folder / f"worker_{worker}" / "worker.log").read_text()


def metrics(folder):
    text = (folder / "worker_0" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def checkpoints(folder):
    return folder / "worker_0" / "ckpt" / "mindrecord_0"


def test_a_missing_set_is_refused_before_anything_is_trained(job):
    _, line = job
    assert "val_set gone_" in line and "no such file" in line


def test_every_second_iteration_is_in_the_log_and_in_the_file(job):
    folder, _ = job
    record = metrics(folder)
    assert [line["iteration"] for line in record] == [2, 4]
    keys = ["iteration", *FIGURES, "per_class", "images", "seconds", "time"]
    assert all(list(line) == keys and line["images"] == 2 for line in record)
    assert all(line["AP"] > 0 for line in record) and record[0]["AP"] != record[1]["AP"]
    lines = [line for line in log_of(folder, 0).splitlines() if "]iteration: " in line]
    assert len(lines) == 2
    for line, said in zip(record, lines):
        assert f"[worker_0]iteration: {line['iteration']} AP: {line['AP']:.3f} AP50: " in said
        assert all(f" {name}: " in said for name in FIGURES)
    assert "evaluates on" in log_of(folder, 0) and "2 images" in log_of(folder, 0)


def test_the_status_file_has_the_last_figures(job):
    folder, _ = job
    status = json.loads((folder / ".federation/status/worker_0.json").read_text())
    last = metrics(folder)[-1]
    assert (status["ap"], status["ap50"], status["evaluated"]) == (last["AP"], last["AP50"], 4)
    assert status["phase"] == "finished"


def test_an_evaluation_that_fails_leaves_the_training_alone(job):
    folder, _ = job
    log = log_of(folder, 1)
    warnings = [line for line in log.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert "WARNING: evaluation of iteration 2 failed: " in warnings[0]
    assert ".jpg: its pixels do not decode; training goes on" in warnings[0]
    assert "training goes on" in warnings[1] and "Traceback" not in log
    assert not (folder / "worker_1" / "metrics.jsonl").exists()
    for number in range(ITERATIONS):
        name = f"mindrecord_{{}}-fast-rcnn-{number}epoch.ckpt"
        one = checkpoints(folder) / name.format(0)
        other = folder / "worker_1/ckpt/mindrecord_1" / name.format(1)
        assert one.read_bytes() == other.read_bytes()


def test_everything_ended_with_code_0_and_no_silo_was_missed(job):
    folder, _ = job
    codes = [
        json.loads(path.read_text())["code"]
        for path in (folder / ".federation" / "status").glob("*.exit.json")
    ]
    assert codes == [0] * 4  # scheduler, server and two workers
    assert "WARNING: not every silo" not in (folder / "server_0" / "server.log").read_text()


def test_the_best_model_is_kept(job):
    folder, _ = job
    record = metrics(folder)
    best = json.loads((checkpoints(folder) / "best.json").read_text())
    assert best == max(record, key=lambda line: (line["AP"], -line["iteration"]))
    name = f"mindrecord_0-fast-rcnn-{best['iteration'] - 1}epoch.ckpt"
    kept = (checkpoints(folder) / "best.ckpt").read_bytes()
    assert kept == (checkpoints(folder) / name).read_bytes()


def test_the_tool_finds_the_same_figures_in_the_files_of_worker_and_servers(job):
    """It is the aggregated model that was evaluated, of the iteration that is said."""
    folder, _ = job
    words = [CONFIG, "--json=validation/val_0.json", "--test_score_thr=0.001"]
    words += [f"--pre_trained={next((folder / 'fl_ckpt').glob('*_initial.ckpt'))}"]
    last = metrics(folder)[-1]
    server = next((folder / "fl_ckpt").glob("*_iteration_4_*.ckpt"))
    frozen = f"--frozen_from={checkpoints(folder) / 'best.ckpt'}"
    output = ["--output=server.json", f"--checkpoint={server}", frozen]
    succeed(folder, "tools/evaluate.py", *words, *output)
    record = json.loads((folder / "server.json").read_text())
    assert {name: record[name] for name in FIGURES} == {name: last[name] for name in FIGURES}

    said = succeed(
        folder, "tools/evaluate.py", *words, "--watch=worker_0", "--output=watched.jsonl"
    )
    watched = [json.loads(line) for line in (folder / "watched.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in watched] == [1, 2, 3, 4]
    assert said.count("iteration: ") == 4
    for line in metrics(folder):
        mine = watched[line["iteration"] - 1]
        assert {name: mine[name] for name in FIGURES} == {name: line[name] for name in FIGURES}
