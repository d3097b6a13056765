"""The configuration of detector, data and training: files, flags, and what is refused."""

import sys
from pathlib import Path

import pytest
import yaml

import src.model_utils.config
from src.errors import UserError
from src.job.job_config import load_job
from src.launch.command_line import add_worker_flags
from src.model_utils.config import (
    KEYS,
    PROJECT_DIR,
    Config,
    default_values,
    feature_shapes_of,
    get_config,
    load_config,
    parse_yaml,
    script_parser,
)

UPSTREAM = PROJECT_DIR / "tests" / "upstream_files" / "default_config.yaml"


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


def test_a_file_in_the_current_folder_is_checked_and_completed_like_any_other(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("default_config.yaml").write_text("base_lr: 1\n")
    config = get_config(["--base_lr=0.01"])
    assert (config.base_lr, config.seed) == (0.01, 1)
    Path("default_config.yaml").write_text("pre_traind: x.ckpt\n")
    with pytest.raises(UserError, match="did you mean pre_trained"):
        get_config([])


def test_a_flag_changes_the_image_size_of_a_file_with_feature_shapes():
    assert load_config(UPSTREAM, img_width=640).feature_shapes == feature_shapes_of(768, 640)


def upstream_with(tmp_path: Path, **changes) -> Path:
    """Upstream's file with other values, as ModelZoo's files are."""
    values = {**parse_yaml(UPSTREAM)[0], **changes}
    return write(tmp_path, yaml.safe_dump({k: v for k, v in values.items() if v is not ...}))


def test_upstreams_file_runs_unchanged_and_says_what_means_something_else():
    config = load_config(UPSTREAM)
    assert (config.base_lr, config.checkpoints_kept, config.seed) == (0.04, 0, 1)
    kept, rate, idle = config.notes
    assert "keep_checkpoint_max: 5 deletes nothing" in kept and "checkpoints_kept: 5" in kept
    assert "0.04 acted as 0.00015625" in rate and "grad_clip: True" in rate
    assert idle.startswith("without effect here: checkpoint_path: /cache/train/")
    assert idle.count(":") < 5 and "ckpt_file" not in idle


@pytest.mark.parametrize(
    ("changes", "blocks", "note"),
    [
        ({"run_distribute": False, "feature_shapes": ...}, [3, 4, 6, 3], ""),
        ({"num_bboxes": 245520, "python_multiprocessing": ...}, [3, 4, 6, 3], ""),
        (
            {"backbone": "resnet_v1_101", "resnet_block": [3, 4, 23, 3], "base_lr": 0.02},
            [3, 4, 23, 3],
            "0.02 acted as",
        ),
        ({"backbone": "resnet_v1_152", "resnet_block": ...}, [3, 8, 36, 3], ""),
        ({"lr_type": "multistep", "milestones": [6, 9], "device_target": "Ascend"}, None, ""),
        ({"run_distribute": True, "device_num": 8}, None, "device_num: 8"),
        ({"epoch_size": 12}, None, "epoch_size: 12"),
    ],
)
def test_files_of_modelzoo_run(tmp_path, changes, blocks, note):
    config = load_config(upstream_with(tmp_path, **changes))
    assert blocks is None or config.resnet_block == blocks
    assert note in " ".join(config.notes)
    assert len(config.notes) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_type": "adam"}, "opt_type is 'adam', expected sgd: silos train with SGD; set base_"),
        ({"finetune": True}, "finetune is True, expected False: nothing reads it; pre_trained"),
        ({"backbone": "inception_resnet_v2"}, "resnet_v1_152: another ResNet .* resnet_block"),
        ({"backbone": "resnet_v1_101"}, r"a ResNet-50's; set resnet_block: \[3, 4, 23, 3\]"),
        ({"num_bboxes": 163680}, "num_bboxes 163680 does not fit 1280x768 images"),
        ({"use_sigmoid_cls": False}, "use_sigmoid_cls is False, expected True: the detector has"),
    ],
)
def test_what_would_train_something_else_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_config(upstream_with(tmp_path, **changes))


@pytest.mark.parametrize("values", [{"base_lr": 0.01}, {"base_lr": 0.04, "grad_clip": True}])
def test_no_note_about_a_rate_that_trains(values):
    assert load_config(**values).notes == []


def test_upstreams_global_config_is_read_from_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("default_config.yaml").write_text("img_width: 96\nimg_height: 64\n")
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--img_width=32", "--my_flag"])
    monkeypatch.delitem(vars(src.model_utils.config), "config", raising=False)
    from src.model_utils.config import config

    assert (config.img_width, config.seed) == (96, 1)
    from src.model_utils.config import config as second

    assert second is config
    monkeypatch.delitem(vars(src.model_utils.config), "config")
    assert not hasattr(src.model_utils.config, "another_name")


