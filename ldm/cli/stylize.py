"""Paint photos in the style of paintings.

One picture (photo__painting.png here, or the file that is named third), more freely, and over the
photo instead of from scratch:

    artfusion stylize photo.jpg painting.jpg
    artfusion stylize photo.jpg painting.jpg result.png
    artfusion stylize --content photo.jpg --style painting.jpg --output freer.png --content-scale 0.5 --style-scale 1.5 --detail 0
    artfusion stylize --content photo.jpg --style painting.jpg --output near.png --strength 0.6 --preserve-color

Every photo in every style: results/CONTENT__STYLE.png. Started again after a stop, it does what is
missing:

    artfusion stylize --content photos/ --style klimt.jpg turner.jpg --output results/
    artfusion stylize --content 'photos/*.jpg' --style paintings/ --output 'results/{style}/{content}.jpg'

Two styles mixed; a style for the white part of a mask and another for the rest; a part of the photo
left as it is; the brush work of one painting in the colours of another:

    artfusion stylize --content photo.jpg --style a.jpg --style b.jpg --style-weights 0.7 0.3 --output mixed.png
    artfusion stylize --content photo.jpg --style a.jpg --style b.jpg --mask person.png --output regions.png
    artfusion stylize --content photo.jpg --style a.jpg --keep face.png --output kept.png
    artfusion stylize --content photo.jpg --style a.jpg --palette-from b.jpg --output in_other_colours.png

Every photo in two of the styles, drawn by the seed; all frames of a clip in the same:

    artfusion stylize --content photos/ --style paintings/ --output results/ --pair random --per-content 2
    artfusion stylize --content frames/ --style paintings/ --output results/ --pair random --group-by '([^/]*)_[0-9]+'

In scripts: a line of JSON for each result; from and to pipes; what would be painted, and about how
long it would take:

    artfusion stylize --content photos/ --style klimt.jpg --output results/ --json
    curl -s https://example.org/photo.jpg | artfusion stylize - painting.jpg - --quiet > result.png
    artfusion stylize --content photos/ --style paintings/ --output results/ --dry-run

Ctrl-C leaves a single picture as far as it came, and of several all that are done.

Exit codes: 0, all done; 1, some pictures failed, see the list at the end; 2, nothing was done, see
the message; 130, stopped.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.options import add_model_options, add_settings_options, load_pipeline, provenance, settings_of
from ldm.cli.reports import STREAM, Report, Streams, spoken
from ldm.errors import UserError
from ldm.files import file_hash
from ldm.media.images import exif_of, save_image, short_side_at, upright_size
from ldm.pipeline.folders import (
    Box,
    ManyPainter,
    Task,
    check_inputs_survive,
    distinct_names,
    expand,
    folder_of_results,
    is_finished,
    metadata_of,
    part_of,
    plan,
    read_styles,
    share_of,
    with_paintings,
)
from ldm.pipeline.inputs import PictureReader, Style, StyleMix, StyleRegions, check_mask, read_content
from ldm.pipeline.jobs import PaintingStopped, check_scaled
from ldm.pipeline.pairing import KINDS, Pairing
from ldm.pipeline.settings import MIN_SIDE, Settings
from ldm.program import ArgumentParser, at_least

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline


TRIAL_SIDE = 128  # of the picture that tells how long others will take


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    several = {"nargs": "+", "action": "extend"}
    parser.add_argument(
        "pictures",
        nargs="*",
        metavar="PHOTO PAINTING [RESULT]",
        help="one photo in one style, in place of the next three options",
    )
    parser.add_argument(
        "--content", **several, metavar="PATH", help="what to paint: picture files, folders, or quoted globs"
    )
    parser.add_argument(
        "--style",
        **several,
        metavar="PATH",
        help="how to paint it: likewise; every content is painted in every style",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="a file (.png, .jpg, ...), a folder, or a name with {content} and {style} in it",
    )
    parser.add_argument(
        "--pair",
        choices=KINDS,
        default="all",
        help="all: every content in every style (default); zip: the first in the first, the second in the second, and so on; random: every content in some styles of its own, the same for the same --seed",
    )
    parser.add_argument(
        "--per-content",
        type=at_least(1),
        metavar="K",
        help="for --pair random: so many styles for each content (default: 1)",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="for --pair random: contents in whose whole paths it finds the same have the same styles: '([^/]*)_frame' of frames",
    )
    parser.add_argument(
        "--style-weights",
        type=float,
        nargs="+",
        metavar="W",
        help="mix all styles into one with these weights",
    )
    parser.add_argument(
        "--mask",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="black and white: the first style goes where the first mask is white, and so on; with one mask less than styles, the last style takes the rest",
    )
    parser.add_argument(
        "--keep", metavar="FILE", help="black and white: where it is white, the photo stays as it is"
    )
    parser.add_argument(
        "--style-region",
        type=parse_region,
        metavar="X,Y,W,H",
        help="look at this part of the paintings alone: left, top, width and height in their pixels",
    )
    parser.add_argument(
        "--palette-from",
        metavar="FILE",
        help="the styles' brush work in the colours of this picture",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="paint pictures again that are there already, made the same way",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=8,
        metavar="N",
        help="pictures of the fast look painted together (default: 8); fewer take less memory",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="on standard output a line of JSON for each result: status (painted, there, failed, stopped, would be painted), content, style, output, seconds, error",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary; errors only")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="paint nothing; say what would be painted and, by painting a small picture in memory, about how long it would take",
    )
    parser.add_argument(
        "--keep-exif",
        action="store_true",
        help="write the photo's EXIF data (camera, date, place) into the result",
    )
    add_settings_options(parser)
    add_model_options(parser)
    args = parser.parse_args()
    for name in ("per_content", "group_by"):
        if getattr(args, name) is not None and args.pair != "random":
            parser.error(f"--{name.replace('_', '-')} is for --pair random")
    if args.pictures:
        _take_pictures(args, parser)
    lacking = [f"--{name}" for name in ("content", "style", "output") if not getattr(args, name)]
    if lacking:
        parser.error(
            f"the following arguments are required: {', '.join(lacking)} (or a photo and a painting alone)"
        )
    return args


def parse_region(text: str) -> Box:
    """Four numbers."""
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError:
        left = top = width = height = -1
    if min(left, top) < 0 or min(width, height) < MIN_SIDE:
        raise argparse.ArgumentTypeError(
            f"expected left, top, width and height, the last two at least {MIN_SIDE}, such as 100,50,400,300, got {text!r}"
        )
    return left, top, width, height


def _take_pictures(args: argparse.Namespace, parser: ArgumentParser) -> None:
    """What is given without options as what those would say."""
    if (
        len(args.pictures) > 3
        or len(args.pictures) < 2
        or args.content
        or args.style
        or (args.output and len(args.pictures) == 3)
    ):
        parser.error(
            f"{' '.join(args.pictures)}: without options give a photo, a painting and, if you like, the result's file; else --content, --style and --output"
        )
    content, style, *result = args.pictures
    args.content, args.style = [content], [style]
    piped = STREAM if STREAM in (content, style) else f"{Path(content).stem}__{Path(style).stem}.png"
    args.output = result[0] if result else args.output or piped


def main() -> int:
    args = parse_args()
    if args.quiet:
        logging.getLogger().setLevel(logging.WARNING)
    with Streams(args) as streams:
        settings = settings_of(args)
        contents, styles = expand(args.content, folder_of_results(args.output)), named_styles(args)
        pairing = pairing_of(args, settings)
        if streams.writes:
            streams.check(len(list(pairing.pairs([(path.name, path) for path in contents], styles))))
        tasks = plan(contents, styles, args.output, settings, pairing)
        check_others(args, tasks)
        share = share_of(tasks)
        report = Report(args.json, args.quiet or streams.writes, streams.names)
        if args.dry_run:
            return foretell(share, args, settings, report, always=len(tasks) == 1)
        if len(tasks) > 1:
            return paint_many(share, args, settings, report)
        code = paint_one(share, args, settings, report)
        streams.write()
        return code


def pairing_of(args: argparse.Namespace, settings: Settings) -> Pairing:
    """Raises UserError."""
    pairing = Pairing(args.pair, args.per_content or 1, args.group_by, settings.each("seed", 1)[0])
    pairing.check()
    return pairing


def named_styles(args: argparse.Namespace) -> list[tuple[str, Style]]:
    """Every style with the name that its results get: single pictures, or all of them mixed or by
    region."""
    paths = expand(args.style, folder_of_results(args.output))
    if args.style_weights is not None and args.mask is not None:
        raise UserError("--style-weights and --mask do not go together; give one of them")
    together = "+".join(path.stem for path in paths)
    if args.style_weights is not None:
        mix = StyleMix(paths, args.style_weights)
        mix.shares()  # raises if they do not fit
        return [(together, mix)]
    if args.mask is not None:
        regions = StyleRegions(paths, args.mask)
        regions.check()
        return [(together, regions)]
    return list(zip(distinct_names(paths), paths))


def check_others(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Raises UserError, before the model is read, for a mask or palette that cannot be, or that a
    result would replace."""
    given = [*(args.mask or ()), *(path for path in (args.keep, args.palette_from) if path is not None)]
    read = PictureReader()
    for path in given:
        read(path)
    if args.palette_from is not None and args.preserve_color:
        raise UserError("--palette-from and --preserve-color both say whose colours; give one of them")
    check_inputs_survive([task.output for task in tasks], given)


