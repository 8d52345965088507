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
left as it is; the brush work of one painting in the colours of another; that of what is white in a
mask of the painting:

    artfusion stylize --content photo.jpg --style a.jpg --style b.jpg --style-weights 0.7 0.3 --output mixed.png
    artfusion stylize --content photo.jpg --style a.jpg --style b.jpg --mask person.png --output regions.png
    artfusion stylize --content photo.jpg --style a.jpg --keep face.png --output kept.png
    artfusion stylize --content photo.jpg --style a.jpg --palette-from b.jpg --output in_other_colours.png
    artfusion stylize --content photo.jpg --style a.jpg --style-region sky.png --output like_its_sky.png

Away from another painting; the photo itself in the painting's colours:

    artfusion stylize photo.jpg a.jpg --not-style b.jpg --style-scale 1.5
    artfusion stylize photo.jpg a.jpg --look palette

A style that comes along (`artfusion styles` shows them), one that was saved by `artfusion style save`,
all pictures of a folder as one style:

    artfusion stylize photo.jpg ukiyo-e
    artfusion stylize photo.jpg my-style.safetensors
    artfusion stylize --content photo.jpg --style-from paintings/ --output result.png

Every photo in two of the styles, drawn by the seed; all frames of a clip in the same:

    artfusion stylize --content photos/ --style paintings/ --output results/ --pair random --per-content 2
    artfusion stylize --content frames/ --style paintings/ --output results/ --pair random --group-by '([^/]*)_[0-9]+'

A table that says which photo in which painting, with settings of its own in each row; and one of what
is to be painted:

    artfusion stylize --manifest pictures.csv --output results/
    artfusion stylize --content photos/ --style paintings/ --output results/ --pair random --write-manifest pictures.csv --dry-run

In scripts: a line of JSON for each result; from and to pipes; what would be painted, and about how
long it would take:

    artfusion stylize --content photos/ --style klimt.jpg --output results/ --json
    curl -s https://example.org/photo.jpg | artfusion stylize - painting.jpg - --quiet > result.png
    artfusion stylize --content photos/ --style paintings/ --output results/ --dry-run

Ctrl-C leaves a single picture as far as it came, and of several all that are done.

On many processors and machines (docs/cluster.md): workers of Ray, a share of the work, results in
shards:

    artfusion stylize --content photos/ --style klimt.jpg --output results/ --engine ray
    artfusion stylize --content photos/ --style klimt.jpg --output results/ --shard 0/8
    artfusion stylize --content 's3://bucket/photos-{000..099}.tar' --style klimt.jpg --output s3://bucket/painted --pack tar

Exit codes: 0, all done; 1, some pictures failed, see the list at the end, or what was printed went
nowhere; 2, nothing was done, see the message; 130, stopped by Ctrl-C; 143, by SIGTERM.
"""

import argparse
import logging
import re
from pathlib import Path

from ldm.cli.asked import Asked
from ldm.cli.manifest import write_manifest
from ldm.cli.options import add_batch_size_option, add_model_options, add_settings_options
from ldm.cli.painting import Painting
from ldm.cli.reports import STREAM, Report, Streams
from ldm.cli.spreading import add_spreading_options, check_spreading, is_job, own_share, shard_of
from ldm.errors import UserError
from ldm.media.places import place_of
from ldm.pipeline.library import of_library
from ldm.pipeline.pairing import KINDS
from ldm.pipeline.parts import Part
from ldm.pipeline.settings import MIN_SIDE
from ldm.program import ArgumentParser, at_least, result_is_printed

log = logging.getLogger(__name__)

BESIDE = ("keep", "palette_from", "not_style", "style_region")  # options that tables have no columns for


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    _add_pictures(parser)
    _add_styles(parser)
    _add_running(parser)
    add_spreading_options(parser)
    add_settings_options(parser)
    add_model_options(parser)
    args = parser.parse_args()
    for name in ("per_content", "group_by"):
        if getattr(args, name) is not None and args.pair != "random":
            parser.error(f"--{name.replace('_', '-')} is for --pair random")
    for name in ("manifest", "write_manifest"):
        given = getattr(args, name)
        setattr(args, name, None if given is None else place_of(given))
    if args.pictures:
        _take_pictures(args, parser)
    if args.manifest is not None:
        _check_manifest(args, parser)
        return args
    given = {"content": args.content, "style": args.style or args.style_from, "output": args.output}
    lacking = [f"--{name}" for name, value in given.items() if not value]
    if lacking:
        parser.error(
            f"the following arguments are required: {', '.join(lacking)} (or a photo and a painting alone)"
        )
    args.style = args.style or []
    return args


def _add_pictures(parser: ArgumentParser) -> None:
    """Which photos in which paintings, and where to."""
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
        help="how to paint it: likewise, and saved styles, also those of `artfusion styles` by their names; every content is painted in every style",
    )
    parser.add_argument(
        "--style-from",
        **several,
        metavar="DIR",
        help="how to paint it: all pictures of a folder together as one style; several folders are a style each",
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
        help="for --pair random: contents in whose whole paths it finds the same have the same styles: '([^/]*)_frame' of frames; the path of a photo in a shard is that of the shard and its own in it, photos-000.tar/a/b.jpg",
    )
    parser.add_argument(
        "--manifest",
        metavar="CSV",
        help="in place of --content and --style: a row for each picture, with the columns content and style (paths from the table's folder), and if you like output (within the folder --output) and the names of settings; what is empty is as the options say",
    )
    parser.add_argument(
        "--write-manifest",
        metavar="CSV",
        help="write what is to be painted as such a file, before anything is, with results from the folder --output, which is to be given again; --keep, --palette-from, --not-style and --style-region are not in it",
    )


def _add_styles(parser: ArgumentParser) -> None:
    """What is made of the paintings, and of parts of the photo."""
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
        "--keep",
        metavar="FILE|faces",
        help="black and white: where it is white, the photo stays as it is; faces (pip install -e '.[faces]'): those that are found do; a file of that name is ./faces",
    )
    parser.add_argument(
        "--style-region",
        type=parse_region,
        metavar="X,Y,W,H|FILE",
        help="look at this part of the paintings alone: left, top, width and height in their pixels; or, of a single painting, a black and white picture of its aspect: what is white there",
    )
    parser.add_argument(
        "--palette-from",
        metavar="FILE",
        help="the styles' brush work in the colours of this picture",
    )
    parser.add_argument(
        "--not-style",
        metavar="FILE",
        help="a painting that the results are led away from, by as much as --style-scale is above 1, which it must be",
    )


def _add_running(parser: ArgumentParser) -> None:
    """What is painted again, how many at once, and what is told and written beside."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="paint pictures again that are there already, made the same way",
    )
    add_batch_size_option(parser, "pictures of the look sampled painted together")
    parser.add_argument(
        "--json",
        action="store_true",
        help="on standard output a line of JSON for each result: status (painted, there, failed, stopped, would be painted), content, style, output, seconds, pack (which it is in), error",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary; errors only")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="paint nothing; say what would be painted and, by painting a small picture, and the largest in few steps, about how long it would take and how much memory",
    )
    parser.add_argument(
        "--keep-exif",
        action="store_true",
        help="write the photo's EXIF data (camera, date, place) into the result",
    )


