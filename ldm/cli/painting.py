"""What `artfusion stylize` does with tasks: paint one, paint many, or foretell."""

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ldm.checks import FACES
from ldm.cli.options import masks_of, model_of
from ldm.cli.reports import Report, Tally, spoken
from ldm.cli.spreading import engine_of, is_job, may_fail
from ldm.early import STOPPED
from ldm.errors import UserError
from ldm.files import count_written, file_hash, remove_left_asides
from ldm.media.images import exif_of, save_image, upright_size
from ldm.pipeline.batch_options import BatchOptions
from ldm.pipeline.batches import RowPainter
from ldm.pipeline.inputs import PictureReader, Style, check_mask, read_content, with_paintings
from ldm.pipeline.jobs import PaintingStopped, result_size
from ldm.pipeline.outcomes import outcome_of
from ldm.pipeline.parts import part_of
from ldm.pipeline.portions import AnyPortion, Portion, Worker, results_of
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import Task, is_finished, metadata_of

TRIAL_SIDE = 128  # of the picture that tells how long others will take
FEW_STEPS = 0.05  # of the look's, in the picture that tells how much memory others will take


def picture_options(args: argparse.Namespace) -> dict[str, str]:
    """By name, the pictures that parsed options give the styles besides the paintings."""
    given = {name: getattr(args, name) for name in ("palette_from", "not_style", "style_region")}
    return {name: path for name, path in given.items() if isinstance(path, str)}


def _said(args: argparse.Namespace) -> dict[str, Any]:
    """What metadata say of the options besides settings, which takes reading whole files."""
    extra = {"style_weights": args.style_weights, "mask": args.mask, "style_region": args.style_region}
    extra["keep_exif"] = args.keep_exif or None  # asked for later, it is to be written, too
    for name, path in {"keep": args.keep, **picture_options(args)}.items():
        hashed = None if path is None or (name, path) == ("keep", FACES) else file_hash(path)
        extra |= {name: path, f"{name}_sha256": hashed}
    return {name: value for name, value in extra.items() if value is not None}


