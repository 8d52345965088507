"""Stops a training run before a loss that is not a number reaches the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ldm.errors import NonFiniteError

ADVICE = (
    "try a lower model.learning_rate, lightning.trainer.gradient_clip_val=1.0, or lightning.trainer.precision=32-true, from last.ckpt or, "
    "if its weights are spoilt already, from an older checkpoint; look at the pictures above if only one batch does it"
)


class NonFiniteGuard(pl.Callback):
    """Looks at the losses and gradients of each optimiser step just before it; raises
    NonFiniteError."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._paths: list[str] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the pictures of the step, for the message."""
        if not self._losses:  # else gradients are being accumulated
            self._paths = []
        if isinstance(batch, dict):
            self._paths += batch.get("path", [])

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Note a loss, to be looked at with the others."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Raises NonFiniteError for a loss or gradient that is not finite."""
        # One look at the device for all of them; by now it has the backward pass to work on
        # meanwhile.
        values = torch.stack(
            [*(loss.float() for loss in self._losses), *self._gradient_norm(trainer, optimizer)]
        )
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(self._message(trainer))
        self._losses.clear()

    def _gradient_norm(self, trainer: pl.Trainer, optimizer: Optimizer) -> list[Tensor]:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return []  # float16 gradients overflow now and then; its scaler skips such steps
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        return [torch.nn.utils.get_total_norm(gradients)] if gradients else []

    def _message(self, trainer: pl.Trainer) -> str:
        bad_loss = not all(bool(torch.isfinite(loss).all()) for loss in self._losses)
        what = "the loss" if bad_loss else "a gradient"
        batch = f"; the batch: {', '.join(self._paths)}" if self._paths else ""
        return f"{what} is not finite at step {trainer.global_step}, epoch {trainer.current_epoch}: stopped before the weights change{batch}; {ADVICE}"
