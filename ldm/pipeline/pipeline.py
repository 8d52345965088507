"""The one door for inference: pictures in, stylised pictures out.

    from ldm import StyleTransferPipeline

    pipeline = StyleTransferPipeline.from_pretrained()
    picture = pipeline("photo.jpg", "painting.jpg", style_scale=2.0, seed=1)
    picture.save("result.png")

Settings are those of `ldm.pipeline.settings.Settings`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ldm.device import choose_device, choose_precision, memory_errors
from ldm.errors import ConfigError, UserError, did_you_mean
from ldm.files import ROOT, own_or
from ldm.media.images import image_to_tensor, resize_short_side, tensor_to_image, with_colors_of
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.samplers import Step
from ldm.models.inference import build_for_inference, load_for_inference
from ldm.modules.diffusionmodules.model import StyleUNetModel
from ldm.modules.losses.lpips import VGG_CHANNELS, vgg16
from ldm.pipeline.brush import Brush, Level, Order, Stopped, bundled_vgg16, canvas, levels
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.engine import Batch, Painter
from ldm.pipeline.inputs import (
    ASPECT_TOLERANCE,
    Picture,
    PictureReader,
    ReadStyle,
    Style,
    StyleMix,
    StyleRegions,
    mask_tensor,
)
from ldm.pipeline.settings import MAX_RESULT_PIXELS, MIN_SIDE, SAMPLERS, Settings
from ldm.pipeline.tiles import UNCUT

__all__ = ["SAMPLERS", "Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline", "build_model"]

BUNDLED = {"mini": ("checkpoints/mini/model.safetensors", "configs/mini.yaml")}
PUBLISHED_CONFIG = "configs/kl16_content12.yaml"
SAMPLING_WORK = 0.25  # of a sampling step, in gradient steps of 256 x 256 pixels
# below, content guidance dissolves the photo; above, style guidance overshoots the painting's colours
MILD_SCALES = (
    1.0,
    2.0,
)
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@dataclass(frozen=True)
class _Job:
    """One picture to paint, everything read. `content` has the result's size; None shows the style alone."""

    content: Image.Image | None
    style: ReadStyle
    size: tuple[int, int]  # width, height
    seed: int
    content_scale: float
    style_scale: float
    keep: Image.Image | None
    start: Image.Image | None  # of the result's size

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of the same kind go through the model together."""
        return (
            self.size,
            self.content is None,
            len(self.style.regions),
            self.style.masks is None,
            self.keep is None,
        )


class PaintingStopped(KeyboardInterrupt):
    """Ctrl-C while a picture was on its way; `picture` is as far as it came."""

    def __init__(self, picture: Image.Image):
        super().__init__("stopped")
        self.picture = picture


class StyleTransferPipeline:
    """A model ready to stylise. Make one with `from_pretrained`."""

    def __init__(
        self,
        model: DualCondModel,
        precision: str = "fp32",
        compile: bool = False,
        brush_network: vgg16 | None = None,
    ):
        """brush_network: the VGG16 that leads the fine look; None is the model's own, else the bundled one."""
        self.model = make_fast(model.eval())
        if not isinstance(model.model.diffusion_model, StyleUNetModel):
            raise ConfigError(
                f"the pipeline needs a StyleUNetModel, not a {type(model.model.diffusion_model).__name__}"
            )
        self.painter = Painter(
            self.model, precision, Recorder() if compile and self.model.device.type == "cuda" else None
        )
        self._brush_network = brush_network
        if compile:
            compile_networks(self.model)

    @cached_property
    def brush(self) -> Brush:
        """What leads the fine look. Raises UserError where VGG16's file is gone."""
        own = (
            self.model.vgg if self.model.vgg.channels == VGG_CHANNELS and self.model.vgg.has_weights else None
        )
        return Brush(self._brush_network or own or bundled_vgg16(), self.model.device, self.painter.precision)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = "mini",
        config: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_targets: Iterable[str] = (),
        compile: bool = False,
    ) -> "StyleTransferPipeline":
        """Load a model: "mini" (bundled), or the path of a `.ckpt` or `.safetensors` file.

        config: its YAML; by default that of the published model. Averaged weights are used where a checkpoint has
        them. compile: torch.compile the networks, and on CUDA record whole pictures as graphs, which takes a minute at the
        first picture of each size and pays on a GPU from some hundred pictures on. Raises UserError for whatever is missing, broken or does not fit together.
        """
        where = choose_device(device)
        precision = choose_precision(precision, where)
        path, config_path = resolve_checkpoint(checkpoint, config)
        model = load_for_inference(path, config_path, DualCondModel, allow_targets)
        model.load_style_network()
        return cls(model.to(where), precision, compile)

    def __call__(
        self,
        content: Picture | Sequence[Picture] | None,
        style: Style | Sequence[Style],
        *,
        keep: Picture | None = None,
        start: Picture | Sequence[Picture] | None = None,
        batch_size: int = 8,
        progress: bool = False,
        **settings: Any,
    ) -> Image.Image | list[Image.Image]:
        """The content picture(s) painted in the style(s): one picture, or a list of them.

        content: paths or PIL pictures; None shows what the model knows of the style by itself.
        style: paths or PIL pictures, or a StyleMix or StyleRegions of several. Lists of the same length pair up, a
        single one goes with all. keep: a black and white picture, white where the content stays as it is.
        start: for the fine look, picture(s) to begin with instead of sampling, such as the frame before: only the steps of the
        last size are made.
        settings: see `ldm.pipeline.settings.Settings`. progress: show a bar of sampling steps.
        Raises UserError for unusable pictures and settings, and PaintingStopped with the picture as far as it came on Ctrl-C
        in the fine look.
        """
        chosen = settings_from(settings)
        chosen.check(self.model.num_timesteps)
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        jobs, single = _jobs(content, style, keep, start, chosen, self.painter.native_size)
        with memory_errors("choose a smaller size, batch_size or tile"):
            results = self._paint_all(jobs, chosen, batch_size, progress)
        return results[0] if single else results

    def _paint_all(
        self, jobs: list[_Job], settings: Settings, batch_size: int, progress: bool
    ) -> list[Image.Image]:
        """Pictures of the same kind go through together, in the fine look each alone; the results keep the order."""
        statistics = self._statistics(jobs, settings)
        # Small differences grow from one gradient step to the next, so company would change a fine picture.
        batches = list(_batches([job.kind for job in jobs], 1 if settings.has_brush else batch_size))
        results: dict[int, Image.Image] = {}
        total = sum(self._work([jobs[i] for i in batch], settings) for batch in batches)
        with tqdm(desc="painting", total=total + 0.001, bar_format=BAR, disable=not progress) as bar:
            for batch in batches:
                members = [jobs[i] for i in batch]
                painted = self._painted(members, self._batch(members, statistics), settings, bar)
                results |= {i: _finish(jobs[i], tensor_to_image(p), settings) for i, p in zip(batch, painted)}
        return [results[i] for i in range(len(jobs))]

    def _painted(self, jobs: list[_Job], batch: Batch, settings: Settings, bar: tqdm) -> Tensor:
        """(N, 3, H, W) pictures of a batch, sampled and, in the fine look, led to the painting's brush work."""
        if not settings.has_brush:
            return self.painter.paint(batch, settings, partial(_watched, bar, SAMPLING_WORK))
        (job,), order = jobs, _order(jobs[0], batch, settings, self.painter.detail(settings))
        start = (
            self._sampled(batch, settings, bar)
            if job.start is None
            else image_to_tensor(job.start)[None].to(self.model.device)
        )
        try:
            return self.brush.finish(
                start, order, settings.brush, partial(_watched_level, bar), only_last=job.start is not None
            )
        except Stopped as stopped:
            raise PaintingStopped(_finish(job, tensor_to_image(stopped.picture[0]), settings)) from None

    def _sampled(self, batch: Batch, settings: Settings, bar: tqdm) -> Tensor:
        """What the brush begins with where there is nothing else."""
        start = _mildly_guided(batch.resized(self._start_size(batch.size, settings)))
        return self.painter.paint(start, settings, partial(_watched, bar, SAMPLING_WORK))

    def _start_size(self, size: tuple[int, int], settings: Settings) -> tuple[int, int]:
        """(height, width) at which a fine picture is sampled: the largest of its sizes that the model paints in one piece."""
        sizes = [tuple(round(side / 2**i) for side in size) for i in range(len(_levels(size, settings)))]
        return next((each for each in sizes if min(each) <= UNCUT * self.painter.native_size), sizes[-1])

    def _work(self, jobs: list[_Job], settings: Settings) -> float:
        """What a batch costs, in gradient steps of 256 x 256 pixels."""
        size = jobs[0].size[::-1]
        if not settings.has_brush:
            return SAMPLING_WORK * self.painter.count_steps(size, settings)
        path = _levels(size, settings)
        if jobs[0].start is not None:
            return path[-1].work
        sampling = SAMPLING_WORK * self.painter.count_steps(self._start_size(size, settings), settings)
        return sampling + sum(level.work for level in path)

    def _statistics(self, jobs: list[_Job], settings: Settings) -> dict[int, Tensor]:
        """The (style_dim,) statistics of every style picture, by its id."""
        size = _sampling_style_size(settings, self.painter.native_size)
        return {
            id(p): self.encode_style(p, size)[0]
            for p in {id(p): p for job in jobs for p in job.style.pictures}.values()
        }

    def encode_style(self, image: Image.Image, size: int) -> Tensor:
        """(1, style_dim) statistics of the whole picture, scaled to the shorter side `size`."""
        return self.painter.style_statistics(
            image_to_tensor(resize_short_side(image, size))[None].to(self.model.device)
        )

    def _batch(self, jobs: list[_Job], statistics: dict[int, Tensor]) -> Batch:
        device, (width, height) = self.model.device, jobs[0].size
        regions = [
            [sum(weight * statistics[id(p)] for p, weight in region) for region in job.style.regions]
            for job in jobs
        ]
        masks = [job.style.mask_tensor(job.size) for job in jobs]
        keep = [mask_tensor(job.keep, job.size)[None] for job in jobs if job.keep is not None]
        contents = [image_to_tensor(job.content) for job in jobs if job.content is not None]
        return Batch(
            style=torch.stack([torch.stack(job_regions) for job_regions in regions]),
            size=(height, width),
            seeds=[job.seed for job in jobs],
            content_scales=[job.content_scale for job in jobs],
            style_scales=[job.style_scale for job in jobs],
            content=torch.stack(contents).to(device) if contents else None,
            masks=None if masks[0] is None else torch.stack(masks).to(device),
            keep=torch.stack(keep).to(device) if keep else None,
        )


