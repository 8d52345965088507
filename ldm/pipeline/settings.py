"""How to stylise: every dial of the pipeline once, with its default, its range and its help.

Checks, the programs' options and docs/settings.md are made of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from ldm.checks import check_face_detector
from ldm.errors import UserError, did_you_mean, in_short
from ldm.pipeline.looks import COLOURING, LOOKS, SAMPLERS, Look

MIN_SIDE = 32
MAX_RESULT_PIXELS = 40_000_000
NUM_TIMESTEPS = 1000  # of the bundled and the published model
# what is left to the model, where its config says nothing of it: as the published one paints
UNSAID = {"detail": 0.0, "recolor": 0.0, "texture": 0.0, "refine": 0.25}


def _by_look(name: str) -> str:
    """What the help says of the default of a setting that looks set."""
    usual = getattr(LOOKS["fine"], name)
    others = {each: getattr(look, name) for each, look in LOOKS.items()}
    return "".join(
        [f"{usual:g}", *(f"; for {each} {value:g}" for each, value in others.items() if value != usual)]
    )


@dataclass(frozen=True)
class Range:
    """Numbers from `low` (which is one of them unless `above`) to `high`; None is no limit. unit,
    words: for messages."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    unit: str = ""
    words: str = ""

    def __contains__(self, value: Any) -> bool:
        low_enough = self.high is None or value <= self.high
        high_enough = self.low is None or (value > self.low if self.above else value >= self.low)
        try:
            return low_enough and high_enough and isfinite(value)
        except OverflowError:  # a whole number that no float can hold
            return False

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.low is None:
            return "a finite number"
        if self.high is None:
            return f"at least {self.low}{self.unit}"
        return (
            f"above {self.low} and at most {self.high}"
            if self.above
            else f"between {self.low} and {self.high}"
        )


PIXELS = Range(MIN_SIDE, unit=" pixels")


