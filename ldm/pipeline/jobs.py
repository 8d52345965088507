"""From what a caller asks for to pictures to paint one by one: everything read, paired, scaled and
checked before any work."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageOps

from ldm.checks import FACES
from ldm.errors import UserError
from ldm.media.images import short_side_at, upright_size, with_colors_of, without_alpha
from ldm.media.places import elsewhere
from ldm.pipeline.faces import find_faces
from ldm.pipeline.inputs import (
    Picture,
    PictureReader,
    ReadStyle,
    Style,
    fitted_mask,
    name_of,
    same_aspect,
)
from ldm.pipeline.settings import MAX_RESULT_PIXELS, MIN_SIDE, Settings, as_list

LONGEST = (
    50  # times its shorter side is what is enlarged: beyond, it is hardly meant, and has millions of pixels
)


@dataclass(frozen=True)
class Job:
    """One picture to paint. `content` has the result's size; None shows the style alone. keep: white
    where it stays as it is. faces: grey where it is to be painted with less of the style. start: what
    to begin with, of the result's size too. scene: a picture whose colours the photo's are taken for. alpha: what the result is to have, None for none.
    not_style: a painting that it is to be led away from."""

    content: Image.Image | None
    style: ReadStyle
    size: tuple[int, int]  # width, height
    seed: int
    content_scale: float
    style_scale: float
    keep: Image.Image | None
    start: Image.Image | None
    alpha: Image.Image | None = None
    not_style: Image.Image | None = None
    faces: Image.Image | None = None
    scene: Image.Image | None = None

    @property
    def paintings(self) -> list[Image.Image]:
        """All style pictures, what it is not to be like included."""
        return [*self.style.pictures, *([] if self.not_style is None else [self.not_style])]

    @property
    def style_share(self) -> float:
        """How much of what is taken of the style besides the sampling its scale asks for: nothing at 0
        and below, all of it from 1 on."""
        return min(max(self.style_scale, 0.0), 1.0)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of the same kind go through the model together."""
        return (
            self.size,
            self.content is None,
            len(self.style.regions),
            self.style.masks is None,
            self.held is None,
        )

    @property
    def held(self) -> Image.Image | None:
        """How far the content stays, or None where all of it is painted: a grey picture of the
        result's size."""
        if self.keep is None or self.faces is None:
            return self.keep or self.faces
        return ImageChops.lighter(self.keep, self.faces)

    def finished(self, painted: Image.Image, settings: Settings) -> Image.Image:
        """What is done to the pixels at the end: the photo's colours, or none for paintings without,
        the kept part of the photo itself, its transparency."""
        if self.style.is_grey:
            painted = painted.convert("L").convert("RGB")
        if self.content is not None and settings.preserve_color:
            painted = with_colors_of(self.content, painted)
        if self.content is not None and self.keep is not None:
            painted = Image.composite(self.content, painted, self.keep)
        if self.content is not None and self.faces is not None:
            # Two pictures in one are seen as such, so the photo itself comes in late.
            photo = self.faces.point(lambda value: round(settings.face_detail**3 * value))
            painted = Image.composite(self.content, painted, photo)
        if self.alpha is not None:
            painted = painted.copy()
            painted.putalpha(self.alpha)
        return painted


class PaintingStopped(KeyboardInterrupt):
    """Ctrl-C while a picture was on its way; `picture` is as far as it came."""

    def __init__(self, picture: Image.Image):
        super().__init__("stopped")
        self.picture = picture


@dataclass(frozen=True)
class Request:
    """What a caller asks for: see `StyleTransferPipeline.__call__`."""

    content: Picture | Sequence[Picture] | None
    style: Style | Sequence[Style]
    keep: Picture | None = None
    start: Picture | Sequence[Picture] | None = None
    palette: Picture | None = None
    not_style: Picture | None = None
    scene: Picture | Sequence[Picture] | None = None

    @property
    def is_single(self) -> bool:
        """Whether nothing is a list, so that the answer is none."""
        return not any(
            isinstance(given, (list, tuple)) for given in (self.content, self.style, self.start, self.scene)
        )

    def jobs(self, settings: Settings, native_size: int) -> list[Job]:
        """The pictures to paint, for a model trained at `native_size`. Raises UserError."""
        style_side = settings.style_side(native_size)
        self._check(settings)
        read = PictureReader(style_side, self.palette)
        contents = (
            [(None, "")]
            if self.content is None
            else [(sized(read.content(c), settings), name_of(c)) for c in _listed(self.content)]
        )
        styles = [read.style(s) for s in _listed(self.style)]
        not_style = None if self.not_style is None else read.style(self.not_style).pictures[0]
        contents, styles, starts, scenes = _paired(
            contents=contents,
            styles=styles,
            starts=[None] if self.start is None else [read(s) for s in _listed(self.start)],
            scenes=[None] if self.scene is None else [read.content(s) for s in _listed(self.scene)],
        )
        each = [settings.each(name, len(contents)) for name in ("seed", "content_scale", "style_scale")]
        square = settings.shape or (settings.short_side, settings.short_side)
        jobs = []
        for (content, name), style, start, scene, seed, *both in zip(contents, styles, starts, scenes, *each):
            size = square if content is None else content.size
            begun = None if start is None else _fitted(start, size)
            content, alpha = (None, None) if content is None else without_alpha(content)
            keep, faces = (None, None) if content is None else self._held(content, name, read, settings)
            scales = float(both[0]), float(both[1])
            jobs.append(
                Job(content, style, size, int(seed), *scales, keep, begun, alpha, not_style, faces, scene)
            )
        for job in jobs:
            _check_job(job, style_side)
        return jobs

    def sizes_of_files(self, settings: Settings) -> list[tuple[int, int]]:
        """(width, height) of the results of photos in files of this machine, of which only the heads
        are read. Raises UserError where there cannot be one."""
        paths = [given for given in _listed(self.content) if isinstance(given, (str, os.PathLike))]
        return [result_size(upright_size(path), settings) for path in paths if elsewhere(path) is None]

    def _held(
        self, content: Image.Image, name: str, read: PictureReader, settings: Settings
    ) -> tuple[Image.Image | None, Image.Image | None]:
        """A job's (keep, faces) for a content picture that comes from the file `name`."""
        by_faces, share = isinstance(self.keep, str) and self.keep == FACES, settings.face_detail
        found = find_faces(content, name) if by_faces or share else None
        faces = found.point(lambda value: round(share * value)) if found and share else None
        if self.keep is None or by_faces:
            return found if by_faces else None, faces
        return fitted_mask(read.mask(self.keep), content.size), faces

    def _check(self, settings: Settings) -> None:
        if self.content is None and not settings.paints:
            raise UserError(f"the look {settings.look} needs a content picture")
        if self.content is None and (
            self.keep is not None
            or settings.detail
            or settings.recolor
            or settings.texture
            or settings.strength < 1
            or settings.face_detail
            or settings.preserve_color
            or self.scene is not None
        ):
            raise UserError(
                "keep, detail, recolor, texture, strength, face_detail, preserve_color and scene need a content picture"
            )
        check_beside(settings, self.palette, self.not_style)
        if self.start is not None and not settings.has_brush:
            raise UserError(
                f"start is for looks with gradient steps, such as fine; the look {settings.look} makes none"
            )


