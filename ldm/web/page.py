"""The page: what stands where, and what happens when somebody touches it.

Thin over `ldm.web.orders` (what is asked for), `ldm.web.easel` (how it is painted) and
`ldm.web.studio` (whose turn it is). Its events are private; `ldm.web.api` has the public ones.
"""

import base64
import io
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ldm.data.splits import find_pictures
from ldm.errors import UserError
from ldm.files import ROOT
from ldm.media.images import at_most
from ldm.pipeline.settings import Settings
from ldm.web import orders, parts
from ldm.web.easel import MAX_FRAMES, Easel, Painted, changed
from ldm.web.fields import FIELDS, field, sizes, text_of
from ldm.web.orders import BALANCES, PLACES, Order
from ldm.web.parts import STATIC, path_of, seen, sent, status
from ldm.web.studio import Stopped, Studio, Update

log = logging.getLogger(__name__)

PREVIEW_SIDE = 480  # longer side of what is sent while a picture is on its way
CLIP_SIZES = (192, 256, 384, 512)
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}
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
    checkbox_border_color="*neutral_400",
    checkbox_label_border_width="1px",
    checkbox_label_border_color="*neutral_300",
)

# What the browser does by itself, to keep the shapes of the two dials together.
FROM_PAD = "(point) => [point.content, point.style, null]"
FROM_SLIDERS = "(content, style) => [{content, style}, null]"


@dataclass(frozen=True)
class Shop:
    """What a page is made for. settings: what it begins with."""

    studio: Studio
    easel: Easel
    settings: Settings


