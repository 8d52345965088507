"""The page's functions by their names, for programs; docs/web.md shows how they are called."""

import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr

from ldm.pipeline.settings import Settings
from ldm.web.easel import Easel, Painted
from ldm.web.events import Events
from ldm.web.page import Door, Page
from ldm.web.studio import Studio, Work

REQUIRED = ("photo", "painting", "clip")


def build(studio: Studio, easel: Easel, settings: Settings) -> gr.Blocks:
    """The page, which begins with these settings, with its functions for programs."""
    blocks = Door(easel.folder, title="ArtFusion", analytics_enabled=False)
    with blocks:
        publish(Page(blocks, studio, easel, settings))
    return blocks


def publish(page: Page) -> None:
    """Adds the functions to the page that is being built. Their parameters are its fields."""
    api = Api(page.events)
    with gr.Row(visible=False):
        trigger = gr.Button()
        picture, sheet = (gr.Image(type="filepath", label=label) for label in ("picture", "sheet"))
        pictures, clip = gr.Files(label="pictures"), gr.Video(label="clip")
    (second, second_weight), (third, third_weight) = page.others
    fields = {
        "photo": page.photo,
        "painting": page.painting,
        "second_painting": second,
        "second_weight": second_weight,
        "third_painting": third,
        "third_weight": third_weight,
        **page.fields,
    }
    of_clips = {"clip": page.clip, "painting": page.clip_painting, **page.clip_fields}
    for function, inputs, output in (
        (api.stylize, fields, picture),
        (api.variants, fields, pictures),
        (api.grid, fields, sheet),
        (api.video, of_clips, clip),
    ):
        trigger.click(
            named(function, inputs),
            list(inputs.values()),
            output,
            api_name=function.__name__,
            api_description=function.__doc__,
            preprocess=False,
            concurrency_limit=None,
        )


class Api:
    """The functions. Each waits for its turn, and returns the path of a file, or several."""

    def __init__(self, events: Events):
        self.events = events

    def stylize(self, request: gr.Request, *wished: Any) -> str:
        """A photo painted in the style of one to three paintings: a PNG, which says how it was
        made."""
        return str(self._result(self.events.easel.picture(self._order(wished)), request).path)

    def variants(self, request: gr.Request, *wished: Any) -> list[str]:
        """Four PNGs of the same photo and painting, which differ in their seeds and strokes."""
        painted: list[Painted] = []
        self._result(self.events.easel.variants(self._order(wished), painted), request)
        return [str(one.path) for one in painted]

    def grid(self, request: gr.Request, *wished: Any) -> str:
        """A sheet (PNG) of one photo and one painting at sixteen pairs of the two scales."""
        return str(self._result(self.events.easel.sheet(self._order(wished)), request))

    def video(self, request: gr.Request, *wished: Any) -> str:
        """A short clip painted in the style of a painting, with its sound (MP4)."""
        return str(self._result(self.events.clip(*wished), request))

    def _result(self, work: Work, request: gr.Request) -> Any:
        """What the work returns. Raises gradio's Error."""
        *_, last = self.events.updates(work, request)
        if not last.is_last:
            raise gr.Error("stopped", print_exception=False)
        return last.result

    def _order(self, wished: Any) -> Any:
        """Programs draw nothing; the page's values have a drawing after the paintings."""
        return self.events.order([*wished[:6], None, *wished[6:]])


def named(function: Callable[..., Any], inputs: dict[str, Any]) -> Callable[..., Any]:
    """The function with a parameter for each input; its default is what the page begins with."""

    def call(request: gr.Request, *values: Any) -> Any:
        return function(request, *values)

    kind, no_default = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, kind, default=no_default if name in REQUIRED else component.value)
        for name, component in inputs.items()
    ]
    asked = inspect.Parameter("request", kind, annotation=gr.Request)
    call.__signature__ = inspect.Signature([asked, *parameters])  # type: ignore[attr-defined]
    call.__annotations__ = {"request": gr.Request}
    call.__doc__, call.__name__ = function.__doc__, function.__name__
    return call