def _levels(size: tuple[int, int], settings: Settings) -> list[Level]:
    """The brush's way to a picture of this (height, width)."""
    return levels(canvas(size), settings.brush.brush_steps)


def settings_from(options: dict[str, Any]) -> Settings:
    """Settings of these names and values. Raises UserError for an unknown name."""
    names = [field.name for field in fields(Settings)]
    for name in options:
        if name not in names:
            raise UserError(f"there is no setting {name!r}{did_you_mean(name, names)}")
    return Settings(**options)


def build_model(config_path: str | Path, allow_targets: Iterable[str] = ()) -> DualCondModel:
    """The style transfer model of a config file for inference: no weights yet, no averages. Raises UserError."""
    return build_for_inference(config_path, DualCondModel, allow_targets)


def make_fast(model: DualCondModel) -> DualCondModel:
    """The model in the form that paints fastest on CPU and GPU alike."""
    # Autocast keeps the converted copy of a weight only where the weight requires a gradient, and converts the others
    # again at every step. No gradient is ever computed here.
    return model.requires_grad_(True).to(memory_format=torch.channels_last)


def compile_networks(model: DualCondModel) -> None:
    """Compile what does the work, for each shape of its own."""
    network = model.model.diffusion_model
    network.predict = torch.compile(network.predict, dynamic=False)
    model.first_stage_model.decoder.compile(dynamic=False)


