"""From pictures to painted pictures as tensors: encode, sample, decode, in tiles where a picture is large.

Shapes: pictures (N, 3, H, W) in [-1, 1] of any size; latents (N, C, h, w); style statistics (N, R, style_dim).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.device import autocast
from ldm.errors import UserError
from ldm.models.diffusion.denoiser import Conditions, GuidedDenoiser, Guidance
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.samplers import PerPictureNoise, Step, sample_ddim, sample_dpm_solver, sampling_path
from ldm.settings import Settings
from ldm.styles import to_latent
from ldm.tiles import Tile, Tiling, blend, cut

log = logging.getLogger(__name__)

# Above this many pixels a side the first stage works in tiles: a full-size decoder takes about 3 GB for one such tile.
FIRST_STAGE_TILE = 768


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


class Painter:
    """A model with what it takes to paint: number format, tile sizes."""

    def __init__(self, model: DualCondModel, precision: str):
        self.model, self.precision = model, precision
        self.factor = model.first_stage_model.encoder.factor
        self.multiple = self.factor * model.model.diffusion_model.min_multiple
        self.native_size = model.image_size * self.factor  # of the pictures that the model was trained on

    @torch.no_grad()
    def style_statistics(self, pictures: Tensor) -> Tensor:
        """(N, style_dim) of style pictures."""
        with autocast(self.model.device, self.precision):
            return self.model.get_style_statistics(pictures).float()

    @torch.no_grad()
    def paint(self, batch: Batch, settings: Settings, steps: Callable[[list[Step]], Iterable[Step]] = iter) -> Tensor:
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

    def _paint(self, batch: Batch, settings: Settings, steps: Callable[[list[Step]], Iterable[Step]], precision: str) -> Tensor:
        height, width = batch.size
        with autocast(self.model.device, precision):
            z = None if batch.content is None else self.encode(pad_to_multiple(batch.content, self.multiple))
            return self.decode(self._sample(batch, z, settings, steps))[:, :, :height, :width]

    def _sample(self, batch: Batch, z: Tensor | None, settings: Settings, steps: Callable[[list[Step]], Iterable[Step]]) -> Tensor:
        """Painted latents; z are those of the content."""
        # The solver's error is least between the two spacings, see docs/sampling.md.
        spacing = "between" if settings.sampler == "dpm-solver++" else "time"
        path = sampling_path(self.model.alphas_cumprod.tolist(), settings.number_of_steps, settings.strength, spacing)
        content = None if z is None else self.model.get_content_features(z)
        masks = None if batch.masks is None else to_latent(batch.masks, self.factor, self.multiple)
        guidance = Guidance(batch.content_scales, batch.style_scales, settings.guidance_interval or (0.0, 1.0))
        tile = max(1, (settings.tile or self.native_size) // self.multiple) * self.multiple // self.factor
        denoise = GuidedDenoiser(self.model, Conditions(batch.style, content, masks), guidance, [step.timestep for step in path], tile)
        noise = PerPictureNoise(batch.seeds)
        x = noise(self._empty_latents(batch))
        if settings.strength < 1 and z is not None:
            x = path[0].alpha ** 0.5 * z + (1 - path[0].alpha) ** 0.5 * x
        predict = denoise
        if batch.keep is not None:
            keep = to_latent(batch.keep, self.factor, self.multiple)

            def predict(x: Tensor, timestep: int) -> Tensor:
                return torch.lerp(denoise(x, timestep), z, keep)

        if settings.sampler == "dpm-solver++":
            return sample_dpm_solver(predict, x, steps(path))
        return sample_ddim(predict, x, steps(path), 1.0 if settings.sampler == "ancestral" else settings.eta, noise)

    def _empty_latents(self, batch: Batch) -> Tensor:
        height, width = (-(-side // self.multiple) * self.multiple // self.factor for side in batch.size)
        return batch.style.new_empty(len(batch.style), self.model.channels, height, width)

    # First stage

    def encode(self, pictures: Tensor) -> Tensor:
        """Scaled latents of pictures whose sides divide by the latent factor."""

        def latent(tiles: Sequence[Tile]) -> Tensor:
            at_pixels = [tuple(slice(s.start * self.factor, s.stop * self.factor) for s in tile) for tile in tiles]
            return self.model.get_first_stage_encoding(self.model.encode_first_stage(cut(pictures, at_pixels))).float()

        return blend(latent, self._tiling(pictures.shape[2] // self.factor, pictures.shape[3] // self.factor))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of scaled latents."""
        return blend(lambda tiles: self.model.decode_first_stage(cut(z, tiles)).float(), self._tiling(*z.shape[2:]), scale=self.factor)

    def _tiling(self, height: int, width: int) -> Tiling:
        return Tiling(height, width, max(1, FIRST_STAGE_TILE // self.factor))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pictures (N, 3, H, W) with their edges repeated at right and bottom until the sides divide by `multiple`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
