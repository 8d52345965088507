"""What is painted on the page: a picture, a sketch, variants, a sheet of the two dials, a clip; each
a piece of work for the studio, and each result a file of the page's own that says how it was made."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import UserError
from ldm.media.clips import Frame, open_clip
from ldm.media.flow import opencv
from ldm.media.images import save_image
from ldm.media.motion import DEFAULT_SMOOTH
from ldm.media.sheets import guidance_sheet, thumbnail
from ldm.media.video import can_keep_sound, write_video
from ldm.pipeline.clip import painted_clip
from ldm.pipeline.inputs import shown
from ldm.pipeline.provenance import metadata_saying
from ldm.pipeline.settings import MIN_SIDE, Settings
from ldm.web.orders import MAX_FILE_BYTES, STYLE_KEY, Order, check_settings, first, painting_of
from ldm.web.studio import Report, Work

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline

# times the stroke size, of variants: another seed alone moves single strokes in the fine look
VARIANTS = {"your strokes": None, "smaller strokes": 0.6, "larger strokes": 1.6, "the largest strokes": 2.5}
# small pictures, in less than a second each; a sketch is to show where a dial leads
SKETCH: dict[str, Any] = {"size": 192, "effort": 0.25, "steps": 6, "style_size": None}
CELL: dict[str, Any] = {"size": 192, "effort": 0.5, "steps": None, "style_size": None}
SHEET_SCALES = ([2.0, 1.0, 0.5, 0.25], [0.5, 1.0, 1.5, 2.0])  # of the content, of the style
MAX_FRAMES = 300
CLIP_BATCH = 4


@dataclass(frozen=True)
class Painted:
    """A result's file; the photo as large, to compare; what it was painted with."""

    path: Path
    before: Path
    settings: Settings


class Easel:
    """Makes pieces of work. folder: for all files. about: what a result's file says of settings and
    precision. max_size: of results, their shorter side."""

    def __init__(
        self, folder: Path, about: Callable[[Settings, str], Mapping[str, Any]], max_size: int
    ) -> None:
        self.folder, self.about, self.max_size = folder, about, max_size
        self._lasting: set[Path] = set()

    def picture(self, order: Order) -> Work:
        """Paints an order; the result is a Painted."""
        return lambda pipeline, report: self._paint(order, pipeline, report.watcher())

    def variants(self, order: Order, done: list[Painted]) -> Work:
        """Paints an order with several seeds and sizes of strokes, each put into `done` when it is
        there."""
        settings, count = order.settings, len(VARIANTS)
        strokes = settings.style_size or settings.short_side

        def work(pipeline: "StyleTransferPipeline", report: Report) -> None:
            for i, factor in enumerate(VARIANTS.values()):
                changes: dict[str, Any] = {"seed": first(settings.seed) + i}
                if factor is not None:
                    changes["style_size"] = min(max(MIN_SIDE, round(factor * strokes)), self.max_size)
                watch = report.watcher(f"Variant {i + 1} of {count}", i / count, 1 / count)
                done.append(self._paint(order.but(**changes), pipeline, watch))

        return work

    def sketch(self, order: Order) -> Work:
        """Paints an order small; the result is a picture."""
        small = small_one(order, SKETCH)
        return lambda pipeline, report: pipeline(**small.arguments(), watch=lambda progress: report.check())

    def sheet(self, order: Order) -> Work:
        """Paints an order small at every pair of scales; the result is the sheet's file."""
        small = small_one(order, CELL)
        rows, columns = SHEET_SCALES

        def work(pipeline: "StyleTransferPipeline", report: Report) -> Path:
            pairs = [(content, style) for content in rows for style in columns]
            pictures: list[Image.Image] = []
            for i, (content, style) in enumerate(pairs):
                one = small.but(content_scale=content, style_scale=style)
                watch = report.watcher(f"Picture {i + 1} of {len(pairs)}", i / len(pairs), 1 / len(pairs))
                pictures.append(pipeline(**one.arguments(), watch=watch))  # type: ignore[arg-type]
            lines = [pictures[i : i + len(columns)] for i in range(0, len(pictures), len(columns))]
            givens = [thumbnail(given, pictures[0]) for given in (order.content, shown(order.style))]
            return self.saved(guidance_sheet(givens, lines, rows, columns, CELL["size"]), "both_dials.png")

        return work

    def clip(self, path: str, painting: str, settings: Settings) -> Work:
        """Paints a clip; the result is the new clip's file. Raises UserError."""
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"the clip has more than the limit of {MAX_FILE_BYTES >> 20} MB; cut it shorter")
        check_settings(settings, self.max_size)
        opencv()
        style = painting_of(painting, self.max_size)
        clip = open_clip(path, None)
        if (clip.count or 0) > MAX_FRAMES:
            raise UserError(
                f"the clip has some {clip.count} frames, more than the limit of {MAX_FRAMES}; cut it shorter"
            )
        target, count = self.place("painted.mp4"), clip.count or MAX_FRAMES

        def work(pipeline: "StyleTransferPipeline", report: Report) -> Path:
            def paint(pictures: Any, **changes: Any) -> Any:
                return pipeline(
                    pictures, style, settings=settings, watch=lambda progress: report.check(), **changes
                )

            def told(frames: Iterator[Frame]) -> Iterator[Frame]:
                for done, frame in enumerate(frames, 1):
                    yield frame
                    report.tell(f"Frame {done} of {count}", min(done / count, 1), lambda: frame.picture)  # noqa: B023

            frames = clip.frames(0, MAX_FRAMES)
            results = painted_clip(frames, paint, settings, DEFAULT_SMOOTH, CLIP_BATCH)
            write_video(target, told(results), clip, can_keep_sound(clip, target))
            return target

        return work

    def before(self, order: Order, like: Image.Image) -> Path:
        """The photo at the size of a picture, as a file."""
        return self.saved(order.content.resize(like.size, Image.Resampling.LANCZOS), "photo.jpg")

    def saved(self, picture: Image.Image, name: str) -> Path:
        """A picture as a file."""
        path = self.place(name)
        save_image(picture, path)
        return path

    def shelved(self, name: str, picture: Image.Image) -> Path:
        """A picture of the style of this name, which stays."""
        path = self.place(f"{name}.png")
        save_image(picture, path, {STYLE_KEY: name})
        self._lasting.add(path)
        return path

    def forget(self, seconds: float) -> None:
        """Deletes what has lain in the folder for that long, uploads and results alike."""
        oldest = time.time() - seconds
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is within a folder before it
            with suppress(OSError):  # gone already, or a folder that is not empty
                if path in self._lasting or path.stat().st_mtime > oldest:
                    continue
                path.rmdir() if path.is_dir() else path.unlink()

    def place(self, name: str) -> Path:
        """Where a new file of this name may be."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

    def _paint(self, order: Order, pipeline: "StyleTransferPipeline", watch: Any) -> Painted:
        picture = pipeline(**order.arguments(), watch=watch)
        assert isinstance(picture, Image.Image)
        said = {**order.about, **self.about(order.settings, pipeline.painter.precision)}
        seed = first(order.settings.seed)
        path = self.place(f"artfusion-{seed}.png")
        save_image(picture, path, metadata_saying(said))
        return Painted(path, self.before(order, picture), order.settings)


def small_one(order: Order, settings: Mapping[str, Any]) -> Order:
    """The order with settings for a small picture, as far as its look has them."""
    size = min(settings["size"], order.settings.short_side)
    effort = settings["effort"] if order.settings.has_brush else 1.0
    return order.but(**{**settings, "size": size, "effort": effort})
