"""Building blocks that the UNets share: those of latent-diffusion's UNet and of ArtFusion's adaLN
UNet (`adaln`).

Shapes: x (N, C, H, W) (or C, L / C, D, H, W for dims 1 / 3), emb (N, E): the embedding of time and
whatever joins it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    avg_pool_nd,
    conv_nd,
    modulate,
    over_positions,
    zero_init,
)


def mlp(width_in: int, width: int) -> nn.Sequential:
    """Linear, SiLU, Linear: how every embedding is made."""
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


class RecomputedBlock(nn.Module):
    """A block whose `_forward` recomputes its activations in the backward pass, with
    `use_checkpoint`."""

    use_checkpoint: bool = False

    def forward(self, *inputs: Any) -> Tensor:
        """What `_forward` gives; in training with `use_checkpoint`, its activations are computed
        again on the way back."""
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, *inputs, use_reentrant=False)
        return self._forward(*inputs)


class EmbedBlock(RecomputedBlock):
    """A block called with (x, emb)."""

    def embedded(self, emb: Any) -> Tensor:
        """(N, ...) what this block makes of the embedding."""
        raise NotImplementedError

    def vectors(self, emb: Any, like: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """The vectors, `parts` of them, (N, C) each, that modulate this block, in the number format
        of `like`."""
        return self.embedded(emb).type(like.dtype).chunk(parts, dim=1)


class ContextBlock(RecomputedBlock):
    """A block called with (x, context), a sequence of vectors (N, L, context_dim) to attend to, or
    None."""


class EmbedSequential(nn.Sequential):
    """A sequence in which the blocks that want the embedding or the context get it."""

    def forward(self, x: Tensor, emb: Any, context: Tensor | None = None) -> Tensor:
        """Each layer in turn, given the embedding or the context if it takes one."""
        for layer in self:
            if isinstance(layer, EmbedBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, ContextBlock) else layer(x)
        return x


class Downsample(nn.Module):
    """Halve the positions: strided 3x3 conv, or average pooling. In 3D the first axis keeps its
    length."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        stride = 2 if dims != 3 else (1, 2, 2)
        self.op = (
            conv_nd(dims, channels, channels, 3, stride=stride, padding=1)
            if use_conv
            else avg_pool_nd(dims, stride, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to half of each side."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the positions: nearest neighbour, then a 3x3 conv if asked for. In 3D the first axis
    keeps its length."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        self.scale = (1, 2, 2) if dims == 3 else 2
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to twice each side."""
        x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(EmbedBlock):
    """Two convs on a skip connection. The embedding scales and shifts the second norm's result, or
    is added before it.

    A gated block's branch is multiplied by a vector of the embedding besides (adaLN-Zero), which is
    what starts at zero in place of the last conv. `resample` ("up", "down" or None) changes the
    resolution inside the block and on the skip.
    """

    gated = False

    def __init__(
        self,
        channels: int,
        dropout: float,
        out_channels: int | None = None,
        num_norm_groups: int = 32,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        resample: str | None = None,
    ):
        super().__init__()
        out_channels = out_channels or channels
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.parts = (2 + self.gated) if use_scale_shift_norm else 1
        self.in_layers = nn.Sequential(
            GroupNorm32(num_norm_groups, channels),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1),
        )
        resampler = {"up": Upsample, "down": Downsample}.get(resample)
        self.h_upd = resampler(channels, False, dims) if resampler else nn.Identity()
        self.x_upd = resampler(channels, False, dims) if resampler else nn.Identity()
        by_gate = self.gated and use_scale_shift_norm
        last = conv_nd(dims, out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(
            GroupNorm32(num_norm_groups, out_channels, affine=not by_gate),
            nn.SiLU(),
            nn.Dropout(dropout),
            last if by_gate else zero_init(last),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else conv_nd(dims, channels, out_channels, 1)
        )

    def _forward(self, x: Tensor, emb: Any) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self.h_upd(act(norm(x))))
        return self.skip_connection(self.x_upd(x)) + self._conditioned(h, emb)

    def _conditioned(self, h: Tensor, emb: Any) -> Tensor:
        if not self.use_scale_shift_norm:
            return self.out_layers(h + over_positions(*self.vectors(emb, h), h))
        norm, *rest = self.out_layers
        *gate, scale, shift = self.vectors(emb, h, self.parts)
        h = modulate(norm(h), shift, scale)
        for layer in rest:
            h = layer(h)
        return over_positions(gate[0], h) * h if gate else h


def check_heads(channels: int, num_heads: int) -> None:
    """Raises ValueError for channels that the heads cannot share equally."""
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"attention: {channels} channels cannot be shared by {num_heads} heads")


class SelfAttention(nn.Module):
    """What blocks of self-attention over all positions share.

    The 3C channels of `qkv` are cut into heads first and then into q, k, v; with
    `new_attention_order` the other way round.
    """

    def __init__(
        self, channels: int, num_heads: int, num_norm_groups: int, new_attention_order: bool, affine: bool
    ):
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads, self.new_attention_order = num_heads, new_attention_order
        self.norm = GroupNorm32(num_norm_groups, channels, affine=affine)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def attend(self, qkv: Tensor) -> Tensor:
        """(N, 3C, L) to (N, C, L): softmax(q k / sqrt(head width)) v."""
        order = "(three heads c)" if self.new_attention_order else "(heads three c)"
        # torch's fast kernels, whose memory grows with L and not with its square, want c
        # contiguous.
        q, k, v = rearrange(
            qkv, f"n {order} l -> three n heads l c", three=3, heads=self.num_heads
        ).contiguous()
        return rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l c -> n (heads c) l")
