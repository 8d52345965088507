"""The first stages' losses: reconstruction + KL + perceptual + adversarial (Esser et al. 2021,
Rombach et al. 2022)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config.factory import instantiate_from_config
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.discriminator import NLayerDiscriminator
from ldm.modules.losses.lpips import LPIPS
from ldm.published.configs import with_published_keys


class DummyLoss(nn.Module):
    """Takes the loss's place in a first stage that is never trained."""


@with_published_keys(
    use_actnorm=(False, "the discriminator has batch norm"),
    disc_conditional=(False, "the discriminator sees the picture alone"),
)
class FirstStageLoss(nn.Module):
    """What the losses of first stages share: reconstruction and perceptual distance, discriminator,
    their balance.

    `disc_start` counts optimiser steps of the autoencoder; before it the discriminator takes no
    part. `gradient_weight` adds the L1 distance of horizontal and vertical pixel differences. The
    perceptual part is LPIPS (see there for the two paths), or what `perceptual_config` names: a
    module of (pictures, reconstructions) like ldm.modules.losses.style_transfer.FeatureLoss. Its
    weights are read by `load_weights`.
    """

    def __init__(
        self,
        disc_start: int,
        pixelloss_weight: float = 1.0,
        gradient_weight: float = 0.0,
        perceptual_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_ndf: int = 64,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        disc_loss: str = "hinge",
        vgg_ckpt_path: str | None = None,
        lin_ckpt_path: str | None = None,
        perceptual_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "hinge": hinge_d_loss,
            "vanilla": vanilla_d_loss,
        }
        if disc_loss not in losses:
            raise ValueError(f"disc_loss must be one of {', '.join(losses)}, got {disc_loss!r}")
        self.disc_loss = losses[disc_loss]
        self.disc_start, self.disc_factor, self.disc_weight = disc_start, disc_factor, disc_weight
        self.pixel_weight, self.gradient_weight, self.perceptual_weight = (
            pixelloss_weight,
            gradient_weight,
            perceptual_weight,
        )
        # differs: a part with weight 0 is not built; the published code builds and computes all of
        # them.
        self.perceptual_loss = None
        if perceptual_weight > 0:
            built = (
                LPIPS(vgg_ckpt_path, lin_ckpt_path)
                if perceptual_config is None
                else instantiate_from_config(perceptual_config, key="perceptual_config")
            )
            self.perceptual_loss = built.eval()
        self.discriminator = (
            NLayerDiscriminator(disc_in_channels, disc_ndf, disc_num_layers) if disc_factor > 0 else None
        )

    def nll(self, rec: Tensor) -> Tensor:
        """One number of the distances (N, 3, H, W)."""
        raise NotImplementedError

    def prior(self, latent: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(what keeps the latent in order, weighed; values to log)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "FirstStageLoss":
        """The mode of everything but the perceptual loss."""
        super().train(mode)
        if self.perceptual_loss is not None:
            self.perceptual_loss.eval()  # a fixed measure: its dropout never acts
        return self

    def load_weights(self) -> None:
        """Read what the perceptual part needs, unless a checkpoint has brought it. Raises
        UserError."""
        if self.perceptual_loss is not None:
            self.perceptual_loss.load_weights()

    def discriminates(self, step: int) -> bool:
        """Whether the adversarial part acts at this optimiser step of the autoencoder."""
        return self.discriminator is not None and step >= self.disc_start

    @contextmanager
    def discriminator_fixed(self) -> Iterator[None]:
        """Within it no gradient reaches the discriminator's weights."""
        weights = (
            []
            if self.discriminator is None
            else [p for p in self.discriminator.parameters() if p.requires_grad]
        )
        try:
            for weight in weights:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    def autoencoder_loss(
        self, x: Tensor, recon: Tensor, latent: Any, step: int, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) for the encoder and decoder; pictures (N, 3, H, W) in [-1, 1],
        `latent` what `prior` takes."""
        rec = self.reconstruction(x, recon)
        nll, (prior, parts) = self.nll(rec), self.prior(latent)
        loss = nll + prior
        parts = {"rec_loss": rec.mean(), "nll_loss": nll, **parts}
        if self.discriminates(step):
            g_loss = -self.discriminator(recon).mean()
            weight = self.adaptive_weight(nll, g_loss, last_layer)
            loss = loss + weight * self.disc_factor * g_loss
            parts |= {"g_loss": g_loss, "d_weight": weight}
        return loss, {name: value.detach() for name, value in {"total_loss": loss, **parts}.items()}

    def reconstruction(self, x: Tensor, recon: Tensor) -> Tensor:
        """(N, 3, H, W): L1 distance, plus its gradient and perceptual parts spread over every
        pixel."""
        rec = self.pixel_weight * (x - recon).abs()
        if self.gradient_weight > 0:
            rec = rec + self.gradient_weight * gradient_l1(x, recon)
        if self.perceptual_loss is not None:
            rec = rec + self.perceptual_weight * self.perceptual_loss(x, recon)
        return rec

    def adaptive_weight(self, nll: Tensor, g_loss: Tensor, last_layer: Tensor) -> Tensor:
        """The factor that gives both losses gradients of equal norm at the decoder's last layer (at
        most 1e4)."""
        if not last_layer.requires_grad or not nll.requires_grad:
            return nll.new_zeros(())  # validation: there are no gradients to compare
        nll_grad = torch.autograd.grad(nll, last_layer, retain_graph=True)[0]
        g_grad = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]
        return (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0, 1e4).detach() * self.disc_weight

    def discriminator_loss(self, x: Tensor, recon: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) for the discriminator."""
        real, fake = self.discriminator(x.detach()), self.discriminator(recon.detach())
        loss = self.disc_factor * self.disc_loss(real, fake)
        parts = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, {name: value.detach() for name, value in parts.items()}


class LPIPSWithDiscriminator(FirstStageLoss):
    """Loss of both optimisers of an AutoencoderKL: sums over pixels and channels, means over the
    batch."""

    def __init__(self, disc_start: int, logvar_init: float = 0.0, kl_weight: float = 1.0, **options: Any):
        super().__init__(disc_start, **options)
        self.kl_weight = kl_weight
        self.logvar = nn.Parameter(torch.tensor(logvar_init))

    def nll(self, rec: Tensor) -> Tensor:
        """Negative log likelihood under the learned scale exp(`logvar`), summed over a picture, the
        mean over pictures."""
        return (rec / self.logvar.exp() + self.logvar).sum() / len(rec)

    def prior(self, latent: DiagonalGaussianDistribution) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the posterior: its weighted divergence from the standard normal, and the value to
        log."""
        kl = latent.kl().sum() / len(latent.mean)
        return self.kl_weight * kl, {"kl_loss": kl}


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """(N, C, 1, 1) mean L1 distance of the horizontal and vertical differences of neighbouring
    pixels."""
    d = x - y
    across, down = d.diff(dim=3).abs(), d.diff(dim=2).abs()
    return across.mean(dim=(2, 3), keepdim=True) + down.mean(dim=(2, 3), keepdim=True)


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of logits of real and of made pictures (Lim & Ye 2017); 0 where they
    are beyond 1 and -1."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def vanilla_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of logits of real and of made pictures (Goodfellow et al. 2014):
    half of both cross entropies."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