def description(
    args: argparse.Namespace, settings: Settings, pipeline: "StyleTransferPipeline"
) -> dict[str, Any]:
    """What a result's metadata say, besides its own content and style."""
    extra = {"style_weights": args.style_weights, "mask": args.mask, "style_region": args.style_region}
    extra["keep_exif"] = args.keep_exif or None  # asked for later, it is to be written, too
    for name in ("keep", "palette_from"):
        path = getattr(args, name)
        extra |= {name: path, f"{name}_sha256": None if path is None else file_hash(path)}
    settings = settings.but(detail=pipeline.painter.detail(settings))
    return provenance(args, settings, pipeline.painter.precision) | {
        name: value for name, value in extra.items() if value is not None
    }


def paint_one(tasks: list[Task], args: argparse.Namespace, settings: Settings, report: Report) -> int:
    """A single picture is always painted, and whatever is wrong is an error; a stopped one is kept
    as far as it came."""
    for task in tasks:  # none in all but the first of several processes
        content = read_content(task.content)
        style = with_paintings(task.style, lambda picture: part_of(picture, args.style_region))
        PictureReader().style(style)
        pipeline = load_pipeline(args)
        about = description(args, settings, pipeline)
        began = time.monotonic()
        try:
            picture = pipeline(
                content,
                style,
                settings=settings,
                keep=args.keep,
                palette=args.palette_from,
                progress=not args.quiet,
            )
        except PaintingStopped as stopped:
            picture, about = stopped.picture, about | {"stopped": True}  # so that it never counts as finished
        exif = exif_of(task.content) if args.keep_exif else None
        save_image(picture, task.output, metadata_of(task, about), exif)
        if "stopped" in about:
            report.result(task, "stopped", time.monotonic() - began)
            report.warn(f"stopped: {task.output} is as far as it came")
            return 130
        report.result(task, "painted", time.monotonic() - began)
        report.say(str(task.output))
    return 0


