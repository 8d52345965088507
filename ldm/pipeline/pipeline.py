"""The one door for inference: pictures in, stylised pictures out.

    from ldm import StyleTransferPipeline

    pipeline = StyleTransferPipeline.from_pretrained()
    picture = pipeline("photo.jpg", "painting.jpg", style_scale=2.0, seed=1)
    picture.save("result.png")

Settings are those of `ldm.pipeline.settings.Settings`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.checks import rightly_called
from ldm.device import choose_device, choose_precision, memory_errors, own_ways, total_memory
from ldm.errors import ConfigError, UserError, in_short
from ldm.media.images import short_side_at
from ldm.media.tensors import image_to_tensor, tensor_to_image
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.inference import build_for_inference, load_for_inference
from ldm.modules.diffusionmodules.model import StyleUNetModel
from ldm.modules.diffusionmodules.util import sum_of
from ldm.modules.losses.lpips import VGG_CHANNELS, vgg16
from ldm.pipeline.brush import Brush, Level, Order, Stopped, bundled_vgg16, canvas, levels, painting_tensors
from ldm.pipeline.bundled import resolve_checkpoint
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.engine import Batch, Finish, Painter, unfinished
from ldm.pipeline.inputs import Picture, Style, mask_array
from ldm.pipeline.jobs import Job, PaintingStopped, Request, batches
from ldm.pipeline.memory import Size, check_painted, check_style
from ldm.pipeline.progress import LAYING_WORK, SAMPLING_WORK, Meter, Watcher
from ldm.pipeline.recolouring import recolour, to_paint
from ldm.pipeline.settings import MIN_SIDE, UNSAID, Flag, Number, Range, Settings
from ldm.pipeline.texture import Texturer
from ldm.pipeline.tiles import UNCUT

# below, content guidance dissolves the photo; above, style guidance overshoots the painting's
# colours
MILD_SCALES = (1.0, 2.0)


class StyleTransferPipeline:
    """A model ready to stylise. Make one with `from_pretrained`."""

    def __init__(
        self,
        model: DualCondModel,
        precision: str = "fp32",
        compile: bool = False,
        brush_network: vgg16 | None = None,
    ):
        """brush_network: the VGG16 that leads the looks with gradient steps; None is the model's own, else the
        bundled one."""
        self.before_each: Callable[[], object] = lambda: None  # called before pictures are painted
        self.model = make_fast(model.eval())
        if not isinstance(model.model.diffusion_model, StyleUNetModel):
            raise ConfigError(
                f"the pipeline needs a StyleUNetModel, not a {type(model.model.diffusion_model).__name__}"
            )
        recorder = Recorder() if compile and self.model.device.type == "cuda" else None
        self.painter = Painter(self.model, precision, recorder)
        self._brush_network = brush_network
        if compile:
            compile_networks(self.model)

    @cached_property
    def brush(self) -> Brush:
        """What leads the looks with gradient steps. Raises UserError where VGG16's file is gone."""
        vgg = self.model.vgg
        own = vgg if vgg.channels == VGG_CHANNELS and vgg.has_weights else None
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

        config: its YAML; by default the one in the checkpoint, else that of the published model.
        Averaged weights are used where a checkpoint has them. compile: torch.compile the networks, and on CUDA record whole pictures
        as graphs, which takes a minute at the first picture of each size and pays on a GPU from
        some hundred pictures on. Raises UserError for whatever is missing, broken or does not fit
        together.
        """
        where = choose_device(device)
        precision = choose_precision(precision, where)
        path, config_path = resolve_checkpoint(checkpoint, config)
        with own_ways(torch.device("cpu")), torch.random.fork_rng([]):
            model = load_for_inference(path, config_path, DualCondModel, allow_targets)
            model.load_style_network()
            # float32, whatever the default for new weights is
            return cls(model.to(where, torch.float32), precision, compile)

    @rightly_called
    def __call__(
        self,
        content: Picture | Sequence[Picture] | None,
        style: Style | Sequence[Style],
        *,
        settings: Settings = Settings(),
        keep: Picture | None = None,
        palette: Picture | None = None,
        not_style: Picture | None = None,
        start: Picture | Sequence[Picture] | None = None,
        scene: Picture | Sequence[Picture] | None = None,
        batch_size: int = 8,
        progress: bool = False,
        watch: Watcher | None = None,
        **changes: Any,
    ) -> Image.Image | list[Image.Image]:
        """The content picture(s) painted in the style(s): one picture, or a list of them.

        Pictures, here and in mixes and masks, are paths, files open for reading bytes, PIL pictures,
        numpy arrays of uint8, (H, W), (H, W, 3) or (H, W, 4), or torch tensors of uint8 or of floats
        from 0 to 1, (H, W), (1, H, W), (3, H, W) or (4, H, W): grey, RGB or RGBA.
        content: None shows what the model knows of the style by itself.
        style: a picture, or a StyleMix or StyleRegions of several; what of a painting is transparent
        does not count. Lists of the same length pair up, a single one goes with all. settings, changes: see
        `ldm.pipeline.settings.Settings`, whose fields may be given by name.
        keep: a black and white picture, white where the content stays as it is; or "faces", for
        those of each picture.
        palette: a picture whose colours the styles take first: their brush work in its colours.
        not_style: a painting that the style is led away from, by as much as style_scale is above 1.
        Where all paintings of a result are black and white, so is the result.
        start: for looks with gradient steps, picture(s) to begin with instead of sampling, such as the frame
        before: only the steps of the last size are made. scene: picture(s) whose colours are taken for those
        of the content, where they go to the style's: of several frames together, so that they have
        the same map of colours. progress: show a bar. watch: called after
        every step with a `ldm.pipeline.progress.Progress`, which has the pictures as they are by
        then; what it raises ends the painting.
        Raises UserError for unusable pictures and settings, also for a result or a painting that would take more
        than 0.8 of the device's memory (see `ldm.pipeline.memory`), and PaintingStopped with the picture as
        far as it came on Ctrl-C in its gradient steps.
        """
        if not isinstance(settings, Settings):
            raise UserError(f"settings must be a Settings, got {in_short(settings)}; single ones go by name")
        settings = settings.but(**changes)
        settings.check(self.model.num_timesteps)
        Number("", range=Range(1), whole=True).check("batch_size", batch_size)
        Flag("").check("progress", progress)
        if watch is not None and not callable(watch):
            raise UserError(f"watch must be a function, got {in_short(watch)}")
        if content is None:
            settings = _without_photo(settings)
        request = Request(content, style, keep, start, palette, not_style, scene)
        if not settings.paints:
            results = recolour(request, settings)
            return results[0] if request.is_single else results
        jobs = request.jobs(settings, self.painter.native_size)
        for places in _together(jobs, settings, batch_size):
            self.check_memory([jobs[i].size for i in places], settings)
        self._check_styles(jobs, settings)
        with own_ways(self.model.device), memory_errors("choose a smaller size, batch_size or tile"):
            results = self._paint_all(jobs, settings, batch_size, progress, watch)
        return results[0] if request.is_single else results

    def check_memory(self, sizes: Sequence[Size], settings: Settings) -> None:
        """Raises UserError for results of these (width, height) that take too much together."""
        check_painted(sizes, settings.has_brush, total_memory(self.model.device))

    def _check_styles(self, jobs: Sequence[Job], settings: Settings) -> None:
        there = total_memory(self.model.device)
        side = _sampling_style_size(settings, self.painter.native_size)
        for size in {picture.size for job in jobs for picture in job.paintings}:
            check_style(short_side_at(size, side), there)

    def _paint_all(
        self, jobs: list[Job], settings: Settings, batch_size: int, progress: bool, watch: Watcher | None
    ) -> list[Image.Image]:
        """Pictures of the same kind go through together, with gradient steps each alone; the results
        keep the order."""
        statistics = self._statistics(jobs, settings)
        together = _together(jobs, settings, batch_size)
        results: dict[int, Image.Image] = {}
        texturer = self._texturer(settings)
        firsts = [jobs[places[0]] for places in together]
        total = sum(self.work_at(job.size, settings, job.start is not None) for job in firsts)
        with Meter(total, progress, watch) as meter:
            for places in together:
                self.before_each()
                members = [jobs[i] for i in places]
                recolor = settings.strength * self.painter.value("recolor", settings)
                batch = self._batch(members, statistics, recolor)
                if settings.has_brush:
                    painted = self._finely_painted(members[0], batch, settings, meter)
                else:
                    guided = _guided_by(batch, settings.strength)
                    finish = self._texturing(members, settings, texturer, meter)
                    painted = self.painter.paint(guided, settings, meter.sampling, finish)
                results |= {
                    i: jobs[i].finished(tensor_to_image(p), settings) for i, p in zip(places, painted)
                }
            meter.finish()
        return [results[i] for i in range(len(jobs))]

    def _texturer(self, settings: Settings) -> Texturer:
        side = _sampling_style_size(settings, self.painter.native_size)
        return Texturer(self.painter.codec, self.painter.precision, side)

    def _texturing(self, jobs: list[Job], settings: Settings, texturer: Texturer, meter: Meter) -> Finish:
        """What lays the texture of these jobs' paintings over their sampled pictures; what is kept of a
        photo is no place for it."""
        texture = settings.strength * self.painter.value("texture", settings)

        def textured(painted: Tensor, batch: Batch) -> Tensor:
            assert batch.content is not None
            enlarged = min(jobs[0].size) / min(batch.size)
            pictures = []
            for i, job in enumerate(jobs):
                picture, content = painted[i : i + 1], batch.content[i : i + 1]
                masks = None if batch.masks is None else batch.masks[i]
                laid = texturer.lay(
                    picture, content, job.style.regions, masks, texture * job.style_share, enlarged
                )
                pictures.append(
                    laid if batch.keep is None else torch.lerp(laid, picture, batch.keep[i : i + 1])
                )
            result = torch.cat(pictures)
            meter.laid(_laying_work(batch.size), lambda: result)
            return result

        return textured if texture else unfinished

    def _finely_painted(self, job: Job, batch: Batch, settings: Settings, meter: Meter) -> Tensor:
        """(1, 3, H, W), sampled, or as given to begin with, and led to the painting's brush
        work."""
        if job.start is None:
            smaller = batch.resized(self._start_size(batch.size, settings))
            start = self.painter.paint(_mildly_guided(smaller, settings), settings, meter.sampling)
        else:
            start = image_to_tensor(job.start)[None].to(self.model.device)
        order = _order(job, batch, settings, self.painter.value("detail", settings))
        try:
            return self.brush.finish(
                start, order, settings.effective_look, meter.brushing, only_last=job.start is not None
            )
        except Stopped as stopped:
            picture = tensor_to_image(stopped.picture[0])
            raise PaintingStopped(job.finished(picture, settings)) from None

    def _start_size(self, size: tuple[int, int], settings: Settings) -> tuple[int, int]:
        """(height, width) at which a fine picture is sampled: the largest of its sizes that the
        model paints in one piece."""
        shares = [level.share for level in reversed(_levels(size, settings))]
        sizes = [(round(size[0] * share), round(size[1] * share)) for share in shares]
        return next((each for each in sizes if min(each) <= UNCUT * self.painter.native_size), sizes[-1])

    def work_at(self, size: tuple[int, int], settings: Settings, begun: bool = False) -> float:
        """What a picture of this (width, height) costs, in gradient steps of 256 x 256 pixels.
        begun: with a `start`."""
        upright = size[::-1]
        if not settings.has_brush:
            laid = self.painter.finished_sizes(upright, settings)
            texture = sum(map(_laying_work, laid)) if self.painter.value("texture", settings) else 0
            return SAMPLING_WORK * self.painter.count_steps(upright, settings) + texture
        work = sum(level.work for level in _levels(upright, settings, only_last=begun))
        if begun:
            return work
        sampling = SAMPLING_WORK * self.painter.count_steps(self._start_size(upright, settings), settings)
        return sampling + work

    def _statistics(self, jobs: list[Job], settings: Settings) -> dict[int, Tensor]:
        """The (style_dim,) statistics of every style picture, by its id."""
        size = _sampling_style_size(settings, self.painter.native_size)
        pictures = {id(p): p for job in jobs for p in job.paintings}
        return {key: self.encode_style(picture, size)[0] for key, picture in pictures.items()}

    def encode_style(self, image: Image.Image, size: int) -> Tensor:
        """(1, style_dim) statistics of the whole picture, or of what of it is not transparent,
        scaled to the shorter side `size`."""
        return self.painter.style_statistics(*painting_tensors(image, size, self.model.device))

    def _batch(self, jobs: list[Job], statistics: dict[int, Tensor], recolor: float) -> Batch:
        device, (width, height) = self.model.device, jobs[0].size
        regions = [
            [sum_of(weight * statistics[id(p)] for p, weight in region) for region in job.style.regions]
            for job in jobs
        ]
        masks = [job.style.shares(job.size) for job in jobs]
        keep = [mask_array(job.held, job.size)[None] for job in jobs if job.held is not None]
        contents = [image_to_tensor(to_paint(job, recolor)) for job in jobs if job.content is not None]
        return Batch(
            style=torch.stack([torch.stack(job_regions) for job_regions in regions]),
            size=(height, width),
            seeds=[job.seed for job in jobs],
            not_style=None if jobs[0].not_style is None else statistics[id(jobs[0].not_style)][None],
            content_scales=[job.content_scale for job in jobs],
            style_scales=[job.style_scale for job in jobs],
            content=torch.stack(contents).to(device) if contents else None,
            masks=None if masks[0] is None else _stacked(masks).to(device),
            keep=_stacked(keep).to(device) if keep else None,
        )


def build_model(config_path: str | Path, allow_targets: Iterable[str] = ()) -> DualCondModel:
    """The style transfer model of a config file for inference: no weights yet, no averages. Raises
    UserError."""
    return build_for_inference(config_path, DualCondModel, allow_targets)


def make_fast(model: DualCondModel) -> DualCondModel:
    """The model in the form that paints fastest on CPU and GPU alike."""
    # Autocast keeps the converted copy of a weight only where the weight requires a gradient, and
    # converts the others again at every step. No gradient is ever computed here.
    return model.requires_grad_(True).to(memory_format=torch.channels_last)


def compile_networks(model: DualCondModel) -> None:
    """Compile what does the work, for each shape of its own."""
    network = model.model.diffusion_model
    network.predict = torch.compile(network.predict, dynamic=False)
    model.first_stage_model.decoder.compile(dynamic=False)


def _together(jobs: Sequence[Job], settings: Settings, batch_size: int) -> list[list[int]]:
    """The places of the jobs that go through together."""
    # Small differences grow from one gradient step to the next, so company would change a fine
    # picture.
    return list(batches(jobs, 1 if settings.has_brush else batch_size))


def _stacked(arrays: Sequence[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays])


def _laying_work(size: tuple[int, int]) -> float:
    """Of texture on a picture of this (height, width), in gradient steps of 256 x 256 pixels."""
    return LAYING_WORK * size[0] * size[1] / 256**2


def _without_photo(settings: Settings) -> Settings:
    """With nothing left to the model: there are no plain places of a photo for texture, and there is
    no detail to enlarge with."""
    left = [name for name in settings.left_to_model if settings.value(name) is None]
    return settings.but(**{name: UNSAID[name] for name in left})


def _levels(size: tuple[int, int], settings: Settings, only_last: bool = False) -> list[Level]:
    """The brush's way to a picture of this (height, width)."""
    return levels(canvas(size), settings.effective_look, only_last)


