"""A light pair of autoencoder halves for latents of any number of channels, 4, 8, 16, ... times
smaller.

The encoder works on 4x4 pixel blocks from the first layer on, the decoder is narrow at full
resolution: together they cost a twentieth of the published halves. Shapes are those of
`ldm.modules.vae.model`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.vae.model import Downsample, ResnetBlock, Upsample, conv3, group_norm

BLOCK = 4  # pixels per side of the blocks that the encoder's first layer sees


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [ResnetBlock(width, width) for _ in range(count)]


class LightEncoder(nn.Module):
    """Picture (N, 3, H, W) to moments (N, 2 * z_channels, H / f, W / f), f = 4 * 2 ** (len(widths)
    - 1).

    `widths` and `num_res_blocks` run from the finest level (1/4 of the picture's side) to the
    coarsest.
    """

    def __init__(
        self,
        *,
        z_channels: int,
        widths: Sequence[int] = (64, 128, 192),
        num_res_blocks: Sequence[int] = (1, 1, 2),
    ):
        super().__init__()
        self.factor = BLOCK * 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [nn.PixelUnshuffle(BLOCK), conv3(3 * BLOCK**2, widths[0])]
        for i, (width, count) in enumerate(zip(widths, num_res_blocks, strict=True)):
            layers += [Downsample(widths[i - 1], width)] if i else []
            layers += _blocks(width, count)
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], 2 * z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) to moments (N, C, h, w)."""
        return self.conv_out(F.silu(self.norm_out(self.layers(x))))


class LightDecoder(nn.Module):
    """Latent (N, z_channels, h, w) to picture (N, 3, h * f, w * f), not clipped, f = 2 **
    (len(widths) - 1).

    `widths` and `num_res_blocks` run from the finest level to the coarsest, the finest being the
    picture's own resolution: pixels that come four by four out of one position show a grid under a
    perceptual or adversarial loss.
    """

    def __init__(
        self,
        *,
        z_channels: int,
        widths: Sequence[int] = (24, 48, 96, 192),
        num_res_blocks: Sequence[int] = (1, 1, 2, 3),
    ):
        super().__init__()
        levels = list(zip(widths, num_res_blocks, strict=True))
        layers: list[nn.Module] = [conv3(z_channels, widths[-1])]
        for i in reversed(range(len(levels))):
            width, count = levels[i]
            layers += _blocks(width, count)
            layers += [Upsample(width, widths[i - 1])] if i else []
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], 3)

    @property
    def last_layer(self) -> Tensor:
        """The weights at which the two losses' gradients are balanced."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) to pictures (N, 3, H, W)."""
        return self.conv_out(F.silu(self.norm_out(self.layers(z))))
