"""The federation's YAML file: what loads, what a flag changes, what is refused and why."""

import re
from pathlib import Path

import pytest
import yaml

from src.errors import UserError
from src.job.job_config import load_job
from src.model_utils.config import PROJECT_DIR


def changed(tmp_path: Path, **changes) -> Path:
    values = yaml.safe_load((PROJECT_DIR / "default_yaml_config.yaml").read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        level = values
        for parent in parents:
            level = level[parent]
        if value is ...:
            del level[last]
        else:
            level[last] = value
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_default_file_has_the_tutorials_values():
    job = load_job("default_yaml_config.yaml")
    assert (job.name, job.iterations, job.redis_address) == ("FasterRCNN", 30, ("127.0.0.1", 2345))
    assert job["round.start_fl_job_threshold"] == 2


def test_flags_win(tmp_path):
    job = load_job(changed(tmp_path), {"fl_iteration_num": 5, "fl_name": None})
    assert (job.iterations, job.name) == (5, "FasterRCNN")


def test_written_file_is_the_same_job(tmp_path):
    job = load_job(changed(tmp_path), {"fl_name": "other"})
    assert load_job(job.write(tmp_path / "sub" / "written.yaml")).values == job.values


def test_a_flag_below_a_key_that_is_no_group(tmp_path):
    with pytest.raises(UserError, match="round is 3, expected keys below it"):
        load_job(changed(tmp_path, round=3), {"round.start_fl_job_threshold": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fl_nam": "x"}, r"unknown key 'fl_nam' \(did you mean fl_name"),
        ({"round__start_fl_job_treshold": 2}, "did you mean round.start_fl_job_threshold"),
        ({"fl_name": "job/../other"}, "fl_name is 'job/../other', expected letters"),
        ({"enable_ssl": True}, "distributed_cache.cacert_filename is missing"),
        ({"aggregation__aggregation_type": "FedCM"}, "expected FedAvg or FedProx or Scaffold or"),
        ({"aggregation__aggregation_type": "FedProx"}, "iid_rate is missing"),
        ({"aggregation__aggregation_type": "Scaffold"}, "Scaffold needs the number of all silos"),
        (
            {"aggregation__aggregation_type": "FedNova", "round__update_model_ratio": 0.5},
            "FedNova needs 1",
        ),
        ({"round": 3}, "round is 3, expected keys below it"),
        ({"fl_name": ...}, "fl_name is missing"),
        ({"checkpoint_dir": "./fl_ckpt"}, "remove it and give --checkpoint_dir to"),
        ({"encrypt__privacy_eval_type": "LAPLACE"}, "'NOT_EVAL' or 'NOT_ENCRYPT': this release"),
        ({"enable_ssl": 1}, "enable_ssl is 1, expected True or False"),
        ({"fl_iteration_num": "30"}, "fl_iteration_num is '30', expected a whole number"),
        ({"fl_iteration_num": 0}, "fl_iteration_num is 0, expected 1 to"),
        ({"round__start_fl_job_time_window": 999}, "is 999, expected 1000 to"),
        ({"round__start_fl_job_time_window": 7200000}, "longer than"),
        ({"server_mode": "FEDERATED_LEARNING"}, "expected CLOUD_TRAINING"),
        ({"distributed_cache__address": "localhost:2345"}, "'localhost' is refused by the engine"),
        ({"distributed_cache__address": "0.0.0.0:2345"}, "0.0.0.0 is refused by the engine"),
        ({"distributed_cache__address": "127.0.0.1"}, "not an address with a port"),
        ({"encrypt__encrypt_type": "STABLE_PW_ENCRYPT"}, "no encryption between silos"),
        ({"compression__upload_compress_type": "DIFF_SPARSE_QUANT"}, "never compress"),
        ({"client_verify__pki_verify": True}, "verifies phones"),
        ({"client__http_url_prefix": "/replace-me/"}, "is the template's placeholder, expected"),
        ({"client__http_url_prefix": 5}, "client.http_url_prefix is no text, expected text"),
    ],
)
def test_refused_with_the_key_and_the_reason(tmp_path, changes, message):
    path = changed(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_job(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "prefix",
    [
        "short",
        "/too-short/",
        "no-slashes-at-both-ends",
        "/two/parts-of-a-path/",
        "/a b c d e f g h i j/",
    ],
)
def test_a_secret_path_of_another_form_is_refused_and_not_shown(tmp_path, prefix):
    path = changed(tmp_path, client__http_url_prefix=prefix)
    with pytest.raises(UserError, match="not of that form .*expected /RANDOM/ with") as caught:
        load_job(path)
    assert prefix not in str(caught.value)


def test_a_secret_path_is_kept_with_its_slashes_in_a_private_file(tmp_path):
    prefix = "/k3y7-k3y7-k3y7_k3y7/"
    job = load_job(changed(tmp_path, client__http_url_prefix=prefix))
    assert job.url_prefix == prefix
    written = job.write(tmp_path / "sub" / "job.yaml")
    assert load_job(written).url_prefix == prefix
    assert written.stat().st_mode & 0o777 == 0o600
    assert load_job(changed(tmp_path)).url_prefix == ""


def test_upstreams_newer_keys_pass_with_their_neutral_values(tmp_path):
    newer = {"encrypt_train_type": "NOT_ENCRYPT", "privacy_eval_type": "NOT_ENCRYPT"}
    newer["laplace_eval"] = {"laplace_eval_eps": 230260}
    load_job(changed(tmp_path, **{f"encrypt__{key}": value for key, value in newer.items()}))
    load_job(changed(tmp_path, encrypt__privacy_eval_type="NOT_EVAL"))


def test_upstreams_file_loads_unchanged():
    job = load_job(PROJECT_DIR / "tests" / "upstream_files" / "default_yaml_config.yaml")
    assert (job.name, job.iterations) == ("FasterRCNN", 30)


def test_a_file_that_would_run_something_is_refused(tmp_path):
    """The engine's own loader would run it."""
    made = tmp_path / "made"
    path = tmp_path / "job.yaml"
    path.write_text(f"fl_name: !!python/object/apply:os.mkdir [{made}]\n")
    with pytest.raises(UserError, match=r"job\.yaml.*python/object/apply:os\.mkdir"):
        load_job(path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["2026-11-30", "2026-11-31", "2026-13-45"])
def test_a_name_that_looks_like_a_date_is_a_name(tmp_path, name):
    path = tmp_path / "federation.yaml"
    text = (PROJECT_DIR / "default_yaml_config.yaml").read_text(encoding="utf-8")
    path.write_text(re.sub("(?m)^fl_name:.*", f"fl_name: {name}", text))
    job = load_job(path)
    assert job.name == name
    # The engine's own loader of YAML has to see text too.
    assert f"fl_name: '{name}'" in job.write(tmp_path / "engine.yaml").read_text()