def paint_many(tasks: list[Task], args: argparse.Namespace, settings: Settings, report: Report) -> int:
    """Every task that is not done yet; what fails is listed at the end."""
    pipeline = load_pipeline(args)
    about = description(args, settings, pipeline)
    todo = [task for task in tasks if not _is_there(task, about, args, report)]
    style_side = settings.style_side(pipeline.painter.native_size)
    styles, problems = read_styles(todo, style_side, args.style_region)
    # Fine pictures are painted one by one, so each is written before the next is begun.
    batch_size = 1 if settings.has_brush else args.batch_size
    painter = ManyPainter(
        pipeline,
        styles,
        about,
        batch_size,
        keep_exif=args.keep_exif,
        tell=lambda task, problem, seconds: report.result(
            task, "failed" if problem else "painted", seconds, problem
        ),
        bar=not args.quiet,
        settings=settings,
        keep=args.keep,
        palette=args.palette_from,
    )
    doable = [task for task in todo if task.style_name in styles]
    for task in todo:
        if task.style_name not in styles:
            report.result(task, "failed", error="; ".join(problems))
    try:
        painter.paint(doable)
    except KeyboardInterrupt:
        report.warn(f"stopped: {painter.done} of {len(todo)} painted; the same command does the rest")
        return 130
    failed = len(todo) - len(doable) + painter.failed
    report.say(f"{len(todo) - failed} painted, {len(tasks) - len(todo)} there already, {failed} failed")
    for line in (*problems, *painter.failures):
        report.warn(f"failed: {line}")
    return 1 if failed else 0


