"""What happens on the page: functions of what its fields hold, as it was sent, that give what its
parts are to show.

Thin over `ldm.web.orders` (what is asked for), `ldm.web.easel` (how it is painted) and
`ldm.web.studio` (whose turn it is).
"""

import base64
import html
import io
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ldm.errors import UserError
from ldm.media.images import at_most
from ldm.pipeline.settings import Settings
from ldm.web import orders
from ldm.web.easel import VARIANTS, Easel, Painted
from ldm.web.fields import CLIP_FIELDS, CLIP_SETTINGS, FIELDS, sizes, text_of
from ldm.web.orders import BALANCES, Order
from ldm.web.parts import path_of, seen, sent, status, status_of
from ldm.web.studio import Stopped, Studio, Update, Work

log = logging.getLogger(__name__)

STOPPED = "Stopped."
LONGEST_LINE = 300
PREVIEW_SIDE = 480  # longer side of what is sent while a picture is on its way


class Events:
    """What happens when a part of the page is touched. settings: what the page begins with. shelf:
    bundled paintings by name."""

    def __init__(self, studio: Studio, easel: Easel, settings: Settings, shelf: Mapping[str, Path]):
        self.studio, self.easel, self.settings, self.shelf = studio, easel, settings, shelf

    # Small things

    def receive(self, uploaded: Any) -> str | None:
        """An upload as the pipeline reads it, for the browser to show: any format, upright."""
        with self.one_line():
            path = path_of(uploaded)
            if path is None:
                return None
            picture = orders.receive(path, self.easel.max_size)
        return str(self.easel.saved(picture, f"{Path(path).stem[:60]}.png"))

    def from_shelf(self, event: gr.EventData) -> str:
        """The painting that was clicked."""
        with self.one_line():
            path = self.shelf.get(str(getattr(event, "name", None)))
            if path is None:
                raise UserError("there is no such painting on the shelf")
        return str(path)

    def load(self, uploaded: Any) -> list[Any]:
        """The dials as a picture made here says."""
        with self.one_line():
            path = path_of(uploaded)
            if path is None:
                return [gr.skip()] * (len(FIELDS) + 2)
            settings = orders.settings_in(path)
            settings = settings.but(size=min(settings.short_side, self.easel.max_size))
            settings = settings.but(**{name: orders.usual(name, settings) for name in orders.USUAL})
            orders.check_settings(settings, self.easel.max_size)
        values = {name: text_of(orders.first(settings.value(name))) for name in FIELDS}
        values["size"] = self._size(settings.short_side)
        pad = {"content": values["content_scale"], "style": values["style_scale"]}
        return [*values.values(), pad, balance_of(settings)]

    def another_seed(self) -> int:
        """A number by chance."""
        return random.randrange(10**6)

    def to_draw(self, photo: Any) -> dict[str, Any] | None:
        """A new photo to mark parts of."""
        with self.one_line():
            path = path_of(photo)
        return None if path is None else {"photo": sent(Path(path)), "drawing": None}

    def stop(self, request: gr.Request) -> Any:
        """Whatever is being painted for this visitor ends, and says so by itself when it has: until
        then the page does not take another order."""
        is_painting = self.studio.is_painting_for(visitor(request))
        self.studio.stop(visitor(request))
        return gr.skip() if is_painting else status(STOPPED)

    def leave(self, request: gr.Request) -> None:
        """The same for one who has gone."""
        self.studio.stop(visitor(request))

    # What is painted

    def paint(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """The picture, as it comes: which tab is in front, what is seen, how far it is, the buttons
        for a finished one."""
        yield from self._painted(self.order(wished), request)

    def paint_larger(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """The same at twice the size, or at the largest that there is; and the size."""
        order = self.order(wished)
        size = min(2 * order.settings.short_side, self.easel.max_size)
        for shown in self._painted(order.but(size=size), request):
            yield (*shown, self._size(size))

    def _painted(self, order: Order, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        tab: Any = gr.update(selected="picture")
        before = self.easel.before(order, at_most(order.content, PREVIEW_SIDE))
        for update in self.updates(self.easel.picture(order), request):
            viewer, buttons = gr.skip(), (gr.skip(), gr.skip())
            if update.is_last:
                viewer = self._shown(update.result, words_of(order))
                buttons = self._buttons(update.result)
            elif update.preview is not None:
                viewer = seen(data_url(update.preview), words_of(order), before, "on its way")
            line = _line(update, "Done. Drag over the picture to see the photo.")
            yield tab, viewer, line, *buttons
            tab = gr.skip()

    def paint_variants(self, request: gr.Request, *wished: Any) -> Iterator[tuple[Any, ...]]:
        """Pictures that differ in their seeds and strokes, as they come."""
        painted: list[Painted] = []
        shown = 0
        for update in self.updates(self.easel.variants(self.order(wished), painted), request):
            pictures = [(str(one.path), name) for one, name in zip(painted, VARIANTS)]
            is_new = len(pictures) > shown
            shown = len(pictures)
            line = _line(update, "Click the one that you like.")
            yield pictures if is_new else gr.skip(), line, list(painted)

    def pick(self, event: gr.SelectData, painted: list[Painted]) -> tuple[Any, ...]:
        """The variant that was clicked, to look at and to go on with."""
        with self.one_line():
            index = getattr(event, "index", None)
            there = range(len(painted))
            if not isinstance(index, int) or index not in there or not painted[index].path.is_file():
                raise UserError("results are kept for an hour; paint the variants again")
        one = painted[index]
        viewer, settings = self._shown(one, list(VARIANTS)[index]), one.settings
        fields = orders.first(settings.seed), text_of(settings.style_size)
        return gr.update(selected="picture"), viewer, *self._buttons(one), *fields

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
        return self._sketch(request, wished, scales_of(balance))

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
        order = self.order(wished).but(**scales)
        with self.one_line():
            picture = self.studio.paint_if_free(self.easel.sketch(order), visitor(request))
        if picture is None:
            is_own = self.studio.is_painting_for(visitor(request))
            return gr.skip(), gr.skip() if is_own else status("No sketch now: the painter is busy.")
        viewer = seen(data_url(picture), words_of(order), self.easel.before(order, picture), "sketch")
        return viewer, status("A sketch at these dials. Paint makes the picture.")

    def paint_clip(
        self, request: gr.Request, clip: Any, painting: Any, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """The clip frame by frame, with its sound."""
        for update in self.updates(self.clip(clip, painting, *values), request):
            frame: Any = gr.update(visible=False) if update.is_last else gr.skip()
            if update.preview is not None:
                words = "The frame that was painted last"
                frame = gr.update(value=seen(data_url(update.preview), words, tag="on its way"), visible=True)
            yield frame, _line(update, "Done."), str(update.result) if update.is_last else gr.skip()

    # Shared with the API

    def clip(self, clip: Any, painting: Any, *values: Any) -> Work:
        """What paints a clip by the values of the fields. Raises gradio's Error."""
        with self.one_line():
            path, style = path_of(clip), path_of(painting)
            if path is None or style is None:
                raise UserError("choose a clip and a painting first")
            settings = orders.settings_of(dict(zip(CLIP_FIELDS, values, strict=True)), CLIP_SETTINGS)
            return self.easel.clip(path, style, settings)

    def order(self, wished: Sequence[Any]) -> Order:
        """What is asked for by the values of the page's `wished`. Raises gradio's Error."""
        photo, first, second, second_weight, third, third_weight, drawing, *values = wished
        drawn = drawing.get("drawing") if isinstance(drawing, dict) else None
        with self.one_line():
            given = dict(zip(FIELDS, values, strict=True))
            weights = (1.0, second_weight, third_weight)
            paintings = [
                (path_of(one), weight) for one, weight in zip((first, second, third), weights, strict=True)
            ]
            settings = orders.settings_of(given, self.settings)
            return orders.order(path_of(photo), paintings, drawn, settings, self.easel.max_size)

    def updates(self, work: Work, request: gr.Request) -> Iterator[Update]:
        """How far the work is, the last with its result, unless it was stopped. Raises gradio's
        Error."""
        with self.one_line():
            try:
                yield from self.studio.paint(work, visitor(request))
            except Stopped:
                yield Update(STOPPED, done=None)

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Makes of what is raised within it one line for the visitor: without the page's folder, and
        as HTML, which is how the browser shows it."""
        try:
            yield
        except UserError as error:
            line = " ".join(str(error).split())
            line = re.sub(re.escape(str(self.easel.folder)) + r"/[^/]*/", "", line)
            line = line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " …"
            raise gr.Error(html.escape(line, quote=False), print_exception=False) from None
        except gr.Error:
            raise
        except Exception:
            log.exception("what went wrong for a visitor of the page:")
            line = "something went wrong here; the terminal in which the page runs says what"
            raise gr.Error(line, print_exception=False) from None

    def _shown(self, painted: Painted, words: str) -> dict[str, Any]:
        return seen(painted.path, words, painted.before)

    def _buttons(self, painted: Painted) -> tuple[Any, Any]:
        """To download a picture, and to paint it larger."""
        return gr.update(value=str(painted.path), interactive=True), gr.update(interactive=True)

    def _size(self, size: int) -> Any:
        return gr.update(choices=sizes(self.easel.max_size, size), value=size)


def balance_of(settings: Settings) -> str | None:
    """The look whose scales these are, if there is one."""
    scales = {name: orders.first(settings.value(name)) for name in FIELDS[:2]}
    return next((name for name, values in BALANCES.items() if values == scales), None)


def scales_of(balance: Any) -> dict[str, float]:
    """The scales of one of the three looks; none for what is none."""
    return BALANCES.get(balance, {}) if isinstance(balance, str) else {}


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


def _line(update: Update, at_the_end: str) -> str:
    return status(at_the_end) if update.is_last else status_of(update)
