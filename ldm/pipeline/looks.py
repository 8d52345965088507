"""What has a name among the settings: the looks and the samplers."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sampler:
    """What is to be known of a sampler before it runs; `ldm.pipeline.engine.SOLVERS` runs it.

    steps: by default. spacing: of the time steps, see `sampling_path`. takes_eta: whether `eta`
    says how much fresh noise it draws. stochastic: it always draws some.
    """

    steps: int
    spacing: str = "time"
    takes_eta: bool = False
    stochastic: bool = False


SAMPLERS = {
    # The solver's error is least between the two spacings, see docs/sampling.md.
    "dpm-solver++": Sampler(10, spacing="between"),
    "ddim": Sampler(50, takes_eta=True),
    "ancestral": Sampler(250, stochastic=True),
}


@dataclass(frozen=True)
class Look:
    """A named set of settings: what those are that nobody gives.

    about: in a line. paints: else COLOURING alone means something. gradient_steps: towards
    the painting's own paint at pictures of 256 pixels (shorter side); fewer at larger ones, up to
    twice as many at smaller ones, see `steps_at`. They begin at no smaller shorter side than
    `smallest`, unless the picture has, and end at `largest`: larger pictures are enlarged from there.
    rate: of the first step, what a pixel changes by at most, of the 2 between black and white.
    guided: how much further the scales go in sampling what the steps begin with, of the content and
    of the style. detail, refine: None is what the model's config says.
    """

    about: str
    gradient_steps: int
    detail: float | None
    paints: bool = True
    content_scale: float = 1.0
    style_scale: float = 1.0
    refine: float | None = None
    smallest: int = 112  # below it VGG16's deepest layer has no places left
    largest: float = math.inf
    rate: float = 0.05
    guided: tuple[float, float] = (1.0, 1.0)

    def steps_at(self, side: int) -> int:
        """How many gradient steps are made at a picture with this shorter side."""
        if not self.gradient_steps or side > self.largest:
            return 0
        return max(2, round(self.gradient_steps * 256 / max(side, 128)))


_FINE = Look(
    "the photo's layout in the painting's own brush work", gradient_steps=21, detail=0.35, refine=0.25
)
LOOKS = {
    "fine": _FINE,
    "faithful": replace(
        _FINE, about="fine, nearer to the photo: faces and small things hold", content_scale=2.0
    ),
    "balanced": replace(_FINE, about="fine by another name"),
    "free": replace(
        _FINE, about="fine, nearer to the painting: forms dissolve", content_scale=0.5, style_scale=1.5
    ),
    "fast": replace(
        _FINE,
        about="fine in a fraction of its steps: the painting's finer strokes, nearer to the photo",
        gradient_steps=6,
        detail=0.5,
        # Large forms of a painting cost faces most, and at 1024 pixels a step costs more than all before.
        smallest=192,
        largest=640,
        rate=0.03,  # in so few steps larger ones leave a weave in plain skies
        guided=(1.25, 1.75),  # what so few steps leave of it differs more from style to style
    ),
    "sampled": Look(
        "what the network paints by itself, without gradients: the painting's colours, light and finest strokes",
        gradient_steps=0,
        detail=None,
        # Guided, what the network makes of a photo is clearer, and styles differ more: docs/sampling.md.
        content_scale=1.25,
        style_scale=1.75,
    ),
    "palette": Look(
        "the photo itself in the painting's colours, within a second: nothing is painted",
        gradient_steps=0,
        detail=None,
        paints=False,
    ),
}
COLOURING = ("look", "size", "strength")  # the settings of the look palette


def looks_table() -> list[list[str]]:
    """A row for each look, the head first: what `artfusion info looks` and docs/settings.md show."""
    head = ["look", "content_scale", "style_scale", "detail", "gradient steps at 256 px", "what it is"]
    rows = []
    for name, look in LOOKS.items():
        detail = "the model's" if look.detail is None else f"{look.detail:g}"
        numbers = [f"{look.content_scale:g}", f"{look.style_scale:g}", detail, str(look.gradient_steps)]
        rows.append([name, *(numbers if look.paints else "----"), look.about])
    return [head, *rows]
