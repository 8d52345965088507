"""Distils VGG16's style statistics into a narrow network of the same shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.diffusion.dual_cond import spatial_std_mean
from ldm.modules.losses.lpips import VGG_CHANNELS, ScalingLayer, vgg16


class StyleDistiller(pl.LightningModule):
    """The student's per-layer (std, mean) must give, through one linear layer each, the teacher's, standardised.

    `student.*` of a checkpoint are the weights for `vgg_ckpt_path` of a DualCondLDM with the same `vgg_channels`.
    """

    def __init__(
        self,
        vgg_channels: Sequence[int],
        teacher_ckpt_path: str | None = None,
        learning_rate: float = 1e-3,
        total_steps: int = 4000,
        image_key: str = "image",
    ):
        super().__init__()
        self.teacher_ckpt_path, self.image_key = teacher_ckpt_path, image_key
        self.learning_rate, self.total_steps = learning_rate, total_steps
        self.scaling_layer = ScalingLayer()
        self.student = vgg16(requires_grad=True, channels=vgg_channels)
        self.teacher = vgg16().eval()
        self.heads = nn.ModuleList(nn.Linear(2 * s, 2 * t) for s, t in zip(vgg_channels, VGG_CHANNELS))
        self.norms = nn.ModuleList(nn.BatchNorm1d(2 * t, affine=False) for t in VGG_CHANNELS)
        for module in self.student.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def on_fit_start(self) -> None:
        self.teacher.load_weights(self.teacher_ckpt_path)

    def layer_losses(self, x: Tensor) -> Tensor:
        """(5,) mean squared error of every layer's standardised statistics: 1 is the error of a constant guess."""
        x = self.scaling_layer(x)
        with torch.no_grad():
            targets = [norm(_statistics(f)) for norm, f in zip(self.norms, self.teacher(x))]
        guesses = [head(_statistics(f)) for head, f in zip(self.heads, self.student(x))]
        return torch.stack([F.mse_loss(guess.float(), target) for guess, target in zip(guesses, targets)])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        losses = self.layer_losses(batch[self.image_key].permute(0, 3, 1, 2))
        self.log("train/loss", losses.mean(), prog_bar=True)
        return losses.mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        losses = self.layer_losses(batch[self.image_key].permute(0, 3, 1, 2))
        for layer, loss in enumerate(losses, start=1):
            self.log(f"val/slice{layer}", loss, batch_size=len(batch[self.image_key]))

    def configure_optimizers(self) -> Any:
        weights = [*self.student.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, self.total_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _statistics(features: Tensor) -> Tensor:
    return torch.cat(spatial_std_mean(features.float()), dim=1)
