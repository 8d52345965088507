"""ArtFusion's adaLN UNet: the tree of latent-diffusion's UNet, conditioned by modulation instead of
cross-attention.

Shapes: x (N, in_channels, H, W), H and W multiples of 2 ** (len(channel_mult) - 1); timesteps (N,);
style (N, context_dim); content (N, content_in_dim, H, W); result (N, out_channels, H, W).
"""

from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.adaln import (
    AdaLNAttentionBlock,
    AdaLNBlock,
    AdaLNResBlock,
    ChannelwiseTransformerBlock,
    Embedding,
    FinalLayer,
    Modulations,
    TimestepEmbedder,
)
from ldm.modules.diffusionmodules.blocks import mlp
from ldm.modules.diffusionmodules.unet import UNetTree
from ldm.modules.diffusionmodules.util import Whitening, conv_nd, modulate, zero_init
from ldm.modules.vae.model import Decoder, Encoder
from ldm.published.configs import with_published_keys

# the halves as latent-diffusion has them here
__all__ = [
    "Decoder",
    "Encoder",
    "StyleUNetModel",
    "TimestepEmbedder",
    "UNetModel",
    "modulate",
]


@with_published_keys(
    use_fp16=(False, "lightning.trainer.precision sets the number format"),
    num_classes=(
        None,
        "its conditions are content and style; ldm.modules.diffusionmodules.openaimodel.UNetModel takes labels",
    ),
    num_heads_upsample=(-1, "all levels have the heads that num_heads or num_head_channels gives"),
    use_spatial_transformer=(
        False,
        "it is modulated; ldm.modules.diffusionmodules.openaimodel.UNetModel attends to its context",
    ),
    transformer_depth=(1, "it has no spatial transformer"),
    n_embed=(None, "it predicts latents, not the indices of their codes"),
    legacy=(True, "it has no effect; leave it out"),
)
class UNetModel(UNetTree):
    """Noise (or x0) prediction from a noisy latent and an embedding of time and context.

    Parameters beyond UNetTree's:

    hidden_time_embed_dim: width of the time sinusoid; time_embed_dim: width of the embedding.
    use_checkpoint: recompute activations in the backward pass, slower but with less memory
        (differs: the published attention blocks always do).
    use_channelwise_transformer: attention between channels instead of positions.
    context_components: whiten the context first, to that many components (differs: the published
        network takes it as it is; a few directions in which all style statistics vary together then
        hide the hundreds that tell textures apart).
    Raises ValueError for options that contradict each other.
    """

    def __init__(
        self,
        hidden_time_embed_dim: int = 512,
        time_embed_dim: int = 1024,
        num_norm_groups: int = 32,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        use_scale_shift_norm: bool = True,
        use_new_attention_order: bool = False,
        use_channelwise_transformer: bool = False,
        context_dim: int | None = None,
        context_components: int | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        if use_channelwise_transformer and self.dims != 2:
            raise ValueError(
                f"UNetModel: the channel-wise transformer works on 2 dimensions only, not {self.dims}"
            )
        self.time_embed_dim, self.context_dim = time_embed_dim, context_dim
        self.num_norm_groups, self.dropout, self.use_checkpoint = num_norm_groups, dropout, use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_new_attention_order = use_new_attention_order
        self.use_channelwise_transformer = use_channelwise_transformer

        self.time_embed = TimestepEmbedder(time_embed_dim, hidden_time_embed_dim)
        self.context_whitening = (
            None if context_components is None else Whitening(context_dim, context_components)
        )
        if context_dim is not None:
            self.context_emb = mlp(context_components or context_dim, time_embed_dim)
        self.build_tree()
        self.out = FinalLayer(self.width_out, time_embed_dim, self.out_channels, num_norm_groups, self.dims)
        self.modulated = [block for block in self.modules() if isinstance(block, AdaLNBlock)]
        for index, block in enumerate(self.modulated):
            block.index = index
        self.initialize_weights()

    def res_block(self, width_in: int, width: int | None = None, resample: str | None = None) -> nn.Module:
        """A residual block, modulated by adaLN."""
        return AdaLNResBlock(
            width_in,
            self.time_embed_dim,
            self.dropout,
            width,
            self.use_scale_shift_norm,
            num_norm_groups=self.num_norm_groups,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            resample=resample,
        )

    def attention(self, width: int, num_heads: int) -> nn.Module:
        """A block of attention, modulated by adaLN: over channels or, by the options, positions."""
        if self.use_channelwise_transformer:
            return ChannelwiseTransformerBlock(width, self.time_embed_dim, num_heads, self.use_checkpoint)
        return AdaLNAttentionBlock(
            width,
            self.time_embed_dim,
            num_heads,
            self.num_norm_groups,
            self.use_checkpoint,
            self.use_new_attention_order,
        )

    def initialize_weights(self) -> None:
        """Xavier-uniform linear layers, N(0, 0.02) in the time embedding; what ends a branch starts
        at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if hasattr(module, "adaLN_modulation"):
                zero_init(module.adaLN_modulation[-1])

    def embed(self, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, time_embed_dim) of the time steps and, if the network takes one, the context."""
        emb = self.time_embed(timesteps)
        return emb if context is None else emb + self.embed_context(context)

    def embed_context(self, context: Tensor) -> Tensor:
        """The context (N, context_dim) as an embedding beside that of time. Raises ValueError for
        another width."""
        if self.context_dim is None or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"UNetModel: context of width {context.shape[-1]}, but context_dim is {self.context_dim}"
            )
        return self.context_emb(
            context if self.context_whitening is None else self.context_whitening(context)
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """Prediction from x, the time embedding `emb` (N, time_embed_dim), and the context vector
        to be added to it."""
        return self.run(x, emb if context is None else emb + self.embed_context(context))

    def modulations(self, emb: Tensor) -> Modulations:
        """What every block makes of embeddings (N, time_embed_dim): `run` takes these, or their
        rows, in place of `emb`."""
        return [block.adaLN_modulation(emb) for block in self.modulated]

    def run(self, x: Tensor, emb: Embedding) -> Tensor:
        """Prediction from x and the embedding of time and context."""
        return self.out(self.through_tree(x, emb), emb)


class StyleUNetModel(UNetModel):
    """The UNet with a content latent beside the noisy one: refined to `content_refined_dim`
    channels, concatenated."""

    def __init__(
        self, in_channels: int, content_in_dim: int, content_refined_dim: int | None = None, **options: Any
    ):
        content_refined_dim = content_refined_dim or content_in_dim
        super().__init__(in_channels=in_channels + content_refined_dim, **options)
        self.content_in_dim, self.content_refined_dim = content_in_dim, content_refined_dim
        self.refines_content = content_in_dim != content_refined_dim
        if self.refines_content:
            self.content_in = nn.Sequential(
                conv_nd(self.dims, content_in_dim, content_refined_dim, 1),
                nn.SiLU(),
                conv_nd(self.dims, content_refined_dim, content_refined_dim, 1),
            )
            self.content_adaLN_modulation = nn.Sequential(
                nn.Linear(self.time_embed_dim, 2 * content_in_dim),
                nn.SiLU(),
                zero_init(nn.Linear(2 * content_in_dim, 2 * content_in_dim)),
            )

    def forward(self, x: Tensor, timesteps: Tensor, content: Tensor, style: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) at time steps (N,), content (N, content_in_dim, H, W), style (N,
        context_dim) or none, to the prediction."""
        emb = self.time_embed(timesteps)
        vectors = self.content_vectors(emb)
        return self.predict(x, content, vectors, emb if style is None else emb + self.embed_context(style))

    def content_vectors(self, time_emb: Tensor) -> Tensor | None:
        """(N, 2 * content_in_dim) shift and scale of the content, by the time embedding alone; None
        if it is not refined."""
        return self.content_adaLN_modulation(time_emb) if self.refines_content else None

    def predict(self, x: Tensor, content: Tensor, content_vectors: Tensor | None, emb: Embedding) -> Tensor:
        """Prediction from what depends on time and style alone and may have been computed
        before."""
        if content_vectors is not None:
            content = self.content_in(modulate(content, *content_vectors.chunk(2, dim=1)))
        return self.run(torch.cat([x, content], dim=1), emb)
