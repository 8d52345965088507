"""From pictures to painted pictures as tensors: encode, sample, decode, in tiles where a picture is large.

Shapes: pictures (N, 3, H, W) in [-1, 1] of any size; latents (N, C, h, w); style statistics (N, R, style_dim).
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.device import autocast
from ldm.errors import UserError
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.samplers import (
    NoiseSource,
    PerPictureNoise,
    StartDenoiser,
    Step,
    sample_ddim,
    sample_dpm_solver,
    sampling_path,
)
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.denoiser import Guidance, GuidedDenoiser
from ldm.pipeline.inputs import to_latent
from ldm.pipeline.settings import LOOKS, Settings
from ldm.pipeline.tiles import Tile, Tiling, blend, cut

log = logging.getLogger(__name__)

# Above this many pixels a side the first stage works in tiles: a full-size decoder takes about 3 GB for one such tile.
FIRST_STAGE_TILE = 768
MAX_ENLARGEMENT = 3  # from one size to the next, where a large picture is painted small first

Steps = Callable[[list[Step]], Iterable[Step]]


@dataclass(frozen=True)
class Batch:
    """Pictures of one size to paint together.

    content: (N, 3, H, W), or None to show the styles alone at `size` (height, width). style: (N, R, style_dim).
    masks: (N, R, H, W) shares of the regions, summing to 1. keep: (N, 1, H, W), 1 where the content stays.
    """

    style: Tensor
    size: tuple[int, int]
    seeds: Sequence[int]
    content_scales: Sequence[float]
    style_scales: Sequence[float]
    content: Tensor | None = None
    masks: Tensor | None = None
    keep: Tensor | None = None

    @property
    def regions(self) -> int:
        """R, how many styles share a picture."""
        return self.style.shape[1]

    def resized(self, size: tuple[int, int]) -> "Batch":
        """The same at another (height, width), a smaller one or its own."""
        if size == self.size:
            return self

        def at_size(x: Tensor | None) -> Tensor | None:
            return (
                None
                if x is None
                else F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
            )

        return replace(
            self, size=size, content=at_size(self.content), masks=at_size(self.masks), keep=at_size(self.keep)
        )


class Painter:
    """A model with what it takes to paint: number format, tile sizes.

    recorder: runs each batch of pictures as one CUDA graph, recorded for every size and number of pictures.
    """

    def __init__(self, model: DualCondModel, precision: str, recorder: Recorder | None = None):
        self.model, self.precision, self.recorder = model, precision, recorder
        self.factor = model.first_stage_model.encoder.factor
        self.multiple = self.factor * model.model.diffusion_model.min_multiple
        self.alphas = model.alphas_cumprod.tolist()
        self.native_size = model.image_size * self.factor  # of the pictures that the model was trained on

    @torch.no_grad()
    def style_statistics(self, pictures: Tensor) -> Tensor:
        """(N, style_dim) of style pictures."""
        with autocast(self.model.device, self.precision):
            return self.model.get_style_statistics(pictures).float()

    @torch.no_grad()
    def paint(self, batch: Batch, settings: Settings, steps: Steps = iter) -> Tensor:
        """The painted pictures (N, 3, H, W), not clipped. `steps` may watch the sampling steps go by.

        Raises UserError where the numbers overflow even in float32.
        """
        painted = self._paint(batch, settings, steps, self.precision)
        if not bool(painted.isfinite().all()) and self.precision != "fp32":
            log.warning("numbers overflowed in %s; painting these pictures again in fp32", self.precision)
            painted = self._paint(batch, settings, iter, "fp32")
        if not bool(painted.isfinite().all()):
            raise UserError("the numbers overflowed, so there is no picture; choose smaller scales")
        return painted

    def _paint(self, batch: Batch, settings: Settings, steps: Steps, precision: str) -> Tensor:
        painted = None
        for size in self.sizes(batch.size, settings):
            painted = self._paint_at(batch.resized(size), painted, settings, steps, precision)
        return painted

    def _paint_at(
        self, batch: Batch, smaller: Tensor | None, settings: Settings, steps: Steps, precision: str
    ) -> Tensor:
        """The batch at its size, over the picture painted at a smaller one, if there is one."""
        path = self._path(settings, over_smaller=smaller is not None)
        noise = PerPictureNoise([seed for seed in batch.seeds for _ in range(batch.regions)])
        guidance = self._guidance(batch, settings)

        def run(
            steps: Steps,
            x: Tensor,
            smaller: Tensor | None,
            content_scales: Tensor,
            style_scales: Tensor,
            **tensors: Tensor | None,
        ) -> Tensor:
            scaled = replace(guidance, content_scales=content_scales, style_scales=style_scales)
            with autocast(self.model.device, precision):
                return self._run(x, replace(batch, **tensors), smaller, scaled, settings, path, steps, noise)

        inputs = {
            "x": centred(noise(self._empty_latents(batch))), "smaller": smaller,
            "content_scales": guidance.content_scales, "style_scales": guidance.style_scales,
            "style": batch.style, "content": batch.content, "masks": batch.masks, "keep": batch.keep,
        }  # fmt: skip
        if self.recorder is None or settings.is_stochastic:
            return run(steps, **inputs)
        key = (
            tuple(path),
            settings.sampler,
            guidance.needed,
            guidance.interval,
            self._tile(settings),
            self.detail(settings),
            batch.size,
            precision,
        )
        painted = self.recorder(partial(run, iter), inputs, key)
        deque(steps(path), maxlen=0)  # all at once: nothing can be seen of a graph on its way
        return painted

    def _run(
        self,
        x: Tensor,
        batch: Batch,
        smaller: Tensor | None,
        guidance: Guidance,
        settings: Settings,
        path: list[Step],
        steps: Steps,
        noise: NoiseSource,
    ) -> Tensor:
        """Encode, sample from noise `x`, decode. What is here can be recorded, unless the sampler draws more noise."""
        height, width = batch.size
        z = None if batch.content is None else self.encode(pad_to_multiple(batch.content, self.multiple))
        start = z
        if smaller is not None:
            enlarged = F.interpolate(smaller.clamp(-1, 1), batch.size, mode="bicubic", align_corners=False)
            start = self.encode(pad_to_multiple(enlarged, self.multiple))
        if path[0].timestep < self.model.num_timesteps - 1 and start is not None:
            x = (
                path[0].alpha ** 0.5 * start.repeat_interleave(batch.regions, dim=0)
                + (1 - path[0].alpha) ** 0.5 * x
            )
        denoise = self._denoiser(batch, z, guidance, settings, path)
        if settings.sampler == "dpm-solver++":
            painted = sample_dpm_solver(denoise, x, steps(path))
        else:
            painted = sample_ddim(
                denoise, x, steps(path), 1.0 if settings.sampler == "ancestral" else settings.eta, noise
            )
        pictures = self.decode(self._joined(painted, batch))[:, :, :height, :width]
        detail = self.detail(settings)
        if z is None or detail == 0:
            return pictures
        return pictures + detail * (batch.content - self.decode(z)[:, :, :height, :width])

    def detail(self, settings: Settings) -> float:
        """How much of the photo's detail is put back: by the settings, else by their look, else by the model's config."""
        given = LOOKS[settings.look].detail if settings.detail is None else settings.detail
        return self.model.detail if given is None else given

    def sizes(self, size: tuple[int, int], settings: Settings) -> list[tuple[int, int]]:
        """(height, width) at which a picture of this size is painted, one after the other; a large one begins small.

        Tiles painted from pure noise know nothing of each other, and their colours and textures drift apart.
        """
        ratio = min(size) / self.native_size
        tiled = len(Tiling(size[0], size[1], self._tile(settings) * self.factor).tiles) > 1
        if not tiled or ratio <= 1 or settings.refine == 1:
            return [size]
        levels = math.ceil(math.log(ratio) / math.log(MAX_ENLARGEMENT))
        return [tuple(round(side * ratio ** (i / levels - 1)) for side in size) for i in range(levels + 1)]

    def count_steps(self, size: tuple[int, int], settings: Settings) -> int:
        """Sampling steps for a batch of pictures of this (height, width)."""
        enlargements = len(self.sizes(size, settings)) - 1
        return len(self._path(settings, False)) + enlargements * len(self._path(settings, True))

    def _path(self, settings: Settings, over_smaller: bool) -> list[Step]:
        strength = min(settings.refine, settings.strength) if over_smaller else settings.strength
        # The solver's error is least between the two spacings, see docs/sampling.md.
        spacing = "between" if settings.sampler == "dpm-solver++" else "time"
        return sampling_path(self.alphas, settings.number_of_steps, strength, spacing)

    def _tile(self, settings: Settings) -> int:
        """Side of the tiles' latents."""
        return max(1, (settings.tile or self.native_size) // self.multiple) * self.multiple // self.factor

    def _joined(self, painted: Tensor, batch: Batch) -> Tensor:
        """The regions' latents cut together.

        Each is painted as a whole picture in its style from the same noise: blended on the way, they would even out to one
        style, since the network looks at the whole picture.
        """
        if batch.masks is None:
            return painted
        shares = to_latent(batch.masks, self.factor, self.multiple)[:, :, None]
        return (painted.unflatten(0, batch.style.shape[:2]) * shares).sum(dim=1)

    def _guidance(self, batch: Batch, settings: Settings) -> Guidance:
        def for_regions(values: Sequence[float]) -> list[float]:
            return [value for value in values for _ in range(batch.regions)]

        scales = for_regions(batch.content_scales), for_regions(batch.style_scales)
        return Guidance.of(*scales, settings.guidance_interval, batch.style.device)

    def _denoiser(
        self, batch: Batch, z: Tensor | None, guidance: Guidance, settings: Settings, path: Sequence[Step]
    ) -> StartDenoiser:
        content = (
            None if z is None else self.model.get_content_features(z).repeat_interleave(batch.regions, dim=0)
        )
        timesteps = [step.timestep for step in path]
        denoise = GuidedDenoiser(
            self.model, content, batch.style.flatten(0, 1), guidance, timesteps, self._tile(settings)
        )
        if batch.keep is None:
            return denoise
        keep = to_latent(batch.keep, self.factor, self.multiple).repeat_interleave(batch.regions, dim=0)
        kept = z.repeat_interleave(batch.regions, dim=0)
        # Where the content stays, what is predicted is the content: every sampler then ends there.
        return lambda x, timestep: torch.lerp(denoise(x, timestep), kept, keep)

    def _empty_latents(self, batch: Batch) -> Tensor:
        """(N * R, C, h, w), of any values."""
        height, width = (-(-side // self.multiple) * self.multiple // self.factor for side in batch.size)
        return batch.style.new_empty(batch.style[..., 0].numel(), self.model.channels, height, width)

    # First stage

    def encode(self, pictures: Tensor) -> Tensor:
        """Scaled latents of pictures whose sides divide by the latent factor."""

        def latent(tiles: Sequence[Tile]) -> Tensor:
            at_pixels = [
                tuple(slice(s.start * self.factor, s.stop * self.factor) for s in tile) for tile in tiles
            ]
            return self.model.get_first_stage_encoding(
                self.model.encode_first_stage(cut(pictures, at_pixels))
            ).float()

        return blend(latent, self._tiling(pictures.shape[2] // self.factor, pictures.shape[3] // self.factor))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of scaled latents."""
        return blend(
            lambda tiles: self.model.decode_first_stage(cut(z, tiles)).float(),
            self._tiling(*z.shape[2:]),
            scale=self.factor,
        )

    def _tiling(self, height: int, width: int) -> Tiling:
        return Tiling(height, width, max(1, FIRST_STAGE_TILE // self.factor))


def centred(noise: Tensor) -> Tensor:
    """Noise (N, C, h, w) with mean 0 in every channel.

    differs: the published sampler takes it as drawn. At the last time step a little of the picture is still there, so the
    network takes the mean of the noise for the brightness and the cast of the picture: an accident of the seed, the worse
    the smaller the picture.
    """
    return noise - noise.mean(dim=(2, 3), keepdim=True)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pictures (N, 3, H, W) with their edges repeated at right and bottom until the sides divide by `multiple`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
