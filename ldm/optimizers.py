"""Optimisers in their fastest form: one fused kernel for all weights where the device has it."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer


def build_optimizer(kind: type[Optimizer], weights: Iterable[nn.Parameter], module: pl.LightningModule, **options: Any) -> Optimizer:
    """An Adam or AdamW, fused on CUDA; not with a loss scaler, which Lightning cannot clip together with it."""
    fused = module.device.type == "cuda" and getattr(module._trainer, "precision", None) != "16-mixed"
    return kind(weights, fused=fused or None, **options)


def clip_gradients(module: pl.LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None) -> None:
    """What Lightning's `gradient_clip_val` asks for, also for fused optimisers, which Lightning refuses although they
    only need special care with a loss scaler."""
    if not optimizer.defaults.get("fused"):
        module.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    elif value:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        by_value = algorithm == "value"
        (torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_)(weights, value)
