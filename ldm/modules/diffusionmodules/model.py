"""ArtFusion's adaLN UNet: the tree of latent-diffusion's UNet, conditioned by modulation instead of cross-attention.

Shapes: x (N, in_channels, H, W), H and W multiples of 2 ** (len(channel_mult) - 1); timesteps (N,);
style (N, context_dim); content (N, content_in_dim, H, W); result (N, out_channels, H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    ChannelwiseTransformerBlock,
    Downsample,
    EmbedBlock,
    Embedding,
    EmbedSequential,
    FinalLayer,
    Modulations,
    ResBlock,
    TimestepEmbedder,
    Upsample,
)
from ldm.modules.diffusionmodules.util import conv_nd, modulate, zero_init


class UNetModel(nn.Module):
    """Noise (or x0) prediction from a noisy latent and an embedding of time and context.

    attention_resolutions: downsampling factors (1, 2, 4, ...) at which attention stands.
    hidden_time_embed_dim: width of the time sinusoid; time_embed_dim: width of the embedding.
    num_heads / num_head_channels: one must be given; the second wins.
    conv_resample: learned resampling; resblock_updown: resampling inside res blocks instead.
    use_checkpoint: recompute activations in the backward pass, slower but with less memory
        (differs: the published attention blocks always do).
    use_channelwise_transformer: attention between channels instead of positions.
    Raises ValueError for options that contradict each other.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        hidden_time_embed_dim: int = 512,
        time_embed_dim: int = 1024,
        num_norm_groups: int = 32,
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_channelwise_transformer: bool = False,
        context_dim: int | None = None,
    ):
        super().__init__()
        if num_heads == -1 and num_head_channels == -1:
            raise ValueError("UNetModel: give num_heads or num_head_channels")
        if use_channelwise_transformer and dims != 2:
            raise ValueError(f"UNetModel: the channel-wise transformer works on 2 dimensions only, not {dims}")
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.time_embed_dim, self.context_dim = time_embed_dim, context_dim
        self.min_multiple = 2 ** (len(channel_mult) - 1)
        self._num_heads, self._num_head_channels = num_heads, num_head_channels
        self._res_options = {
            "dropout": dropout,
            "num_norm_groups": num_norm_groups,
            "use_scale_shift_norm": use_scale_shift_norm,
            "dims": dims,
            "use_checkpoint": use_checkpoint,
        }
        self._attention_options = {"use_checkpoint": use_checkpoint}
        if not use_channelwise_transformer:
            self._attention_options |= {"num_norm_groups": num_norm_groups, "new_attention_order": use_new_attention_order}
        self._attention_class = ChannelwiseTransformerBlock if use_channelwise_transformer else AttentionBlock
        self._conv_resample, self._resblock_updown = conv_resample, resblock_updown

        self.time_embed = TimestepEmbedder(time_embed_dim, hidden_time_embed_dim)
        if context_dim is not None:
            self.context_emb = nn.Sequential(
                nn.Linear(context_dim, time_embed_dim), nn.SiLU(), nn.Linear(time_embed_dim, time_embed_dim)
            )
        self._build(model_channels, list(channel_mult), num_res_blocks, list(attention_resolutions))
        self.out = FinalLayer(model_channels * channel_mult[0], time_embed_dim, out_channels, num_norm_groups, dims)
        self.modulated = [block for block in self.modules() if isinstance(block, EmbedBlock)]
        for index, block in enumerate(self.modulated):
            block.index = index
        self.initialize_weights()

    def _build(self, base: int, mult: list[int], num_res_blocks: int, attention_at: list[int]) -> None:
        """Input, middle and output blocks; `widths` remembers what each skip connection carries."""
        dims = self._res_options["dims"]
        width, factor = base * mult[0], 1
        self.input_blocks = nn.ModuleList([EmbedSequential(conv_nd(dims, self.in_channels, width, 3, padding=1))])
        widths = [width]
        for level, m in enumerate(mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(self._stage(width, m * base, factor in attention_at))
                width = m * base
                widths.append(width)
            if level < len(mult) - 1:
                self.input_blocks.append(EmbedSequential(self._resampler("down", width)))
                widths.append(width)
                factor *= 2
        self.middle_block = EmbedSequential(self._res(width), self._attention(width), self._res(width))
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(num_res_blocks + 1):
                stage = self._stage(width + widths.pop(), m * base, factor in attention_at)
                width = m * base
                if level > 0 and i == num_res_blocks:
                    stage.append(self._resampler("up", width))
                    factor //= 2
                self.output_blocks.append(stage)

    def _stage(self, width_in: int, width: int, attention: bool) -> EmbedSequential:
        return EmbedSequential(self._res(width_in, width), *([self._attention(width)] if attention else []))

    def _res(self, width_in: int, width: int | None = None, resample: str | None = None) -> ResBlock:
        return ResBlock(width_in, self.time_embed_dim, out_channels=width, resample=resample, **self._res_options)

    def _attention(self, width: int) -> nn.Module:
        return self._attention_class(width, self.time_embed_dim, self._heads(width), **self._attention_options)

    def _heads(self, width: int) -> int:
        if self._num_head_channels == -1:
            return self._num_heads
        if width % self._num_head_channels:
            raise ValueError(f"UNetModel: {width} channels cannot be cut into heads of {self._num_head_channels}")
        return width // self._num_head_channels

    def _resampler(self, direction: str, width: int) -> nn.Module:
        if self._resblock_updown:
            return self._res(width, resample=direction)
        return {"up": Upsample, "down": Downsample}[direction](width, self._conv_resample, self._res_options["dims"])

    def initialize_weights(self) -> None:
        """Xavier-uniform linear layers, N(0, 0.02) in the time embedding; what ends a branch starts at zero."""
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
        if self.context_dim is None or context.shape[-1] != self.context_dim:
            raise ValueError(f"UNetModel: context of width {context.shape[-1]}, but context_dim is {self.context_dim}")
        return self.context_emb(context)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """Prediction from x, the time embedding `emb` (N, time_embed_dim), and the context vector to be added to it."""
        return self.run(x, emb if context is None else emb + self.embed_context(context))

    def modulations(self, emb: Tensor) -> Modulations:
        """What every block makes of embeddings (N, time_embed_dim): `run` takes these, or their rows, in place of `emb`."""
        return [block.adaLN_modulation(emb) for block in self.modulated]

    def run(self, x: Tensor, emb: Embedding) -> Tensor:
        """Prediction from x and the embedding of time and context."""
        self._check(x)
        skips, h = [], x
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h, emb)

    def _check(self, x: Tensor) -> None:
        resampled = x.shape[3:] if self._res_options["dims"] == 3 else x.shape[2:]
        if x.shape[1] != self.in_channels or any(side % self.min_multiple for side in resampled):
            raise ValueError(
                f"UNetModel: input of shape {tuple(x.shape)}; it takes {self.in_channels} channels and sides that are "
                f"multiples of {self.min_multiple}"
            )


