"""ArtFusion: latent diffusion under a content and a style condition.

A condition is {"c1": content features (N, channels, h, w), "c2": style features (N, style_dim)}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checks import check_fractions
from ldm.config.factory import instantiate_from_config
from ldm.errors import ConfigError
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel, first_samples
from ldm.modules.diffusionmodules.util import over_positions, spatial_std_mean
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.modules.losses.lpips import VGG_CHANNELS, ScalingLayer, vgg16

MIN_STD = 1e-4  # below this a channel counts as flat: what is left of it is rounding error


class DualCondModel(LatentDiffusionModel):
    """The dual-conditional model; `dual_cond_ddpm.DualCondLDM` adds the training loop.

    Parameters beyond LatentDiffusionModel's:

    style_dim: width of the style vector, twice the sum of the style network's channels.
    scale_factors, shift_values: per channel, z = (posterior mode - shift) * scale; 1 and 0 by default.
    vgg_channels: widths of the style network, VGG16's by default; narrower ones need weights of their own.
    vgg_ckpt_path: file of the style network's weights, used when the checkpoint does not hold them; "bundled": the one that comes
        along. By default torchvision's download, which the published model was trained with.
    detail: the share, between 0 and 1, of what the first stage cannot hold of a photo that is put back into the pictures
        painted of it; `ldm.pipeline.settings.Settings` may say otherwise. 0, the default, is the published way.
    """

    what = "a style transfer model (DualCondLDM)"
    saves_logvar = True

    def __init__(
        self,
        style_dim: int,
        cond_stage_key: str = "content_and_std_mean",
        style_flag_key: str = "style_flag",
        content_flag_key: str = "content_flag",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        scale_factors: Sequence[float] | None = None,
        shift_values: Sequence[float] | None = None,
        vgg_channels: Sequence[int] = VGG_CHANNELS,
        vgg_ckpt_path: str | None = None,
        detail: float = 0.0,
        **options: Any,
    ):
        check_fractions(detail=detail)
        if cond_stage_key != "content_and_std_mean":
            raise ConfigError(
                f"DualCondLDM: cond_stage_key must be content_and_std_mean, got {cond_stage_key!r}"
            )
        if style_dim != 2 * sum(vgg_channels):
            raise ConfigError(
                f"DualCondLDM: style_dim {style_dim} is not twice the sum of vgg_channels {list(vgg_channels)}"
            )
        super().__init__(cond_stage_key=cond_stage_key, model_class=DualConditionDiffusionWrapper, **options)
        self.style_flag_key, self.content_flag_key = style_flag_key, content_flag_key
        del self.scale_factor  # one factor for all channels is the base's way
        self.register_buffer("scale_factors", self._per_channel("scale_factors", scale_factors, 1.0))
        self.register_buffer("shift_values", self._per_channel("shift_values", shift_values, 0.0))
        self.null_style_vector = nn.Embedding(1, style_dim)
        nn.init.normal_(self.null_style_vector.weight, std=0.02)
        if self.use_ema:
            self.null_style_vector_ema = LitEma(self.null_style_vector)
        self.vgg = vgg16(channels=vgg_channels)
        self.vgg_scaling_layer = ScalingLayer()
        self.vgg_ckpt_path, self.detail = vgg_ckpt_path, detail
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, load_only_unet)

    def _per_channel(self, name: str, values: Sequence[float] | None, neutral: float) -> Tensor:
        """A table with a value for each channel, or a single one for all."""
        counts = (self.channels,) if self.scale_by_std else (self.channels, 1)
        if values is None:
            return torch.full((counts[-1],), neutral)
        if len(values) not in counts:
            raise ConfigError(f"DualCondLDM: {len(values)} {name} for {self.channels} channels")
        return torch.tensor(list(values), dtype=torch.float32)

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        own = [(self.null_style_vector_ema, self.null_style_vector)] if self.use_ema else []
        return super().averaged() + own

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*super().trained_parameters(), *self.null_style_vector.parameters()]

    # Style network

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        has_vgg = any(name.startswith("vgg.") for name in state)
        return (*super().optional_keys(state), *(() if has_vgg else ("vgg.",)))

    def load_style_network(self) -> None:
        """See that the style network has weights: from a checkpoint, else `vgg_ckpt_path`, else torchvision's download.

        Raises UserError where none can be had. Building a model never needs them; training and the pipeline do.
        """
        if self.vgg.has_weights:
            return
        if self.vgg_ckpt_path is None and self.vgg.channels != VGG_CHANNELS:
            raise ConfigError(
                "a narrow style network has no published weights; give its file as `vgg_ckpt_path`"
            )
        self.vgg.load_weights(self.vgg_ckpt_path)

    # Conditions

    def get_style_statistics(self, x: Tensor) -> Tensor:
        """(N, style_dim) statistics of style pictures (N, 3, H, W) in [-1, 1]."""
        return self.get_style_features(self.vgg(self.vgg_scaling_layer(x)))

    def get_style_features(self, features: Sequence[Tensor], flag: Tensor | None = None) -> Tensor:
        """(N, style_dim): per layer the std of every channel over positions, then its mean.

        Where `flag` (N,) is False, the learned null vector.
        """
        statistics = torch.cat([part for f in features for part in spatial_std_mean(f.float())], dim=1)
        return statistics if flag is None else self.null_where_off(statistics, flag)

    def null_where_off(self, style: Tensor, flag: Tensor) -> Tensor:
        """`style` (N, style_dim) with the learned null vector where `flag` (N,) is False."""
        return torch.where(flag[:, None], style, self.null_style_vector.weight[0])

    def get_content_features(self, z: Tensor, flag: Tensor | None = None) -> Tensor:
        """The scaled latent normalised per picture and channel: (z - mean) / std. Zeros where `flag` (N,) is False."""
        std, mean = spatial_std_mean(z)
        # differs: the published code divides by 0 where a channel is flat.
        features = (z - over_positions(mean, z)) / over_positions(std.clamp_min(MIN_STD), z)
        return features if flag is None else torch.where(over_positions(flag[:, None], z), features, 0.0)

    def condition(self, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The condition of content and style features."""
        return {"c1": content, "c2": style}

    def null_style(self, n: int) -> Tensor:
        """(n, style_dim) copies of the null style vector."""
        return self.null_style_vector.weight.expand(n, -1)

    # First stage

    def get_first_stage_encoding(self, encoder_posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The scaled latent of a posterior's mode, or of an unscaled latent."""
        z = self.latent_of(encoder_posterior)
        return (z - over_positions(self.shift_values[None], z)) * over_positions(self.scale_factors[None], z)

    def of_posterior(self, posterior: DiagonalGaussianDistribution) -> Tensor:
        return posterior.mode()

    def unscaled(self, z: Tensor) -> Tensor:
        # differs: the published code unscales the caller's tensor in place.
        return z / over_positions(self.scale_factors[None], z) + over_positions(self.shift_values[None], z)

    def set_scale(self, z: Tensor) -> None:
        """Shift and scale every channel so that these unscaled latents get mean 0 and std 1."""
        std, mean = torch.std_mean(z, dim=(0, 2, 3))
        self.shift_values.copy_(mean)
        self.scale_factors.copy_(1 / std.clamp_min(MIN_STD))

    # Diffusion

    def unscaled_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["latent"].float() if "latent" in batch else super().unscaled_latents(batch)

    def encode_batch(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(scaled latents, style statistics) of a batch with either channels-last pictures (`image`) or what was
        computed from them before (`latent`, unscaled, and `style`)."""
        return self.get_first_stage_encoding(self.unscaled_latents(batch)), self.batch_style(batch)

    @torch.no_grad()
    def batch_style(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(N, style_dim) statistics of a batch's pictures."""
        style = batch.get("style")
        return (
            self.get_style_statistics(batch[self.first_stage_key].permute(0, 3, 1, 2).float())
            if style is None
            else style
        ).float()

    @torch.no_grad()
    def measure_styles(self, style: Tensor) -> None:
        """Set the network's whitening by style vectors (N, style_dim), and the null style to their middle."""
        self.model.diffusion_model.context_whitening.measure(style)
        self.null_style_vector.weight.copy_(style.mean(dim=0, keepdim=True))
        for average, module in self.averaged():
            average.start_at(module)

    def condition_of(self, batch: Mapping[str, Tensor], z: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The condition, each part nulled where the batch's flag for it is off."""
        content = self.get_content_features(z, batch[self.content_flag_key])
        return self.condition(content, self.null_where_off(style, batch[self.style_flag_key]))

    @torch.no_grad()
    def preview(
        self,
        batch: Mapping[str, Tensor],
        max_images: int = 4,
        ddim_steps: int = 20,
        style_scales: Sequence[float] = (5.0,),
        content_scales: Sequence[float] = (0.5, 0.25),
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger, by the averaged weights, all from one noise.

        Reconstructions; samples (content and style of the same picture); every content in the style of the picture
        before it, without guidance and with each of the guidance scales.
        """
        n = min(max_images, len(batch[self.style_flag_key]))
        on = torch.ones(n, dtype=torch.bool, device=self.device)
        with self.ema_scope():
            z, c = self.get_input(
                {**first_samples(batch, n), self.style_flag_key: on, self.content_flag_key: on},
                self.first_stage_key,
            )[:2]
            content, style = c["c1"], c["c2"].roll(1, dims=0)
            mixed, noise = self.condition(content, style), torch.randn_like(z)
            no_content, no_style = (
                self.condition(torch.zeros_like(content), style),
                self.condition(content, self.null_style(n)),
            )
            runs: dict[str, tuple[Any, dict[str, Any]]] = {
                "samples": (c, {}),
                "neighbours_style": (mixed, {}),
            }
            for scale in style_scales:
                options = {"unconditional_guidance_scale_2": scale, "unconditional_conditioning_2": no_style}
                runs[f"style_guidance_{scale:g}"] = mixed, options
            for scale in content_scales:
                options = {"unconditional_guidance_scale": scale, "unconditional_conditioning": no_content}
                runs[f"content_guidance_{scale:g}"] = mixed, options
            latents = {"reconstructions": z}
            for name, (condition, options) in runs.items():
                latents[name], _ = self.sample_log(
                    condition,
                    n,
                    ddim=True,
                    ddim_steps=ddim_steps,
                    ddim_discretize="trailing",
                    x_T=noise,
                    **options,
                )
        return {name: self.decode_first_stage(latent) for name, latent in latents.items()}


class DualConditionDiffusionWrapper(nn.Module):
    """Holds the network under the published name; a condition whose key is "concat" joins the input's channels."""

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: Sequence[str] | None = None):
        super().__init__()
        keys = tuple(conditioning_key or ("other", "other"))
        if len(keys) != 2 or not set(keys) <= {"concat", "other"}:
            raise ConfigError(f"conditioning_key must be two of concat and other, got {conditioning_key!r}")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.first_conditioning_key, self.second_conditioning_key = keys

    def forward(self, x: Tensor, t: Tensor, c1: Tensor | None = None, c2: Tensor | None = None) -> Tensor:
        if self.first_conditioning_key == "concat":
            x, c1 = torch.cat([x, c1], dim=1), None
        if self.second_conditioning_key == "concat":
            x, c2 = torch.cat([x, c2], dim=1), None
        return self.diffusion_model(x, t, c1, c2)