@dataclass(frozen=True)
class Dial:
    """What a setting takes. help: one line; its default, where `default_help` does not tell it, is
    the field's."""

    help: str
    default_help: str | None = None
    metavar: str | tuple[str, str] | None = None

    @property
    def range_help(self) -> str:
        """What is possible, in words."""
        raise NotImplementedError

    def check(self, name: str, value: Any) -> None:
        """Raises UserError for a value that cannot be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(Dial):
    """One of some names."""

    names: Sequence[str] = ()

    @property
    def range_help(self) -> str:
        return ", ".join(self.names)

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in self.names:
            raise UserError(f"{name} {in_short(value)} is not one of {self.range_help}")


@dataclass(frozen=True)
class Flag(Dial):
    """Yes or no."""

    range_help = "yes or no"

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, (int, np.bool_)) or value not in (True, False):
            raise UserError(f"{name} must be True or False, got {in_short(value)}")


@dataclass(frozen=True)
class Number(Dial):
    """A number of a range. whole: without a fraction. optional: or None. each: or a list with one
    for each picture."""

    range: Range = Range()
    whole: bool = False
    optional: bool = False
    each: bool = False

    @property
    def range_help(self) -> str:
        return str(self.range)

    def check(self, name: str, value: Any) -> None:
        if self.optional and value is None:
            return
        values = as_list(value) if self.each else [value]
        if not values or not all(_is_number(one, Integral if self.whole else Real) for one in values):
            more = (
                ", or a list of them" * self.each
                + "," * (self.each and self.optional)
                + " or None" * self.optional
            )
            raise UserError(f"{name} must be a {'whole ' * self.whole}number{more}, got {in_short(value)}")
        for one in values:
            if one not in self.range:
                raise UserError(f"{name} must be {self.range}, got {in_short(one, str)}")


@dataclass(frozen=True)
class Interval(Dial):
    """Two numbers between 0 and 1, the lower one first; or None."""

    range_help = "two numbers with 0 <= low < high <= 1"

    def check(self, name: str, value: Any) -> None:
        if value is None:
            return
        low, high = pair_of(value, Real, name, "two numbers")
        if not 0 <= low < high <= 1:
            raise UserError(f"{name} must be {self.range_help}, got {low} and {high}")


@dataclass(frozen=True)
class Size(Dial):
    """A shorter side, or (width, height), in pixels."""

    range_help = f"at least {MIN_SIDE} pixels a side, at most {MAX_RESULT_PIXELS:,} in all"

    def check(self, name: str, value: Any) -> None:
        what = "a whole number or a pair of them"
        sides: tuple[Any, Any] = (value, value)
        if not _is_number(value, Integral):
            sides = pair_of(value, Integral, name, what)
        for side in sides:
            if side < MIN_SIDE:
                raise UserError(f"{name} must be {PIXELS}, got {in_short(side, str)}")
        if int(sides[0]) * int(sides[1]) > MAX_RESULT_PIXELS:
            raise UserError(
                f"{name} {in_short(value)} means more than the limit of {MAX_RESULT_PIXELS} pixels; choose a smaller one"
            )


def _is(default: Any, dial: Dial) -> Any:
    """A field of Settings."""
    return field(default=default, metadata={"dial": dial})


_STEPS = ", ".join(f"{sampler.steps} for {name}" for name, sampler in SAMPLERS.items())
_SHARE = Range(0, 1)
_POSITIVE_SHARE = Range(0, 1, above=True)
_SEEDS = Range(-(2**63), 2**64 - 1, words="between -2^63 and 2^64 - 1")  # what torch's generators take


# fmt: off
@dataclass(frozen=True)
class Settings:
    """How to stylise. What each setting means stands with it; `DIALS` has them by name.

    A list of content_scale, style_scale or seed has one for each picture, a number is for all.
    """

    look: str = _is("fine", Choice(
        "a named set of settings, any of which may be given, too: " + "; ".join(f"{name}: {look.about}" for name, look in LOOKS.items()), names=tuple(LOOKS)))
    effort: float = _is(1.0, Number(
        "for fine and fast: times as many gradient steps; more comes nearer to the painting", metavar="E", range=Range(0, 100, above=True)))
    # A scale is a guidance scale of the sampling, and weighs a term of the energy of gradient steps.
    content_scale: float | Sequence[float] | None = _is(None, Number(
        "guidance by the content: more keeps to the photo, 0, with --detail 0 and --texture 0, ignores it (for sampled where the style's is 1), less (for sampled only) leads away",
        _by_look("content_scale"), "S", each=True, optional=True))
    style_scale: float | Sequence[float] | None = _is(None, Number(
        "guidance by the style: more is more painterly, 0 ignores it (for sampled where the content's is 1), less (for sampled only) leads away",
        _by_look("style_scale"), "S", each=True, optional=True))
    detail: float | None = _is(None, Number(
        "how much of the photo's finest lines and textures, which the model's first stage or a smaller picture cannot hold, is put back",
        "0.35; for fast 0.5; for sampled 0.7, with the published model 0", "D", _SHARE, optional=True))
    recolor: float | None = _is(None, Number(
        "how far the photo takes the painting's colours before it is painted, so that these follow its forms; 0 lets them fall as they will",
        "1; with the published model 0", "R", _SHARE, optional=True))
    texture: float | None = _is(None, Number(
        "for sampled: how far the result takes the painting's own finest strokes where the photo is plain, from the painting's most similar places",
        "1; with the published model 0", "T", _SHARE, optional=True))
    strength: float = _is(1.0, Number(
        "below 1: paint over the photo, keeping more of it and of its colours; gradient steps then aim between its paint and the painting's",
        metavar="S", range=_POSITIVE_SHARE))
    face_detail: float = _is(0.0, Number(
        "paint faces with less of the style, where they are found (pip install -e '.[faces]'): 0.5 is a face half-way painted, 1 the photo's",
        metavar="D", range=_SHARE))
    preserve_color: bool = _is(False, Flag("keep the photo's colours, take the result's brightness only"))
    size: int | tuple[int, int] = _is(512, Size(
        "shorter side of the result, the photo's aspect kept; or its width and height, to which the photo is cropped", metavar="N|WxH"))
    style_size: int | None = _is(None, Number(
        "look at the style pictures at this shorter side",
        "for sampled the size the model was trained at; for others that of the result, or the painting's where that is smaller; larger makes "
        "larger strokes", "N", PIXELS, whole=True, optional=True))
    tile: int | None = _is(None, Number(
        "sample large pictures in overlapping tiles of that many pixels (fine and fast sample at some 256 pixels, so only long or very small ones); larger is faster and takes more memory",
        "the size the model was trained at", "N", PIXELS, whole=True, optional=True))
    refine: float | None = _is(None, Number(
        "what needs tiles is sampled small first and enlarged: 0 puts the photo's detail in; more samples over it with this strength, at scales of 1 at most; 1: in tiles from scratch",
        "for fine and fast, with the published model, and without a photo 0.25, else 0", "S", _SHARE, optional=True))
    sampler: str = _is("dpm-solver++", Choice(
        "ddim is the published one, ancestral draws fresh noise at every step", names=tuple(SAMPLERS)))
    steps: int | None = _is(None, Number(
        "sampling steps", _STEPS, "N", Range(1, NUM_TIMESTEPS), whole=True, optional=True))
    eta: float = _is(0.0, Number("for ddim: 0 is deterministic, 1 as noisy as ancestral", range=_SHARE))
    guidance_interval: tuple[float, float] | None = _is(None, Interval(
        "the scales act only between these fractions of the way from picture (0) to noise (1); elsewhere they count as 1",
        "everywhere", ("LO", "HI")))
    seed: int | Sequence[int] = _is(0, Number(
        "of the noise: the same seed gives the same picture", metavar="N", range=_SEEDS, whole=True, each=True))
    # fmt: on

    def check(self, num_timesteps: int = NUM_TIMESTEPS) -> None:
        """Raises UserError for what no model with this number of time steps can do."""
        for name, dial in DIALS.items():
            dial.check(name, getattr(self, name))
        if self.face_detail:
            check_face_detector()
        if self.steps is not None and self.steps > num_timesteps:
            raise UserError(f"steps must be {Range(1, num_timesteps)}, got {self.steps}")
        if self.eta > 0 and not SAMPLERS[self.sampler].takes_eta:
            raise UserError(f"eta is for the sampler ddim; {self.sampler} takes none")
        if not self.paints:
            self._check_colouring()
        if self.effort != 1 and not self.has_brush:
            raise UserError(f"effort is for looks with gradient steps, such as fine; the look {self.look} makes none")
        for name in ("content_scale", "style_scale"):
            for scale in as_list(self.value(name)):
                if scale < 0 and self.has_brush:
                    raise UserError(
                        f"{name} must be at least 0 in the look {self.look}, got {scale}; the look sampled leads away below 0"
                    )

    def _check_colouring(self) -> None:
        for one in fields(self):
            if one.name not in COLOURING and getattr(self, one.name) != one.default:
                raise UserError(
                    f"{one.name} is for looks that paint; the look {self.look} only has {' and '.join(COLOURING[1:])}"
                )

    def but(self, **changes: Any) -> "Settings":
        """The same with other values of these settings. Raises UserError for an unknown name."""
        for name in changes:
            if name not in DIALS:
                raise UserError(f"there is no setting {name!r}{did_you_mean(name, DIALS)}")
        return replace(self, **changes)

    def value(self, name: str) -> Any:
        """A setting as given, else as the look has it, if it has it."""
        given = getattr(self, name)
        return getattr(LOOKS.get(self.look), name, None) if given is None else given

    def values(self) -> dict[str, Any]:
        """The settings that act in this look by name, as `value` tells them."""
        names = filter(self._acts, DIALS) if self.paints else COLOURING
        return {name: self.value(name) for name in names}

    def _acts(self, name: str) -> bool:
        return name != "texture" or not self.has_brush

    def each(self, name: str, count: int) -> list[Any]:
        """The setting `name` ("seed" or a scale) of each of `count` pictures. Raises UserError for
        a list of another length."""
        value = self.value(name)
        values = [value] * count if isinstance(value, Real) else list(value)
        if len(values) != count:
            raise UserError(f"{len(values)} values of {name} for {count} pictures")
        return values

    @property
    def number_of_steps(self) -> int:
        """Of the sampler."""
        return self.steps or SAMPLERS[self.sampler].steps

    @property
    def left_to_model(self) -> tuple[str, ...]:
        """The settings that the model's config says where neither they nor the look are given."""
        return tuple(filter(self._acts, UNSAID))

    @property
    def effective_look(self) -> Look:
        """The look with this effort."""
        look = LOOKS[self.look]
        steps = max(1, round(self.effort * look.gradient_steps)) if look.gradient_steps else 0
        return replace(look, gradient_steps=steps)

    @property
    def paints(self) -> bool:
        """Whether a model samples the picture."""
        return LOOKS[self.look].paints

    @property
    def has_brush(self) -> bool:
        """Whether gradient steps follow the sampling."""
        return self.effective_look.gradient_steps > 0

    @property
    def shape(self) -> tuple[int, int] | None:
        """(width, height) of the result, where both are given."""
        return (self.size[0], self.size[1]) if isinstance(self.size, Sequence) else None

    @property
    def short_side(self) -> int:
        """Of the result, in pixels."""
        return min(self.size) if isinstance(self.size, Sequence) else self.size

    def style_side(self, native_size: int) -> int:
        """The largest shorter side at which style pictures are looked at, by a model trained at
        `native_size`."""
        return self.style_size or (max(native_size, self.short_side) if self.has_brush else native_size)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise is drawn on the way."""
        return SAMPLERS[self.sampler].stochastic or self.eta > 0


DIALS: dict[str, Dial] = {setting.name: setting.metadata["dial"] for setting in fields(Settings)}


def as_list(value: Any) -> list[Any]:
    """A single value, or those of a list, as a list."""
    return list(value) if _is_list(value) else [value]


def pair_of(value: Any, kind: type, name: str, what: str) -> tuple[Any, Any]:
    """The two values of a pair. Raises UserError for anything else."""
    is_pair = _is_list(value) and len(value) == 2
    if not is_pair or not all(_is_number(part, kind) for part in value):
        raise UserError(f"{name} must be {what}, got {in_short(value)}")
    return value[0], value[1]


def _is_list(value: Any) -> bool:
    """Whether it has several values; text and bytes are one."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_number(value: Any, kind: type) -> bool:
    """Whether it is of that kind of numbers, to which yes and no do not belong."""
    return isinstance(value, kind) and not isinstance(value, bool)