def test_upstreams_names_of_flags_set_the_key_unless_its_own_flag_does():
    def loaded(*words):
        parser = script_parser(None)
        add_worker_flags(parser)
        return get_config(list(words), parser)

    config = loaded("--client_batch_size=32", "--client_learning_rate=0.01")
    assert (config.batch_size, config.base_lr) == (32, 0.01)
    assert config.given_flags == ["base_lr", "batch_size"]
    assert loaded("--client_batch_size=32", "--batch_size=3").batch_size == 3


def test_ranks_of_a_file_are_named_and_not_started(tmp_path):
    path = write(tmp_path, "run_distribute: True\ndevice_num: 8\n")
    config = get_config([f"--config_path={path}"])
    assert (config.run_distribute, config.device_num) == (False, 1)
    assert config.notes[0].startswith("without effect here: run_distribute: True, device_num: 8 (")


def test_a_flag_that_nothing_ever_read_is_told_apart_from_a_typing_error():
    with pytest.raises(UserError, match="--img_size: upstream's code never read it; leave it out"):
        get_config(["--img_size=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 2\n", r"unknown key 'batch_sise' \(did you mean batch_size\?\)"),
        ("batch_size: two\n", "batch_size is 'two', expected a whole number"),
        ("batch_size: True\n", "batch_size is True, expected a whole number"),
        ("batch_size: 0\n", "batch_size is 0, expected more than 0"),
        ("keep_ratio: 1\n", "keep_ratio is 1, expected True or False"),
        ("batch_size: '4'\n", "batch_size is '4', expected a whole number"),
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


# Nine lines that stand for 10**8 values.
ALIAS_BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
HARMFUL = {
    "no integer": ("seed: !!int x\n", "line 1: not valid YAML: 'x' is no number"),
    "no float": ("base_lr: !!float x\n", "line 1: not valid YAML: 'x' is no number"),
    "a number of 10,000 digits": (f"seed: {'9' * 10_000}\n", "'9{40}' is no number"),
    "an infinite number": ("base_lr: 1e400\n", "base_lr is '1e400', expected"),
    "a date that is none": ("seed: 2026-13-45\n", "seed is '2026-13-45', expected a whole number"),
    "a time": ("seed: !!timestamp x\n", "could not determine a constructor"),
    "brackets": (f"seed: {'[' * 500_000}\n", "nested more than 30 deep"),
    "dashes": ("- " * 2000, "nested more than 30 deep"),
    "a value in itself": ("a: &a {b: *a}\n", "an alias of what it stands in"),
    "an alias bomb as list": (ALIAS_BOMB + "anchor_scales: *i\n", "more than 100000 values"),
    "an alias bomb as number": (ALIAS_BOMB + "base_lr: *i\n", "more than 100000 values"),
    "a large file": ("# " + "x" * 2**20, "more than 1048576 bytes"),
    "a long value": (f"seed: '{'x' * 10_000}'\n", r"seed is 'x+ \[\.\.\.\] x+', expected"),
}


@pytest.mark.parametrize(("text", "message"), HARMFUL.values(), ids=HARMFUL)
def test_a_file_that_would_take_the_reader_down_is_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    for read in (load_config, load_job):
        with pytest.raises(UserError, match=message if read is load_config else str(path)) as error:
            read(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 5000


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


def test_defaults_are_fresh_copies():
    default_values()["coco_classes"].clear()
    assert len(default_values()["coco_classes"]) == 81


def test_help_begins_with_what_must_be_given_and_the_description(capsys):
    parser = script_parser("What it does.", "tool.py")
    parser.add_argument("folder")
    parser.add_argument("--json", required=True)
    parser.add_argument("--images", type=int)
    with pytest.raises(SystemExit):
        get_config(["--help"], parser)
    told = capsys.readouterr().out
    assert told.startswith("usage: tool.py [flags] --json JSON folder\n\nWhat it does.\n")
    assert "--images" in told
    own, useful, idle = (told.index(f"\n  --{flag} ") for flag in ("json", "base_lr", "opt_type"))
    assert own < useful < told.index("\naccepted from upstream's") < idle


def test_help_explains_every_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # else lines are broken at hyphens too
    with pytest.raises(SystemExit):
        get_config(["--help"], script_parser(None, "tool.py"))
    told = " ".join(capsys.readouterr().out.split())
    scalar = [name for name, key in KEYS.items() if not isinstance(key.default, (list, dict))]
    assert len(scalar) > 100
    for name in scalar:
        assert " ".join(KEYS[name].help.split()) in told, name
        assert len(KEYS[name].help) > 5
