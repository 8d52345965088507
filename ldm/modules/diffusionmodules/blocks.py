"""The adaLN UNet's building blocks.

Shapes: x (N, C, H, W) (or C, L / C, D, H, W for dims 1 / 3), emb (N, E): time and style, embedded. In place of `emb`
every block also takes `Modulations`: what the adaLN layers of all blocks make of it, computed before.
Parameter names are those of the published ArtFusion checkpoint.
"""

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
    timestep_embedding,
    zero_init,
)


Modulations = list[Tensor]  # for each block of a network, by its `index`, the (N, ...) result of its adaLN layer
Embedding = Tensor | Modulations


def adaln(emb_channels: int, out_channels: int) -> nn.Sequential:
    """SiLU and a zero-initialised linear layer: the shifts, scales and gates of one block."""
    return nn.Sequential(nn.SiLU(), zero_init(nn.Linear(emb_channels, out_channels)))


class TimestepEmbedder(nn.Module):
    """Time steps (N,) to (N, hidden_size)."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256):
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequency_embedding_size).type(self.mlp[0].weight.dtype))


class EmbedSequential(nn.Sequential):
    """A sequence in which the blocks that want the embedding get it."""

    def forward(self, x: Tensor, emb: Embedding) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, EmbedBlock) else layer(x)
        return x


class EmbedBlock(nn.Module):
    """A block called with (x, emb); with `use_checkpoint` its activations are recomputed in the backward pass."""

    use_checkpoint: bool = False
    index: int  # within the network, which sets it
    adaLN_modulation: nn.Module

    def forward(self, x: Tensor, emb: Embedding) -> Tensor:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def vectors(self, emb: Embedding, like: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """This block's modulation vectors, `parts` of them, (N, C) each, in the number format of `like`."""
        vectors = emb[self.index] if isinstance(emb, list) else self.adaLN_modulation(emb)
        return vectors.type(like.dtype).chunk(parts, dim=1)


class Downsample(nn.Module):
    """Halve the positions: strided 3x3 conv, or average pooling. In 3D the first axis keeps its length."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        stride = 2 if dims != 3 else (1, 2, 2)
        self.op = conv_nd(dims, channels, channels, 3, stride=stride, padding=1) if use_conv else avg_pool_nd(dims, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the positions: nearest neighbour, then a 3x3 conv if asked for. In 3D the first axis keeps its length."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        self.scale = (1, 2, 2) if dims == 3 else 2
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(EmbedBlock):
    """Two convs, the second modulated and gated by the embedding (or, without scale-shift, the embedding added).

    `resample` ("up", "down" or None) changes the resolution inside the block and on the skip.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        num_norm_groups: int = 32,
        use_scale_shift_norm: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        resample: str | None = None,
    ):
        super().__init__()
        out_channels = out_channels or channels
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(num_norm_groups, channels), nn.SiLU(), conv_nd(dims, channels, out_channels, 3, padding=1)
        )
        resampler = {"up": Upsample, "down": Downsample}.get(resample)
        self.h_upd = resampler(channels, False, dims) if resampler else nn.Identity()
        self.x_upd = resampler(channels, False, dims) if resampler else nn.Identity()
        self.adaLN_modulation = adaln(emb_channels, (3 if use_scale_shift_norm else 1) * out_channels)
        last = conv_nd(dims, out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(
            GroupNorm32(num_norm_groups, out_channels, affine=not use_scale_shift_norm),
            nn.SiLU(),
            nn.Dropout(dropout),
            last if use_scale_shift_norm else zero_init(last),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else conv_nd(dims, channels, out_channels, 1)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self.h_upd(act(norm(x))))
        return self.skip_connection(self.x_upd(x)) + self._conditioned(h, emb)

    def _conditioned(self, h: Tensor, emb: Embedding) -> Tensor:
        if not self.use_scale_shift_norm:
            return self.out_layers(h + over_positions(*self.vectors(emb, h), h))
        norm, *rest = self.out_layers
        gate, scale, shift = self.vectors(emb, h, 3)
        h = modulate(norm(h), shift, scale)
        for layer in rest:
            h = layer(h)
        return over_positions(gate, h) * h


def _check_heads(channels: int, num_heads: int) -> None:
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"attention: {channels} channels cannot be shared by {num_heads} heads")


class AttentionBlock(EmbedBlock):
    """Gated self-attention over all positions.

    The 3C channels of `qkv` are cut into heads first and then into q, k, v; with `new_attention_order` the other
    way round.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        num_heads: int,
        num_norm_groups: int = 32,
        use_checkpoint: bool = False,
        new_attention_order: bool = False,
    ):
        super().__init__()
        _check_heads(channels, num_heads)
        self.use_checkpoint, self.num_heads, self.new_attention_order = use_checkpoint, num_heads, new_attention_order
        self.norm = GroupNorm32(num_norm_groups, channels, affine=False)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.adaLN_modulation = adaln(emb_channels, 3 * channels)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        flat = x.flatten(2)
        shift, scale, gate = self.vectors(emb, x, 3)
        h = self.attend(self.qkv(modulate(self.norm(flat), shift, scale)))
        return (flat + over_positions(gate, flat) * self.proj_out(h)).reshape(x.shape)

    def attend(self, qkv: Tensor) -> Tensor:
        """(N, 3C, L) to (N, C, L): softmax(q k / sqrt(head width)) v."""
        order = "(three heads c)" if self.new_attention_order else "(heads three c)"
        # torch's fast kernels, whose memory grows with L and not with its square, want c contiguous.
        q, k, v = rearrange(qkv, f"n {order} l -> three n heads l c", three=3, heads=self.num_heads).contiguous()
        return rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l c -> n (heads c) l")


class TransposedAttention(nn.Module):
    """Attention between channels instead of positions (Restormer, Zamir et al. 2022), on 2D maps."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        _check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_dwconv(self.qkv(x))
        q, k, v = rearrange(qkv, "n (three heads c) h w -> three n heads c (h w)", three=3, heads=self.num_heads)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.project_out((weights @ v).reshape(x.shape))


class ChannelwiseTransformerBlock(EmbedBlock):
    """Two gated residual branches, `attn` and `ffn`, both attention between channels."""

    FFN_HEAD_WIDTH = 4

    def __init__(self, channels: int, emb_channels: int, num_heads: int, use_checkpoint: bool = False):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.norm1 = GroupNorm32(channels, channels, eps=1e-6, affine=False)
        self.attn = TransposedAttention(channels, num_heads)
        self.norm2 = GroupNorm32(channels, channels, eps=1e-6, affine=False)
        self.ffn = TransposedAttention(channels, channels // self.FFN_HEAD_WIDTH)
        self.adaLN_modulation = adaln(emb_channels, 6 * channels)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        vectors = self.vectors(emb, x, 6)
        for norm, branch, (shift, scale, gate) in (
            (self.norm1, self.attn, vectors[:3]),
            (self.norm2, self.ffn, vectors[3:]),
        ):
            x = x + over_positions(gate, x) * branch(modulate(norm(x), shift, scale))
        return x


class FinalLayer(EmbedBlock):
    """The modulated norm and the zero-initialised conv without bias that end the UNet."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, num_norm_groups: int = 32, dims: int = 2):
        super().__init__()
        self.norm_final = GroupNorm32(num_norm_groups, channels)
        self.conv = zero_init(conv_nd(dims, channels, out_channels, 3, padding=1, bias=False))
        self.adaLN_modulation = adaln(emb_channels, 2 * channels)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        shift, scale = self.vectors(emb, x, 2)
        return self.conv(modulate(self.norm_final(x), shift, scale))
