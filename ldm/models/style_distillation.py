"""Distils VGG16's style statistics into a narrow network of the same shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.diffusion.dual_cond import spatial_std_mean
from ldm.modules.losses.lpips import VGG_CHANNELS, ScalingLayer, teacher_file, vgg16


class StyleDistiller(pl.LightningModule):
    """The student must give, through one linear layer each, the teacher's per-layer (std, mean) and its activations.

    Both are standardised, so an error of 1 is that of a constant guess. The statistics are what the student is for; its
    activations, compared at every position, teach it far more from one picture than its statistics would.

    `vgg_ckpt_path` is the file of the teacher's weights, by default the bundled VGG16. `total_steps` are those of the learning rate's
    cycle; None leaves it to a TimeBudget. `student.*` of a checkpoint are those for
    `vgg_ckpt_path` of a DualCondLDM with the same `vgg_channels`.
    """

    def __init__(
        self,
        vgg_channels: Sequence[int],
        vgg_ckpt_path: str | None = None,
        learning_rate: float = 1e-3,
        total_steps: int | None = 4000,
        image_key: str = "image",
    ):
        super().__init__()
        self.vgg_ckpt_path, self.image_key = vgg_ckpt_path, image_key
        self.learning_rate, self.total_steps = learning_rate, total_steps
        self.scaling_layer = ScalingLayer()
        self.student = vgg16(requires_grad=True, channels=vgg_channels)
        self.teacher = vgg16().eval()
        self.heads = nn.ModuleList(nn.Linear(2 * s, 2 * t) for s, t in zip(vgg_channels, VGG_CHANNELS))
        self.maps = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in zip(vgg_channels, VGG_CHANNELS))
        self.norms = nn.ModuleList(nn.BatchNorm1d(2 * t, affine=False) for t in VGG_CHANNELS)
        for module in self.student.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def on_fit_start(self) -> None:
        self.teacher.load_weights(teacher_file(self.vgg_ckpt_path))

    def layer_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(5,) each: mean squared errors of every layer's standardised statistics and activations."""
        x = self.scaling_layer(x)
        with torch.no_grad():
            targets = [f.float() for f in self.teacher(x)]
        statistics, activations = [], []
        for guess, target, head, to_map, norm in zip(self.student(x), targets, self.heads, self.maps, self.norms, strict=True):
            statistics.append(F.mse_loss(head(_statistics(guess)).float(), norm(_statistics(target))))
            # The target is scaled, not the error: a new layer would take thousands of steps to reach values of hundreds.
            activations.append(F.mse_loss(to_map(guess).float(), target / target.std()))
        return torch.stack(statistics), torch.stack(activations)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        statistics, activations = self.layer_losses(batch[self.image_key].permute(0, 3, 1, 2))
        self.log_dict({"train/statistics": statistics.mean(), "train/activations": activations.mean()})
        loss = statistics.mean() + activations.mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        losses = self.layer_losses(batch[self.image_key].permute(0, 3, 1, 2))
        for name, values in zip(("statistics", "activations"), losses):
            for layer, loss in enumerate(values, start=1):
                self.log(f"val/{name}{layer}", loss, batch_size=len(batch[self.image_key]))

    def configure_optimizers(self) -> Any:
        weights = [*self.student.parameters(), *self.heads.parameters(), *self.maps.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate)
        if self.total_steps is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, self.total_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _statistics(features: Tensor) -> Tensor:
    return torch.cat(spatial_std_mean(features.float()), dim=1)
