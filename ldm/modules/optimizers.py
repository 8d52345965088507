"""Optimisers in their fastest form, one fused kernel for all weights where the device has it, and
the order of their weights."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

# In the published networks a block's embedding layers are registered between its input and its
# output layers.
_RANK_IN_BLOCK = {
    "in_layers": 0,
    "emb_layers": 1,
    "adaLN_modulation": 1,
    "out_layers": 2,
    "skip_connection": 3,
    "proj_out": 4,
}


def build_optimizer(
    kind: type[Optimizer], weights: Iterable[nn.Parameter], module: pl.LightningModule, **options: Any
) -> Optimizer:
    """An Adam or AdamW, fused on CUDA; not with a loss scaler, which Lightning cannot clip together
    with it."""
    fused = module.device.type == "cuda" and getattr(module._trainer, "precision", None) != "16-mixed"
    return kind(weights, fused=fused or None, **options)


def names_of(module: nn.Module, weights: Iterable[nn.Parameter]) -> list[str]:
    """The names that these weights have in the module."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    return [names[id(weight)] for weight in weights]


def published_order(module: nn.Module, weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The weights as the published optimiser holds them: by its networks' order of registration,
    `logvar` last."""
    weights = list(weights)
    places: dict[str, int] = {}

    def place(name: str) -> tuple[bool, int, int]:
        block, rank = _block_of(name)
        return name == "logvar", places.setdefault(block, len(places)), rank

    by_name = dict(zip(names_of(module, weights), weights, strict=True))
    return [by_name[name] for name in sorted(by_name, key=place)]


def _block_of(name: str) -> tuple[str, int]:
    """(the block whose parts have a published order, the weight's rank in it); the name itself
    where there is none."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part in _RANK_IN_BLOCK), None)
    return (name, 0) if at is None else (".".join(parts[:at]), _RANK_IN_BLOCK[parts[at]])


def clip_gradients(
    module: pl.LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None
) -> None:
    """What Lightning's `gradient_clip_val` asks for, also for fused optimisers, which Lightning
    refuses although they only need special care with a loss scaler."""
    if not optimizer.defaults.get("fused"):
        module.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    elif value:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        by_value = algorithm == "value"
        (torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_)(weights, value)
