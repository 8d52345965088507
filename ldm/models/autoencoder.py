"""The KL first stage: pictures to latents and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.checkpoint import load_strict, part_of, read_state_dict
from ldm.errors import ConfigError
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.optimizers import build_optimizer
from ldm.util import instantiate_from_config


class AutoencoderKL(pl.LightningModule):
    """Pictures (N, 3, H, W) in [-1, 1] to a Gaussian over latents (N, embed_dim, H / f, W / f), and back.

    `ddconfig` holds the halves: either the parameters of the published Encoder and Decoder themselves, or
    `encoder_target`, `decoder_target` and `params` for both, with `encoder_params` / `decoder_params` for one.
    `ckpt_path` is a published `kl-f16.ckpt` or our own file; `trainable` "decoder" freezes encoder and latent.
    `adam_betas` are the published ones, for adversarial training; without it (0.9, 0.99) learns much faster.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        monitor: str | None = None,
        trainable: str = "all",
        learning_rate: float = 4.5e-6,
        adam_betas: tuple[float, float] = (0.5, 0.9),
        scheduler_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if trainable not in ("all", "decoder"):
            raise ConfigError(f"AutoencoderKL: trainable must be 'all' or 'decoder', got {trainable!r}")
        self.automatic_optimization = False  # two optimisers, one of which starts later
        self.image_key, self.trainable, self.monitor, self.learning_rate = image_key, trainable, monitor, learning_rate
        self.adam_betas, self.scheduler_config = tuple(adam_betas), scheduler_config
        self.encoder, self.decoder, z_channels = build_halves(ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        self.embed_dim = embed_dim
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)
        if trainable == "decoder":
            self.encoder.requires_grad_(False)
            self.quant_conv.requires_grad_(False)

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights, strictly but for the loss's, which inference never uses. Raises CheckpointError.

        A whole model's checkpoint will do as well: its first stage is taken.
        """
        load_strict(self, part_of(read_state_dict(path), "first_stage_model."), ignore_keys=(*ignore_keys, "loss."), where=str(path))

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """(reconstruction, posterior) of pictures."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

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
        schedule = instantiate_from_config(self.scheduler_config).schedule
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


def build_halves(ddconfig: Mapping[str, Any]) -> tuple[nn.Module, nn.Module, int]:
    """(encoder, decoder, z_channels) from either form of a first stage's `ddconfig`."""
    if "params" not in ddconfig:
        ddconfig = {"params": ddconfig}
    params = dict(ddconfig["params"])
    if "z_channels" not in params:
        raise ConfigError("AutoencoderKL: ddconfig needs `z_channels`")
    halves = []
    for half in ("encoder", "decoder"):
        target = ddconfig.get(f"{half}_target", f"ldm.modules.vae.model.{half.capitalize()}")
        halves.append(instantiate_from_config({"target": target, "params": {**params, **ddconfig.get(f"{half}_params", {})}}))
    return halves[0], halves[1], params["z_channels"]