class StyleUNetModel(UNetModel):
    """The UNet with a content latent beside the noisy one: refined to `content_refined_dim` channels, concatenated."""

    def __init__(self, in_channels: int, content_in_dim: int, content_refined_dim: int | None = None, **options):
        content_refined_dim = content_refined_dim or content_in_dim
        super().__init__(in_channels=in_channels + content_refined_dim, **options)
        self.refines_content = content_in_dim != content_refined_dim
        if self.refines_content:
            dims = self._res_options["dims"]
            self.content_in = nn.Sequential(
                conv_nd(dims, content_in_dim, content_refined_dim, 1),
                nn.SiLU(),
                conv_nd(dims, content_refined_dim, content_refined_dim, 1),
            )
            self.content_adaLN_modulation = nn.Sequential(
                nn.Linear(self.time_embed_dim, 2 * content_in_dim),
                nn.SiLU(),
                zero_init(nn.Linear(2 * content_in_dim, 2 * content_in_dim)),
            )

    def forward(self, x: Tensor, timesteps: Tensor, content: Tensor, style: Tensor | None = None) -> Tensor:
        emb = self.time_embed(timesteps)
        vectors = self.content_vectors(emb)
        return self.predict(x, content, vectors, emb if style is None else emb + self.embed_context(style))

    def content_vectors(self, time_emb: Tensor) -> Tensor | None:
        """(N, 2 * content_in_dim) shift and scale of the content, by the time embedding alone; None if it is not refined."""
        return self.content_adaLN_modulation(time_emb) if self.refines_content else None

    def predict(self, x: Tensor, content: Tensor, content_vectors: Tensor | None, emb: Embedding) -> Tensor:
        """Prediction from what depends on time and style alone and may have been computed before."""
        if content_vectors is not None:
            content = self.content_in(modulate(content, *content_vectors.chunk(2, dim=1)))
        return self.run(torch.cat([x, content], dim=1), emb)
