"""Training the KL first stage; the autoencoder itself is in `first_stage`, so that inference starts without Lightning."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ldm.errors import ConfigError
from ldm.models.first_stage import KLAutoencoder
from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.optimizers import build_optimizer
from ldm.util import instantiate_from_config


class AutoencoderKL(KLAutoencoder, pl.LightningModule):
    """The first stage with its training loop; parameters are KLAutoencoder's."""

    @property
    def automatic_optimization(self) -> bool:
        return False  # two optimisers, one of which starts later

    def get_input(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(N, 3, H, W) from a batch, whose pictures are channels last as data sets give them."""
        return batch[self.image_key].permute(0, 3, 1, 2).float()

    def setup(self, stage: str) -> None:
        if stage == "fit" and not isinstance(self.loss, LPIPSWithDiscriminator):
            raise ConfigError("to train a first stage, its lossconfig must be ldm.modules.losses.contperceptual.LPIPSWithDiscriminator")

    def on_fit_start(self) -> None:
        self.loss.load_weights()

    def configure_optimizers(self) -> Any:
        halves = (self.encoder, self.decoder, self.quant_conv, self.post_quant_conv)
        weights = [p for part in halves for p in part.parameters() if p.requires_grad]
        groups = [weights] + ([self.loss.discriminator.parameters()] if self.loss.discriminator is not None else [])
        optimizers = [build_optimizer(torch.optim.Adam, group, self, lr=self.learning_rate, betas=self.adam_betas) for group in groups]
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).__call__  # not the object, whose values a checkpoint would bring back
        return optimizers, [{"scheduler": LambdaLR(optimizer, schedule)} for optimizer in optimizers]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        step = self.global_step
        x = self.get_input(batch)
        # differs: the published step runs the autoencoder once for each optimiser; one pass serves both.
        recon, posterior = self(x)
        loss, parts = self.loss.autoencoder_loss(x, recon.float(), posterior, step, self.decoder.last_layer)
        self._step(0, loss)
        if self.loss.discriminates(step):
            disc_loss, disc_parts = self.loss.discriminator_loss(x, recon.float())
            self._step(1, disc_loss)
            parts |= disc_parts
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(x))
        self.log("train/loss", parts["rec_loss"], prog_bar=True, logger=False, batch_size=len(x))

    def _step(self, which: int, loss: Tensor) -> None:
        optimizer = _as_list(self.optimizers())[which]
        if which > 0:  # Lightning's global_step, and with it max_steps, would count this optimiser's steps too
            optimizer._on_before_step = optimizer._on_after_step = lambda: None
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()
        if self.scheduler_config is not None:
            _as_list(self.lr_schedulers())[which].step()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        x = self.get_input(batch)
        recon, posterior = self(x, sample_posterior=False)
        _, parts = self.loss.autoencoder_loss(x, recon.float(), posterior, self.global_step, self.decoder.last_layer)
        mse = (x - recon.float().clamp(-1, 1)).square().mean(dim=(1, 2, 3))
        psnr = (10 * torch.log10(4 / mse)).mean()  # pixels span 2
        self.log_dict({f"val/{name}": value for name, value in parts.items()}, batch_size=len(x), sync_dist=True)
        self.log("val/psnr", psnr, prog_bar=True, batch_size=len(x), sync_dist=True)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], max_images: int = 8) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger."""
        x = self.get_input(batch)[:max_images]
        return {"inputs": x, "reconstructions": self(x, sample_posterior=False)[0]}


def _as_list(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
