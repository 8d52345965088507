"""First stages that learn; the autoencoders themselves are in `first_stage`, so that inference
starts without Lightning."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.config.factory import instantiate_from_config
from ldm.config.groups import flat_keys
from ldm.errors import ConfigError
from ldm.models.first_stage import KLAutoencoder, VQAutoencoder, VQLatents
from ldm.models.options import FirstStageOptimisation
from ldm.modules.losses.contperceptual import FirstStageLoss, LPIPSWithDiscriminator
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from ldm.modules.optimizers import build_optimizer, clip_gradients
from ldm.published.helpers import to_rgb


class FirstStageTraining:
    """The training loop of a first stage, before which it stands among a class's bases. Parameters:
    FirstStageOptimisation's, and the stage's.

    own_options: the options of the trainer that Lightning leaves to models with optimisers of their
        own, as `ldm.training.trainer.Recipe` sets them: how many batches' gradients are added up
        for a step, and how they are clipped before it.
    """

    loss_class: type[FirstStageLoss]
    own_options: Mapping[str, Any] = {
        "accumulate_grad_batches": 1,
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
    }

    @flat_keys
    def __init__(self, *args: Any, optimisation: FirstStageOptimisation, **options: Any):
        super().__init__(*args, **options)
        self.image_key, self.trainable = optimisation.image_key, optimisation.trainable
        self.learning_rate, self.adam_betas = optimisation.learning_rate, optimisation.adam_betas
        self.scheduler_config, self.monitor = optimisation.scheduler_config, optimisation.monitor
        if self.trainable == "decoder":
            for part in self.parts:
                part.requires_grad_(part in (self.decoder, self.post_quant_conv))

    def reconstruct(self, x: Tensor, draw: bool = True) -> tuple[Tensor, Any]:
        """(reconstruction, what the loss takes of its latent); `draw` from the latent's
        distribution, if it has one."""
        raise NotImplementedError

    @property
    def automatic_optimization(self) -> bool:
        """False: there are two optimisers, one of which starts later."""
        return False

    def get_input(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(N, 3, H, W) from a batch, whose pictures are channels last as data sets give them."""
        return batch[self.image_key].permute(0, 3, 1, 2).float()

    def setup(self, stage: str) -> None:
        """Lightning's: refuse a loss of another kind before training."""
        wanted = self.loss_class
        if stage == "fit" and not isinstance(self.loss, wanted):
            raise ConfigError(
                f"to train a first stage of this kind, its lossconfig must be {wanted.__module__}.{wanted.__name__}"
            )

    def on_fit_start(self) -> None:
        """Lightning's: read the weights that the loss needs."""
        self.loss.load_weights()

    def configure_optimizers(self) -> Any:
        """Lightning's: the optimiser, or two, and the schedules of their learning rates."""
        weights = [p for part in self.parts for p in part.parameters() if p.requires_grad]
        groups = [weights] + (
            [self.loss.discriminator.parameters()] if self.loss.discriminator is not None else []
        )
        optimizers = [
            build_optimizer(torch.optim.Adam, group, self, lr=self.learning_rate, betas=self.adam_betas)
            for group in groups
        ]
        if self.scheduler_config is None:
            return optimizers
        # not the object, whose values a checkpoint would bring back
        schedule = instantiate_from_config(
            self.scheduler_config, kind="schedule", key="model.params.scheduler_config"
        ).__call__
        return optimizers, [{"scheduler": LambdaLR(optimizer, schedule)} for optimizer in optimizers]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Lightning's: the loss of a batch, logged."""
        step, batches = self.global_step, self.own_options["accumulate_grad_batches"]
        x = self.get_input(batch)
        # differs: the published step runs the autoencoder once for each optimiser; one pass serves
        # both.
        recon, latent = self.reconstruct(x)
        adversarial = self.loss.discriminates(step)
        with self.loss.discriminator_fixed():
            loss, parts = self.loss.autoencoder_loss(x, recon.float(), latent, step, self.decoder.last_layer)
            self.manual_backward(loss / batches)
        if adversarial:
            disc_loss, disc_parts = self.loss.discriminator_loss(x, recon.float())
            self.manual_backward(disc_loss / batches)
            parts |= disc_parts
        if self.trainer.is_last_batch or (batch_idx + 1) % batches == 0:
            for which in range(1 + adversarial):
                self._step(which)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(x))
        self.log("train/loss", parts["rec_loss"], prog_bar=True, logger=False, batch_size=len(x))

    def _step(self, which: int) -> None:
        optimizer = _as_list(self.optimizers())[which]
        # Lightning's global_step, and with it max_steps, would count this optimiser's steps too
        if which > 0:
            optimizer._on_before_step = optimizer._on_after_step = lambda: None
        self._clip(optimizer.optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.scheduler_config is not None:
            _as_list(self.lr_schedulers())[which].step()

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        value, algorithm = self.own_options["gradient_clip_val"], self.own_options["gradient_clip_algorithm"]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if value and scaler is not None:
            scaler.unscale_(optimizer)
        if value:
            clip_gradients(self, optimizer, value, algorithm)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Lightning's: losses and PSNR of a batch's reconstructions, logged."""
        x = self.get_input(batch)
        recon, latent = self.reconstruct(x, draw=False)
        _, parts = self.loss.autoencoder_loss(
            x, recon.float(), latent, self.global_step, self.decoder.last_layer
        )
        mse = (x - recon.float().clamp(-1, 1)).square().mean(dim=(1, 2, 3))
        psnr = (10 * torch.log10(4 / mse)).mean()  # pixels span 2
        self.log_dict(
            {f"val/{name}": value for name, value in parts.items()}, batch_size=len(x), sync_dist=True
        )
        self.log("val/psnr", psnr, prog_bar=True, batch_size=len(x), sync_dist=True)

    def to_rgb(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) as pictures (N, 3, H, W) in [-1, 1]."""
        return to_rgb(x)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], max_images: int = 8) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger."""
        x = self.get_input(batch)[:max_images]
        return {"inputs": x, "reconstructions": self.reconstruct(x, draw=False)[0]}


class AutoencoderKL(FirstStageTraining, KLAutoencoder, pl.LightningModule):
    """The KL first stage with its training loop; parameters are FirstStageTraining's and
    KLAutoencoder's."""

    loss_class = LPIPSWithDiscriminator

    def reconstruct(self, x: Tensor, draw: bool = True) -> tuple[Tensor, Any]:
        """(reconstruction, posterior), of a drawn latent or of the mode."""
        return self(x, sample_posterior=draw)


