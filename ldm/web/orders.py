"""What a visitor asks for, read and checked before it waits for its turn: pictures, drawn masks,
dials.

Nothing here imports torch or gradio.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from ldm.errors import UserError
from ldm.media.images import NamedBytes, at_most, load_image, read_metadata
from ldm.pipeline.inputs import OneStyle, Style, StyleMix, StyleRegions, one_with_paintings, read_picture
from ldm.pipeline.library import library
from ldm.pipeline.looks import LOOKS
from ldm.pipeline.provenance import METADATA_KEY
from ldm.pipeline.settings import DIALS, Number, Settings, Size, as_list

STYLE_KEY = "artfusion-style"  # in the metadata of a picture of the shelf: the style that it stands for
MAX_FILE_BYTES = 30 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # what the cameras of phones make; 150 MB as RGB
MAX_DRAWING_BYTES = 2 * 2**20
LONGEST = 3  # times as long as wide is what a photo of the page's may be
MAX_STEPS, MAX_EFFORT = 100, 4  # minutes, and not hours, at the largest size
MAX_SCALE = 4  # beyond it a dial moves nothing any more
MAX_SEED = 2**53 - 1  # browsers' numbers hold no larger ones
# of the bundled model, where the look has none of its own
USUAL = {"detail": 0.7, "recolor": 1.0, "texture": 1.0}

SCALES = {
    name: {scale: getattr(look, scale) for scale in ("content_scale", "style_scale")}
    for name, look in LOOKS.items()
}
# The looks on the three large buttons, whose scales the two dials then show.
BALANCES = {name.capitalize(): SCALES[name] for name in ("faithful", "balanced", "free")}
# Of looks otherwise; the others differ in their scales, which have sliders.
CHOICES = ("fine", "fast", "sampled")
PLACES = ("first", "second", "third")  # of paintings; the drawing's channels are keep, second, third


@dataclass(frozen=True)
class Order:
    """A picture to paint. about: what its file is to say of it, besides settings and model."""

    content: Image.Image
    style: Style
    settings: Settings
    keep: Image.Image | None
    about: Mapping[str, Any]

    def but(self, **changes: Any) -> "Order":
        """The same with other values of these settings."""
        return replace(self, settings=self.settings.but(**changes))

    def arguments(self) -> dict[str, Any]:
        """For the pipeline."""
        return {
            "content": self.content,
            "style": self.style,
            "settings": self.settings,
            "keep": self.keep,
        }


def receive(path: str | Path, side: int) -> Image.Image:
    """An uploaded picture as RGB, upright, its shorter side at most `side` pixels. Raises
    UserError."""
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(
            f"{path.name}: {path.stat().st_size >> 20} MB are more than the limit of {MAX_FILE_BYTES >> 20} MB"
        )
    try:
        with path.open("rb") as file:
            return at_most(load_image(NamedBytes(file.read(), path.name), side, MAX_UPLOAD_PIXELS), side)
    except OSError as error:
        raise UserError(f"{path.name}: is no longer there; choose the picture again") from error


def order(
    photo: str | None,
    paintings: Sequence[tuple[str | None, float]],
    drawing: str | None,
    settings: Settings,
    max_size: int,
) -> Order:
    """What is to be painted, of the path of a photo, (path, weight) of one to three paintings, and
    a drawing (see `regions_of`). Raises UserError."""
    check_settings(settings, max_size)
    if photo is None:
        raise UserError("choose a photo first")
    if paintings[0][0] is None:
        raise UserError("choose a painting first: upload one, or click one of those below it")
    content = receive(photo, max_size)
    width, height = content.size
    if max(width, height) > LONGEST * min(width, height):
        raise UserError(
            f"a photo of {width}x{height} pixels is too long for this page; crop it to at most {LONGEST} times its other side"
        )
    keep, *parts = regions_of(drawing)
    chosen = []
    for place, (path, weight), part in zip(PLACES, paintings, [None, *parts]):
        if path is not None:
            chosen.append((place, painting_of(path, max_size), weight, part))
        elif part is not None:
            raise UserError(
                f"a part is marked for the {place} painting, but there is none; choose one under 'More paintings'"
            )
    names = [Path(path).stem for path, _ in paintings if path is not None]
    about = {"content": Path(photo).stem, "style": "+".join(names)}
    return Order(content, style_of(chosen), settings, keep, about)


def painting_of(path: str | Path, side: int) -> OneStyle:
    """A painting that was uploaded, as `receive` gives it; for the picture of a style on the shelf,
    which says so, that style. Raises UserError."""
    style = library().get(read_metadata(path).get(STYLE_KEY, ""))
    if style is None:
        return receive(path, side)
    return one_with_paintings(style, lambda picture: at_most(read_picture(picture), side))


def style_of(chosen: Sequence[tuple[str, OneStyle, float, Image.Image | None]]) -> Style:
    """One style of (place, painting, weight, mask): by region where masks are drawn, else mixed.
    Raises UserError."""
    paintings = [painting for _, painting, _, _ in chosen]
    masks = [mask for *_, mask in chosen[1:]]
    if len(paintings) == 1:
        return paintings[0]
    if not any(masks):
        return StyleMix(paintings, [weight for _, _, weight, _ in chosen])
    for place, _, _, mask in chosen[1:]:
        if mask is None:
            raise UserError(
                f"the {place} painting has no part of the photo; mark one for it, or take it away"
            )
    drawn = [mask for mask in masks if mask is not None]
    return StyleRegions(paintings, [ImageChops.invert(reduce(ImageChops.lighter, drawn)), *drawn])


def regions_of(drawing: str | None) -> list[Image.Image | None]:
    """What is drawn over a photo: for what stays, and for the second and the third painting, a grey
    picture, or None where nothing is.

    drawing: a PNG as a data URL; red is what stays, green the second painting's, blue the third's.
    Raises UserError.
    """
    if not drawing:
        return [None, None, None]
    head, _, data = str(drawing).partition(",")
    if head != "data:image/png;base64" or len(data) > MAX_DRAWING_BYTES:
        raise UserError("the drawing cannot be read; clear it and draw again")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("the drawing cannot be read; clear it and draw again") from error
    channels = load_image(NamedBytes(content, "the drawing"), max_pixels=MAX_UPLOAD_PIXELS).split()
    return [channel if channel.getextrema()[1] else None for channel in channels]


def check_settings(settings: Settings, max_size: int) -> None:
    """Raises UserError for what would take the page's device for too long, or is no setting."""
    settings.check()
    limits = {
        "size": (settings.short_side, max_size),
        "style_size": (settings.style_size or 0, max_size),
        "steps": (settings.number_of_steps, MAX_STEPS),
        "effort": (settings.effort, MAX_EFFORT),
        "content_scale": (first(settings.value("content_scale")), MAX_SCALE),
        "style_scale": (first(settings.value("style_scale")), MAX_SCALE),
        "seed": (abs(first(settings.seed)), MAX_SEED),
    }
    for name, (value, limit) in limits.items():
        if value > limit:
            raise UserError(f"{name} {value} is more than the {limit} that this page takes")
    if settings.shape is not None:
        raise UserError("this page takes a size as the shorter side, one number")


