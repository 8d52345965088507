"""The UNet of latent diffusion (Rombach et al. 2022), conditioned by cross-attention, by a class
label, or not at all.

Shapes: x (N, in_channels, H, W), H and W multiples of 2 ** (len(channel_mult) - 1); timesteps (N,);
context (N, L, context_dim); y (N,) labels; result (N, out_channels, H, W). Parameter names are
those of published checkpoints.
"""

from typing import Any

from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import RecomputedBlock, ResBlock, SelfAttention, mlp
from ldm.modules.diffusionmodules.unet import UNetTree
from ldm.modules.diffusionmodules.util import GroupNorm32, conv_nd, timestep_embedding, zero_init
from ldm.published.configs import with_published_keys

NUM_NORM_GROUPS = 32


class EmbeddedResBlock(ResBlock):
    """The residual block with its layer for the embedding."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        **options: Any,
    ):
        super().__init__(channels, dropout, out_channels, **options)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, self.parts * (out_channels or channels))
        )

    def embedded(self, emb: Tensor) -> Tensor:
        """The block's scale and shift, or its bias, of the embedding."""
        return self.emb_layers(emb)


class AttentionBlock(RecomputedBlock, SelfAttention):
    """Self-attention over all positions on a skip connection; its output layer starts at zero."""

    def __init__(
        self, channels: int, num_heads: int, use_checkpoint: bool = False, new_attention_order: bool = False
    ):
        super().__init__(channels, num_heads, NUM_NORM_GROUPS, new_attention_order, affine=True)
        self.use_checkpoint = use_checkpoint
        zero_init(self.proj_out)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return (flat + self.proj_out(self.attend(self.qkv(self.norm(flat))))).reshape(x.shape)


@with_published_keys(
    use_fp16=(False, "lightning.trainer.precision sets the number format"),
    num_heads_upsample=(-1, "all levels have the heads that num_heads or num_head_channels gives"),
    n_embed=(None, "it predicts latents, not the indices of their codes"),
)
class UNetModel(UNetTree):
    """Prediction from a noisy latent, its time step, and a context or a label.

    Parameters beyond UNetTree's:

    use_spatial_transformer: blocks of self-attention, cross-attention and a feed-forward layer,
        `transformer_depth` in a row, in place of plain self-attention; `context_dim` is the width
        of what they attend to.
    num_classes: of labels y, whose embeddings are added to the time's.
    legacy: in published config files, where it changes nothing.
    Raises ValueError for options that contradict each other, and for a call that does not fit them.
    """

    def __init__(
        self,
        dropout: float = 0.0,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_scale_shift_norm: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        legacy: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        if use_spatial_transformer != (context_dim is not None):
            raise ValueError("UNetModel: use_spatial_transformer and context_dim need each other")
        if use_spatial_transformer and self.dims != 2:
            raise ValueError(
                f"UNetModel: the spatial transformer works on 2 dimensions only, not {self.dims}"
            )
        self.num_classes, self.context_dim = num_classes, context_dim
        self.time_embed_dim = 4 * self.model_channels
        self.dropout, self.use_checkpoint = dropout, use_checkpoint
        self.use_scale_shift_norm, self.transformer_depth = use_scale_shift_norm, transformer_depth
        self.use_new_attention_order = use_new_attention_order

        self.time_embed = mlp(self.model_channels, self.time_embed_dim)
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.time_embed_dim)
        self.build_tree()
        self.out = nn.Sequential(
            GroupNorm32(NUM_NORM_GROUPS, self.width_out),
            nn.SiLU(),
            zero_init(conv_nd(self.dims, self.width_out, self.out_channels, 3, padding=1)),
        )

    def res_block(self, width_in: int, width: int | None = None, resample: str | None = None) -> nn.Module:
        """A residual block to which the time embedding is added, or which it scales and shifts."""
        return EmbeddedResBlock(
            width_in,
            self.time_embed_dim,
            self.dropout,
            width,
            resample=resample,
            num_norm_groups=NUM_NORM_GROUPS,
            use_scale_shift_norm=self.use_scale_shift_norm,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
        )

    def attention(self, width: int, num_heads: int) -> nn.Module:
        """Attention over positions, with the context where the model takes one."""
        if self.context_dim is None:
            return AttentionBlock(width, num_heads, self.use_checkpoint, self.use_new_attention_order)
        return SpatialTransformer(
            width,
            num_heads,
            width // num_heads,
            self.transformer_depth,
            self.dropout,
            self.context_dim,
            self.use_checkpoint,
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W) at time steps (N,), with context (N, L, context_dim) or classes y (N,), to
        the prediction. Raises ValueError."""
        self._check_condition(context, y)
        emb = self.time_embed(
            timestep_embedding(timesteps, self.model_channels).type(self.time_embed[0].weight.dtype)
        )
        if y is not None:
            emb = emb + self.label_emb(y)
        return self.out(self.through_tree(x, emb, context))

    def _check_condition(self, context: Tensor | None, y: Tensor | None) -> None:
        if (y is None) != (self.num_classes is None):
            raise ConfigError(
                f"UNetModel: num_classes is {self.num_classes}, so it takes {'no' if self.num_classes is None else 'a'} label y for each sample"
            )
        if context is not None and (
            self.context_dim is None or context.ndim != 3 or context.shape[-1] != self.context_dim
        ):
            raise ConfigError(
                f"UNetModel: context of shape {tuple(context.shape)}; with context_dim {self.context_dim} it takes "
                + ("none" if self.context_dim is None else f"(N, L, {self.context_dim})")
            )
