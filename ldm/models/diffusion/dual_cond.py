"""ArtFusion: latent diffusion under a content and a style condition.

A condition is {"c1": content features (N, channels, h, w), "c2": style features (N, style_dim)}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checks import check_count, check_fractions
from ldm.config.factory import instantiate_from_config
from ldm.config.groups import flat_keys
from ldm.errors import ConfigError
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel
from ldm.models.diffusion.latent_scale import MIN_STD, PerChannel
from ldm.modules.diffusionmodules.util import over_positions, spatial_std_mean, weighted_std_mean
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.lpips import VGG_CHANNELS, ScalingLayer, vgg16


class DualConditionDiffusionWrapper(nn.Module):
    """Holds the network under the published name; a condition whose key is "concat" joins the
    input's channels."""

    diffusion_model: Any  # what a config names

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: Sequence[str] | None = None):
        super().__init__()
        keys = tuple(conditioning_key or ("other", "other"))
        if len(keys) != 2 or not set(keys) <= {"concat", "other"}:
            raise ConfigError(f"conditioning_key must be two of concat and other, got {conditioning_key!r}")
        self.diffusion_model = instantiate_from_config(diff_model_config, key="unet_config")
        self.first_conditioning_key, self.second_conditioning_key = keys

    def forward(self, x: Tensor, t: Tensor, c1: Tensor | None = None, c2: Tensor | None = None) -> Tensor:
        """The network's prediction, like x."""
        if self.first_conditioning_key == "concat":
            x, c1 = torch.cat([x, c1], dim=1), None
        if self.second_conditioning_key == "concat":
            x, c2 = torch.cat([x, c2], dim=1), None
        return self.diffusion_model(x, t, c1, c2)


