"""How to stylise: every dial of the pipeline in one place, checked before any work starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

from ldm.errors import UserError

SAMPLERS = {"dpm-solver++": 20, "ddim": 50, "ancestral": 250}  # name -> default number of steps
MIN_SIDE = 32
MAX_RESULT_PIXELS = 40_000_000
NUM_TIMESTEPS = 1000  # of the bundled and the published model


@dataclass(frozen=True)
class Settings:
    """How to stylise.

    content_scale, style_scale: guidance. 1 is the plain conditional model, more exaggerates, 0 ignores, less leads away. A number for
        all pictures or a list with one for each.
    guidance_interval: (low, high) fractions of the way from picture (0) to noise (1) between which the two scales act;
        elsewhere they count as 1.
    sampler: "dpm-solver++" (20 steps suffice), "ddim" (as published), or "ancestral" (fresh noise at every step).
    steps: how many; the sampler's default if None. eta: DDIM's, 0 is deterministic, 1 the same as ancestral.
    detail: the share of what the model's first stage cannot hold of the photo, its finest lines and textures, that is put back
        into the picture: 0 none, 1 all; None is what the model's config says.
    strength: below 1 the picture is painted over the partly noised photo and keeps more of it, colours too.
    size: the result's shorter side in pixels, the photo's aspect kept; or (width, height), to which it is cropped.
    style_size: shorter side in pixels to which the style pictures are scaled before their statistics are taken; None
        is the size the model was trained at. Smaller makes strokes larger against the picture.
    tile: larger pictures are painted in overlapping square tiles of that many pixels; None is what suits the model.
    refine: a picture larger than a tile is painted at the model's own size first, enlarged, and painted over in tiles
        from this part of the noise on; 1 paints it in tiles from scratch.
    seed: of the noise, for all pictures or a list with one for each. The same seed gives the same picture.
    preserve_color: the photo's colours, the result's brightness.
    """

    content_scale: float | Sequence[float] = 1.0
    style_scale: float | Sequence[float] = 1.0
    guidance_interval: tuple[float, float] | None = None
    sampler: str = "dpm-solver++"
    steps: int | None = None
    eta: float = 0.0
    detail: float | None = None
    strength: float = 1.0
    size: int | tuple[int, int] = 256
    style_size: int | None = None
    tile: int | None = None
    refine: float = 0.5
    seed: int | Sequence[int] = 0
    preserve_color: bool = False

    def check(self, num_timesteps: int = NUM_TIMESTEPS) -> None:
        """Raises UserError for what no model with this number of time steps can do."""
        self._check_types()
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        if self.steps is not None and not 1 <= self.steps <= num_timesteps:
            raise UserError(f"steps must be between 1 and {num_timesteps}, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be between 0 and 1, got {self.eta}")
        if self.eta > 0 and self.sampler != "ddim":
            raise UserError(f"eta is for the sampler ddim; {self.sampler} takes none")
        for name in ("strength", "refine"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.detail is not None and not 0 <= self.detail <= 1:
            raise UserError(f"detail must be between 0 and 1, got {self.detail}")
        self._check_interval()
        self._check_sizes()
        for name in ("content_scale", "style_scale"):
            for scale in numbers(getattr(self, name)):
                if not isfinite(scale):
                    raise UserError(f"{name} must be a finite number, got {scale}")
        for seed in numbers(self.seed):
            if not -(2**63) <= seed < 2**64:  # what torch's generators take
                raise UserError(f"a seed must be between -2^63 and 2^64 - 1, got {seed}")

    def _check_types(self) -> None:
        for name, kind, what in (
            ("steps", (Integral, type(None)), "a whole number or None"),
            ("style_size", (Integral, type(None)), "a whole number or None"),
            ("tile", (Integral, type(None)), "a whole number or None"),
            ("eta", Real, "a number"),
            ("detail", (Real, type(None)), "a number or None"),
            ("strength", Real, "a number"),
            ("refine", Real, "a number"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} must be {what}, got {getattr(self, name)!r}")
        for name, kind, what in (
            ("seed", Integral, "a whole number, or a list of them"),
            ("content_scale", Real, "a number, or a list of them"),
            ("style_scale", Real, "a number, or a list of them"),
        ):
            if not all(isinstance(value, kind) for value in numbers(getattr(self, name))):
                raise UserError(f"{name} must be {what}, got {getattr(self, name)!r}")

    def _check_interval(self) -> None:
        if self.guidance_interval is not None:
            low, high = pair_of(self.guidance_interval, Real, "guidance_interval", "two numbers")
            if not 0 <= low < high <= 1:
                raise UserError(f"guidance_interval must be two numbers with 0 <= low < high <= 1, got {low} and {high}")

    def _check_sizes(self) -> None:
        sides = [self.size] if isinstance(self.size, Integral) else pair_of(self.size, Integral, "size", "a whole number or a pair of them")
        for name, sides in (("size", sides), ("style_size", [self.style_size]), ("tile", [self.tile])):
            for side in sides:
                if side is not None and side < MIN_SIDE:
                    raise UserError(f"{name} must be at least {MIN_SIDE} pixels, got {side}")
        if isinstance(self.size, Integral):
            too_large = self.size**2 > MAX_RESULT_PIXELS
        else:
            too_large = self.size[0] * self.size[1] > MAX_RESULT_PIXELS
        if too_large:
            raise UserError(f"size {self.size} means more than the limit of {MAX_RESULT_PIXELS} pixels; choose a smaller one")

    def each(self, name: str, count: int) -> list[Any]:
        """The setting `name` ("seed" or a scale) of each of `count` pictures. Raises UserError for a list of another length."""
        value = getattr(self, name)
        values = [value] * count if isinstance(value, Real) else list(value)
        if len(values) != count:
            raise UserError(f"{len(values)} values of {name} for {count} pictures")
        return values

    @property
    def number_of_steps(self) -> int:
        return self.steps or SAMPLERS[self.sampler]

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise is drawn on the way."""
        return self.sampler == "ancestral" or self.eta > 0


def numbers(value: Any) -> list[Any]:
    """A single value, or those of a list, as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def pair_of(value: Any, kind: type, name: str, what: str) -> tuple[Any, Any]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(part, kind) for part in value):
        raise UserError(f"{name} must be {what}, got {value!r}")
    return value[0], value[1]
