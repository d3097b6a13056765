"""The configuration of detector, data and training: files, flags, and what is refused."""

import json
from pathlib import Path

import pytest

from src.errors import UserError
from src.model_utils.config import (
    PROJECT_DIR,
    Config,
    default_values,
    feature_shapes_of,
    get_config,
    load_config,
    parse_yaml,
    script_parser,
)
from src.model_utils.flag_help import HELP


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_nested_dicts_become_attributes():
    config = Config({"a": {"b": 1}, "c": [{"d": 2}]})
    assert (config.a.b, config.c[0].d) == (1, 2)


def test_file_wins_over_defaults_and_flags_over_both(tmp_path):
    path = write(tmp_path, "batch_size: 3\nbase_lr: 1e-3\n")
    config = get_config([f"--config_path={path}", "--batch_size=5"])
    assert (config.batch_size, config.base_lr, config.num_gts) == (5, 0.001, 128)
    assert config.given_flags == ["batch_size"]


def test_relative_path_is_looked_up_here_then_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/tiny/default_config.yaml").img_width == 64
    write(tmp_path, "img_width: 96\nimg_height: 96\n")
    assert load_config("config.yaml").img_width == 96


def test_feature_shapes_follow_the_image():
    assert feature_shapes_of(768, 1280) == [[192, 320], [96, 160], [48, 80], [24, 40], [12, 20]]
    assert feature_shapes_of(128, 160)[-1] == [2, 3]
    assert load_config(img_width=640).num_bboxes == 3 * sum(
        h * w for h, w in feature_shapes_of(768, 640)
    )


def test_upstreams_file_loads_unchanged(tmp_path):
    import yaml

    cases = json.loads((PROJECT_DIR / "tests/golden/config.json").read_text())
    values = {k: v for k, v in cases["def16"].items() if k != "num_bboxes"}
    values["coco_classes"] = [str(i) for i in range(values.get("num_classes", 81))]
    values.setdefault("num_classes", 81)
    path = write(tmp_path, yaml.safe_dump(values))
    assert load_config(path).feature_shapes == cases["def16"]["feature_shapes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 2\n", r"unknown key 'batch_sise' \(did you mean batch_size\?\)"),
        ("batch_size: two\n", "batch_size is 'two', expected a whole number"),
        ("batch_size: True\n", "batch_size is True, expected a whole number"),
        ("batch_size: 0\n", "batch_size is 0, expected more than 0"),
        ("keep_ratio: 1\n", "keep_ratio is 1, expected True or False"),
        ("backbone: vgg\n", "expected one of resnet_v1.5_50, resnet_v1_50"),
        ("finetune: True\n", "finetune is True, expected False: nothing reads it"),
        ("sync_type: often\n", "expected one of fixed, adaptive"),
        ("observation_window_size: 0\n", "expected more than 0"),
        ("unchanged_round: -1\n", "expected 0 or more"),
        ("img_width: 100\n", "expected multiples of 32"),
        ("num_classes: 5\n", "coco_classes lists 81 names"),
        ("feature_shapes: [[1, 1]]\n", "remove the key and it is derived"),
        ('mindrecord_dir:"./data/mindrecord_0"\n', "line 1: a space is missing after"),
        ('seed: 1\nmindrecord_dir:"./a"\nbatch_size: 2\n', "line 2: a space is missing"),
        ("seed: [1\n", "not valid YAML"),
        ("- a\n- b\n", "expected lines of the form key: value"),
        ("", "expected lines of the form key: value"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_names_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file") as caught:
        load_config("nowhere.yaml")
    assert str(tmp_path) in str(caught.value)
    assert str(PROJECT_DIR) in str(caught.value)


def test_unknown_flag_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown flag --bach_size \(did you mean --batch_size"):
        get_config(["--bach_size=3"])


def test_flag_out_of_range_names_the_command_line():
    with pytest.raises(UserError, match="command line: batch_size is 0"):
        get_config(["--batch_size=0"])


def test_three_documents_are_values_help_and_choices(tmp_path):
    path = write(tmp_path, "seed: 1\n---\nseed: a number\n---\nseed: [1, 2]\n")
    assert parse_yaml(path) == ({"seed": 1}, {"seed": "a number"}, {"seed": [1, 2]})


def test_help_is_of_keys_that_exist_and_tells_their_defaults():
    defaults = default_values()
    assert set(HELP) <= set(defaults)
    assert all(f"(default {defaults[key]!r})" in text for key, text in HELP.items())


def test_help_begins_with_what_must_be_given_and_the_description(capsys):
    parser = script_parser("What it does.", "tool.py")
    parser.add_argument("folder")
    parser.add_argument("--json", required=True)
    parser.add_argument("--images", type=int)
    with pytest.raises(SystemExit):
        get_config(["--help"], parser)
    told = capsys.readouterr().out
    assert told.startswith("usage: tool.py [flags] --json JSON folder\n\nWhat it does.\n")
    assert "--images" in told and "--base_lr" in told
