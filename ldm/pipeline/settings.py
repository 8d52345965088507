"""How to stylise: every dial of the pipeline in one place, checked before any work starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

from ldm.errors import UserError

SAMPLERS = {"dpm-solver++": 20, "ddim": 50, "ancestral": 250}  # name -> default number of steps
MIN_SIDE = 32


@dataclass(frozen=True)
class Look:
    """What a look sets.

    step_share: of the sampler's default number of steps. brush: gradient steps towards the painting's own paint at pictures of
    256 pixels (shorter side); fewer at larger ones, up to twice as many at smaller ones, see `brush_steps`. detail: None is what the
    model's config says.
    """

    step_share: float
    brush: int
    detail: float | None

    def brush_steps(self, side: int) -> int:
        """How many gradient steps are made at a picture with this shorter side."""
        return max(2, round(self.brush * 256 / max(side, 128))) if self.brush else 0


LOOKS = {
    "fast": Look(step_share=1.0, brush=0, detail=None),
    "fine": Look(step_share=0.5, brush=21, detail=0.35),
}
MAX_RESULT_PIXELS = 40_000_000
MAX_EFFORT = 100
NUM_TIMESTEPS = 1000  # of the bundled and the published model


@dataclass(frozen=True)
class Settings:
    """How to stylise.

    look: "fine", which after sampling leads the picture by gradients to the painting's own brush work, or "fast", which takes it as
        sampled. What each sets is in LOOKS.
    effort: of the fine look, times as many gradient steps: more comes nearer to the painting, at proportional time.
    content_scale, style_scale: guidance. 1 is the plain conditional model, more exaggerates, 0 ignores, less (in the fast look only) leads
        away. A number for all pictures or a list with one for each. They weigh the two terms of the fine look's energy, too.
    guidance_interval: (low, high) fractions of the way from picture (0) to noise (1) between which the two scales act;
        elsewhere they count as 1.
    sampler: "dpm-solver++" (20 steps suffice), "ddim" (as published), or "ancestral" (fresh noise at every step).
    steps: how many; the sampler's default if None. eta: DDIM's, 0 is deterministic, 1 the same as ancestral.
    detail: the share of what the model's first stage, or a smaller picture that is enlarged, cannot hold of the photo, its finest
        lines and textures, that is put back into the picture: 0 none, 1 all; None is what the look says.
    strength: below 1 the picture is painted over the partly noised photo and keeps more of it, colours too; and the fine look aims
        at paint between the photo's own and the painting's.
    size: the result's shorter side in pixels, the photo's aspect kept; or (width, height), to which it is cropped.
    style_size: shorter side in pixels to which the style pictures are scaled before their statistics are taken. None is, in the fast
        look, the size the model was trained at; in the fine look the result's own, or the painting's where that is smaller.
        There larger makes larger strokes.
    tile: in the fast look larger pictures are painted in overlapping square tiles of that many pixels; None is what suits the model.
    refine: in the fast look a picture larger than a tile is painted at the model's own size first, enlarged, and painted over in tiles
        from this part of the noise on; 1 paints it in tiles from scratch.
    seed: of the noise, for all pictures or a list with one for each. The same seed gives the same picture.
    preserve_color: the photo's colours, the result's brightness.
    """

    look: str = "fine"
    effort: float = 1.0
    content_scale: float | Sequence[float] = 1.0
    style_scale: float | Sequence[float] = 1.0
    guidance_interval: tuple[float, float] | None = None
    sampler: str = "dpm-solver++"
    steps: int | None = None
    eta: float = 0.0
    detail: float | None = None
    strength: float = 1.0
    size: int | tuple[int, int] = 512
    style_size: int | None = None
    tile: int | None = None
    refine: float = 0.5
    seed: int | Sequence[int] = 0
    preserve_color: bool = False

    def check(self, num_timesteps: int = NUM_TIMESTEPS) -> None:
        """Raises UserError for what no model with this number of time steps can do."""
        self._check_types()
        if self.look not in LOOKS:
            raise UserError(f"look {self.look!r} is not one of {', '.join(LOOKS)}")
        if not 0 < self.effort <= MAX_EFFORT:
            raise UserError(f"effort must be above 0 and at most {MAX_EFFORT}, got {self.effort}")
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
                if scale < 0 and self.has_brush:
                    raise UserError(
                        f"{name} must be at least 0 in the look {self.look}, got {scale}; the look fast leads away below 0"
                    )
        for seed in numbers(self.seed):
            if not -(2**63) <= seed < 2**64:  # what torch's generators take
                raise UserError(f"a seed must be between -2^63 and 2^64 - 1, got {seed}")

    def _check_types(self) -> None:
        for name, kind, what in (
            ("steps", (Integral, type(None)), "a whole number or None"),
            ("style_size", (Integral, type(None)), "a whole number or None"),
            ("tile", (Integral, type(None)), "a whole number or None"),
            ("eta", Real, "a number"),
            ("effort", Real, "a number"),
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
                raise UserError(
                    f"guidance_interval must be two numbers with 0 <= low < high <= 1, got {low} and {high}"
                )

    def _check_sizes(self) -> None:
        sides = (
            [self.size]
            if isinstance(self.size, Integral)
            else pair_of(self.size, Integral, "size", "a whole number or a pair of them")
        )
        for name, sides in (("size", sides), ("style_size", [self.style_size]), ("tile", [self.tile])):
            for side in sides:
                if side is not None and side < MIN_SIDE:
                    raise UserError(f"{name} must be at least {MIN_SIDE} pixels, got {side}")
        if isinstance(self.size, Integral):
            too_large = self.size**2 > MAX_RESULT_PIXELS
        else:
            too_large = self.size[0] * self.size[1] > MAX_RESULT_PIXELS
        if too_large:
            raise UserError(
                f"size {self.size} means more than the limit of {MAX_RESULT_PIXELS} pixels; choose a smaller one"
            )

    def each(self, name: str, count: int) -> list[Any]:
        """The setting `name` ("seed" or a scale) of each of `count` pictures. Raises UserError for a list of another length."""
        value = getattr(self, name)
        values = [value] * count if isinstance(value, Real) else list(value)
        if len(values) != count:
            raise UserError(f"{len(values)} values of {name} for {count} pictures")
        return values

    @property
    def number_of_steps(self) -> int:
        return self.steps or max(1, round(LOOKS[self.look].step_share * SAMPLERS[self.sampler]))

    @property
    def brush(self) -> Look:
        """The look with this effort."""
        look = LOOKS[self.look]
        return replace(look, brush=max(1, round(self.effort * look.brush)) if look.brush else 0)

    @property
    def has_brush(self) -> bool:
        """Whether gradient steps follow the sampling."""
        return self.brush.brush > 0

    @property
    def short_side(self) -> int:
        """Of the result, in pixels."""
        return self.size if isinstance(self.size, Integral) else min(self.size)

    def style_side(self, native_size: int) -> int:
        """The largest shorter side at which style pictures are looked at, by a model trained at `native_size`."""
        return self.style_size or (max(native_size, self.short_side) if self.has_brush else native_size)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise is drawn on the way."""
        return self.sampler == "ancestral" or self.eta > 0


def numbers(value: Any) -> list[Any]:
    """A single value, or those of a list, as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def pair_of(value: Any, kind: type, name: str, what: str) -> tuple[Any, Any]:
    if (
        not isinstance(value, Sequence)
        or len(value) != 2
        or not all(isinstance(part, kind) for part in value)
    ):
        raise UserError(f"{name} must be {what}, got {value!r}")
    return value[0], value[1]
