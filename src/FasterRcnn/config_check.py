"""Check keys of the configuration that have to be equal, or to have one certain value."""

from __future__ import annotations

from src.errors import UserError
from src.model_utils.config import KEYS, ONE_KIND, Config

EQUAL = (
    ("rpn_in_channels", "fpn_out_channels"),
    ("roi_align_out_channels", "fpn_out_channels"),
    ("rcnn_in_channels", "roi_align_out_channels"),
    ("fpn_in_channels", "resnet_out_channels"),
    ("num_bboxes_stage2", "rpn_proposal_max_num"),
)
# A loaded configuration has been checked for these; one made in a script has not.
FIXED = {name: key.default for name, key in KEYS.items() if key.instead == ONE_KIND}


def check_config(config: Config) -> None:
    """Refuse a configuration that this detector cannot be built from as it says.

    Raises:
        UserError: names the keys and their values.
    """
    for first, second in EQUAL:
        if getattr(config, first) != getattr(config, second):
            raise UserError(
                f"configuration: {first} is {getattr(config, first)} and {second} is "
                f"{getattr(config, second)}; they must be equal"
            )
    for key, value in FIXED.items():
        found = getattr(config, key, value)
        if found != value:
            raise UserError(
                f"configuration: {key} is {found}, but this detector is built "
                f"for {value} alone; set it so"
            )
    per_position = len(config.anchor_scales) * len(config.anchor_ratios)
    if config.num_anchors != per_position:
        raise UserError(
            f"configuration: num_anchors is {config.num_anchors}, but anchor_scales times "
            f"anchor_ratios gives {per_position}; make them agree"
        )
    levels = len(config.feature_shapes)
    if config.fpn_num_outs != levels or len(config.anchor_strides) != levels:
        raise UserError(
            f"configuration: fpn_num_outs is {config.fpn_num_outs} and anchor_strides has "
            f"{len(config.anchor_strides)} values, expected {levels} for both, one a level"
        )
