"""First stages: pictures to latents and back. Without Lightning, so that inference starts fast; in
`autoencoder` they learn."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldm.checkpoint import load_strict, part_of, read_state_dict
from ldm.config.factory import instantiate_from_config
from ldm.errors import ConfigError
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.vqvae.quantize import CODEBOOK_KEYS, VectorQuantizer
from ldm.published.configs import with_published_keys


@with_published_keys(
    colorize_nlabels=(None, "pictures have three channels; a SpatialRescaler takes segmentation maps")
)
class FirstStage(nn.Module):
    """What all have: pictures (N, 3, H, W) in [-1, 1], two halves, a 1x1 conv on either side of the
    latent (N, embed_dim, H / f, W / f).

    `ddconfig` holds the halves: either the parameters of the published Encoder and Decoder
    themselves, or `encoder_target`, `decoder_target` and `params` for both, with `encoder_params` /
    `decoder_params` for one. `ckpt_path` is a published file, such as `kl-f16.ckpt`, or our own.
    `lossconfig` is of the loss by which it learns.
    """

    double_z: bool  # whether the encoder gives a mean and a variance for each channel

    def __init__(
        self, ddconfig: Mapping[str, Any], lossconfig: Mapping[str, Any], embed_dim: int, **options: Any
    ):
        super().__init__(**options)
        self.encoder, self.decoder, z_channels = build_halves(ddconfig, self.double_z)
        self.loss = instantiate_from_config(lossconfig, key="lossconfig")
        self.embed_dim, self.has_weights = embed_dim, False
        moments = 1 + self.double_z
        self.quant_conv = nn.Conv2d(moments * z_channels, moments * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All that the reconstruction depends on, in the published optimiser's order."""
        return self.encoder, self.decoder, self.quant_conv, self.post_quant_conv

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights, strictly but for the loss's, which inference never uses. Raises
        CheckpointError.

        A whole model's checkpoint will do as well: its first stage is taken.
        """
        load_strict(
            self,
            part_of(read_state_dict(path), "first_stage_model."),
            ignore_keys=(*ignore_keys, "loss."),
            where=str(path),
        )
        self.has_weights = True

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) of latents."""
        return self.decoder(self.post_quant_conv(z))


class KLAutoencoder(FirstStage):
    """Pictures to a Gaussian over latents, and back."""

    double_z = True

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        **options: Any,
    ):
        super().__init__(ddconfig, lossconfig, embed_dim, **options)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """What pictures (N, 3, H, W) are to the diffusion model."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def forward(
        self, x: Tensor, sample_posterior: bool = True
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """(reconstruction, posterior) of pictures."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior


@with_published_keys(
    **CODEBOOK_KEYS,
    batch_resize_range=(None, "pictures keep the size that the data set gives them"),
    lr_g_factor=(1.0, "both optimisers have one learning rate"),
    use_ema=(False, "a first stage keeps no moving averages"),
)
class VQAutoencoder(FirstStage):
    """Pictures to latents of `n_embed` learned vectors of `embed_dim` (Esser et al. 2021), and
    back."""

    double_z = False

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        **options: Any,
    ):
        super().__init__(ddconfig, lossconfig, embed_dim, **options)
        self.n_embed = n_embed
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All that the reconstruction depends on, in the published optimiser's order."""
        return self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """What the quantiser makes of the latent: (quantised, loss, (None, None, indices))."""
        return self.quantize(self.encode_to_prequant(x))

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Latents (N, embed_dim, h, w) before the quantiser."""
        return self.quant_conv(self.encoder(x))

    def decode_code(self, code: Tensor) -> Tensor:
        """Pictures of maps of indices (N, h, w)."""
        return self.decode(self.quantize.embed_code(code))

    def forward(self, x: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """(reconstruction, the quantiser's loss), and the indices if asked for."""
        quantised, loss, (_, _, indices) = self.quantize(self.encode_to_prequant(x))
        recon = self.decode(quantised)
        return (recon, loss, indices) if return_pred_indices else (recon, loss)


class VQLatents(VQAutoencoder):
    """One whose latents are quantised in decoding only, so that a diffusion model's are
    continuous."""

    def encode(self, x: Tensor) -> Tensor:
        """What pictures (N, 3, H, W) are to the diffusion model."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Pictures (N, 3, H, W) of latents."""
        return super().decode(h if force_not_quantize else self.quantize(h)[0])


def build_halves(ddconfig: Mapping[str, Any], double_z: bool = True) -> tuple[nn.Module, nn.Module, int]:
    """(encoder, decoder, z_channels) from either form of a first stage's `ddconfig`."""
    if "params" not in ddconfig:
        ddconfig = {"params": ddconfig}
    params = dict(ddconfig["params"])
    if "z_channels" not in params:
        raise ConfigError("first stage: ddconfig needs `z_channels`")
    if params.get("double_z", True) != double_z:
        raise ConfigError(
            f"first stage: ddconfig needs `double_z: {str(double_z).lower()}` for a {'KL' if double_z else 'vector-quantised'} latent"
        )
    halves = []
    for half in ("encoder", "decoder"):
        target = ddconfig.get(f"{half}_target", f"ldm.modules.vae.model.{half.capitalize()}")
        halves.append(
            instantiate_from_config(
                {"target": target, "params": {**params, **ddconfig.get(f"{half}_params", {})}}, key="ddconfig"
            )
        )
    return halves[0], halves[1], params["z_channels"]