def settings_of(values: Mapping[str, Any], base: Settings) -> Settings:
    """Settings of the page's fields, empty ones as in `base`; forms give numbers as text, and whole
    ones as 3.0. Raises UserError."""
    given = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        dial = DIALS[name]
        if isinstance(value, str) and isinstance(dial, Number | Size):
            try:
                value = float(value)
            except ValueError as error:
                raise UserError(f"{name} must be a number, got {value!r}") from error
        is_whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
        given[name] = int(value) if is_whole and getattr(dial, "whole", isinstance(dial, Size)) else value
    return base.but(**given)


def usual(name: str, settings: Settings) -> float:
    """A setting of `USUAL` as given or as the look has it, else the bundled model's."""
    own = settings.value(name)
    return USUAL[name] if own is None else own


def settings_in(path: str | Path) -> Settings:
    """The settings that a picture was painted with, as its PNG says. Raises UserError."""
    name = Path(path).name
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{name}: says nothing of how it was painted; only PNG pictures made here do")
    try:
        said = json.loads(text)
        given = {key: _as_pair(value) for key, value in said.items() if key in DIALS}
        if "detail" in given:  # painted: before there was `recolor`, without
            given.setdefault("recolor", 0.0)
        if given.get("look") == "fast" and given.get("texture") is not None:
            given["look"] = "sampled"  # painted: before it was called so
        settings = Settings(**given)
        settings.check()
        # The page's dials show what the look gives; what is left of it is how many gradient steps it makes.
        scales = {name: first(settings.value(name)) for name in ("content_scale", "style_scale")}
        look = settings.look
        if look not in CHOICES:
            look = "fine" if settings.has_brush else "sampled"
        settings = settings.but(look=look, **scales)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: what it says of how it was painted cannot be read") from error
    return settings


def first(value: Any) -> Any:
    """A setting's value for a single picture: the first of a list."""
    return as_list(value)[0]


def _as_pair(value: Any) -> Any:
    """JSON has lists where settings have tuples."""
    return tuple(value) if isinstance(value, list) else value