def _is_there(task: Task, about: dict[str, Any], args: argparse.Namespace, report: Report) -> bool:
    there = not args.overwrite and is_finished(task, about)
    if there:
        report.result(task, "there")
    return there


def foretell(
    tasks: list[Task], args: argparse.Namespace, settings: Settings, report: Report, always: bool
) -> int:
    """What would be painted, and about how long that would take, by painting a small picture.
    always: also what is there already."""
    pipeline = load_pipeline(args)
    about = description(args, settings, pipeline)
    todo = [task for task in tasks if always or not _is_there(task, about, args, report)]
    styles, problems = read_styles(todo, settings.style_side(pipeline.painter.native_size), args.style_region)
    sizes: dict[Path, tuple[int, int]] = {}
    for path in dict.fromkeys(task.content for task in todo):
        try:
            sizes[path] = result_size(path, args, settings)
        except UserError as error:
            problems.append(str(error))
    doable = [task for task in todo if task.content in sizes and task.style_name in styles]
    rate = seconds_of_work(pipeline, doable[0], styles, settings) if doable else 0.0
    total = 0.0
    for task in todo:
        if task not in doable:
            report.result(task, "failed", error="; ".join(problems))
            continue
        seconds = rate * pipeline.work_at(sizes[task.content], settings)
        total += seconds
        width, height = sizes[task.content]
        report.result(task, "would be painted", seconds)
        report.say(f"{task.output}: {width}x{height}, about {seconds:.0f} s")
    there, failed = len(tasks) - len(todo), len(todo) - len(doable)
    report.say(
        f"{len(doable)} to paint, {there} there already, {failed} would fail; about {spoken(total)} in all"
    )
    for line in problems:
        report.warn(f"would fail: {line}")
    return 1 if failed else 0


def result_size(path: Path, args: argparse.Namespace, settings: Settings) -> tuple[int, int]:
    """(width, height) of the result of a photo, of whose file only the head is read. Raises UserError
    where there cannot be one."""
    given = upright_size(path)
    check_scaled(given, settings.short_side)
    size = settings.shape or short_side_at(given, settings.short_side)
    for mask in (*(args.mask or ()), *([args.keep] if args.keep is not None else ())):
        check_mask(upright_size(mask), size)
    return size


def seconds_of_work(
    pipeline: "StyleTransferPipeline", task: Task, styles: dict[str, Style], settings: Settings
) -> float:
    """Seconds of a gradient step of 256 x 256 pixels, by painting a task small, in memory."""
    content, style = read_content(task.content), styles[task.style_name]
    trial = settings.but(size=TRIAL_SIDE)
    for _ in range(2):  # the first has much to begin with
        began = time.perf_counter()
        result = pipeline(content, style, settings=trial)
        seconds = time.perf_counter() - began
    assert not isinstance(result, list)  # as one was asked for
    return seconds / pipeline.work_at(result.size, trial)
