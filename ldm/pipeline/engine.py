"""From pictures to painted pictures as tensors: encode, sample, decode; a large picture small
first, then in tiles.

Shapes: pictures (N, 3, H, W) in [-1, 1] of any size; latents (N, C, h, w); style statistics (N, R,
style_dim).
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.device import autocast
from ldm.errors import UserError
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import (
    NoiseSource,
    PerPictureNoise,
    StartDenoiser,
    Step,
    sample_ddim,
    sample_dpm_solver,
    sampling_path,
)
from ldm.pipeline.codec import Codec
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.denoiser import PreparedDenoiser
from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.resizing import enlarged, resized, shares_up
from ldm.pipeline.settings import Settings
from ldm.pipeline.tiles import UNCUT, Tiling, mirrored_out

log = logging.getLogger(__name__)

# from one size to the next, where a large picture is painted small first: sampled over, or just enlarged
MOST_SAMPLED_OVER, MOST_ENLARGED = 3, 2
NARROWEST = 0.5  # of the size that the model was trained at

# name -> what samples: (denoiser, x, the steps, eta, noise) -> latents
SOLVERS: dict[str, Callable[[StartDenoiser, Tensor, Iterable[Step], float, NoiseSource], Tensor]] = {
    "dpm-solver++": lambda denoise, x, path, eta, noise: sample_dpm_solver(denoise, x, path),
    "ddim": sample_ddim,
    "ancestral": lambda denoise, x, path, eta, noise: sample_ddim(denoise, x, path, 1.0, noise),
}

Preview = Callable[[], Tensor]  # the pictures as predicted by now, (N, 3, H, W)
# Lets sampling steps through, and may look at them and at what they came to.
Watch = Callable[[Sequence[Step], Preview], Iterable[Step]]
# What is laid over pictures (N, 3, H, W) that were painted of a batch of their size.
Finish = Callable[[Tensor, "Batch"], Tensor]


def unwatched(path: Sequence[Step], preview: Preview) -> Iterable[Step]:
    """A Watch that does not look."""
    return path


def unfinished(pictures: Tensor, batch: "Batch") -> Tensor:
    """A Finish that lays nothing over them."""
    return pictures


@dataclass(frozen=True)
class Batch:
    """Pictures of one size to paint together.

    content: (N, 3, H, W), or None to show the styles alone at `size` (height, width). style: (N, R,
    style_dim).
    masks: (N, R, H, W) shares of the regions, summing to 1. keep: (N, 1, H, W), how far the content
    stays, 1 where it stays whole. not_style: (1, style_dim) in place of the null style, which
    guidance leads away from.
    """

    style: Tensor
    size: tuple[int, int]
    seeds: Sequence[int]
    content_scales: Sequence[float]
    style_scales: Sequence[float]
    content: Tensor | None = None
    masks: Tensor | None = None
    keep: Tensor | None = None
    not_style: Tensor | None = None

    @property
    def regions(self) -> int:
        """R, how many styles share a picture."""
        return self.style.shape[1]

    def for_regions(self, values: Sequence[float]) -> list[float]:
        """A value of each picture for each of its regions, (N * R)."""
        return [value for value in values for _ in range(self.regions)]

    def resized(self, size: tuple[int, int]) -> "Batch":
        """The same at another (height, width), a smaller one or its own."""
        if size == self.size:
            return self

        def at_size(x: Tensor | None) -> Tensor | None:
            return None if x is None else resized(x, size)

        return replace(
            self, size=size, content=at_size(self.content), masks=at_size(self.masks), keep=at_size(self.keep)
        )

    def unguided(self) -> "Batch":
        """The same with scales of 1 at most: what is guided already needs it no more, and tiles that
        are guided each by itself drift apart."""
        return self.rescaled(lambda scale: min(scale, 1.0))

    def rescaled(self, changed: Callable[[float], float]) -> "Batch":
        """The same with other scales."""
        content_scales, style_scales = (
            [changed(scale) for scale in scales] for scales in (self.content_scales, self.style_scales)
        )
        return replace(self, content_scales=content_scales, style_scales=style_scales)

    def widened(self, margin: int) -> "Batch":
        """The same with a mirrored margin."""
        if margin == 0:
            return self

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else mirrored_out(x, margin)

        size = self.size[0] + 2 * margin, self.size[1] + 2 * margin
        return replace(
            self, size=size, content=wide(self.content), masks=wide(self.masks), keep=wide(self.keep)
        )


@dataclass(frozen=True)
class Run:
    """One sampling run, all but its tensors: equal runs do the same with tensors of equal shapes.

    size: (height, width) of the pictures, margin: pixels around them that are painted, too. tile:
    side of the latents that the network sees at once. needed, interval: Guidance's.
    """

    sampler: str
    eta: float
    path: tuple[Step, ...]
    size: tuple[int, int]
    margin: int
    tile: int
    detail: float
    needed: tuple[bool, bool]
    interval: tuple[float, float]

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) with the margin."""
        return self.size[0] + 2 * self.margin, self.size[1] + 2 * self.margin


