"""The measurements of training, detection and data path: what they count, parse and write."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from commands import TINY, refused, run

from src.benchmarks import data, infer, measure, page, profiling, step
from src.benchmarks.flops import detector_layers, forward_flops, training_flops
from src.benchmarks.workloads import convolution_flops, synthetic_batch
from src.errors import UserError
from src.model_utils.config import PROJECT_DIR, load_config
from src.reporting import marked_page


def flags(module, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_flags(parser)
    return parser.parse_args(given)


def layers(**overrides) -> dict[str, tuple[int, int]]:
    """Forward and training operations of each layer of the tiny detector, batch 2."""
    config = load_config(TINY, **overrides)
    return {x.name: (x.forward, x.training) for x in detector_layers(config, 2, 40)}


def test_layers_counted_by_hand():
    """64x64 images: maps of 16, 8, 4, 2 and 1 positions a side; one block in each stage."""
    found = layers()
    assert len(found) == 1 + 4 * 4 + 4 * 2 + 3 + 4
    stem = 2 * 2 * 32 * 32 * (3 * 7 * 7) * 8
    assert found["backbone.conv1"] == (stem, stem)
    frozen = 2 * 2 * 16 * 16 * (2 * 3 * 3) * 2
    assert found["backbone.layer1.0.conv2"] == (frozen, frozen)
    # v1.5: the first convolution still has the finer map; its input is frozen.
    reduced = 2 * 2 * 16 * 16 * 8 * 2
    assert found["backbone.layer2.0.conv1"] == (reduced, 2 * reduced)
    shortcut = 2 * 2 * 8 * 8 * 8 * 8
    assert found["backbone.layer2.0.conv_down_sample"] == (shortcut, 2 * shortcut)
    deep = 2 * 2 * 2 * 2 * (4 * 3 * 3) * 4
    assert found["backbone.layer4.0.conv2"] == (deep, 3 * deep)
    lateral = 2 * 2 * 16 * 16 * 8 * 8
    assert found["fpn_ncek.lateral_convs_list.0"] == (lateral, 2 * lateral)
    offsets = 2 * 2 * (16**2 + 8**2 + 4**2 + 2**2 + 1) * 8 * 12
    assert found["rpn_with_loss.rpn_convs_list.0.rpn_reg"] == (offsets, 3 * offsets)
    dense = 2 * 2 * 40 * (8 * 3 * 3) * 16
    assert found["rcnn.shared_fc_0"] == (dense, 3 * dense)
    assert found["rcnn.reg_scores"][0] == 2 * 2 * 40 * 16 * (4 * 4)


def test_what_changes_the_count():
    found, v1 = layers(), layers(backbone="resnet_v1_50")
    changed = {name for name in found if found[name] != v1[name]}
    assert changed == {f"backbone.layer{stage}.0.conv1" for stage in (2, 3, 4)}
    assert layers(backbone="resnet_v1_101") == found
    assert 4 * v1["backbone.layer3.0.conv1"][0] == found["backbone.layer3.0.conv1"][0]
    with_background = layers(without_bg_loss=False)["rcnn.reg_scores"]
    assert 4 * with_background[0] == 5 * found["rcnn.reg_scores"][0]


def test_the_whole_detector():
    reference = load_config(None, **measure.REFERENCE)
    assert training_flops(reference) == pytest.approx(0.2354e12, rel=1e-3)
    full = load_config(None, **measure.FULL)
    assert training_flops(full) == pytest.approx(1.059e12, rel=1e-3)
    assert forward_flops(full, 1, 640) == pytest.approx(0.3779e12, rel=1e-3)
    head = 2 * (12544 * 1024 + 1024 * 1024 + 1024 * 81 + 1024 * 320)
    assert forward_flops(full, 2) - 2 * forward_flops(full, 1, 999) == 2 * head


def test_a_synthetic_batch_fits_the_network():
    config = load_config(TINY)
    images, shapes, boxes, labels, valid = synthetic_batch(config)
    assert images.shape == (2, 3, 64, 64) and shapes.tolist() == [[64, 64, 1]] * 2
    inside = boxes[valid]
    assert len(inside) == 14 and (inside[:, 2:] > inside[:, :2]).all()
    assert inside.min() >= 0 and inside.max() <= 63
    assert set(labels[valid]) <= set(range(1, 5)) and set(labels[~valid]) == {-1}
    np.testing.assert_array_equal(images, synthetic_batch(config)[0])


def test_the_setting_of_the_flags():
    setting = measure.setting_of(flags(step, "--width=640", "--threads=3"))
    assert setting.overrides == {**measure.REFERENCE, "img_width": 640}
    assert setting.with_threads(1).load().threads == 1
    assert setting.load().threads == 3
    # Another file stands for itself.
    assert measure.setting_of(flags(step, f"--config_path={TINY}")).load().img_width == 64


@pytest.mark.parametrize(
    ("module", "given", "words"),
    [
        (step, "--steps=0", "expected 1 or more for both"),
        (step, "--workers=0", "expected 1 or more for both"),
        (step, "--width=100", "expected multiples of 32"),
        (step, "--threads=-1", "--threads is -1"),
        (infer, "--steps=0", "expected 1 or more"),
        (infer, "--batch=0", "expected more than 0"),
        (data, "--image_size=640", "expected width x height"),
        (data, "--images=1", "expected two batches of 2"),
        (page, "--write=nowhere.md", "nowhere.md: cannot be read"),
    ],
)
def test_bad_flags_are_told_before_anything_starts(module, given, words):
    with pytest.raises(UserError, match=words):
        module.run(flags(module, given))


def test_flags_that_do_not_exist_are_one_line(tmp_path):
    assert "did you mean --width" in refused(tmp_path, "tools/benchmark.py", "step", "--wdith=64")
    assert "invalid int value" in refused(tmp_path, "tools/benchmark.py", "step", "--steps=many")
    assert "invalid choice: 'stpe'" in refused(tmp_path, "tools/benchmark.py", "stpe")


def test_the_best_rate_and_the_median_step_count():
    rates = [
        {"matmul_gflops": 100.0, "conv_gflops": 90.0},
        {"matmul_gflops": 200.0, "conv_gflops": 80.0},
    ]
    found = step.summary([3.0, 1.0, 2.0], rates, 100 * 10**9, 4)
    assert found["mathematics_s"] == 0.5 and found["times_mathematics"] == 4
    assert (found["matmul_gflops"], found["conv_gflops"]) == (200, 90)
    assert (found["step_s"], found["images_per_s"]) == (2, 2)


@pytest.mark.slow
def test_one_json_object_with_the_tiny_detector(tmp_path):
    given = ["step", "--json", "--steps=2", f"--config_path={TINY}"]
    done = run(tmp_path, "tools/benchmark.py", *given, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["image"] == "64x64" and result["batch"] == 2 and len(result["steps_s"]) == 2
    config = load_config(TINY)
    assert result["tflop"] == pytest.approx(training_flops(config) / 1e12, abs=1e-6)
    assert 0 < result["step_s"] < result["first_step_s"]
    assert result["times_mathematics"] == pytest.approx(
        result["step_s"] / result["mathematics_s"], rel=0.1
    )
    assert 0.2 < result["peak_gb"] < 4 and np.isfinite(result["loss"])
    text = {"cpu", "image", "backbone", "python", "mindspore", "numba", "numpy"}
    assert {key for key, value in result.items() if isinstance(value, str)} == text
    assert "the first one took" in done.stderr and not list(tmp_path.iterdir())


VERBOSE = f"""dnnl_verbose,info,oneDNN v2.2.0
dnnl_verbose,exec,cpu,softmax,jit,forward_training,data_f32,,axis:1,2x3,1000
{profiling.BEGIN}
dnnl_verbose,exec,cpu,softmax,jit,forward_training,data_f32,,axis:1,2x3,999
{profiling.END}
{profiling.BEGIN}
dnnl_verbose,exec,cpu,convolution,gemm:jit,forward_training,src wei dst,,alg:convolution_direct,\
mb2_ic3oc64_ih192oh96kh7sh2dh0ph3_iw320ow160kw7sw2dw0pw3,50
dnnl_verbose,exec,cpu,convolution,gemm:jit,backward_data,src wei dst,,alg:convolution_direct,\
mb2_ic64oc64_ih48oh48kh3sh1dh0ph1_iw80ow80kw3sw1dw0pw1,4
dnnl_verbose,exec,cpu,convolution,gemm:jit,backward_data,src wei dst,,alg:convolution_direct,\
mb2_ic64oc64_ih48oh48kh3sh1dh0ph1_iw80ow80kw3sw1dw0pw1,6
a warning of something else
{profiling.ENTER}
dnnl_verbose,exec,cpu,matmul,gemm:jit,undef,src wei dst,,,8x8:8x8:8x8,77
{profiling.LEAVE}
dnnl_verbose,exec,cpu,gemm_api,,undef,src,,,m8n8k8,77
dnnl_verbose,exec,cpu,matmul,gemm:jit,undef,src wei dst,post_ops:'eltwise_relu;';,,\
1280x12544:12544x1024:1280x1024,150
dnnl_verbose,exec,cpu,softmax,jit,forward_training,cut o
{profiling.END}
"""


def test_lines_of_the_matrix_library():
    calls = list(profiling.parse_verbose(profiling.last_steps(VERBOSE.splitlines())))
    stem = 2 * 2 * 3 * 64 * 96 * 160 * 49
    small = 2 * 2 * 64 * 64 * 48 * 80 * 9
    dense = 2 * 1280 * 12544 * 1024
    assert [tuple(call) for call in calls if not call.inside_kernel] == [
        ("convolution 7x7", "forward", 50, stem, False),
        ("convolution 3x3", "data gradient", 4, small, False),
        ("convolution 3x3", "data gradient", 6, small, False),
        ("matrix product", "", 150, dense, False),
    ]
    assert [call.milliseconds for call in calls if call.inside_kernel] == [77, 77]
    kernels = {"pool": [4, 0.08, 0], "filter": [2, 0.05, 10**10]}
    found = profiling.table(calls, kernels, 0.4, steps=2)
    rows = {(row["name"], row["direction"]): row for row in found["rows"]}
    assert found["step_ms"] == 200
    assert rows["convolution 3x3", "data gradient"]["calls"] == 1
    assert rows["convolution 3x3", "data gradient"]["ms"] == 5
    assert rows["convolution 3x3", "data gradient"]["gflops"] == round(2 * small / 0.01 / 1e9, 1)
    assert rows["kernel pool", ""]["share"] == 0.2 and rows["kernel pool", ""]["gflops"] is None
    assert rows["kernel filter", ""]["gflops"] == 200
    assert found["rows"][-1]["name"] == "all the rest"
    assert sum(row["ms"] for row in found["rows"]) == pytest.approx(200)
    assert "convolution 7x7" in profiling.profile_text({**results()["step"], **found})


def test_operations_of_a_kernel_of_two_maps():
    x, grad = np.zeros((2, 8, 10, 12)), np.zeros((2, 16, 10, 12))
    weight = np.zeros((16, 8, 3, 3))
    flops = 2 * 2 * 8 * 16 * 10 * 12 * 9
    assert convolution_flops((x, weight), grad) == flops
    assert convolution_flops((grad, weight), x) == flops
    assert convolution_flops((x, grad), weight) == flops
    assert convolution_flops((x, np.zeros((5, 5))), grad) == 0
    assert convolution_flops((x, x, x, x, weight), grad) == 0


def results() -> dict:
    where = {
        "cpu": "A CPU", "cores": 2, "python": "3.9", "mindspore": "2.0.0", "numba": "0.60.0",
        "numpy": "1.23.5", "image": "320x192", "batch": 2, "threads": 2, "peak_gb": 2.5,
    }  # fmt: skip
    timed = {
        **where,
        **step.summary([0.5], [{"matmul_gflops": 400.0, "conv_gflops": 300.0}], 10**11, 2),
        "first_step_s": 12.0,
    }
    together = {"workers": 2, "threads_each": 1, "alone_steps_per_s": 2.0,
              "together_steps_per_s": 2.5, "ratio": 1.25}  # fmt: skip
    found = {"classes": 81, "proposals": 1000, "above_share": 1.0, "candidates": 80000,
             "score_thr": 0.0}  # fmt: skip
    start = {"to_first_step_s": 15.0, "import_s": 2.0, "build_s": 1.0, "first_step_s": 12.0}
    read = {"jpeg": "640x480", "convert_images_per_s": 900.0, "convert_peak_gb": 0.6,
            "images_per_s": 240.0}  # fmt: skip
    return {
        "compile": {**where, **start},
        "step": {**timed, **together},
        "step_full": timed,
        "infer": {**timed, **found},
        "data": {**where, **read},
        "data_by_step": 60.0,
    }


def test_the_table_goes_between_the_marks(tmp_path):
    place = tmp_path / "page.md"
    place.write_text(
        f"# Title\n\n{marked_page.BEGIN}\nan older table\n{marked_page.END}\n\nThe rest.\n"
    )
    for _ in range(2):
        marked_page.write_table(place, page.table(results()))
    text = place.read_text()
    assert text.startswith(
        f"# Title\n\n{marked_page.BEGIN}\nA CPU, 2 cores; python 3.9, mindspore 2.0.0"
    )
    assert text.endswith(f"|\n{marked_page.END}\n\nThe rest.\n")
    assert "older" not in text and text.count("ratio 1.25") == 1
    assert "60 times what the training step takes" in text
    rows = [line for line in text.splitlines() if line.startswith("| training step")]
    assert rows[0].split("|")[2:6] == [" 0.5 ", " 4.00 ", " 2.00 ", " 12.0 s "]
    assert [one.name for one in tmp_path.iterdir()] == ["page.md"]


def test_a_page_without_marks_is_left_alone(tmp_path):
    place = tmp_path / "page.md"
    place.write_text(f"{marked_page.END} and then {marked_page.BEGIN}")
    with pytest.raises(UserError, match="in this order"):
        marked_page.write_table(place, "table")
    assert place.read_text() == f"{marked_page.END} and then {marked_page.BEGIN}"


@pytest.mark.parametrize(
    "name, title, later",
    [
        ("performance.md", "# How fast it is", "## The mathematics"),
        ("learning.md", "# What training together gives", "## How it is compared"),
    ],
)
def test_the_pages_of_the_docs_have_their_place(name, title, later):
    before, after = marked_page.split_page(PROJECT_DIR / "docs" / name)
    assert before.startswith(title) and later in after


def test_detection_is_measured_with_a_batch_of_its_own():
    given = flags(infer, "--batch=3", f"--config_path={TINY}")
    spec = infer.spec_of(measure.setting_of(given), 0.2, 100.0)
    config = spec.setting.load()
    assert (config.test_batch_size, config.batch_size, config.test_score_thr) == (3, 3, 0.2)
    assert spec.score_scale == 100


def test_what_is_drawn():
    plan = data.plan_of("640x480")
    assert (plan.width, plan.height) == (640, 480)
    with pytest.raises(UserError, match="64x64 or more"):
        data.plan_of("32x480")
