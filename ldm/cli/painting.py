"""What `artfusion stylize` does with tasks: paint one, paint many, or foretell."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.checks import FACES
from ldm.cli.options import load_pipeline, masks_of, painted_by, painted_with
from ldm.cli.reports import Report, spoken
from ldm.errors import UserError
from ldm.files import file_hash
from ldm.media.images import exif_of, save_image, short_side_at, upright_size
from ldm.pipeline.folders import (
    ManyPainter,
    Task,
    is_finished,
    metadata_of,
    progress_bar,
    read_styles,
    with_paintings,
)
from ldm.pipeline.inputs import PictureReader, Style, check_mask, read_content
from ldm.pipeline.jobs import PaintingStopped, check_scaled
from ldm.pipeline.parts import part_of
from ldm.pipeline.recolouring import STYLE_SIDE, Recolourer
from ldm.pipeline.settings import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from ldm.pipeline.pipeline import StyleTransferPipeline

TRIAL_SIDE = 128  # of the picture that tells how long others will take
FEW_STEPS = 0.05  # of the fine look's, in the picture that tells how much memory others will take


@dataclass(frozen=True)
class Work:
    """Tasks with the same settings."""

    settings: Settings
    tasks: Sequence[Task]


def picture_options(args: argparse.Namespace) -> dict[str, str]:
    """By name, the pictures that parsed options give the styles besides the paintings."""
    given = {name: getattr(args, name) for name in ("palette_from", "not_style", "style_region")}
    return {name: path for name, path in given.items() if isinstance(path, str)}


class Painting:
    """Does work by the program's options, and tells the report of it. The model is read when it is
    needed."""

    def __init__(self, args: argparse.Namespace, report: Report):
        self.args, self.report = args, report
        self._rates: dict[Any, float] = {}

    @cached_property
    def pipeline(self) -> "StyleTransferPipeline":
        """Raises UserError where there is none."""
        return load_pipeline(self.args)

    def painter_of(self, settings: Settings) -> "StyleTransferPipeline | Recolourer":
        """What makes pictures with these settings. Raises UserError."""
        return self.pipeline if settings.paints else Recolourer()

    def description(self, settings: Settings) -> dict[str, Any]:
        """What a result's metadata say, besides its own content and style."""
        if not settings.paints:
            return settings.values() | {"version": __version__} | self._by_options
        painter = self.pipeline.painter
        settings = settings.but(detail=painter.detail(settings))
        return painted_with(settings, painter.precision) | self._by_model | self._by_options

    @cached_property
    def _by_model(self) -> dict[str, Any]:
        """What they say of the model, which takes reading it whole. Raises UserError."""
        return painted_by(self.args)

    @cached_property
    def _by_options(self) -> dict[str, Any]:
        """What they say of the options, which takes reading whole files."""
        args = self.args
        extra = {"style_weights": args.style_weights, "mask": args.mask, "style_region": args.style_region}
        extra["keep_exif"] = args.keep_exif or None  # asked for later, it is to be written, too
        for name, path in {"keep": args.keep, **picture_options(args)}.items():
            hashed = None if path is None or (name, path) == ("keep", FACES) else file_hash(path)
            extra |= {name: path, f"{name}_sha256": hashed}
        return {name: value for name, value in extra.items() if value is not None}

    def one(self, task: Task, settings: Settings) -> int:
        """A single picture is always painted, and whatever is wrong is an error; a stopped one is
        kept as far as it came."""
        args, report = self.args, self.report
        self._result_size(task.content, settings)
        content = read_content(task.content)
        style = with_paintings(task.style, lambda picture: part_of(picture, args.style_region))
        PictureReader().style(style)
        about, began = self.description(settings), time.monotonic()
        try:
            picture = self.painter_of(settings)(
                content,
                style,
                settings=settings,
                keep=args.keep,
                palette=args.palette_from,
                not_style=args.not_style,
                progress=not args.quiet,
            )
        except PaintingStopped as stopped:
            picture, about = stopped.picture, about | {"stopped": True}  # so that it never counts as finished
        exif = exif_of(task.content) if args.keep_exif else None
        save_image(picture, task.output, metadata_of(task, about), exif)
        seconds = time.monotonic() - began
        if "stopped" in about:
            report.result(task, "stopped", seconds)
            report.warn(f"stopped: {task.output} is as far as it came")
            return 130
        report.result(task, "painted", seconds)
        report.say(str(task.output))
        return 0

    def many(self, works: Sequence[Work]) -> int:
        """Every task that is not done yet; what fails is listed at the end."""
        report, failures, painted = self.report, dict[str, None](), 0
        todos = [(work.settings, *self._todo(work)) for work in works]
        planned, asked = sum(len(work.tasks) for work in works), sum(len(todo) for *_, todo in todos)
        with progress_bar(asked, disable=self.args.quiet or not asked) as bar:
            for settings, about, todo in todos:
                styles, problems = self._styles(todo, settings)
                painter = self._painter(styles, about, settings, bar)
                for task in todo:
                    if task.style_name in problems:
                        report.result(task, "failed", error=problems[task.style_name])
                try:
                    painter.paint([task for task in todo if task.style_name in styles])
                except KeyboardInterrupt:
                    bar.close()
                    done = painted + painter.done
                    report.warn(f"stopped: {done} of {asked} painted; the same command does the rest")
                    return 130
                painted += painter.done
                failures |= dict.fromkeys([*problems.values(), *painter.failures])
        report.say(f"{painted} painted, {planned - asked} there already, {asked - painted} failed")
        for line in failures:
            report.warn(f"failed: {line}")
        return 1 if painted < asked else 0

    def _painter(
        self, styles: dict[str, Style], about: dict[str, Any], settings: Settings, bar: "tqdm[Any]"
    ) -> ManyPainter:
        args = self.args
        return ManyPainter(
            self.painter_of(settings),
            styles,
            about,
            # Fine pictures are painted one by one, so each is written before the next is begun.
            1 if settings.has_brush else args.batch_size,
            keep_exif=args.keep_exif,
            tell=lambda task, problem, seconds: self.report.result(
                task, "failed" if problem else "painted", seconds, problem
            ),
            bar=bar,
            settings=settings,
            keep=args.keep,
            palette=args.palette_from,
            not_style=args.not_style,
        )

    def foretell(self, works: Sequence[Work]) -> int:
        """What would be painted, about how long that would take, by painting small pictures, and how
        much memory, by painting the largest with few steps."""
        report, failures = self.report, dict[str, None]()
        heaviest: tuple[int, Task, Style, Work] | None = None
        planned = sum(len(work.tasks) for work in works)
        asked, doable, total = 0, 0, 0.0
        for work in works:
            _, todo = self._todo(work, always=planned == 1)
            asked += len(todo)
            styles, problems = self._styles(todo, work.settings)
            for task in todo:
                try:
                    if task.style_name in problems:
                        raise UserError(problems[task.style_name])
                    width, height = self._result_size(task.content, work.settings)
                    rate = self._seconds_of_work(task, styles[task.style_name], work.settings)
                except UserError as error:
                    failures[str(error)] = None
                    report.result(task, "failed", error=str(error))
                    continue
                seconds = rate * self.painter_of(work.settings).work_at((width, height), work.settings)
                doable, total = doable + 1, total + seconds
                pixels = width * height * self._together(work)
                if heaviest is None or pixels > heaviest[0]:
                    heaviest = pixels, task, styles[task.style_name], work
                report.result(task, "would be painted", seconds)
                report.say(f"{task.output}: {width}x{height}, about {seconds:.0f} s")
        size = None if heaviest is None else self._bytes(*heaviest[1:])
        memory = "" if size is None else f", at most about {size / 1e9:.1f} GB of memory"
        report.say(
            f"{doable} to paint, {planned - asked} there already, {asked - doable} would fail; about {spoken(total)} in all{memory}"
        )
        for line in failures:
            report.warn(f"would fail: {line}")
        return 1 if doable < asked else 0

    def _todo(self, work: Work, always: bool = False) -> tuple[dict[str, Any], list[Task]]:
        """(what their metadata say, tasks that are not done yet). always: nor those that are."""
        about, todo = self.description(work.settings), []
        for task in work.tasks:
            if not (always or self.args.overwrite) and is_finished(task, about):
                self.report.result(task, "there")
            else:
                todo.append(task)
        return about, todo

    def _styles(self, tasks: Sequence[Task], settings: Settings) -> tuple[dict[str, Style], dict[str, str]]:
        side = settings.style_side(self.pipeline.painter.native_size) if settings.paints else STYLE_SIDE
        return read_styles(tasks, side, self.args.style_region)

    def _result_size(self, path: Path, settings: Settings) -> tuple[int, int]:
        """(width, height) of the result of a photo, of whose file only the head is read. Raises
        UserError where there cannot be one."""
        given = upright_size(path)
        check_scaled(given, settings.short_side)
        size = settings.shape or short_side_at(given, settings.short_side)
        for mask in masks_of(self.args):
            try:
                check_mask(upright_size(mask), size)
            except UserError as error:
                raise UserError(f"{mask}, for {path}: {error}") from error
        return size

    def _seconds_of_work(self, task: Task, style: Style, settings: Settings) -> float:
        """Seconds of a gradient step of 256 x 256 pixels, by painting a task small, in memory, once
        for all settings that take as long. Raises UserError for a photo that cannot be read."""
        key = settings.paints, settings.has_brush, settings.sampler, self._guidance(settings)
        if key not in self._rates:
            self._rates[key] = self._measured(task, style, settings)
        return self._rates[key]

    def _together(self, work: Work) -> int:
        """How many pictures are painted at once, at most."""
        return 1 if work.settings.has_brush else min(self.args.batch_size, len(work.tasks))

    def _bytes(self, task: Task, style: Style, work: Work) -> int | None:
        """The most memory that is taken, by painting as many pictures like a task's as go together,
        in as few steps as can be; None where the system does not tell."""
        import torch  # takes seconds, and by now it is there

        from ldm.device import peak_memory, reset_peak_memory

        settings, painter, together = work.settings, self.painter_of(work.settings), self._together(work)
        device = self.pipeline.model.device if settings.paints else torch.device("cpu")
        before = peak_memory(device)
        if not reset_peak_memory(device):
            return None
        if settings.paints:
            few = {"effort": FEW_STEPS} if settings.has_brush else {}
            settings = settings.but(steps=1, face_detail=0.0, **few)
        painter([read_content(task.content)] * together, style, settings=settings, batch_size=together)
        return max(before, peak_memory(device))

    def _guidance(self, settings: Settings) -> tuple[bool, ...]:
        return tuple(settings.value(name) == 1 for name in ("content_scale", "style_scale"))

    def _measured(self, task: Task, style: Style, settings: Settings) -> float:
        painter = self.painter_of(settings)
        content, trial = read_content(task.content), settings.but(size=TRIAL_SIDE, face_detail=0.0)
        for _ in range(2):  # the first has much to begin with
            began = time.perf_counter()
            result = painter(content, style, settings=trial)
            seconds = time.perf_counter() - began
        assert not isinstance(result, list)  # as one was asked for
        return seconds / painter.work_at(result.size, trial)