def resolve_checkpoint(checkpoint: str | Path, config: str | Path | None) -> tuple[Path, Path]:
    """(checkpoint file, config file); the bundled ones lie beside the package, and go together by name or by path.
    Raises UserError where the bundled file is gone."""
    path = own_or(checkpoint)
    if str(checkpoint) in BUNDLED and not path.is_file():
        path = ROOT / BUNDLED[str(checkpoint)][0]
        if not path.is_file():
            raise UserError(
                f"{path}: the bundled weights are missing; `git checkout {BUNDLED[str(checkpoint)][0]}` brings them back"
            )
    configs = {ROOT / weights: bundled_config for weights, bundled_config in BUNDLED.values()}
    return path, Path(config) if config else ROOT / configs.get(path.resolve(), PUBLISHED_CONFIG)


def _jobs(
    content: Picture | Sequence[Picture] | None,
    style: Style | Sequence[Style],
    keep: Picture | None,
    start: Picture | Sequence[Picture] | None,
    settings: Settings,
    native_size: int,
) -> tuple[list[_Job], bool]:
    """(what to paint, whether neither content, style nor start was a list). Raises UserError."""
    read = PictureReader(settings.style_side(native_size))
    single = not any(isinstance(given, (list, tuple)) for given in (content, style, start))
    contents = [None] if content is None else [_sized(read(c), settings) for c in _as_list(content)]
    styles = [read.style(s) for s in _as_list(style)]
    if content is None and (
        keep is not None or settings.detail or settings.strength < 1 or settings.preserve_color
    ):
        raise UserError("keep, detail, strength and preserve_color need a content picture")
    if start is not None and not settings.has_brush:
        raise UserError("start is for the look fine; the fast look begins with noise")
    contents, styles, starts = _paired(
        contents=contents,
        styles=styles,
        starts=[None] if start is None else [read(s) for s in _as_list(start)],
    )
    kept = None if keep is None else read.mask(keep)
    each = [settings.each(name, len(contents)) for name in ("seed", "content_scale", "style_scale")]
    sizes = [_size_alone(settings) if c is None else c.size for c in contents]
    begun = [None if s is None else _fitted(s, size) for s, size in zip(starts, sizes)]
    jobs = [
        _Job(c, s, size, int(seed), float(content_scale), float(style_scale), kept, begin)
        for c, s, size, begin, seed, content_scale, style_scale in zip(contents, styles, sizes, begun, *each)
    ]
    for job in jobs:  # masks that do not fit, and style pictures that cannot be scaled, before any work
        job.style.mask_tensor(job.size)
        if job.keep is not None:
            mask_tensor(job.keep, job.size)
        for picture in job.style.pictures:
            _check_scaled(picture, settings.style_side(native_size))
    return jobs, single