class VQModel(FirstStageTraining, VQAutoencoder, pl.LightningModule):
    """The vector-quantised first stage with its training loop; parameters are FirstStageTraining's
    and VQAutoencoder's."""

    loss_class = VQLPIPSWithDiscriminator

    def reconstruct(self, x: Tensor, draw: bool = True) -> tuple[Tensor, Any]:
        """(reconstruction, (the quantiser's loss, indices))."""
        recon, loss, indices = self(x, return_pred_indices=True)
        return recon, (loss, indices)


class VQModelInterface(VQLatents, VQModel):
    """A VQModel as the first stage of a diffusion model: its latents are quantised in decoding
    only."""


class IdentityFirstStage(nn.Module):
    """The first stage of a diffusion of the pictures themselves; with `vq_interface`, `quantize`
    answers as a quantiser does."""

    def __init__(self, vq_interface: bool = False):
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: Tensor) -> Tensor:
        """The pictures themselves."""
        return x

    def decode(self, x: Tensor, force_not_quantize: bool = False) -> Tensor:
        """The pictures themselves."""
        return x

    def quantize(self, x: Tensor) -> Any:
        """There are no codes."""
        return (x, None, (None, None, None)) if self.vq_interface else x

    def forward(self, x: Tensor) -> Tensor:
        """The pictures themselves."""
        return x


def _as_list(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