class Painting:
    """Does work by the program's options, and tells the report of it. The model is read when it is
    needed."""

    def __init__(self, args: argparse.Namespace, report: Report, styles: Mapping[str, Style]):
        self.args, self.report = args, report
        self.options = BatchOptions(
            styles,
            model=model_of(args),
            batch_size=args.batch_size,
            keep=args.keep,
            palette=args.palette_from,
            not_style=args.not_style,
            part=args.style_region,
            keep_exif=args.keep_exif,
            said=_said(args),
            # Workers share the processors, and pictures shall not depend on how many there are.
            threads=1 if args.engine == "ray" else None,
        )
        self.painter = RowPainter(self.options)
        self._rates: dict[Any, float] = {}

    def one(self, task: Task) -> int:
        """A single picture is always painted, and whatever is wrong is an error; a stopped one is
        kept as far as it came."""
        args, report, settings = self.args, self.report, task.settings
        size = self._result_size(task)
        if not settings.paints:  # others know by their model's device, which is not read yet
            self.painter.painter_of(settings).check_memory([size], settings)
        content = read_content(task.content)
        style = with_paintings(task.style, lambda picture: part_of(picture, args.style_region))
        PictureReader().style(style)
        about, began = self.painter.description(settings), time.monotonic()
        try:
            picture = self.painter.painter_of(settings)(
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
            report.result(outcome_of(task, "stopped", seconds))
            report.warn(f"stopped: {task.output} is as far as it came")
            return STOPPED
        report.result(outcome_of(task, "painted", seconds))
        report.say(str(task.output))
        return 0

    def many(self, portions: Sequence[AnyPortion]) -> int:
        """Every task that is not done yet; what fails is listed at the end."""
        args = self.args
        counts = [len(portion.tasks) for portion in portions if isinstance(portion, Portion)]
        planned = sum(counts) if len(counts) == len(portions) else None
        began = time.time()
        remove_left_asides(results_of(portions))
        make = partial(Worker, self.options, args.overwrite, is_job(args))
        tally = Tally(self.report, planned, may_fail(args), stops=args.max_failed is not None)
        try:
            return tally.follow(
                engine_of(args)(portions, make),
                tells_rates=args.engine == "ray",
                written=lambda: 0 if args.pack else count_written(results_of(portions), since=began),
            )
        finally:
            remove_left_asides(results_of(portions))  # of workers that were killed

    def foretell(self, portions: Sequence[Portion]) -> int:
        """What would be painted, about how long that would take, by painting small pictures, and how
        much memory, by painting the largest with few steps."""
        report, failures = self.report, dict[str, None]()
        heaviest: tuple[int, Task, Style, int] | None = None
        planned = sum(len(portion.tasks) for portion in portions)
        asked, doable, total = 0, 0, 0.0
        for portion in portions:
            todo = self._todo(portion, always=planned == 1)
            asked += len(todo)
            for task in todo:
                painter = self.painter.painter_of(task.settings)
                try:
                    style = self.painter.style(task.style_name, task.settings)
                    if isinstance(style, UserError):
                        raise style
                    width, height = self._result_size(task)
                    painter.check_memory([(width, height)], task.settings)
                    rate = self._seconds_of_work(task, style)
                except UserError as error:
                    failures[str(error)] = None
                    report.result(outcome_of(task, "failed", problem=str(error)))
                    continue
                seconds = rate * painter.work_at((width, height), task.settings)
                doable, total = doable + 1, total + seconds
                together = min(self.painter.together(task.settings), len(portion.tasks))
                pixels = width * height * together
                if heaviest is None or pixels > heaviest[0]:
                    heaviest = pixels, task, style, together
                report.result(outcome_of(task, "would be painted", seconds))
                report.say(f"{task.output}: {width}x{height}, about {seconds:.0f} s")
        size = None if heaviest is None else self._bytes(*heaviest[1:])
        memory = "" if size is None else f", at most about {size / 1e9:.1f} GB of memory"
        by = " for one worker" if self.args.engine == "ray" else ""
        report.say(
            f"{doable} to paint, {planned - asked} there already, {asked - doable} would fail; about {spoken(total)} in all{by}{memory}"
        )
        for line in failures:
            report.warn(f"would fail: {line}")
        return 1 if asked - doable > may_fail(self.args) * planned else 0

    def _todo(self, portion: Portion, always: bool = False) -> list[Task]:
        """The tasks that are not done yet; always: nor those that are."""
        about = {key: self.painter.description(settings) for key, settings in portion.settings.items()}
        todo = []
        for task in portion.tasks:
            if not (always or self.args.overwrite) and is_finished(task, about[str(task.settings)]):
                self.report.result(outcome_of(task, "there"))
            else:
                todo.append(task)
        return todo

    def _result_size(self, task: Task) -> tuple[int, int]:
        """(width, height) of the result, of whose photo's file only the head is read. Raises
        UserError where there cannot be one."""
        size = result_size(upright_size(task.content), task.settings)
        for mask in masks_of(self.args):
            try:
                check_mask(upright_size(mask), size)
            except UserError as error:
                raise UserError(f"{mask}, for {task.content}: {error}") from error
        return size

    def _seconds_of_work(self, task: Task, style: Style) -> float:
        """Seconds of a gradient step of 256 x 256 pixels, by painting a task small, in memory, once
        for all settings that take as long. Raises UserError for a photo that cannot be read."""
        settings = task.settings
        key = settings.paints, settings.has_brush, settings.sampler, self._guidance(settings)
        if key not in self._rates:
            self._rates[key] = self._measured(task, style)
        return self._rates[key]

    def _bytes(self, task: Task, style: Style, together: int) -> int | None:
        """The most memory that is taken, by painting so many pictures like a task's at once, in as
        few steps as can be; None where the system does not tell."""
        import torch  # takes seconds, and by now it is there

        from ldm.device import peak_memory, reset_peak_memory

        settings, painter = task.settings, self.painter.painter_of(task.settings)
        device = self.painter.pipeline.model.device if settings.paints else torch.device("cpu")
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

    def _measured(self, task: Task, style: Style) -> float:
        painter = self.painter.painter_of(task.settings)
        content, trial = read_content(task.content), task.settings.but(size=TRIAL_SIDE, face_detail=0.0)
        for _ in range(2):  # the first has much to begin with
            began = time.perf_counter()
            result = painter(content, style, settings=trial)
            seconds = time.perf_counter() - began
        assert not isinstance(result, list)  # as one was asked for
        return seconds / painter.work_at(result.size, trial)
