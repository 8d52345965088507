"""The page's fields for the dials, under "More": words for who has never seen a setting's name."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.settings import Settings
from ldm.web.orders import CHOICES, MAX_EFFORT, MAX_SCALE, first, usual

SIZES = (320, 512, 768, 1024, 1536, 2048)  # of the result, its shorter side
CLIP_SIZES = (192, 256, 384, 512)
CLIP_SETTINGS = Settings(look="sampled", size=256)  # the others take seconds for every frame
CLIP_FIELDS = ("size", "strength", "look", "seed")

# setting -> (label, what it does), in the order in which they stand
LABELS = {
    "content_scale": ("More of the photo", "keeps faces and small things"),
    "style_scale": ("More of the painting", "is more painterly"),
    "size": ("Size", "shorter side of the result, in pixels; larger takes longer"),
    "seed": ("Seed", "another one, another variant"),
    "look": (
        "Look",
        "fine has the painting's brush work; fast its finer strokes, in half of the time; sampled its colours and light, in a second",
    ),
    "effort": ("Effort", "of fine and fast: more comes nearer to the painting, and takes longer"),
    "strength": ("Strength", "below 1 paints over the photo, and keeps more of it and its colours"),
    "detail": ("Detail", "how much of the photo's finest lines is put back"),
    "recolor": (
        "Colours follow forms",
        "how far the photo takes the painting's colours first; at 0 they fall as they will",
    ),
    "texture": (
        "The painting's texture",
        "of the look sampled: how far plain places take the painting's own finest strokes",
    ),
    "preserve_color": ("Keep the photo's colours", "only light, shade and brush work are the painting's"),
    "style_size": (
        "Stroke size",
        "pixels at which the painting is looked at: 800 makes larger strokes, 300 smaller ones",
    ),
    "sampler": ("Sampler", "how the picture comes out of noise"),
    "steps": ("Steps", "of the sampler: more is slower, and hardly better"),
}
FIELDS = tuple(LABELS)


def field(name: str, settings: Settings, max_size: int, some: Sequence[int] = SIZES) -> Any:
    """The field for a setting, at its value in these settings. some: sizes to choose from."""
    value, (label, info) = first(settings.value(name)), LABELS[name]
    given: dict[str, Any] = {"label": label, "info": info, "elem_id": f"field_{name}", "min_width": 150}
    match name:
        case "content_scale" | "style_scale":
            return gr.Slider(0, MAX_SCALE, value, step=0.05, buttons=[], **given)
        case "strength":
            return gr.Slider(0.05, 1, value, step=0.05, buttons=[], **given)
        case "effort":
            return gr.Slider(0.1, MAX_EFFORT, value, step=0.05, buttons=[], **given)
        case "detail" | "recolor" | "texture":
            return gr.Slider(0, 1, usual(name, settings), step=0.05, buttons=[], **given)
        case "size":
            return gr.Radio(sizes(max_size, value, some=some), value=value, **given)
        case "preserve_color":
            return gr.Checkbox(value, **given)
        case "look":
            return gr.Dropdown(list(CHOICES), value=value, **given)
        case "sampler":
            return gr.Dropdown(list(SAMPLERS), value=value, **given)
        case "style_size" | "steps":
            # Not a Number, which sends 0 where it is empty.
            return gr.Textbox(
                str(text_of(value)), max_lines=1, max_length=6, placeholder="automatic", **given
            )
    return gr.Number(value, precision=0, **given)


def sizes(max_size: int, *others: int, some: Sequence[int] = SIZES) -> list[int]:
    """The sizes to choose from, and others that are chosen already."""
    return sorted({*(size for size in some if size <= max_size), *others})


def text_of(value: Any) -> Any:
    """A value as a field shows it: nothing for None."""
    return "" if value is None else value
