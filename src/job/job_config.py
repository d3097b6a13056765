"""The federation's YAML file: read, checked key by key, with flags that override it.

The engine ignores keys that it does not know, and reads some that this mode cannot use. Both are
refused here, before anything starts, except neutral values, so that upstream's file loads.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError, nearest
from src.files import write_whole
from src.job.addresses import parse_address
from src.model_utils.config import find_config_file, read_yaml_documents
from src.security.tls import TlsFiles, absolute_paths, tls_files

UINT32 = 2**32 - 1

# The name is part of Redis keys (with colons between the parts) and of file names.
NAME = re.compile(r"[A-Za-z0-9_.-]+")
ANY = (-math.inf, math.inf)

# key: (type, allowed). `allowed` is a range, a tuple of strings, or None.
# A window under 1,000 ms is 0 seconds for the engine.
SCHEMA: dict[str, tuple[type, Any]] = {
    "fl_name": (str, None),
    "fl_iteration_num": (int, (1, UINT32)),
    "server_mode": (str, ("CLOUD_TRAINING",)),
    "enable_ssl": (bool, None),
    "distributed_cache.type": (str, ("redis",)),
    "distributed_cache.address": (str, None),
    "distributed_cache.plugin_lib_path": (str, None),
    "distributed_cache.cacert_filename": (str, None),
    "distributed_cache.capath": (str, None),
    "distributed_cache.cert_filename": (str, None),
    "distributed_cache.private_key_filename": (str, None),
    "distributed_cache.server_name": (str, None),
    "round.start_fl_job_threshold": (int, (1, UINT32)),
    "round.start_fl_job_time_window": (int, (1000, UINT32)),
    "round.update_model_ratio": (float, (1e-9, 1)),
    "round.update_model_time_window": (int, (1000, UINT32)),
    "round.global_iteration_time_window": (int, (1000, UINT32)),
    "summary.metrics_file": (str, None),
    "summary.failure_event_file": (str, None),
    "summary.continuous_failure_times": (int, (1, UINT32)),
    "summary.data_rate_dir": (str, None),
    "summary.participation_time_level": (str, None),
    "aggregation.aggregation_type": (str, ("FedAvg", "FedProx", "Scaffold", "FedNova")),
    "aggregation.iid_rate": (float, (1e-9, 1)),
    "aggregation.total_client_num": (int, (1, UINT32)),
    "unsupervised.cluster_client_num": (int, (1, UINT32)),
    "unsupervised.eval_type": (str, ("NOT_EVAL",)),
    "encrypt.encrypt_type": (str, None),
    "encrypt.encrypt_train_type": (str, None),
    "encrypt.privacy_eval_type": (str, None),
    "encrypt.laplace_eval.laplace_eval_eps": (float, ANY),
    "encrypt.pw_encrypt.share_secrets_ratio": (float, ANY),
    "encrypt.pw_encrypt.cipher_time_window": (int, ANY),
    "encrypt.pw_encrypt.reconstruct_secrets_threshold": (int, ANY),
    "encrypt.dp_encrypt.dp_eps": (float, ANY),
    "encrypt.dp_encrypt.dp_delta": (float, ANY),
    "encrypt.dp_encrypt.dp_norm_clip": (float, ANY),
    "encrypt.signds.sign_k": (float, ANY),
    "encrypt.signds.sign_eps": (float, ANY),
    "encrypt.signds.sign_thr_ratio": (float, ANY),
    "encrypt.signds.sign_global_lr": (float, ANY),
    "encrypt.signds.sign_dim_out": (int, ANY),
    "compression.upload_compress_type": (str, None),
    "compression.upload_sparse_rate": (float, (1e-9, 1)),
    "compression.download_compress_type": (str, None),
    "ssl.server_cert_path": (str, None),
    "ssl.client_cert_path": (str, None),
    "ssl.ca_cert_path": (str, None),
    "ssl.crl_path": (str, None),
    "ssl.cipher_list": (str, None),
    "ssl.cert_expire_warning_time_in_day": (int, (7, 180)),
    "client_verify.pki_verify": (bool, None),
    "client_verify.root_first_ca_path": (str, None),
    "client_verify.root_second_ca_path": (str, None),
    "client_verify.equip_crl_path": (str, None),
    "client_verify.replay_attack_time_diff": (int, (0, UINT32)),
    "client.http_url_prefix": (str, None),
    "client.client_epoch_num": (int, (1, UINT32)),
    "client.client_batch_size": (int, (1, UINT32)),
    "client.client_learning_rate": (float, (1e-30, math.inf)),
    "client.connection_num": (int, (1, UINT32)),
}

REQUIRED = (
    "fl_name", "fl_iteration_num", "server_mode", "enable_ssl", "distributed_cache.address",
    "round.start_fl_job_threshold", "round.start_fl_job_time_window", "round.update_model_ratio",
    "round.update_model_time_window", "round.global_iteration_time_window",
    "summary.metrics_file", "summary.failure_event_file",
)  # fmt: skip

# Keys that the engine accepts but cannot use across silos: neutral value or values, and reason.
NEUTRAL: dict[str, tuple[Any, str]] = {
    "encrypt.encrypt_type": (
        "NOT_ENCRYPT",
        "the engine's wheel has no encryption between silos; for differential privacy set "
        "dp_clip_norm and dp_noise_multiplier in default_config.yaml",
    ),
    "encrypt.encrypt_train_type": (
        "NOT_ENCRYPT",
        "this release of the engine reads encrypt_type only",
    ),
    "encrypt.privacy_eval_type": (
        ("NOT_EVAL", "NOT_ENCRYPT"),
        "this release of the engine does not know it",
    ),
    "compression.upload_compress_type": (
        "NO_COMPRESS",
        "silos never compress: in this mode whole float32 arrays travel, see docs/aggregation.md",
    ),
    "compression.download_compress_type": (
        "NO_COMPRESS",
        "silos never ask for it: in this mode whole float32 arrays travel, docs/aggregation.md",
    ),
    "client_verify.pki_verify": (False, "it verifies phones, and silos send no such signature"),
}

# The prefix of the servers' paths. It is a secret: no message, log or report shows it.
PREFIX_KEY = "client.http_url_prefix"
PREFIX = re.compile(r"/[A-Za-z0-9_-]{16,128}/")
# The placeholder for it in the files of deploy/machines.
PLACEHOLDER = "/replace-me/"


# Keys that other pages or files set here, and where this suite sets them.
ELSEWHERE = {
    "checkpoint_dir": "the engine never read it; remove it and give --checkpoint_dir to "
    "run_cross_silo_fasterrcnn_server.py",
}


@dataclass(frozen=True)
class JobConfig:
    """A checked federation file.

    Attributes:
        path: the file that was read.
        values: its nested values, including flags.
        ssl_passwords: file of the certificates' passwords; "" for the environment only.
    """

    path: Path
    values: dict[str, Any]
    ssl_passwords: str = ""

    def __getitem__(self, dotted: str) -> Any:
        return _flatten(self.values)[dotted]

    def get(self, dotted: str) -> Any:
        """Return the value of an optional key; None if it is missing."""
        return _flatten(self.values).get(dotted)

    @property
    def name(self) -> str:
        """Return fl_name."""
        return self.values["fl_name"]

    @property
    def iterations(self) -> int:
        """Return fl_iteration_num."""
        return self.values["fl_iteration_num"]

    @property
    def redis_address(self) -> tuple[str, int]:
        """Return (host, port) of the distributed cache."""
        return parse_address(
            self.values["distributed_cache"]["address"], f"{self.path}: distributed_cache.address"
        )

    @property
    def url_prefix(self) -> str:
        """Return the prefix of the servers' paths, with a slash at both ends; "" for none."""
        return self.get(PREFIX_KEY) or ""

    @property
    def tls(self) -> TlsFiles | None:
        """Return the files for its encrypted connections; None if enable_ssl is False."""
        return tls_files(self.path, _flatten(self.values)) if self.values["enable_ssl"] else None

    def write(self, path: Path) -> Path:
        """Write the values as a YAML file for the engine, and return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(self.values, sort_keys=False), private=True)
        return path


def load_job(path: str | Path, overrides: dict[str, Any] | None = None) -> JobConfig:
    """Read and check a federation file.

    Args:
        path: the YAML file; relative to the current folder or next to the scripts.
        overrides: dotted keys of flags that override the file; None values are ignored.

    Raises:
        UserError: no file, broken YAML, unknown or missing key, wrong type or range, or a feature
            that this mode of the engine does not support.
    """
    file = find_config_file(path, "--yaml_config")
    values = copy.deepcopy(read_yaml_documents(file)[0])
    for key, value in _flatten(values).items():
        _check(file, key, value)
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _check("command line", dotted, value)
            _set(values, dotted, value)
    flat = _flatten(values)
    for key in REQUIRED:
        if flat.get(key) in (None, ""):
            raise UserError(f"{file}: {key} is missing; default_yaml_config.yaml shows it")
    if not NAME.fullmatch(flat["fl_name"]):
        raise UserError(
            f"{file}: fl_name is {flat['fl_name']!r}, expected letters, digits and _ . - only"
        )
    job = JobConfig(file, values)
    _check_prefix(job)
    parse_address(values["distributed_cache"]["address"], f"{file}: distributed_cache.address")
    _check_windows(job)
    _check_aggregation(job)
    if job.tls is not None:
        for dotted, name in absolute_paths(file, flat).items():
            _set(values, dotted, name)
    return job


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value


def _check(file: Path | str, key: str, value: Any) -> None:
    if key not in SCHEMA:
        if any(known.startswith(f"{key}.") for known in SCHEMA):
            raise UserError(f"{file}: {key} is {value!r}, expected keys below it")
        hint = f": {ELSEWHERE[key]}" if key in ELSEWHERE else nearest(key, SCHEMA)
        raise UserError(f"{file}: unknown key '{key}'{hint}")
    kind, allowed = SCHEMA[key]
    if value is None:
        return
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        words = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
        shown = "no text" if key == PREFIX_KEY else repr(value)
        raise UserError(f"{file}: {key} is {shown}, expected {words[kind]}")
    if allowed is not None and kind is str and value not in allowed:
        raise UserError(f"{file}: {key} is {value!r}, expected {' or '.join(allowed)}")
    if allowed is not None and kind is not str and not allowed[0] <= value <= allowed[1]:
        raise UserError(f"{file}: {key} is {value}, expected {allowed[0]} to {allowed[1]}")
    neutral, reason = NEUTRAL.get(key, (value, ""))
    neutral = neutral if isinstance(neutral, tuple) else (neutral,)
    if value not in neutral:
        expected = " or ".join(map(repr, neutral))
        raise UserError(f"{file}: {key} is {value!r}, expected {expected}: {reason}")


def _check_prefix(job: JobConfig) -> None:
    prefix = job.url_prefix
    if not prefix or PREFIX.fullmatch(prefix):
        return
    found = "not of that form (it is not shown, being a secret)"
    if prefix == PLACEHOLDER:
        found = "the template's placeholder"
    raise UserError(
        f"{job.path}: {PREFIX_KEY} is {found}, expected /RANDOM/ with 16 to 128 letters, digits, _ "
        "and - in place of RANDOM, the same on every machine, or ''; take what "
        "python -c 'import secrets; print(secrets.token_urlsafe(24))' prints"
    )


def _check_windows(job: JobConfig) -> None:
    """Refuse an iteration's window shorter than a phase's window, which it would make void."""
    whole = job["round.global_iteration_time_window"]
    for part in ("start_fl_job_time_window", "update_model_time_window"):
        if job[f"round.{part}"] > whole:
            raise UserError(
                f"{job.path}: round.{part} is {job[f'round.{part}']} ms, longer than "
                f"round.global_iteration_time_window ({whole} ms); make the latter the longest"
            )


def _check_aggregation(job: JobConfig) -> None:
    """Check what an algorithm needs besides its name."""
    kind = job.get("aggregation.aggregation_type")
    threshold, ratio = job["round.start_fl_job_threshold"], job["round.update_model_ratio"]
    total = job.get("aggregation.total_client_num")
    if kind == "FedProx" and job.get("aggregation.iid_rate") is None:
        raise UserError(
            f"{job.path}: aggregation.iid_rate is missing, the factor of FedProx' term, more than "
            "0 and at most 1; 0.01 is a start"
        )
    if kind == "Scaffold" and (total is None or total < threshold):
        raise UserError(
            f"{job.path}: aggregation.total_client_num is {total}, and Scaffold needs the number "
            f"of all silos of the job, at least round.start_fl_job_threshold ({threshold})"
        )
    if kind in ("Scaffold", "FedNova") and ratio < 1:
        raise UserError(
            f"{job.path}: round.update_model_ratio is {ratio}, and {kind} needs 1: the servers "
            "would divide by another number of silos than have sent"
        )
