"""The KL first stage: pictures to latents and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldm.checkpoint import load_strict, part_of, read_state_dict
from ldm.errors import ConfigError
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config


class KLAutoencoder(nn.Module):
    """Pictures (N, 3, H, W) in [-1, 1] to a Gaussian over latents (N, embed_dim, H / f, W / f), and back.

    Without Lightning, so that inference starts fast; `autoencoder.AutoencoderKL` adds the training loop.
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
        self.image_key, self.trainable, self.monitor, self.learning_rate = image_key, trainable, monitor, learning_rate
        self.adam_betas, self.scheduler_config = tuple(adam_betas), scheduler_config
        self.encoder, self.decoder, z_channels = build_halves(ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        self.embed_dim, self.has_weights = embed_dim, False
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
        self.has_weights = True

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """(reconstruction, posterior) of pictures."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior


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
