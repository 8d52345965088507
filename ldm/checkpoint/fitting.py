"""Whether a file fits a model: that of a config, or the published one that the file seems to be."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.ema import TRAINING_ONLY, is_ema_name
from ldm.checkpoint.loading import Mismatch, compare
from ldm.config.factory import instantiate_from_config, load_config, to_plain
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


def mismatch_with(config: Path, tensors: Mapping[str, Tensor]) -> Mismatch:
    """How a file's tensors differ from the model that a config describes. Raises ConfigError."""
    node = to_plain(load_config(config)).get("model")
    if node is None:
        raise ConfigError(f"config {config}: it has no `model`")
    model = instantiate_from_config(without_ckpt_paths(node))
    # What the model need not have, and what is never loaded.
    optional = model.optional_keys(tensors) if hasattr(model, "optional_keys") else ()
    return compare(model, tensors, (*TRAINING_ONLY, *optional))


def forgive_missing_ema(mismatch: Mismatch) -> Mismatch:
    """A file without any EMA is no damaged one: it was made for inference."""
    missing = [name for name in mismatch.missing if not is_ema_name(name)]
    return replace(mismatch, missing=missing)


def without_ckpt_paths(node: Any) -> Any:
    """The config with every `ckpt_path` set to null: names and shapes do not need weights."""
    if isinstance(node, dict):
        return {key: None if key == "ckpt_path" else without_ckpt_paths(value) for key, value in node.items()}
    return [without_ckpt_paths(value) for value in node] if isinstance(node, list) else node