def _mildly_guided(batch: Batch, settings: Settings) -> Batch:
    """What gradient steps begin with: the energy does the rest, and far scales would only leave it
    less to work with."""
    low, high = MILD_SCALES
    content_scales, style_scales = (
        # of a photo with little noise all of the look's guidance would lead far past both pictures
        [min(max((1 + settings.strength * (by - 1)) * scale, low), high) for scale in scales]
        for by, scales in zip(settings.effective_look.guided, (batch.content_scales, batch.style_scales))
    )
    return replace(batch, content_scales=content_scales, style_scales=style_scales)


def _guided_by(batch: Batch, strength: float) -> Batch:
    """With as much of the guidance: from a photo with little noise all of it would lead far past both
    pictures."""
    # so written, a strength of 1 changes nothing, to the last digit
    return batch.rescaled(lambda scale: strength * scale + (1 - strength))


def _sampling_style_size(settings: Settings, native_size: int) -> int:
    """Shorter side of the style pictures whose statistics the network sees."""
    if settings.style_size is None:
        return native_size
    if not settings.has_brush:
        return settings.style_size
    # Looks with gradient steps sample at a smaller size, with paintings as much smaller.
    return max(MIN_SIDE, round(settings.style_size * native_size / max(native_size, settings.short_side)))


def _order(job: Job, batch: Batch, settings: Settings, detail: float) -> Order:
    """What the brush is to do with a batch of one."""
    return Order(
        size=batch.size,
        styles=job.style.regions,
        content=batch.content,
        masks=None if batch.masks is None else batch.masks[0],
        keep=batch.keep,
        content_scale=job.content_scale,
        style_scale=job.style_scale,
        not_style=job.not_style,
        strength=settings.strength,
        detail=detail,
        style_size=settings.style_size,
        luminance=settings.preserve_color,
    )
