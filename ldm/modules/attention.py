"""The transformer blocks of latent diffusion's UNet (Rombach et al. 2022).

Shapes: x (N, L, C) sequences, or (N, C, H, W) maps for SpatialTransformer; context (N, L',
context_dim), None for self-attention. Parameter names are those of published checkpoints.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import ContextBlock
from ldm.modules.diffusionmodules.util import GroupNorm32, zero_init


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020), both in `proj`."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) to (..., width)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers, the wider one gated, on the last axis."""

    def __init__(self, width: int, dropout: float = 0.0, mult: int = 4):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, mult * width), nn.Dropout(dropout), nn.Linear(mult * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.net(x)


class CrossAttention(nn.Module):
    """Queries of x, keys and values of the context, or of x itself where there is none."""

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        inner, context_dim = heads * dim_head, context_dim or query_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (N, L, query_dim) and context (N, M, context_dim) to (N, L, query_dim)."""
        context = x if context is None else context
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        q, k, v = (rearrange(part, "n l (heads c) -> n heads l c", heads=self.heads) for part in projected)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l c -> n l (heads c)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each on a skip connection behind a
    layer norm."""

    def __init__(
        self, width: int, heads: int, dim_head: int, dropout: float = 0.0, context_dim: int | None = None
    ):
        super().__init__()
        self.attn1 = CrossAttention(width, None, heads, dim_head, dropout)
        self.ff = FeedForward(width, dropout)
        self.attn2 = CrossAttention(width, context_dim, heads, dim_head, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (N, L, dim) and context (N, M, context_dim) to (N, L, dim)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(ContextBlock):
    """Transformer blocks over the positions of a map, on a skip connection; the output layer starts
    at zero."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        self.use_checkpoint, inner = use_checkpoint, heads * dim_head
        self.norm = GroupNorm32(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, dropout, context_dim) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Conv2d(inner, channels, 1))

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = rearrange(self.proj_in(self.norm(x)), "n c h w -> n (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(rearrange(h, "n (h w) c -> n c h w", h=x.shape[2]))