@dataclass(frozen=True)
class Tensors:
    """What a run works on. noise: (N * R, C, h, w); scales: (N * R,). smaller: the pictures as
    painted at a smaller size, without a margin; the others are Batch's, with it."""

    noise: Tensor
    content_scales: Tensor
    style_scales: Tensor
    style: Tensor
    content: Tensor | None
    masks: Tensor | None
    keep: Tensor | None
    not_style: Tensor | None
    smaller: Tensor | None


class Painter:
    """A model with what it takes to paint: number format, first stage, tile sizes.

    recorder: runs each batch of pictures as one CUDA graph, recorded for every size and number of
    pictures.
    """

    def __init__(self, model: DualCondModel, precision: str, recorder: Recorder | None = None):
        self.model, self.precision, self.recorder = model, precision, recorder
        self.codec = Codec(model)
        self.alphas = model.alphas_cumprod.tolist()
        self.native_size = (
            model.image_size * self.codec.factor
        )  # of the pictures that the model was trained on

    @torch.no_grad()
    def style_statistics(self, pictures: Tensor, shares: Tensor | None = None) -> Tensor:
        """(N, style_dim) of style pictures, whose pixels count by their shares (N, 1, H, W), if
        these are given."""
        with autocast(self.model.device, self.precision):
            return self.model.get_style_statistics(pictures, shares).float()

    @torch.no_grad()
    def paint(
        self, batch: Batch, settings: Settings, watch: Watch = unwatched, finish: Finish = unfinished
    ) -> Tensor:
        """The painted pictures (N, 3, H, W), not clipped. `watch` sees the sampling steps go by;
        `finish` is done at the last size, and at each that is enlarged without sampling over it.

        Raises UserError where the numbers overflow even in float32.
        """
        painted = self._paint(batch, settings, watch, finish)
        if not bool(painted.isfinite().all()) and self.precision != "fp32":
            log.warning("numbers overflowed in %s; painting these pictures again in fp32", self.precision)
            painted = Painter(self.model, "fp32", self.recorder)._paint(batch, settings, unwatched, finish)
        if not bool(painted.isfinite().all()):
            raise UserError(
                "the numbers overflowed, so there is no picture; choose smaller scales, or, if usual ones do it too, other "
                "weights: these are damaged or untrained"
            )
        return painted

    def _paint(self, batch: Batch, settings: Settings, watch: Watch, finish: Finish) -> Tensor:
        first, *larger = self.sizes(batch.size, settings)
        at_size = batch.resized(first)
        painted = self._paint_at(at_size, None, settings, watch)
        for size in larger:
            if self.value("refine", settings):
                at_size = batch.unguided().resized(size)
                painted = self._paint_at(at_size, painted, settings, watch)
            else:
                painted, at_size = finish(painted, at_size), batch.resized(size)
                painted = self._enlarged(painted, at_size, settings)
        return finish(painted, at_size)

    def _enlarged(self, smaller: Tensor, batch: Batch, settings: Settings) -> Tensor:
        """The pictures at the size of the batch, with the detail that its photos have there."""
        if batch.content is None:
            return resized(smaller, batch.size)
        pictures = enlarged(smaller, batch.content, self.value("detail", settings))
        return pictures if batch.keep is None else torch.lerp(pictures, batch.content, batch.keep)

    def _paint_at(self, batch: Batch, smaller: Tensor | None, settings: Settings, watch: Watch) -> Tensor:
        """The batch at its size, over the picture painted at a smaller one, if there is one."""
        # mirrored, it cannot be as wide as the picture
        margin = min(self.model.margin, *(side - 1 for side in batch.size))
        wide = batch.widened(margin)
        scales = batch.for_regions(batch.content_scales), batch.for_regions(batch.style_scales)
        guidance = Guidance.of(*scales, settings.guidance_interval, batch.style.device)
        run = Run(
            settings.sampler,
            settings.eta,
            tuple(self._path(settings, over_smaller=smaller is not None)),
            batch.size,
            margin,
            self._tile(settings, margin),
            self.value("detail", settings),
            guidance.needed,
            guidance.interval,
        )
        source = PerPictureNoise([seed for seed in batch.seeds for _ in range(batch.regions)])
        content_scales, style_scales = map(torch.as_tensor, guidance.scales)
        tensors = Tensors(
            noise=centred(source(self._empty_latents(wide))),
            content_scales=content_scales,
            style_scales=style_scales,
            style=wide.style,
            content=wide.content,
            masks=wide.masks,
            keep=wide.keep,
            not_style=wide.not_style,
            smaller=smaller,
        )
        if self.recorder is None or settings.is_stochastic:
            return self._run(run, tensors, watch, source)
        key = run, self.precision
        painted = self.recorder(
            lambda **own: self._run(run, Tensors(**own), unwatched, source), vars(tensors), key
        )
        # all at once: nothing can be seen of a graph on its way
        deque(watch(run.path, lambda: painted), maxlen=0)
        return painted

    def _run(self, run: Run, tensors: Tensors, watch: Watch, noise: NoiseSource) -> Tensor:
        """Encode, sample, decode. What is here can be recorded, unless the sampler draws more
        noise."""
        with autocast(self.model.device, self.precision):
            z = None if tensors.content is None else self.codec.encode(tensors.content)
            denoise = Remembering(self._denoiser(run, tensors, z), self._begun(run, tensors, z))
            path = watch(run.path, lambda: self._pictures(run, tensors, z, denoise.latest))
            painted = SOLVERS[run.sampler](denoise, denoise.latest, path, run.eta, noise)
            return self._pictures(run, tensors, z, painted)

    def _pictures(self, run: Run, tensors: Tensors, z: Tensor | None, painted: Tensor) -> Tensor:
        """Of painted latents (N * R, C, h, w): regions cut together, decoded, with the photo's
        detail, without the margin."""
        content, regions = tensors.content, tensors.style.shape[1]
        if tensors.masks is not None:
            painted = self._joined(painted.reshape(-1, regions, *painted.shape[1:]), tensors.masks)
        pictures = self.codec.decode(painted, run.canvas)
        if content is not None and z is not None and run.detail:
            pictures = pictures + run.detail * (content - self.codec.decode(z, run.canvas))
        rows, columns = (slice(run.margin, run.margin + side) for side in run.size)
        return pictures[..., rows, columns]

    def _begun(self, run: Run, tensors: Tensors, z: Tensor | None) -> Tensor:
        """What sampling begins with: noise, or, part of the way down, noise over the photo or over
        the picture painted smaller."""
        start, first = z, run.path[0]
        if tensors.smaller is not None:
            larger = resized(tensors.smaller.clamp(-1, 1), run.size)
            start = self.codec.encode(mirrored_out(larger, run.margin))
        if start is None or first.timestep == self.model.num_timesteps - 1:
            return tensors.noise
        start = start.repeat_interleave(tensors.style.shape[1], dim=0)
        noisy: Tensor = first.alpha**0.5 * start + (1 - first.alpha) ** 0.5 * tensors.noise
        return noisy

    def _denoiser(self, run: Run, tensors: Tensors, z: Tensor | None) -> StartDenoiser:
        regions = tensors.style.shape[1]
        features = None if z is None else self.model.get_content_features(z).repeat_interleave(regions, dim=0)
        denoise = PreparedDenoiser(
            self.model,
            features,
            tensors.style.flatten(0, 1),
            Guidance((tensors.content_scales, tensors.style_scales), run.needed, run.interval),
            [step.timestep for step in run.path],
            run.tile,
            tensors.not_style,
        )
        if tensors.keep is None or z is None:
            return denoise
        keep = self.codec.shares(tensors.keep).repeat_interleave(regions, dim=0)
        kept = z.repeat_interleave(regions, dim=0)
        # Where the content stays, what is predicted is the content: every sampler then ends there.
        return lambda x, timestep: torch.lerp(denoise(x, timestep), kept, keep)

    def _joined(self, painted: Tensor, masks: Tensor) -> Tensor:
        """The regions' latents (N, R, C, h, w) cut together.

        Each is painted as a whole picture in its style from the same noise: blended on the way,
        they would even out to one style, since the network looks at the whole picture.
        """
        return (painted * self.codec.shares(masks)[:, :, None]).sum(dim=1)

    def _empty_latents(self, batch: Batch) -> Tensor:
        """(N * R, C, h, w), of any values."""
        rows = batch.style[..., 0].numel()
        return batch.style.new_empty(rows, self.model.channels, *self.codec.latent_size(batch.size))

    # What the settings mean for this model

    def value(self, name: str, settings: Settings) -> float:
        """A setting of `Settings.left_to_model`: as given, else as the look has it, else as the
        model's config says."""
        given = settings.value(name)
        if given is None:
            given = getattr(self.model, name)
        # photos that keep their colours take none
        return 0.0 if name == "recolor" and settings.preserve_color else given

    def sizes(self, size: tuple[int, int], settings: Settings) -> list[tuple[int, int]]:
        """(height, width) at which a picture of this size is painted, one after the other; a large
        one begins small.

        Tiles painted from pure noise know nothing of each other, and their colours and textures
        drift apart. So what is only enlarged begins in one piece, as long as that is not too narrow.
        """
        tile = self._tile(settings) * self.codec.factor
        refine = self.value("refine", settings)
        ratio = min(size) / self.native_size
        if not refine:
            ratio = min(max(ratio, max(size) / (UNCUT * tile)), ratio / NARROWEST)
        tiled = len(Tiling(*size, tile).tiles) > 1
        if not tiled or ratio <= 1 or refine == 1:
            return [size]
        most = MOST_SAMPLED_OVER if refine else MOST_ENLARGED
        return [(round(size[0] * share), round(size[1] * share)) for share in shares_up(ratio, most)]

    def finished_sizes(self, size: tuple[int, int], settings: Settings) -> list[tuple[int, int]]:
        """Those of `sizes` at which `finish` is done."""
        sizes = self.sizes(size, settings)
        return sizes[-1:] if self.value("refine", settings) else sizes

    def count_steps(self, size: tuple[int, int], settings: Settings) -> int:
        """Sampling steps for a batch of pictures of this (height, width)."""
        first = len(self._path(settings, over_smaller=False))
        if not self.value("refine", settings):
            return first
        return first + (len(self.sizes(size, settings)) - 1) * len(self._path(settings, over_smaller=True))

    def _path(self, settings: Settings, over_smaller: bool) -> list[Step]:
        strength = (
            min(self.value("refine", settings), settings.strength) if over_smaller else settings.strength
        )
        spacing = SAMPLERS[settings.sampler].spacing
        return sampling_path(self.alphas, settings.number_of_steps, strength, spacing)

    def _tile(self, settings: Settings, margin: int = 0) -> int:
        """Side of the tiles' latents, with what a margin adds to it."""
        multiple = self.codec.multiple
        side = max(1, (settings.tile or self.native_size) // multiple) - (-2 * margin // multiple)
        return side * multiple // self.codec.factor


class Remembering:
    """A denoiser that keeps what it predicted last, before that the latents x to begin with."""

    def __init__(self, denoise: StartDenoiser, x: Tensor):
        self._denoise, self.latest = denoise, x

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        """As the denoiser's."""
        self.latest = self._denoise(x, timestep)
        return self.latest


def centred(noise: Tensor) -> Tensor:
    """Noise (N, C, h, w) with mean 0 in every channel.

    differs: the published sampler takes it as drawn. At the last time step a little of the picture
    is still there, so the network takes the mean of the noise for the brightness and the cast of
    the picture: an accident of the seed, the worse the smaller the picture.
    """
    return noise - noise.mean(dim=(2, 3), keepdim=True)