def _as_list(one_or_more: Any) -> list[Any]:
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]


def _paired(**lists: list[Any]) -> list[list[Any]]:
    """The lists at the length of the longest: those of one repeat it. Raises UserError for other lengths, and for none."""
    if not all(lists.values()):
        raise UserError("no pictures to work on: content, style or start is an empty list")
    n = max(map(len, lists.values()))
    if any(len(each) not in (1, n) for each in lists.values()):
        raise UserError(
            " and ".join(f"{len(each)} {name}" for name, each in lists.items() if len(each) > 1)
            + " do not pair up"
        )
    return [each * (n // len(each)) for each in lists.values()]


def _sized(image: Image.Image, settings: Settings) -> Image.Image:
    """The content picture at the result's size."""
    if isinstance(settings.size, Integral):
        _check_scaled(image, settings.size)
        return resize_short_side(image, settings.size)
    _check_scaled(image, min(settings.size))
    return ImageOps.fit(image, tuple(settings.size), Image.Resampling.LANCZOS)


def _fitted(start: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture to begin with, at the result's size. Raises UserError for another aspect."""
    if abs(start.width * size[1] / (start.height * size[0]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"start, a picture of {start.width}x{start.height} pixels, does not have the result's aspect, {size[0]}x{size[1]}"
        )
    return start if start.size == size else start.resize(size, Image.Resampling.LANCZOS)


def _size_alone(settings: Settings) -> tuple[int, int]:
    return (settings.size, settings.size) if isinstance(settings.size, Integral) else tuple(settings.size)


def _check_scaled(image: Image.Image, size: int) -> None:
    if min(image.size) < 1 or size**2 * max(image.size) > MAX_RESULT_PIXELS * min(image.size):
        raise UserError(
            f"a picture of {image.width}x{image.height} pixels cannot be scaled to a shorter side of {size}: the result "
            f"would be empty or have more than {MAX_RESULT_PIXELS} pixels"
        )


def _batches(kinds: list[Any], batch_size: int) -> Iterator[list[int]]:
    """The places of equal kinds together, at most `batch_size` at a time."""
    members: dict[Any, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    for places in members.values():
        yield from (places[i : i + batch_size] for i in range(0, len(places), batch_size))


def _watched(bar: tqdm, work: float, path: list[Step]) -> Iterator[Step]:
    """Lets sampling steps through and counts their work on the bar."""
    for step in path:
        yield step
        bar.update(work)


def _watched_level(bar: tqdm, level: Level) -> Iterator[int]:
    for i in range(level.steps):
        yield i
        bar.update(level.work / level.steps)


def _mildly_guided(batch: Batch) -> Batch:
    """What a fine picture begins with: the energy does the rest, and far scales would only leave it less to work with."""
    low, high = MILD_SCALES
    content_scales, style_scales = (
        [min(max(scale, low), high) for scale in scales]
        for scales in (batch.content_scales, batch.style_scales)
    )
    return replace(batch, content_scales=content_scales, style_scales=style_scales)


def _sampling_style_size(settings: Settings, native_size: int) -> int:
    """Shorter side of the style pictures whose statistics the network sees."""
    if settings.style_size is None:
        return native_size
    # The fine look samples at a smaller size, with paintings as much smaller.
    return (
        max(MIN_SIDE, round(settings.style_size * native_size / max(native_size, settings.short_side)))
        if settings.has_brush
        else settings.style_size
    )


def _order(job: _Job, batch: Batch, settings: Settings, detail: float) -> Order:
    """What the brush is to do with a batch of one."""
    return Order(
        size=batch.size,
        styles=job.style.regions,
        content=batch.content,
        masks=None if batch.masks is None else batch.masks[0],
        keep=batch.keep,
        content_scale=job.content_scale,
        style_scale=job.style_scale,
        strength=settings.strength,
        detail=detail,
        style_size=settings.style_size,
        luminance=settings.preserve_color,
    )


def _finish(job: _Job, painted: Image.Image, settings: Settings) -> Image.Image:
    """What is done to the pixels: the photo's colours, the kept part of the photo itself."""
    if job.content is not None and settings.preserve_color:
        painted = with_colors_of(job.content, painted)
    if job.content is not None and job.keep is not None:
        painted = Image.composite(
            job.content, painted, job.keep.resize(painted.size, Image.Resampling.BILINEAR)
        )
    return painted