def check_beside(settings: Settings, palette: Picture | None, not_style: Picture | None) -> None:
    """Raises UserError where what is given for all styles does not go with the settings."""
    if palette is not None and settings.preserve_color:
        raise UserError("palette and preserve_color both say whose colours; give one of them")
    for name, given in (("palette", palette), ("not_style", not_style)):
        if given is not None and not settings.paints:
            raise UserError(
                f"{name} is for looks that paint; the look {settings.look} takes the colours of the style"
            )
    lowest = min(as_list(settings.value("style_scale")))
    if not_style is not None and lowest <= 1:
        raise UserError(
            f"not_style leads away by as much as style_scale is above 1, and it is {lowest:g}; give a larger one, such as 1.5, or the look free"
        )


def batches(jobs: Sequence[Job], batch_size: int) -> Iterator[list[int]]:
    """The places of jobs of the same kind together, at most `batch_size` at a time."""
    members: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        members.setdefault(job.kind, []).append(i)
    for places in members.values():
        yield from (places[i : i + batch_size] for i in range(0, len(places), batch_size))


def _check_job(job: Job, style_side: int) -> None:
    """Raises UserError for masks that do not fit, and style pictures that cannot be scaled."""
    job.style.shares(job.size)
    for picture in job.paintings:
        check_scaled(picture.size, style_side, "a painting")


def _listed(one_or_more: Any) -> list[Any]:
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]


def _paired(**lists: list[Any]) -> list[list[Any]]:
    """The lists at the length of the longest: those of one repeat it. Raises UserError for other
    lengths, and for none."""
    if not all(lists.values()):
        raise UserError("no pictures to work on: content, style, start or scene is an empty list")
    n = max(map(len, lists.values()))
    if any(len(each) not in (1, n) for each in lists.values()):
        raise UserError(
            " and ".join(f"{len(each)} {name}" for name, each in lists.items() if len(each) > 1)
            + " do not pair up"
        )
    return [each * (n // len(each)) for each in lists.values()]


def result_size(given: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """(width, height) of the result of a photo of this one. Raises UserError where there cannot be
    one."""
    check_scaled(given, settings.short_side, "a photo")
    if settings.shape is not None:
        return settings.shape
    size = short_side_at(given, settings.short_side)
    if max(given) > LONGEST * min(given) and min(given) < settings.short_side:
        example = (MIN_SIDE * LONGEST, MIN_SIDE) if given[0] > given[1] else (MIN_SIDE, MIN_SIDE * LONGEST)
        raise UserError(
            f"a photo of {given[0]}x{given[1]} pixels, more than {LONGEST} times as long as wide, would be enlarged to "
            f"{size[0]}x{size[1]}; crop it, or say both sides of the size, such as {example[0]}x{example[1]}"
        )
    return size


def sized(image: Image.Image, settings: Settings) -> Image.Image:
    """The content picture at the result's size. Raises UserError where it cannot have that."""
    size = result_size(image.size, settings)
    if settings.shape is None:
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def _fitted(start: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture to begin with, at the result's size. Raises UserError for another aspect."""
    if not same_aspect(start.size, size):
        raise UserError(
            f"start, a picture of {start.width}x{start.height} pixels, does not have the result's aspect, {size[0]}x{size[1]}"
        )
    return start if start.size == size else start.resize(size, Image.Resampling.LANCZOS)


def check_scaled(size: tuple[int, int], side: int, what: str) -> None:
    """Raises UserError for a picture of this (width, height) that cannot have that shorter side."""
    if min(size) < 1 or side**2 * max(size) > MAX_RESULT_PIXELS * min(size):
        raise UserError(
            f"{what} of {size[0]}x{size[1]} pixels cannot be scaled to a shorter side of {side}: the result "
            f"would be empty or have more than {MAX_RESULT_PIXELS} pixels"
        )
