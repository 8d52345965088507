"""Painted clips: how steady they are, each frame for itself and carried along."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch.utils.benchmark import timer
from tqdm import tqdm

from benchmarks.measuring import machine
from benchmarks.options import SteadinessOptions
from ldm.data.splits import find_pictures
from ldm.device import choose_device
from ldm.errors import UserError
from ldm.evaluation.metrics import PairMetrics, load_vgg
from ldm.evaluation.steadiness import warping_error
from ldm.files import own_or
from ldm.media.clips import Frame, open_clip
from ldm.media.flow import opencv
from ldm.media.images import load_image, load_square, save_image
from ldm.media.motion import DEFAULT_SMOOTH
from ldm.media.tensors import image_to_tensor
from ldm.pipeline.clip import painted_clip
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

NOISE = 2  # levels of 255, the deviation of the camera's
SAMPLED = 4  # every so many frames are compared with the painting

Clip = list[Image.Image]


@dataclass(frozen=True)
class Result:
    """A painted clip, and the seconds that a frame took; None where another program made it."""

    frames: Clip
    seconds: float | None = None


def run(options: SteadinessOptions) -> None:
    Settings(size=options.size).check()
    opencv()
    painting = load_image(own_or(options.style))
    pipeline = StyleTransferPipeline.from_pretrained(options.checkpoint, options.config, options.device)
    ways = {"each frame for itself": 0.0, f"--smooth {DEFAULT_SMOOTH}, the default": DEFAULT_SMOOTH}
    rows = []
    for name, make in tqdm(CLIPS.items(), unit="clip"):
        clip = make(options.frames, options.size)
        _keep(clip, options, name, "clip")
        results = {way: painted(pipeline, clip, painting, options, smooth) for way, smooth in ways.items()}
        for way, smooth in ways.items():
            _keep(results[way].frames, options, name, f"smooth_{smooth:g}")
        if options.compare:
            results["the other program"] = Result(_of_other(Path(options.compare, f"{name}.mp4"), clip))
        rows += table_rows(name, clip, results, PaintDistance(own_or(options.style), options.size))
    print(
        f"look {options.look}, {options.frames} frames of {options.size} x {options.size} pixels, {machine(choose_device(options.device))}\n"
    )
    head = ["clip", "painted", "warping error x 10^4", "of each for itself", "style share", "seconds a frame"]
    print(markdown_table(head, rows, names=2))


def painted(
    pipeline: StyleTransferPipeline,
    clip: Clip,
    painting: Image.Image,
    options: SteadinessOptions,
    smooth: float,
) -> Result:
    settings = Settings(look=options.look, size=options.size)
    paint = partial(pipeline, style=painting, settings=settings)
    frames = iter([Frame(picture, i, i, str(i)) for i, picture in enumerate(clip)])
    began = timer()
    results = [frame.picture for frame in painted_clip(frames, paint, settings, smooth, batch_size=8)]
    return Result(results, (timer() - began) / len(clip))


class PaintDistance:
    """How far frames are from a painting, as `artfusion evaluate` tells it."""

    def __init__(self, style: Path, size: int):
        self.metrics = PairMetrics(load_vgg())
        self.style = self.metrics.styles([image_to_tensor(load_square(style, size))[None]])

    def __call__(self, clip: Clip, results: Clip) -> float:
        """The mean style share of every so many frames."""
        shares = []
        for content, result in list(zip(clip, results))[::SAMPLED]:
            one, other = (image_to_tensor(picture)[None] for picture in (content, result))
            shares.append(
                self.metrics.measure(other, self.metrics.content(one), self.style)[0]["style_share"]
            )
        return statistics.fmean(share for share in shares if share is not None)


def table_rows(name: str, clip: Clip, results: dict[str, Result], distance: PaintDistance) -> list[list[str]]:
    errors = {way: 1e4 * warping_error(clip, result.frames) for way, result in results.items()}
    first = next(iter(errors.values()))
    return [
        [
            name,
            way,
            f"{errors[way]:.2f}",
            f"1 : {first / errors[way]:.1f}",
            f"{distance(clip, result.frames):.3f}",
            "" if result.seconds is None else f"{result.seconds:.2f}",
        ]
        for way, result in results.items()
    ]


def _keep(frames: Clip, options: SteadinessOptions, *names: str) -> None:
    for i, frame in enumerate(frames if options.save else []):
        save_image(frame, Path(options.save, *names, f"{i:04d}.png"))


def _of_other(path: Path, clip: Clip) -> Clip:
    """What another program made of a clip, as large as that."""
    frames = [
        frame.picture.resize(clip[0].size, Image.Resampling.LANCZOS) for frame in open_clip(path).frames()
    ]
    if len(frames) != len(clip):
        raise UserError(f"{path}: has {len(frames)} frames, where the clip has {len(clip)}")
    return frames


# The clips


def pan(count: int, side: int, photo: str = "chenonceau_castle.jpg", seed: int = 0) -> Clip:
    """A view that wanders over a photo and comes a little nearer, by parts of pixels."""
    wide = ImageOps.fit(_photo(photo), (round(1.4 * side),) * 2, Image.Resampling.LANCZOS)
    step, near = 0.3 * side / max(count, 24), 0.1 / max(count, 24)
    views = [_part(wide, (step * i, 0.3 * step * i), 1.02 - near * i, side) for i in range(count)]
    return list(_seen_by_camera(views, seed))


def moving(count: int, side: int) -> Clip:
    """A round picture on its way before a photo that stands still."""
    back = ImageOps.fit(_photo("great_wall.jpg"), (side, side), Image.Resampling.LANCZOS)
    disc = ImageOps.fit(_photo("astronaut.jpg"), (side // 2, side // 2), Image.Resampling.LANCZOS)
    mask = Image.radial_gradient("L").point(lambda level: 255 * (level < 120)).resize(disc.size)
    mask = mask.filter(ImageFilter.GaussianBlur(1))
    views = []
    for i in range(count):
        offset = (
            -0.05 * side - 0.45 * side * i / max(count, 24),
            -0.3 * side - 0.1 * side * i / max(count, 24),
        )
        one, where = (_part(each, offset, 1, side) for each in (disc, mask))
        views.append(Image.composite(one, back, where))
    return list(_seen_by_camera(views, 100))


def cut(count: int, side: int) -> Clip:
    """Two pans, one after the other."""
    first = pan(count // 2, side, "brandenburg_gate.jpg", 200)
    return first + pan(count - len(first), side, "moose.jpg", 300)


CLIPS: dict[str, Callable[[int, int], Clip]] = {"pan": pan, "moving": moving, "cut": cut}


def _photo(name: str) -> Image.Image:
    return load_image(next(p for p in find_pictures(own_or("data/contents")) if Path(p).name == name))


def _part(picture: Image.Image, offset: tuple[float, float], scale: float, side: int) -> Image.Image:
    """A square of the picture, from a place between its pixels."""
    lines = (scale, 0, offset[0], 0, scale, offset[1])
    return picture.transform((side, side), Image.Transform.AFFINE, lines, Image.Resampling.BICUBIC)


def _seen_by_camera(views: Clip, seed: int) -> Iterator[Image.Image]:
    for i, view in enumerate(views):
        noise = np.random.default_rng(seed + i).normal(0, NOISE, (view.height, view.width, 3))
        yield Image.fromarray(np.clip((np.asarray(view) + noise).round(), 0, 255).astype(np.uint8))
