"""The page: what stands where, and which of `ldm.web.events` happens when somebody touches it.

Its events are private; `ldm.web.api` has the public ones.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.media.saved_styles import load_thumbnail
from ldm.pipeline.library import library
from ldm.pipeline.settings import Settings
from ldm.web import parts
from ldm.web.easel import MAX_FRAMES, Easel
from ldm.web.events import Events, balance_of
from ldm.web.fields import CLIP_FIELDS, CLIP_SETTINGS, CLIP_SIZES, FIELDS, field
from ldm.web.orders import BALANCES, CHOICES, PLACES, SCALES, first, usual
from ldm.web.parts import STATIC, status
from ldm.web.studio import Studio

# Events get what was sent: files unopened, numbers unchecked. `ldm.web.orders` does both.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **PRIVATE}

CSS = (STATIC / "page.css").read_text(encoding="utf-8")
THEME = gr.themes.Soft(
    primary_hue="indigo",
    neutral_hue="stone",
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    block_border_width="1px",
    block_title_background_fill="none",
    block_title_text_color="*body_text_color",
    block_title_padding="0",
    block_label_background_fill="*background_fill_primary",
    block_label_background_fill_dark="*background_fill_primary",
    block_label_text_color="*body_text_color",
    button_primary_background_fill_hover="*primary_600",
    checkbox_border_color="*neutral_400",
    checkbox_label_border_width="1px",
    checkbox_label_border_color="*neutral_300",
)

# What the browser does by itself, to keep the shapes of the two dials together.
FROM_PAD = "(point) => [point.content, point.style, null]"
FROM_BALANCE = f"""(name) => {{
    const {{content_scale: content, style_scale: style}} = {json.dumps(BALANCES)}[name];
    return [content, style, {{content, style}}];
}}"""
FROM_SLIDERS = "(content, style) => [{content, style}, null]"
# Dials that stand where another look has them go to where this one does.
BY_LOOK = {
    look: {
        **SCALES[look],
        "balance": balance_of(Settings(look=look)),
        "detail": usual("detail", Settings(look=look)),
    }
    for look in CHOICES
}
FROM_LOOK = f"""(look, content, style, balance, detail) => {{
    const own = {json.dumps(BY_LOOK)};
    const others = Object.keys(own).filter((each) => each !== look).map((each) => own[each]);
    if (others.some((each) => each.content_scale === content && each.style_scale === style)) {{
        ({{content_scale: content, style_scale: style, balance}} = own[look]);
    }}
    if (others.some((each) => each.detail === detail)) detail = own[look].detail;
    return [content, style, {{content, style}}, balance, detail];
}}"""
# And on a phone, where the result is below the button.
TO_THE_RESULT = """() => {
    const results = [...document.querySelectorAll("#result, #clip_result")];
    if (innerWidth < 900) results.find((each) => each.offsetParent)?.scrollIntoView({behavior: "smooth"});
}"""


class Door(gr.Blocks):
    """Takes files that lie in the page's own folder, and no others: gradio itself looks at some
    values only, and fetches what lies elsewhere."""

    def __init__(self, folder: Path, **options: Any):
        super().__init__(**options)
        self._folder = folder.resolve()

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> Any:
        """As gradio's. Raises gradio's Error, in one line."""
        if not all(self._is_ours(path) for path in paths_in(inputs)):
            line = "give files that were uploaded here; what was sent are none"
            raise gr.Error(line, print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *more, **named)
        except ValueError:  # what is too little, or has not the form of a file
            line = "what was sent does not fit what is asked for here"
            raise gr.Error(line, print_exception=False) from None

    def _is_ours(self, path: Any) -> bool:
        try:
            place = Path(path).resolve()
            return place.is_relative_to(self._folder) and place.is_file()
        except (OSError, TypeError, ValueError):  # too long, no text, a null in it
            return False


def paths_in(value: Any) -> Iterator[Any]:
    """Whatever is named a path, however deep in JSON."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        for part in value.values():
            yield from paths_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from paths_in(part)