class Door(gr.Blocks):
    """Takes files that were uploaded here, and nothing by its address elsewhere: gradio would fetch
    that."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> Any:
        """As gradio's. Raises gradio's Error, in one line."""
        if any(_has_address(value) for value in inputs):
            raise gr.Error("give a file, not an address: this page fetches nothing", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *more, **named)
        except ValueError:  # what is no file, and what is none of the page's
            line = "give files that were uploaded here; what was sent are none"
            raise gr.Error(line, print_exception=False) from None


def _has_address(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_has_address, value.values()))
    return isinstance(value, list) and any(map(_has_address, value))


class Page:
    """The page's components, and what its events do."""

    def __init__(self, shop: Shop, blocks: gr.Blocks):
        self.studio, self.easel, self.settings = shop.studio, shop.easel, shop.settings
        self.shelf = shelf_of(ROOT / "data/styles", self.easel)
        gr.HTML(
            "<h1>ArtFusion</h1><p>A photo, painted like a painting. Everything stays on this computer.</p>",
            elem_id="title",
        )
        with gr.Tab("Photo"):
            self._photo_tab()
        with gr.Tab("Video"):
            self._video_tab()
        blocks.unload(self.leave)

    # What stands where

    def _photo_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
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
                with gr.Accordion("More: two dials, size, seed, brush work, colours …", open=False):
                    dice, load = self._more()
                with gr.Accordion("Keep a face, or paint a part in another style", open=False):
                    self.drawing = parts.drawing(elem_id="drawing")
                with gr.Accordion("More paintings: mixed, or each in its part", open=False):
                    self.others = [self._other(place) for place in PLACES[1:]]
            with gr.Column(scale=6, min_width=300, elem_id="result"):
                self.status = gr.HTML(
                    status(line="Choose a photo and a painting, then Paint."), elem_id="status"
                )
                with gr.Tabs() as self.results:
                    works = self._results()
        self.wished = [
            self.photo,
            self.painting,
            *(part for other in self.others for part in other),
            self.drawing,
            *self.fields.values(),
        ]
        self._received(self.photo, self.painting, *(picture for picture, _ in self.others))
        self.photo.change(_to_draw, self.photo, self.drawing, **AT_ONCE)
        self._dials(dice, load)
        shown = [self.viewer, self.status, self.download]
        self._started_by(
            cancel,
            self.status,
            (paint, self.paint, self.wished, [self.results, *shown]),
            (works["larger"], self.paint_larger, self.wished, [self.results, *shown, self.fields["size"]]),
            (works["variants"], self.paint_variants, self.wished, [self.gallery, self.status, self.painted]),
            (works["sheet"], self.paint_sheet, self.wished, [self.sheet, self.status]),
        )
        self.gallery.select(
            self.pick,
            self.painted,
            [self.results, self.viewer, self.download, self.fields["seed"]],
            **AT_ONCE,
        )

    def _more(self) -> tuple[gr.Button, gr.UploadButton]:
        """The dials; buttons for another seed, and to load all."""
        make = {name: (lambda name=name: field(name, self.settings, self.easel.max_size)) for name in FIELDS}
        content, style = (float(orders.first(getattr(self.settings, name))) for name in FIELDS[:2])
        self.pad = parts.pad(content, style, elem_id="pad")
        made = {}
        for pair in zip(FIELDS[::2], FIELDS[1::2], strict=True):
            with gr.Row():
                for name in pair:
                    with gr.Column(min_width=150):
                        made[name] = make[name]()
                        if name == "seed":
                            dice = gr.Button("Another seed", size="sm", elem_id="dice")
        self.fields = made
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
                larger = gr.Button("Paint it larger", elem_id="larger", min_width=140)
        with gr.Tab("Four variants", id="variants"):
            variants = gr.Button("Paint four variants", elem_id="variants")
            self.gallery = gr.Gallery(
                label="Click one to look at it and to go on with its seed",
                columns=2,
                object_fit="contain",
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="gallery",
            )
        with gr.Tab("Sheet", id="sheet"):
            sheet = gr.Button(
                "Paint a sheet: the photo keeps less downwards, the painting gives more to the right",
                elem_id="grid",
            )
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
                clips = Settings(look="fast", size=256)
                with gr.Accordion("More: size, strength, look, seed", open=False), gr.Row():
                    self.clip_fields = {
                        "size": gr.Radio(CLIP_SIZES, value=256, label="Size", info="shorter side, in pixels"),
                        **{name: field(name, clips, self.easel.max_size) for name in ("strength", "look", "seed")},
                    }  # fmt: skip
                with gr.Row():
                    paint = gr.Button("Paint the clip", variant="primary", size="lg", elem_id="paint_clip")
                    cancel = gr.Button("Cancel", size="lg", elem_id="cancel_clip", min_width=100)
            with gr.Column(scale=6, min_width=300):
                shown = gr.HTML(status(line="Choose a clip and a painting."), elem_id="clip_status")
                frame = parts.viewer(elem_id="frame", visible=False)
                result = gr.Video(
                    label="The painted clip", interactive=False, elem_id="painted_clip", buttons=["download"]
                )
        self._received(self.clip_painting)
        wished = [self.clip, self.clip_painting, *self.clip_fields.values()]
        self._started_by(cancel, shown, (paint, self.paint_clip, wished, [frame, shown, result]))

    def _shelf(self, painting: gr.Image, elem_id: str) -> None:
        """The bundled paintings, to click."""
        pictures = [(name, name.replace("_", " ").capitalize(), path) for name, path in self.shelf.items()]
        parts.shelf(pictures, elem_id=elem_id).select(self.from_shelf, None, painting, **AT_ONCE)

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
            read = picture.upload(self.receive, picture, picture, **AT_ONCE)
            read.failure(lambda: None, None, picture, **AT_ONCE)

    def _started_by(self, cancel: gr.Button, shown: gr.HTML, *works: tuple[Any, ...]) -> None:
        """Work of (button, function, inputs, outputs), which `cancel` stops, and `shown` tells of."""
        how: dict[str, Any] = {
            "trigger_mode": "once", "show_progress": "minimal", "show_progress_on": shown, **ONE_AT_A_TIME, **PRIVATE,
        }  # fmt: skip
        started: list[Any] = [
            button.click(work, inputs, outputs, **how) for button, work, inputs, outputs in works
        ]
        for each in started:
            each.failure(lambda: status(line="Nothing was painted."), None, shown, **AT_ONCE)
        cancel.click(self.stop, None, shown, cancels=started, queue=False, **PRIVATE)

    def _dials(self, dice: gr.Button, load: gr.UploadButton) -> None:
        """What moves a dial moves its other shapes, and paints a sketch."""
        content, style = (self.fields[name] for name in FIELDS[:2])
        self.pad.input(None, self.pad, [content, style, self.balance], js=FROM_PAD, **AT_ONCE)
        self.balance.input(_from_balance, self.balance, [content, style, self.pad], **AT_ONCE)
        for slider in (content, style):
            slider.input(None, [content, style], [self.pad, self.balance], js=FROM_SLIDERS, **AT_ONCE)
        dice.click(lambda: random.randrange(10**6), None, self.fields["seed"], **AT_ONCE)
        load.upload(self.load, load, [*self.fields.values(), self.pad, self.balance], **AT_ONCE)
        how: dict[str, Any] = {
            "trigger_mode": "always_last", "show_progress": "hidden", "concurrency_id": "sketches", "concurrency_limit": 4, **PRIVATE,
        }  # fmt: skip
        shown = [self.viewer, self.status]
        self.pad.input(self.sketch_of_pad, [self.pad, *self.wished], shown, **how)
        self.balance.input(self.sketch_of_balance, [self.balance, *self.wished], shown, **how)
        for slider in (content, style):
            slider.release(self.sketch, self.wished, shown, **how)

    # What happens

    def receive(self, uploaded: Any) -> str | None:
        """An upload as the pipeline reads it, for the browser to show: any format, upright."""
        with as_one_line():
            path = path_of(uploaded)
            if path is None:
                return None
            picture = orders.receive(path, self.easel.max_size)
        return str(self.easel.saved(picture, f"{Path(path).stem[:60]}.png"))

    def from_shelf(self, event: gr.EventData) -> str:
        """The painting that was clicked."""
        path = self.shelf.get(str(event.name))
        if path is None:
            raise gr.Error("there is no such painting on the shelf", print_exception=False)
        return str(path)

    def load(self, uploaded: Any) -> list[Any]:
        """The dials as a picture made here says."""
        with as_one_line():
            path = path_of(uploaded)
            if path is None:
                return [gr.skip()] * (len(FIELDS) + 2)
            settings = orders.settings_in(path)
            settings = settings.but(size=min(settings.short_side, self.easel.max_size))
            orders.check_settings(settings, self.easel.max_size)
        values = {name: text_of(orders.first(getattr(settings, name))) for name in FIELDS}
        values["size"] = self._size(settings.short_side)
        pad = {"content": values["content_scale"], "style": values["style_scale"]}
        return [*values.values(), pad, balance_of(settings)]

    def paint(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """The picture, as it comes: which tab is in front, what is seen, how far it is, the
        download."""
        yield from self._painted(self.order(wished), request)

    def paint_larger(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """The same at twice the size, or at the largest that there is; and the size."""
        order = self.order(wished)
        size = min(2 * order.settings.short_side, self.easel.max_size)
        for shown in self._painted(self.order(wished, size=size), request):
            yield (*shown, self._size(size))

    def _painted(self, order: Order, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        tab: Any = gr.update(selected="picture")
        before = self.easel.before(order, at_most(order.content, PREVIEW_SIDE))
        for update in self.updates(self.easel.picture(order), request):
            viewer, download = gr.skip(), gr.skip()
            if update.is_last:
                viewer = self._shown(update.result, words_of(order))
                download = gr.update(value=str(update.result.path), interactive=True)
            elif update.preview is not None:
                viewer = seen(data_url(update.preview), words_of(order), before, "on its way")
            yield tab, viewer, _line(update, "Done. Drag over the picture to see the photo."), download
            tab = gr.skip()

    def paint_variants(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """Pictures that differ in their seeds, as they come."""
        painted: list[Painted] = []
        for update in self.updates(self.easel.variants(self.order(wished), painted), request):
            pictures = [(str(one.path), f"seed {one.seed}") for one in painted]
            yield pictures, _line(update, "Click the one that you like."), list(painted)

    def pick(self, event: gr.SelectData, painted: list[Painted]) -> tuple[Any, ...]:
        """The variant that was clicked, to look at and to go on with."""
        one = (
            painted[event.index] if isinstance(event.index, int) and 0 <= event.index < len(painted) else None
        )
        if one is None or not one.path.is_file():
            raise gr.Error("results are kept for an hour; paint the variants again", print_exception=False)
        viewer = self._shown(one, f"Variant with seed {one.seed}")
        return (
            gr.update(selected="picture"),
            viewer,
            gr.update(value=str(one.path), interactive=True),
            one.seed,
        )

    def paint_sheet(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """A small picture for every pair of the two scales."""
        for update in self.updates(self.easel.sheet(self.order(wished)), request):
            yield str(update.result) if update.is_last else gr.skip(), _line(update, "Done.")

    def sketch_of_pad(self, request: gr.Request, pad: Any, *wished: Any) -> tuple[Any, ...]:
        """A sketch at the point of the pad, which the sliders may not show yet."""
        try:
            scales = {"content_scale": float(pad["content"]), "style_scale": float(pad["style"])}
        except (KeyError, TypeError, ValueError):
            return gr.skip(), gr.skip()
        return self._sketch(request, wished, scales)

    def sketch_of_balance(self, request: gr.Request, balance: Any, *wished: Any) -> tuple[Any, ...]:
        """A sketch at one of the three looks."""
        return self._sketch(request, wished, BALANCES.get(balance, {}))

    def sketch(self, request: gr.Request, *wished: Any) -> tuple[Any, ...]:
        """A sketch at the dials as they are."""
        return self._sketch(request, wished, {})

    def _sketch(
        self, request: gr.Request, wished: Sequence[Any], scales: dict[str, float]
    ) -> tuple[Any, ...]:
        """What the viewer and the status show, where photo and painting are there and the device is
        free."""
        if wished[0] is None or wished[1] is None:
            return gr.skip(), gr.skip()
        order = changed(self.order(wished), **scales)
        with as_one_line():
            picture = self.studio.paint_if_free(self.easel.sketch(order), visitor(request))
        if picture is None:
            return gr.skip(), gr.skip()
        viewer = seen(data_url(picture), words_of(order), self.easel.before(order, picture), "sketch")
        return viewer, status(line="A sketch at these dials. Paint makes the picture.")

    def paint_clip(
        self, request: gr.Request, clip: Any, painting: Any, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The clip frame by frame, with its sound."""
        with as_one_line():
            path, style = path_of(clip), path_of(painting)
            if path is None or style is None:
                raise UserError("choose a clip and a painting first")
            settings = orders.settings_of(
                dict(zip(self.clip_fields, values, strict=True)), Settings(look="fast", size=256)
            )
            work = self.easel.clip(path, style, settings)
        for update in self.updates(work, request):
            frame: Any = gr.update(visible=False) if update.is_last else gr.skip()
            if update.preview is not None:
                words = "The frame that was painted last"
                frame = gr.update(value=seen(data_url(update.preview), words, tag="on its way"), visible=True)
            yield frame, _line(update, "Done."), str(update.result) if update.is_last else gr.skip()

    def stop(self, request: gr.Request) -> str:
        """Whatever is being painted for this visitor ends."""
        self.studio.stop(visitor(request))
        return status(line="Stopped.")

    def leave(self, request: gr.Request) -> None:
        """The same for one who has gone."""
        self.studio.stop(visitor(request))

    # Shared with the API

    def order(self, wished: Sequence[Any], **changes: Any) -> Order:
        """What is asked for by the values of `wished`, with some settings changed. Raises gradio's
        Error."""
        photo, first, second, second_weight, third, third_weight, drawing, *values = wished
        drawn = drawing.get("drawing") if isinstance(drawing, dict) else None
        with as_one_line():
            given = dict(zip(FIELDS, values, strict=True)) | changes
            weights = (1.0, second_weight, third_weight)
            paintings = [
                (path_of(one), weight) for one, weight in zip((first, second, third), weights, strict=True)
            ]
            settings = orders.settings_of(given, self.settings)
            return orders.order(path_of(photo), paintings, drawn, settings, self.easel.max_size)

    def updates(self, work: Any, request: gr.Request) -> Iterator[Update]:
        """How far the work is, the last with its result. Raises gradio's Error."""
        with as_one_line():
            yield from self.studio.paint(work, visitor(request))

    def _shown(self, painted: Painted, words: str) -> dict[str, Any]:
        return seen(painted.path, words, painted.before)

    def _size(self, size: int) -> Any:
        return gr.update(choices=sizes(self.easel.max_size, size), value=size)


@contextmanager
def as_one_line() -> Iterator[None]:
    """Makes of what is raised within it one line for the visitor."""
    try:
        yield
    except UserError as error:
        raise gr.Error(" ".join(str(error).split()), print_exception=False) from None
    except Stopped:
        raise gr.Error("stopped", print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        log.exception("what went wrong for a visitor of the page:")
        line = "something went wrong here; the terminal in which the page runs says what"
        raise gr.Error(line, print_exception=False) from None


def balance_of(settings: Settings) -> str | None:
    """The look whose scales these are, if there is one."""
    scales = {name: orders.first(getattr(settings, name)) for name in FIELDS[:2]}
    return next((name for name, values in BALANCES.items() if values == scales), None)


def shelf_of(styles: Path, easel: Easel) -> dict[str, Path]:
    """The bundled paintings by name, copied to the page's own folder, the only one that it serves."""
    return {path.stem: easel.copied(path) for path in find_pictures(styles)}


def visitor(request: gr.Request) -> str:
    """Who asks: one open page, or one client of the API."""
    return str(request.session_hash)


def data_url(picture: Image.Image) -> str:
    """A picture as a small JPEG in a data URL."""
    small = picture.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def words_of(order: Order) -> str:
    """What a result is, for who cannot see it."""
    return f"{order.about['content']} in the style of {order.about['style']}"


def _from_balance(balance: str) -> tuple[float, float, dict[str, float]]:
    scales = BALANCES[balance]
    content, style = scales["content_scale"], scales["style_scale"]
    return content, style, {"content": content, "style": style}


def _to_draw(photo: Any) -> dict[str, Any] | None:
    path = path_of(photo)
    return None if path is None else {"photo": sent(Path(path)), "drawing": None}


def _line(update: Update, at_the_end: str) -> str:
    return status(line=at_the_end) if update.is_last else status(update)