class DualCondModel(LatentDiffusionModel):
    """The dual-conditional model; `dual_cond_ddpm.DualCondLDM` learns besides.

    Parameters beyond LatentDiffusionModel's, whose one scale_factor PerChannel's tables replace:

    style_dim: width of the style vector, twice the sum of the style network's channels.
    vgg_channels: widths of the style network, VGG16's by default; narrower ones need weights of
        their own.
    vgg_ckpt_path: file of the style network's weights, used when the checkpoint does not hold them;
        "bundled": the one that comes along. By default torchvision's download, which the published
        model was trained with.
    detail: the share, between 0 and 1, of what the first stage cannot hold of a photo that is put
        back into the pictures painted of it; `ldm.pipeline.settings.Settings` may say otherwise. 0,
        the default, is the published way.
    recolor: how far, between 0 and 1, photos take the colours of their paintings before they are
        painted; Settings may say otherwise. 0, the default, is the published way.
    texture: how far, between 0 and 1, pictures take the finest strokes of their paintings where the
        photo is plain; Settings may say otherwise. 0, the default, is the published way.
    refine: the noise level, between 0 and 1, from which pictures too large for the network are
        sampled over the same painted smaller; 0 enlarges them with the photo's detail. Settings may say otherwise.
    margin: pixels around a picture, mirrored there, that are painted with it and cut off again. At
        the edges the network sees zeros, and paints a frame of its own. 0, the default, is the
        published way.
    """

    what = "a style transfer model (DualCondLDM)"

    wrapper = DualConditionDiffusionWrapper
    model: DualConditionDiffusionWrapper

    @flat_keys
    def __init__(
        self,
        style_dim: int,
        cond_stage_key: str = "content_and_std_mean",
        vgg_channels: Sequence[int] = VGG_CHANNELS,
        vgg_ckpt_path: str | None = None,
        detail: float = 0.0,
        recolor: float = 0.0,
        texture: float = 0.0,
        refine: float = 0.25,
        margin: int = 0,
        *,
        scale: PerChannel,
        **options: Any,
    ):
        check_fractions(detail=detail, recolor=recolor, texture=texture, refine=refine)
        check_count("DualCondLDM: margin", margin, least=0)
        if cond_stage_key != "content_and_std_mean":
            raise ConfigError(
                f"DualCondLDM: cond_stage_key must be content_and_std_mean, got {cond_stage_key!r}"
            )
        check_count("style_dim", style_dim)
        if not isinstance(vgg_channels, (list, tuple)) or len(vgg_channels) != len(VGG_CHANNELS):
            raise ConfigError(f"vgg_channels must be {len(VGG_CHANNELS)} widths, got {vgg_channels!r}")
        for width in vgg_channels:
            check_count("every width of vgg_channels", width)
        if style_dim != 2 * sum(vgg_channels):
            raise ConfigError(
                f"DualCondLDM: style_dim {style_dim} is not twice the sum of vgg_channels {list(vgg_channels)}"
            )
        super().__init__(cond_stage_key=cond_stage_key, scale=scale, **options)
        self.null_style_vector = nn.Embedding(1, style_dim)
        nn.init.normal_(self.null_style_vector.weight, std=0.02)
        self.vgg = vgg16(channels=vgg_channels)
        self.vgg_scaling_layer = ScalingLayer()
        self.vgg_ckpt_path, self.margin = vgg_ckpt_path, margin
        self.detail, self.recolor, self.texture, self.refine = map(float, (detail, recolor, texture, refine))

    # Style network

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Prefixes of names that a whole checkpoint may have or lack."""
        has_vgg = any(name.startswith("vgg.") for name in state)
        return (*super().optional_keys(state), *(() if has_vgg else ("vgg.",)))

    def load_style_network(self) -> None:
        """See that the style network has weights: from a checkpoint, else `vgg_ckpt_path`, else
        torchvision's download.

        Raises UserError where none can be had. Building a model never needs them; training and the
        pipeline do.
        """
        if self.vgg.has_weights:
            return
        if self.vgg_ckpt_path is None and self.vgg.channels != VGG_CHANNELS:
            raise ConfigError(
                "a narrow style network has no published weights; give its file as `vgg_ckpt_path`"
            )
        self.vgg.load_weights(self.vgg_ckpt_path)

    # Conditions

    def get_style_statistics(self, x: Tensor, shares: Tensor | None = None) -> Tensor:
        """(N, style_dim) statistics of style pictures (N, 3, H, W) in [-1, 1]. shares: (N, 1, H, W)
        in [0, 1], by which pixels count, None for all alike."""
        return self.get_style_features(self.vgg(self.vgg_scaling_layer(x)), shares=shares)

    def get_style_features(
        self, features: Sequence[Tensor], flag: Tensor | None = None, shares: Tensor | None = None
    ) -> Tensor:
        """(N, style_dim): per layer the std of every channel over positions, then its mean (Huang &
        Belongie 2017), where `shares` (N, 1, H, W) of the pixels are given by these.

        Where `flag` (N,) is False, the learned null vector.
        """
        maps = (f.float() for f in features)
        statistics = torch.cat([part for f in maps for part in _std_mean(f, shares)], dim=1)
        return statistics if flag is None else self.null_where_off(statistics, flag)

    def null_where_off(self, style: Tensor, flag: Tensor) -> Tensor:
        """`style` (N, style_dim) with the learned null vector where `flag` (N,) is False."""
        return torch.where(flag[:, None], style, self.null_style_vector.weight[0])

    def get_content_features(self, z: Tensor, flag: Tensor | None = None) -> Tensor:
        """The scaled latent normalised per picture and channel, (z - mean) / std (Ulyanov et al.
        2016). Zeros where `flag` (N,) is False."""
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

    def of_posterior(self, posterior: DiagonalGaussianDistribution) -> Tensor:
        """The mode, not a drawn latent."""
        return posterior.mode()


def _std_mean(features: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
    if shares is None:
        return spatial_std_mean(features)
    return weighted_std_mean(features, F.adaptive_avg_pool2d(shares, features.shape[2:]))
