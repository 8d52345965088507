"""The adaLN UNet's own blocks.

In place of the embedding `emb` (N, E), of time and style, every block also takes `Modulations`:
what the adaLN layers of all blocks make of it, computed before. Parameter names are those of the
published ArtFusion checkpoint.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import EmbedBlock, ResBlock, SelfAttention, check_heads, mlp
from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    conv_nd,
    modulate,
    over_positions,
    timestep_embedding,
    zero_init,
)

# for each block of a network, by its `index`, the (N, ...) result of its adaLN layer
Modulations = list[Tensor]
Embedding = Tensor | Modulations


def adaln(emb_channels: int, out_channels: int) -> nn.Sequential:
    """SiLU and a zero-initialised linear layer: the shifts, scales and gates of one block."""
    return nn.Sequential(nn.SiLU(), zero_init(nn.Linear(emb_channels, out_channels)))


class TimestepEmbedder(nn.Module):
    """Time steps (N,) to (N, hidden_size)."""

    timestep_embedding = staticmethod(timestep_embedding)

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256):
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = mlp(frequency_embedding_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """Time steps (N,) to (N, hidden_size)."""
        return self.mlp(
            self.timestep_embedding(t, self.frequency_embedding_size).type(self.mlp[0].weight.dtype)
        )


class AdaLNBlock(EmbedBlock):
    """A block modulated by its adaLN layer."""

    index: int  # within the network, which sets it
    adaLN_modulation: nn.Module

    def embedded(self, emb: Embedding) -> Tensor:
        """The block's shifts, scales and gates of an embedding, or its own of a list that has every
        block's."""
        return emb[self.index] if isinstance(emb, list) else self.adaLN_modulation(emb)


class AdaLNResBlock(AdaLNBlock, ResBlock):
    """The residual block, gated."""

    gated = True

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_scale_shift_norm: bool = True,
        **options: Any,
    ):
        super().__init__(
            channels, dropout, out_channels, use_scale_shift_norm=use_scale_shift_norm, **options
        )
        self.adaLN_modulation = adaln(emb_channels, self.parts * (out_channels or channels))


class AdaLNAttentionBlock(AdaLNBlock, SelfAttention):
    """Gated self-attention over all positions."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        num_heads: int,
        num_norm_groups: int = 32,
        use_checkpoint: bool = False,
        new_attention_order: bool = False,
    ):
        super().__init__(channels, num_heads, num_norm_groups, new_attention_order, affine=False)
        self.use_checkpoint = use_checkpoint
        self.adaLN_modulation = adaln(emb_channels, 3 * channels)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        flat = x.flatten(2)
        shift, scale, gate = self.vectors(emb, x, 3)
        h = self.attend(self.qkv(modulate(self.norm(flat), shift, scale)))
        return (flat + over_positions(gate, flat) * self.proj_out(h)).reshape(x.shape)


class TransposedAttention(nn.Module):
    """Attention between channels instead of positions (Restormer, Zamir et al. 2022), on 2D
    maps."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        qkv = self.qkv_dwconv(self.qkv(x))
        q, k, v = rearrange(
            qkv, "n (three heads c) h w -> three n heads c (h w)", three=3, heads=self.num_heads
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.project_out((weights @ v).reshape(x.shape))


class ChannelwiseTransformerBlock(AdaLNBlock):
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


class FinalLayer(AdaLNBlock):
    """The modulated norm and the zero-initialised conv without bias that end the UNet."""

    def __init__(
        self, channels: int, emb_channels: int, out_channels: int, num_norm_groups: int = 32, dims: int = 2
    ):
        super().__init__()
        self.norm_final = GroupNorm32(num_norm_groups, channels)
        self.conv = zero_init(conv_nd(dims, channels, out_channels, 3, padding=1, bias=False))
        self.adaLN_modulation = adaln(emb_channels, 2 * channels)

    def _forward(self, x: Tensor, emb: Embedding) -> Tensor:
        shift, scale = self.vectors(emb, x, 2)
        return self.conv(modulate(self.norm_final(x), shift, scale))
