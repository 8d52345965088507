"""What makes training fast without changing what it computes, by `lightning.performance` in the config."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.errors import ConfigError
from ldm.training.config import check_keys

PRECISIONS = ("highest", "high", "medium")
DEFAULTS = {"channels_last": False, "compile": False, "matmul_precision": "high"}


def apply_performance(model: pl.LightningModule, options: dict[str, Any]) -> None:
    """channels_last: memory format of convolutions' weights. compile: torch.compile each network, which costs a minute at
    the start. matmul_precision: of float32 products on GPUs, "highest" or "high" (TF32)."""
    check_keys(options, DEFAULTS, "`lightning.performance`")
    options = {**DEFAULTS, **options}
    if options["matmul_precision"] not in PRECISIONS:
        raise ConfigError(f"lightning.performance.matmul_precision must be {' or '.join(PRECISIONS)}, got {options['matmul_precision']!r}")
    torch.set_float32_matmul_precision(options["matmul_precision"])
    torch.backends.cudnn.allow_tf32 = options["matmul_precision"] != "highest"
    if options["channels_last"]:
        model.to(memory_format=torch.channels_last)
    if options["compile"]:
        for network in _networks(model):
            network.compile()  # in place: names in checkpoints stay


def _networks(model: nn.Module) -> list[nn.Module]:
    """The parts that do the work, each of which compiles as a whole."""
    names = ("model.diffusion_model", "first_stage_model.encoder", "vgg", "encoder", "decoder", "student", "teacher")
    found = []
    for name in names:
        try:
            found.append(model.get_submodule(name))
        except AttributeError:
            continue
    return found
