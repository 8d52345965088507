"""What makes training fast without changing what it computes, by `lightning.performance` in the
config."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.config.merge import check_keys
from ldm.errors import ConfigError, did_you_mean

PRECISIONS = ("highest", "high", "medium")
NETWORKS = (
    "model.diffusion_model", "first_stage_model.encoder", "first_stage_model.decoder", "vgg",
    "encoder", "decoder", "student", "teacher",
)  # fmt: skip
DEFAULTS = {"channels_last": False, "compile": False, "matmul_precision": "high"}


def apply_performance(model: pl.LightningModule, options: dict[str, Any]) -> None:
    """channels_last: memory format of convolutions' weights. compile: torch.compile each network,
    which costs minutes at the start, or those in a list of names, say [first_stage_model.decoder].
    matmul_precision: of float32 products on GPUs, "highest" or "high" (TF32)."""
    check_keys(options, DEFAULTS, "`lightning.performance`")
    options = {**DEFAULTS, **options}
    if options["matmul_precision"] not in PRECISIONS:
        raise ConfigError(
            f"lightning.performance.matmul_precision must be {' or '.join(PRECISIONS)}, got {options['matmul_precision']!r}"
        )
    torch.set_float32_matmul_precision(options["matmul_precision"])
    torch.backends.cudnn.allow_tf32 = options["matmul_precision"] != "highest"
    if options["channels_last"]:
        model.to(memory_format=torch.channels_last)
    for network in _to_compile(model, options["compile"]):
        # in place: names in checkpoints stay; sizes seldom change, and code for any size is slower
        network.compile(dynamic=False)


def _to_compile(model: nn.Module, wanted: bool | Sequence[str]) -> list[nn.Module]:
    """The parts that do the work, each of which compiles as a whole; or those that are named."""
    parts = dict(model.named_modules())
    if isinstance(wanted, bool):
        return [parts[name] for name in NETWORKS if wanted and name in parts]
    if isinstance(wanted, str) or not isinstance(wanted, Sequence):
        raise ConfigError(
            f"lightning.performance.compile must be true, false or a list of parts, got {wanted!r}"
        )
    for name in wanted:
        if name not in parts:
            raise ConfigError(
                f"lightning.performance.compile: the model has no part {name!r}{did_you_mean(name, parts)}"
            )
    return [parts[name] for name in wanted]
