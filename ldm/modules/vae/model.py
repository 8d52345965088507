"""The two halves of the autoencoders of latent diffusion (Rombach et al. 2022), as published for
KL-f4 to f32 and VQ-f4 to f16.

Shapes: x (N, 3, H, W) in [-1, 1]; z (N, z_channels, H / f, W / f) with f = 2 ** (len(ch_mult) - 1).
Parameter names are those of the published files, such as `kl-f16.ckpt`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checks import check_choice
from ldm.published.configs import with_published_keys


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm in 32 groups, or in one for widths that 32 does not divide."""
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels, eps=1e-6)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResnetBlock(nn.Module):
    """GroupNorm, swish, conv twice, with a 1x1 (or 3x3) shortcut where the width changes."""

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, conv_shortcut: bool = False
    ):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3(out_channels, out_channels)
        self.shortcut_name = None
        if in_channels != out_channels:
            self.shortcut_name = "conv_shortcut" if conv_shortcut else "nin_shortcut"
            shortcut = (
                conv3(in_channels, out_channels) if conv_shortcut else nn.Conv2d(in_channels, out_channels, 1)
            )
            self.add_module(self.shortcut_name, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.shortcut_name is None else getattr(self, self.shortcut_name)(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same, with attention over all positions added."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve both sides: a strided 3x3 conv over a picture padded at right and bottom only, or 2x2
    averaging."""

    def __init__(self, in_channels: int, out_channels: int | None = None, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels or in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to half of each side."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a 3x3 conv if asked for."""

    def __init__(self, in_channels: int, out_channels: int | None = None, with_conv: bool = True):
        super().__init__()
        self.conv = conv3(in_channels, out_channels or in_channels) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to twice each side."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class _Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, widths: Sequence[int], dropout: float, attention: bool):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in zip(widths, widths[1:]))
        self.attn = nn.ModuleList(AttnBlock(b) for b in widths[1:]) if attention else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, dropout: float, attention: bool):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _attends(attn_type: str) -> bool:
    check_choice("attn_type", attn_type, ("vanilla", "none"))
    return attn_type == "vanilla"


# Options of the published halves, both of which are built from the same parameters.
_as_published = with_published_keys(
    use_linear_attn=(False, "attention over all positions is the only kind"),
    give_pre_end=(False, "the decoder's result is a picture"),
)


@_as_published
class Encoder(nn.Module):
    """Picture (N, in_channels, H, W) to moments (N, 2 * z_channels, H / f, W / f) (`double_z`) or
    latent.

    `attn_resolutions` are picture sides, counted from `resolution`, at which attention stands; the
    sides of the picture given may differ, as the network is fully convolutional. `attn_type` "none"
    leaves attention out, in the middle too.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int = 3,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attn_type: str = "vanilla",
        tanh_out: bool = False,
    ):
        super().__init__()
        self.factor = 2 ** (len(ch_mult) - 1)  # sides of the picture to those of the latent
        del out_ch, tanh_out  # the decoder's; both halves are built from the same parameters
        attends = _attends(attn_type)
        widths = [ch, *(ch * m for m in ch_mult)]
        self.conv_in = conv3(in_channels, ch)
        self.down = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip(widths, widths[1:])):
            level = _Level(
                [width_in] + [width] * num_res_blocks,
                dropout,
                attends and resolution >> i in attn_resolutions,
            )
            if i < len(ch_mult) - 1:
                level.downsample = Downsample(width, with_conv=resamp_with_conv)
            self.down.append(level)
        self.mid = _Middle(widths[-1], dropout, attends)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], 2 * z_channels if double_z else z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, in_channels, H, W) to (N, C, H / factor, W / factor)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


@_as_published
class Decoder(nn.Module):
    """Latent (N, z_channels, h, w) to picture (N, out_ch, h * f, w * f), not clipped."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int = 3,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attn_type: str = "vanilla",
        tanh_out: bool = False,
    ):
        super().__init__()
        del in_channels, double_z  # the encoder's; both halves are built from the same parameters
        self.tanh_out = tanh_out
        attends = _attends(attn_type)
        widths = [ch * m for m in ch_mult]
        self.conv_in = conv3(z_channels, widths[-1])
        self.mid = _Middle(widths[-1], dropout, attends)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            width_in = widths[min(i + 1, len(widths) - 1)]
            level = _Level(
                [width_in] + [width] * (num_res_blocks + 1),
                dropout,
                attends and resolution >> i in attn_resolutions,
            )
            if i > 0:
                level.upsample = Upsample(width, with_conv=resamp_with_conv)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], out_ch)

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the adversarial and the reconstruction gradients are compared in
        training."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) to pictures (N, out_ch, h * factor, w * factor)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h