def _check_manifest(args: argparse.Namespace, parser: ArgumentParser) -> None:
    """What a manifest says, options cannot."""
    given = {
        "photos": args.pictures,
        "--content": args.content,
        "--style": args.style,
        "--style-from": args.style_from,
        "--style-weights": args.style_weights,
        "--mask": args.mask,
        "--pair": args.pair != "all",
    }
    for name, value in given.items():
        if value:
            parser.error(f"--manifest says which photos go with which paintings; leave out {name}")
    if args.output == STREAM:
        parser.error("--manifest takes a folder or a name with {content} and {style} as --output")
    args.content, args.style = [], []


def parse_region(text: str) -> Part:
    """Four numbers, or a file's name."""
    if not re.fullmatch(r"[-\d,. ]+", text):
        return text
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError:
        left = top = width = height = -1
    if min(left, top) < 0 or min(width, height) < MIN_SIDE:
        raise argparse.ArgumentTypeError(
            f"expected left, top, width and height, the last two at least {MIN_SIDE}, such as 100,50,400,300, or a mask's file, got {text!r}"
        )
    return left, top, width, height


def _take_pictures(args: argparse.Namespace, parser: ArgumentParser) -> None:
    """What is given without options as what those would say."""
    if (
        len(args.pictures) > 3
        or len(args.pictures) < 2
        or args.content
        or args.style
        or args.style_from
        or (args.output and len(args.pictures) == 3)
    ):
        parser.error(
            f"{' '.join(args.pictures)}: without options give a photo, a painting and, if you like, the result's file; else --content, --style and --output"
        )
    content, style, *result = args.pictures
    if result and of_library(result[0]):
        parser.error(
            f"{result[0]}: is a style, and the third name is the result's file; mix styles by --style {style} {result[0]} --style-weights 1 1"
        )
    args.content, args.style = [content], [style]
    piped = STREAM if STREAM in (content, style) else f"{Path(content).stem}__{Path(style).stem}.png"
    args.output = result[0] if result else args.output or piped


def main() -> int:
    args = parse_args()
    if args.quiet:
        logging.getLogger().setLevel(logging.WARNING)
    if args.json or args.dry_run:
        result_is_printed()
    check_spreading(args)
    with Streams(args) as streams:
        if streams.names and (is_job(args) or args.pack or args.max_failed is not None):
            raise UserError(
                "a pipe (-) holds one picture, which one process paints into a file of its own, and it may not fail"
            )
        asked = Asked.by(args, streams)
        asked.check()
        if args.write_manifest is not None:
            _write_manifest(asked, streams)
        painting = Painting(args, Report(args.json, args.quiet or streams.writes, streams.names), asked.named)
        if len(asked.tasks) == 1 and not _is_of_many(args):
            code = painting.one(asked.tasks[0])
            streams.write()
            return code
        portions = asked.portions()
        if args.dry_run:
            return painting.foretell(own_share(portions, args))
        code = painting.many(own_share(portions, args))
        if shard_of(args)[0] == 0:  # one of the shares says it for all
            painting.report.left(asked.left_packs(portions))
        return code


def _is_of_many(args: argparse.Namespace) -> bool:
    """Whether options treat a picture as one of many, be it alone."""
    return bool(args.dry_run or args.pack or is_job(args) or args.max_failed is not None)


def _write_manifest(asked: Asked, streams: Streams) -> None:
    args = asked.args
    if streams.names:
        raise UserError("--write-manifest has no row for what comes or goes by a pipe (-)")
    if asked.shards:
        raise UserError("--write-manifest has no row for photos in tar shards")
    write_manifest(args.write_manifest, asked.tasks, asked.inputs(), args.output)
    left_out = [name for name in BESIDE if getattr(args, name) is not None]
    if left_out:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in left_out)
        log.warning("%s: has no place for %s; give it again", args.write_manifest, options)
