"""The page's own parts: what gradio has no component for, and its upload fields as we
need them.

Each of ours is a template and a script in `static/`; values go to and fro as JSON.
"""

import html
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ldm.errors import UserError
from ldm.web.studio import Update

STATIC = Path(__file__).parent / "static"


def part(name: str, value: Any, **options: Any) -> gr.HTML:
    """One of our own parts, by the name of its files."""
    # Not a subclass: gradio writes a file beside the module of each class of components.
    return gr.HTML(
        value,
        html_template=(STATIC / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(STATIC / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        **options,
    )


def pad(content: float, style: float, elem_id: str) -> gr.HTML:
    """The two dials as a square: its value is {content, style}, the two scales."""
    return part("pad", {"content": content, "style": style}, elem_id=elem_id)


def viewer(elem_id: str, visible: bool = True) -> gr.HTML:
    """A picture, before and after. Its value is `seen`'s."""
    return part("viewer", None, elem_id=elem_id, visible=visible)


def drawing(elem_id: str) -> gr.HTML:
    """Parts of a photo, marked by hand. Its value is {photo, drawing}; see
    `ldm.web.orders.regions_of`."""
    return part("drawing", None, elem_id=elem_id)


def shelf(pictures: list[tuple[str, str, Path]], elem_id: str) -> gr.HTML:
    """Pictures, (name, title, file), to choose from; `select` tells the name of one."""
    value = [{"name": name, "title": title, "file": sent(path)} for name, title, path in pictures]
    return part("shelf", value, elem_id=elem_id)


def picture(label: str, **options: Any) -> gr.Image:
    """An upload field for a picture. Its events take it unopened, with `preprocess=False`: gradio
    would open it with all that Pillow can read."""
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        **options,
    )


def path_of(value: Any) -> str | None:
    """The path of an uploaded file, which `ldm.web.page.Door` has found to be within the page's own
    folder, as an event gets it; None for none. Raises UserError."""
    if value is None:
        return None
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return str(value["path"])
    raise UserError("give an uploaded file")


def sent(path: Path) -> dict[str, Any]:
    """A file of ours in the value of a part, which gets its address there."""
    sendable: dict[str, Any] = FileData(path=str(path)).model_dump()
    return sendable


def seen(after: Path | str, words: str, before: Path | None = None, tag: str = "") -> dict[str, Any]:
    """What a Viewer shows: a file or a data URL, what it was before, words for who cannot see it,
    and a tag upon it."""
    return {
        "after": after if isinstance(after, str) else sent(after),
        "before": before and sent(before),
        "words": words,
        "tag": tag,
    }


def status(line: str, done: float | None = None) -> str:
    """A line, and a bar where a share is done, as HTML."""
    bar = (
        "" if done is None else f'<progress max="1" value="{done:.3f}" aria-label="How far it is"></progress>'
    )
    return f'<div class="af-status" role="status"><p>{html.escape(line)}</p>{bar}</div>'


def status_of(update: Update) -> str:
    """How far the work is, as HTML."""
    left = "" if update.seconds_left is None else f", {_time(update.seconds_left)} left"
    return status(update.words + left, update.done)


def _time(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"
