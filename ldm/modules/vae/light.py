"""A light pair of autoencoder halves with the published latent (16x smaller, any number of channels).

They work on 4x4 pixel blocks from the first layer on, so a 256 px picture costs about a hundredth of what the
published halves take. Shapes are those of `ldm.modules.vae.model`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.vae.model import Downsample, ResnetBlock, Upsample, conv3, group_norm

BLOCK = 4  # pixels per side of the blocks that the first layer sees


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [ResnetBlock(width, width) for _ in range(count)]


class LightEncoder(nn.Module):
    """Picture (N, 3, H, W) to moments (N, 2 * z_channels, H / f, W / f), f = 4 * 2 ** (len(widths) - 1).

    `widths` and `num_res_blocks` run from the finest level (1/4 of the picture's side) to the coarsest.
    """

    def __init__(self, *, z_channels: int, widths: Sequence[int] = (64, 128, 192), num_res_blocks: Sequence[int] = (1, 1, 2)):
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
        return self.conv_out(F.silu(self.norm_out(self.layers(x))))


class LightDecoder(nn.Module):
    """Latent (N, z_channels, h, w) to picture (N, 3, h * f, w * f), not clipped. Parameters as in LightEncoder.

    With `refine_width` that many channels come out of the blocks, and two convolutions at full resolution make the
    picture of them: without these, a perceptual or adversarial loss brings out the 4-pixel grid.
    """

    def __init__(
        self,
        *,
        z_channels: int,
        widths: Sequence[int] = (96, 160, 192),
        num_res_blocks: Sequence[int] = (2, 2, 2),
        refine_width: int = 0,
    ):
        super().__init__()
        layers: list[nn.Module] = [conv3(z_channels, widths[-1])]
        for i in reversed(range(len(widths))):
            layers += _blocks(widths[i], num_res_blocks[i])
            layers += [Upsample(widths[i], widths[i - 1])] if i else []
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], (refine_width or 3) * BLOCK**2)
        self.to_pixels = nn.PixelShuffle(BLOCK)
        self.refine = nn.Sequential(nn.SiLU(), conv3(refine_width, refine_width), nn.SiLU(), conv3(refine_width, 3)) if refine_width else None

    @property
    def last_layer(self) -> Tensor:
        return (self.conv_out if self.refine is None else self.refine[-1]).weight

    def forward(self, z: Tensor) -> Tensor:
        pixels = self.to_pixels(self.conv_out(F.silu(self.norm_out(self.layers(z)))))
        return pixels if self.refine is None else pixels[:, :3] + self.refine(pixels)
