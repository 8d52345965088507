"""The tree that all UNets here have: input, middle and output blocks with skip connections, as
latent-diffusion's.

Shapes: x (N, in_channels, H, W), H and W multiples of 2 ** (len(channel_mult) - 1).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import Downsample, EmbedSequential, Upsample
from ldm.modules.diffusionmodules.util import conv_nd


class UNetTree(nn.Module, ABC):
    """The blocks between a network's embedding and its output layers; a subclass says what they
    are.

    attention_resolutions: downsampling factors (1, 2, 4, ...) at which attention stands.
    num_heads / num_head_channels: one must be given; the second wins.
    conv_resample: learned resampling; resblock_updown: resampling inside res blocks instead.
    use_checkpoint: recompute activations in the backward pass, slower but with less memory.
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
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_heads: int = -1,
        num_head_channels: int = -1,
        resblock_updown: bool = False,
    ):
        super().__init__()
        if num_heads == -1 and num_head_channels == -1:
            raise ValueError("UNetModel: give num_heads or num_head_channels")
        self.image_size, self.in_channels, self.out_channels, self.dims = (
            image_size,
            in_channels,
            out_channels,
            dims,
        )
        self.model_channels, self.channel_mult, self.num_res_blocks = (
            model_channels,
            list(channel_mult),
            num_res_blocks,
        )
        self.attention_resolutions = list(attention_resolutions)
        self.width_out = model_channels * channel_mult[0]
        self.min_multiple = 2 ** (len(channel_mult) - 1)
        self._num_heads, self._num_head_channels = num_heads, num_head_channels
        self._conv_resample, self._resblock_updown = conv_resample, resblock_updown

    @abstractmethod
    def res_block(self, width_in: int, width: int | None = None, resample: str | None = None) -> nn.Module:
        """A residual block from one width to another, by default the same; `resample` is None, up
        or down."""

    @abstractmethod
    def attention(self, width: int, num_heads: int) -> nn.Module:
        """A block of attention of that many heads."""

    def build_tree(self) -> None:
        """Input, middle and output blocks; `widths` remembers what each skip connection carries."""
        base, mult, num_res_blocks, attention_at = (
            self.model_channels,
            self.channel_mult,
            self.num_res_blocks,
            self.attention_resolutions,
        )
        width, factor = self.width_out, 1
        self.input_blocks = nn.ModuleList(
            [EmbedSequential(conv_nd(self.dims, self.in_channels, width, 3, padding=1))]
        )
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
        self.middle_block = EmbedSequential(
            self.res_block(width), self._attention(width), self.res_block(width)
        )
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
        return EmbedSequential(
            self.res_block(width_in, width), *([self._attention(width)] if attention else [])
        )

    def _attention(self, width: int) -> nn.Module:
        return self.attention(width, self._heads(width))

    def _heads(self, width: int) -> int:
        if self._num_head_channels == -1:
            return self._num_heads
        if width % self._num_head_channels:
            raise ValueError(
                f"UNetModel: {width} channels cannot be cut into heads of {self._num_head_channels}"
            )
        return width // self._num_head_channels

    def _resampler(self, direction: str, width: int) -> nn.Module:
        if self._resblock_updown:
            return self.res_block(width, resample=direction)
        return {"up": Upsample, "down": Downsample}[direction](width, self._conv_resample, self.dims)

    def through_tree(self, x: Tensor, emb: Any, context: Tensor | None = None) -> Tensor:
        """(N, width_out, H, W) from x, the embedding, and what there is to attend to."""
        self._check(x)
        skips, h = [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return h

    def _check(self, x: Tensor) -> None:
        resampled = x.shape[3:] if self.dims == 3 else x.shape[2:]
        if x.shape[1] != self.in_channels or any(side % self.min_multiple for side in resampled):
            raise ValueError(
                f"UNetModel: input of shape {tuple(x.shape)}; it takes {self.in_channels} channels and sides that are "
                f"multiples of {self.min_multiple}"
            )
