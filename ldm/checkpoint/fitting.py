"""Whether a file fits a model: that of a config, or the published one that the file seems to be."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.carried import config_of, without_ckpt_paths
from ldm.checkpoint.ema import LOSS_STATE, TRAINING_ONLY, is_ema_name
from ldm.checkpoint.loading import Mismatch, compare
from ldm.config.factory import instantiate_from_config
from ldm.errors import ConfigError
from ldm.files import ROOT

CONFIGS = ROOT / "configs"
CONV = "model.diffusion_model.input_blocks.0.0.weight"
# (config, shapes that tell its model from others)
PUBLISHED = (
    ("kl16_content12.yaml", {CONV: (384, 28, 3, 3), "null_style_vector.weight": (1, 2944)}),
    (
        "latent-diffusion/cin256-v2.yaml",
        {CONV: (192, 3, 3, 3), "cond_stage_model.embedding.weight": (1001, 512)},
    ),
    (
        "kl16_first_stage.yaml",
        {"encoder.conv_in.weight": (128, 3, 3, 3), "quant_conv.weight": (32, 32, 1, 1)},
    ),
    (
        "vq4_first_stage.yaml",
        {"quantize.embedding.weight": (8192, 3), "encoder.mid.attn_1.q.weight": (512, 512, 1, 1)},
    ),
)


def published_config(tensors: Mapping[str, Tensor]) -> Path | None:
    """The config of the published model that the file seems to be."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return next((CONFIGS / config for config, own in PUBLISHED if own.items() <= shapes.items()), None)


def mismatch_with(
    config: Path,
    tensors: Mapping[str, Tensor],
    without_training: Callable[[dict[str, Any]], None] | None = None,
) -> Mismatch:
    """How a file's tensors differ from the model that a config describes; one without averages from
    what `without_training` makes of its node, which takes seconds less. Raises ConfigError."""
    node = config_of(config).get("model")
    if node is None:
        raise ConfigError(f"config {config}: it has no `model`")
    node = without_ckpt_paths(node)
    never_loaded: tuple[str, ...] = TRAINING_ONLY
    if without_training is not None and not any(map(is_ema_name, tensors)):
        without_training(node)
        never_loaded = (*TRAINING_ONLY, *LOSS_STATE)
    model = _without_weights(node)
    optional = model.optional_keys(tensors) if hasattr(model, "optional_keys") else ()
    return compare(model, tensors, (*never_loaded, *optional))


def _without_weights(node: dict[str, Any]) -> Any:
    """The model of a config: names, shapes and types are asked for, which take no memory."""
    try:
        with torch.device("meta"):
            return instantiate_from_config(node)
    except RuntimeError:  # of a part that reads weights of its own when it is built
        return instantiate_from_config(node)


def forgive_missing_ema(mismatch: Mismatch) -> Mismatch:
    """A file without any EMA is no damaged one: it was made for inference."""
    missing = [name for name in mismatch.missing if not is_ema_name(name)]
    return replace(mismatch, missing=missing)