class Page:
    """The page's components, added to `blocks`, which are being built. settings: what it begins
    with."""

    def __init__(self, blocks: gr.Blocks, studio: Studio, easel: Easel, settings: Settings):
        self.settings, self.max_size = settings, easel.max_size
        styles = {name: load_thumbnail(path) for name, path in library().items()}
        # without the years, for which there is no room
        self.titles = {name: note.partition(";")[0].partition(" (")[0] for name, (_, note) in styles.items()}
        # written, since the page's own folder is all that it serves
        self.shelf = {name: easel.shelved(name, picture) for name, (picture, _) in styles.items()}
        self.events = Events(studio, easel, settings, self.shelf)
        gr.HTML(
            "<h1>ArtFusion</h1><p>A photo, painted like a painting. Everything stays on this computer.</p>",
            elem_id="title",
        )
        with gr.Tab("Photo"):
            self._photo_tab()
        with gr.Tab("Video"):
            self._video_tab()
        blocks.unload(self.events.leave)

    # What stands where

    def _photo_tab(self) -> None:
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="bench"):
                with gr.Row():
                    self.photo = parts.picture("Photo", height=240, elem_id="photo", min_width=130)
                    self.painting = parts.picture("Painting", height=240, elem_id="painting", min_width=130)
                self._shelf(self.painting, "shelf")
                self.balance = gr.Radio(
                    list(BALANCES),
                    value=balance_of(self.settings),
                    label="How much of the photo, how much of the painting",
                    elem_id="balance",
                )
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", size="lg", elem_id="paint", min_width=140)
                    cancel = gr.Button("Cancel", size="lg", elem_id="cancel", min_width=100)
            with gr.Column(elem_id="result"):
                self.status = gr.HTML(status("Choose a photo and a painting, then Paint."), elem_id="status")
                with gr.Tabs() as self.results:
                    works = self._results()
            with gr.Column(elem_id="more"):
                with gr.Accordion("Keep a face, or paint a part in another style", open=False):
                    self.drawing = parts.drawing(elem_id="drawing")
                with gr.Accordion("More paintings: mixed, or each in its part", open=False):
                    self.others = [self._other(place) for place in PLACES[1:]]
                with gr.Accordion("More: two dials, size, seed, brush work, colours …", open=False):
                    dice, load = self._more()
        self.wished = [
            self.photo,
            self.painting,
            *(part for other in self.others for part in other),
            self.drawing,
            *self.fields.values(),
        ]
        self._received(self.photo, self.painting, *(picture for picture, _ in self.others))
        self.photo.change(self.events.to_draw, self.photo, self.drawing, **AT_ONCE)
        self._dials(dice, load)
        finished = [self.download, works["larger"]]
        shown = [self.viewer, self.status, *finished]
        self._started_by(
            cancel,
            self.status,
            (paint, self.events.paint, self.wished, [self.results, *shown]),
            (
                works["larger"],
                self.events.paint_larger,
                self.wished,
                [self.results, *shown, self.fields["size"]],
            ),
            (
                works["variants"],
                self.events.paint_variants,
                self.wished,
                [self.gallery, self.status, self.painted],
            ),
            (works["sheet"], self.events.paint_sheet, self.wished, [self.sheet, self.status]),
        )
        self.gallery.select(
            self.events.pick,
            self.painted,
            [self.results, self.viewer, *finished, self.fields["seed"], self.fields["style_size"]],
            **AT_ONCE,
        )

    def _more(self) -> tuple[gr.Button, gr.UploadButton]:
        """The dials; buttons for another seed, and to load all."""
        content, style = (float(first(self.settings.value(name))) for name in FIELDS[:2])
        self.pad = parts.pad(content, style, elem_id="pad")
        self.fields = {}
        for i in range(0, len(FIELDS), 2):
            with gr.Row():
                for name in FIELDS[i : i + 2]:
                    with gr.Column(min_width=150):
                        self.fields[name] = field(name, self.settings, self.max_size)
                        if name == "seed":
                            dice = gr.Button("Another seed", size="sm", elem_id="dice")
        load = gr.UploadButton(
            "Load settings from a picture made here (PNG)", file_types=[".png"], size="sm", elem_id="load"
        )
        return dice, load

    def _results(self) -> dict[str, gr.Button]:
        """The tabs of results; the buttons that make them."""
        with gr.Tab("Picture", id="picture"):
            self.viewer = parts.viewer(elem_id="viewer")
            with gr.Row():
                self.download = gr.DownloadButton(
                    "Download PNG", interactive=False, elem_id="download", min_width=140
                )
                larger = gr.Button("Paint it larger", interactive=False, elem_id="larger", min_width=140)
        with gr.Tab("Four variants", id="variants"):
            variants = gr.Button("Paint four variants", elem_id="variants")
            gr.HTML("<p>Click one to look at it, and to go on with its strokes and seed.</p>")
            self.gallery = gr.Gallery(
                label="Four variants",
                show_label=False,
                columns=2,
                object_fit="contain",
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="gallery",
            )
        with gr.Tab("Compare", id="sheet"):
            sheet = gr.Button("Paint sixteen mixtures of both, small", elem_id="grid")
            gr.HTML("<p>Upwards more of the photo, to the right more of the painting.</p>")
            self.sheet = gr.Image(
                label="A sheet of the two dials",
                show_label=False,
                type="filepath",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="sheet",
            )
        self.painted = gr.State([], time_to_live=3600)
        return {"larger": larger, "variants": variants, "sheet": sheet}

    def _video_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.clip = gr.Video(
                    label=f"Clip, at most {MAX_FRAMES} frames",
                    sources=["upload"],
                    height=240,
                    elem_id="clip",
                    buttons=[],
                )
                self.clip_painting = parts.picture("Painting", height=240, elem_id="clip_painting")
                self._shelf(self.clip_painting, "clip_shelf")
                with gr.Accordion("More: size, strength, look, seed", open=False), gr.Row():
                    self.clip_fields = {
                        name: field(name, CLIP_SETTINGS, self.max_size, CLIP_SIZES) for name in CLIP_FIELDS
                    }
                with gr.Row():
                    paint = gr.Button("Paint the clip", variant="primary", size="lg", elem_id="paint_clip")
                    cancel = gr.Button("Cancel", size="lg", elem_id="cancel_clip", min_width=100)
            with gr.Column(scale=6, min_width=300, elem_id="clip_result"):
                shown = gr.HTML(status("Choose a clip and a painting."), elem_id="clip_status")
                frame = parts.viewer(elem_id="frame", visible=False)
                result = gr.Video(
                    label="The painted clip", interactive=False, elem_id="painted_clip", buttons=["download"]
                )
        self._received(self.clip_painting)
        wished = [self.clip, self.clip_painting, *self.clip_fields.values()]
        self._started_by(cancel, shown, (paint, self.events.paint_clip, wished, [frame, shown, result]))

    def _shelf(self, painting: gr.Image, elem_id: str) -> None:
        """The styles that come along, to click."""
        pictures = [(name, self.titles[name] or name, path) for name, path in self.shelf.items()]
        parts.shelf(pictures, elem_id=elem_id).select(self.events.from_shelf, None, painting, **AT_ONCE)

    def _other(self, place: str) -> tuple[gr.Image, gr.Slider]:
        """A further painting, with its weight."""
        with gr.Row():
            picture = parts.picture(
                f"{place.capitalize()} painting", height=200, elem_id=f"{place}_painting", min_width=200
            )
            weight = gr.Slider(
                0,
                2,
                1,
                step=0.05,
                buttons=[],
                label="Its weight, where they are mixed",
                info="1: as much as the first",
                min_width=150,
            )
        return picture, weight

    # What belongs together

    def _received(self, *pictures: gr.Image) -> None:
        """Every uploaded picture is read at once, and shown as it was read; what cannot be is taken
        away again."""
        for picture in pictures:
            read = picture.upload(self.events.receive, picture, picture, **AT_ONCE)
            read.failure(lambda: None, None, picture, **AT_ONCE)

    def _started_by(self, cancel: gr.Button, shown: gr.HTML, *works: tuple[Any, ...]) -> None:
        """Work of (button, function, inputs, outputs), which `cancel` stops, and `shown` tells of."""
        for button, work, inputs, outputs in works:
            begun = button.click(work, inputs, outputs, trigger_mode="once", **AT_ONCE)
            begun.failure(lambda: status("Nothing was painted."), None, shown, **AT_ONCE)
            button.click(None, None, None, js=TO_THE_RESULT, **AT_ONCE)
        cancel.click(self.events.stop, None, shown, queue=False, **PRIVATE)

    def _dials(self, dice: gr.Button, load: gr.UploadButton) -> None:
        """What moves a dial moves its other shapes, and paints a sketch."""
        content, style = (self.fields[name] for name in FIELDS[:2])
        self.pad.input(None, self.pad, [content, style, self.balance], js=FROM_PAD, **AT_ONCE)
        self.balance.input(None, self.balance, [content, style, self.pad], js=FROM_BALANCE, **AT_ONCE)
        for slider in (content, style):
            slider.input(None, [content, style], [self.pad, self.balance], js=FROM_SLIDERS, **AT_ONCE)
        look, detail = self.fields["look"], self.fields["detail"]
        dials = [content, style, self.pad, self.balance, detail]
        look.input(None, [look, content, style, self.balance, detail], dials, js=FROM_LOOK, **AT_ONCE)
        dice.click(self.events.another_seed, None, self.fields["seed"], **AT_ONCE)
        load.upload(self.events.load, load, [*self.fields.values(), self.pad, self.balance], **AT_ONCE)
        how: dict[str, Any] = {
            "trigger_mode": "always_last", "show_progress": "hidden", "concurrency_id": "sketches", "concurrency_limit": 4, **PRIVATE,
        }  # fmt: skip
        shown = [self.viewer, self.status]
        self.pad.input(self.events.sketch_of_pad, [self.pad, *self.wished], shown, **how)
        self.balance.input(self.events.sketch_of_balance, [self.balance, *self.wished], shown, **how)
        for slider in (content, style):
            slider.release(self.events.sketch, self.wished, shown, **how)
