"""What the value of a key may be: its type, its range, and what is refused with a reason."""

from __future__ import annotations

from typing import Any

from src.errors import UserError, nearest

# Keys that exist although the default file leaves them out, with a value of their type.
DERIVED_KEYS = {"feature_shapes": [[0, 0]]}

CHOICES = {
    "device_target": ("CPU", "GPU", "Ascend"),
    "backbone": ("resnet_v1.5_50", "resnet_v1_50"),
    "lr_type": ("dynamic", "step"),
    "opt_type": ("sgd",),
    "sync_type": ("fixed", "adaptive"),
    "dataset": ("coco", "other"),
}
POSITIVE = (
    "batch_size", "base_lr", "client_epoch_num", "loss_scale", "grad_clip_norm", "img_width",
    "img_height", "num_gts", "num_classes", "epoch_size", "num_parallel_workers", "interval",
    "test_batch_size", "num_expected_neg", "num_expected_pos", "rpn_proposal_max_num",
    "rpn_max_num", "data_size_unit", "observation_window_size", "frequency_increase_ratio",
    "max_image_pixels",
)  # fmt: skip
NOT_NEGATIVE = (
    "sync_frequency", "threads", "keep_checkpoint_max", "warmup_step",
    "warmup_ratio", "weight_decay", "momentum", "device_id", "seed", "flip_ratio", "expand_ratio",
    "eval_limit", "min_consistent_rate", "min_consistent_rate_at_round", "unchanged_round",
    "dp_clip_norm", "dp_noise_multiplier", "log_max_mb", "log_files_kept",
)  # fmt: skip


# What upstream's files may ask for and this suite does not do: the neutral value, and the reason.
UNAVAILABLE = {
    "enable_profiling": (False, "it only ever profiled upstream's ModelArts runs"),
    "finetune": (False, "nothing reads it; pre_trained continues from any checkpoint"),
    "log_summary": (False, "no summary files are written"),
}


def check_values(values: dict[str, Any], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` with each key known and each value of its default's type.

    A None, as YAML gives for a key with nothing behind it, stands for the default.

    Raises:
        UserError: unknown key (names the nearest), wrong type, or out of range.
    """
    known = {**defaults, **DERIVED_KEYS}
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
        if value is not None:
            checked[key] = check_value(key, value, known[key], where)
    return checked


def check_value(key: str, value: Any, default: Any, where: str) -> Any:
    """`value`, converted without loss to the type of `default`, and in the key's range."""
    converted = _convert(value, default)
    if converted is None:
        kind = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}.get(
            type(default), f"a {type(default).__name__} like {default}"
        )
        raise UserError(f"{where}: {key} is {value!r}, expected {kind}")
    if key in CHOICES and converted not in CHOICES[key]:
        raise UserError(f"{where}: {key} is {value!r}, expected one of {', '.join(CHOICES[key])}")
    if key in UNAVAILABLE and converted != UNAVAILABLE[key][0]:
        neutral, reason = UNAVAILABLE[key]
        raise UserError(f"{where}: {key} is {value!r}, expected {neutral!r}: {reason}")
    if key in POSITIVE and not converted > 0:
        raise UserError(f"{where}: {key} is {value!r}, expected more than 0")
    if key in NOT_NEGATIVE and not converted >= 0:
        raise UserError(f"{where}: {key} is {value!r}, expected 0 or more")
    return converted


def _convert(value: Any, default: Any) -> Any:
    """`value` as the type of `default`, or None where it is not of that type."""
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, int):
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(default, float):
        return _as_float(value)
    return value if isinstance(value, type(default)) else None


def _as_float(value: Any) -> float | None:
    """A float; YAML 1.1 reads 1e-5, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
