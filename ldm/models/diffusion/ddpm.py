"""Latent diffusion as a LightningModule. The model itself is in `latent_diffusion`, so that inference starts without Lightning."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from ldm.config.factory import instantiate_from_config
from ldm.models.diffusion.latent_diffusion import DiffusionWrapper, LatentDiffusionModel, samples_in
from ldm.models.diffusion.published import disabled_train, uniform_on_device
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.modules.optimizers import build_optimizer, clip_gradients, published_order

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion", "disabled_train", "uniform_on_device"]

log = logging.getLogger(__name__)

NO_FIRST_STAGE = {"target": "ldm.models.autoencoder.IdentityFirstStage"}


class DDPM(LatentDiffusionModel, pl.LightningModule):
    """The training loop of every diffusion model here. By itself, without a first stage, it learns pictures themselves.

    differs: its methods have LatentDiffusion's signatures, with a condition, which is None.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any] = NO_FIRST_STAGE,
        *args: Any,
        **options: Any,
    ):
        super().__init__(unet_config, first_stage_config, *args, **options)

    def on_fit_start(self) -> None:
        if not (self._scale_is_known or getattr(self.first_stage_model, "has_weights", True)):
            log.warning(
                "the first stage has random weights: give its file as model.params.first_stage_config.params.ckpt_path"
            )
        data = getattr(self.trainer.datamodule, "datasets", {}).get("train")
        if hasattr(data, "classes") and isinstance(self.cond_stage_model, ClassEmbedder):
            self.cond_stage_model.check_classes(data.classes, with_null=self.cond_drop > 0)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss, parts = self.shared_step(batch)
        n = samples_in(batch)
        self.log_dict(parts, batch_size=n)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=n)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        # The same noise and time steps every time: values of different epochs can be compared, and training's
        # random numbers stay what they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx)
            _, parts = self.shared_step(batch)
            torch.manual_seed(batch_idx)
            with self.ema_scope():  # where the condition may be another too
                _, averaged = self.shared_step(batch)
        parts |= {f"{name}_ema": value for name, value in averaged.items()}
        self.log_dict(parts, batch_size=samples_in(batch), sync_dist=True)

    def on_train_start(self) -> None:
        measures = self.first_measures()
        if not measures or self._scale_is_known or self.global_step > 0:
            return
        # differs: the published code takes one batch, whose statistics are rough.
        rows = [
            [of_batch(batch) for of_batch, _ in measures] for batch in self._first_batches(self.scale_batches)
        ]
        for (_, take), parts in zip(measures, zip(*rows)):
            take(torch.cat(parts))

    def first_measures(
        self,
    ) -> list[tuple[Callable[[Mapping[str, Tensor]], Tensor], Callable[[Tensor], None]]]:
        """What a new model is set by before training: (what to take of each of the first batches, what to do with all of it)."""
        return (
            [(self.unscaled_latents, lambda z: self.set_scale(self.gathered(z)))] if self.scale_by_std else []
        )

    def _first_batches(self, count: int) -> Iterator[Mapping[str, Tensor]]:
        """The batches that training will begin with; reading them does not move its own loader on."""
        loader = self.trainer.train_dataloader
        sampler = None if isinstance(loader.dataset, IterableDataset) else loader.sampler
        with torch.random.fork_rng([]):
            again = DataLoader(
                loader.dataset,
                loader.batch_size,
                sampler=sampler,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
            )
            for batch in itertools.islice(again, count):
                yield self.transfer_batch_to_device(batch, self.device, 0)

    def gathered(self, z: Tensor) -> Tensor:
        """(N, ...) of all processes together."""
        return (
            self.all_gather(z).flatten(0, 1)
            if self._trainer is not None and self.trainer.world_size > 1
            else z
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # differs: the published code moves the average once per micro-batch; here once per optimiser step.
        for average, module in self.averaged():
            average(module)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(
            torch.optim.AdamW, published_order(self, self.trained_parameters()), self, lr=self.learning_rate
        )
        if self.scheduler_config is None:
            return optimizer
        # not the object, whose values a checkpoint would bring back
        schedule = instantiate_from_config(self.scheduler_config).__call__
        return [optimizer], [{"scheduler": LambdaLR(optimizer, schedule), "interval": "step", "frequency": 1}]


class LatentDiffusion(DDPM):
    """The base of every latent diffusion model that trains; `DualCondLDM` is the one for style transfer."""

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        *args: Any,
        **options: Any,
    ):
        super().__init__(unet_config, first_stage_config, *args, **options)
