"""Measure style transfer: paint every content in every style, or take results that are there, and tell how far they are from both.

    python scripts/evaluate.py --content data/contents --style data/styles --csv evaluation.csv
    python scripts/evaluate.py --content data/contents --style data/styles --results results --compare other=results_of_another_program
    python scripts/evaluate.py --content data/contents --style data/styles --sweep --csv sweep.csv --plot sweep.png

Results are called CONTENT__STYLE.png, after the file names of the content and the style; all pictures are measured as
central squares of --size pixels. Prints a Markdown table, mean (median) over the pairs:

    content_cosine  content distance: 1 - cosine of VGG16's relu3_1 and relu4_1, each channel normalised; 0 = layout kept
    content_vgg     content loss: squared difference of relu4_1
    style_mean_std  style loss: differences of means and deviations of relu1_1 to relu4_1
    style_share     the same, as a share of the untouched content's: 1 = style untouched, 0 = the style's statistics met
    gram            style loss: differences of the Gram matrices of relu1_1 to relu4_1
    ssim            structural similarity of result and content: 1 = equal
    lpips           perceptual distance of result and content (needs --lpips-weights)
    fid, artfid     of all results to all styles; (1 + lpips) (1 + fid) (need --inception-weights, which needs
                    pip install 'artfusion[evaluation]')

Losses compare only between runs with the same weights files. VGG16's come along (checkpoints/vgg16); they are not those that
LPIPS was published with, so published linear weights download torchvision's VGG16 for LPIPS alone, once, 528 MB.
A metric whose weights are not given is not run: the table says so, and its field in the CSV file is empty. Published ArtFID
values use an Inception network trained on paintings.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from ldm.cli import ArgumentParser, run
from ldm.device import DEVICES, PRECISIONS, choose_device, memory_errors
from ldm.errors import UserError
from ldm.evaluation import fid, plot, report
from ldm.evaluation.evaluator import Evaluator
from ldm.evaluation.fid import Inception
from ldm.evaluation.metrics import PairMetrics, load_lpips, load_vgg
from ldm.evaluation.painting import PairPainter, set_name
from ldm.evaluation.pairs import all_pairs, by_name, load_squares, result_folder
from ldm.files import check_folder
from ldm.pipeline import StyleTransferPipeline
from ldm.settings import SAMPLERS, Settings

# What only painting and only a sweep take, with the defaults. The parser's own are None, to tell what was given.
MODEL = {"checkpoint": "mini", "config": None, "precision": "auto"}
DIALS = {"content_scale": 1.0, "style_scale": 1.0, "detail": None, "sampler": Settings.sampler, "steps": None, "seed": 0}
PAINTING = {**MODEL, **DIALS, "save": None, "sweep": False}
SWEEP = {"content_scales": [0.25, 0.5, 1.0, 2.0, 4.0], "style_scales": [0.5, 1.0, 2.0, 3.0, 5.0]}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--content", required=True, type=Path, metavar="DIR", help="folder of photos")
    parser.add_argument("--style", required=True, type=Path, metavar="DIR", help="folder of paintings")
    parser.add_argument("--results", type=Path, metavar="DIR", help="measure these results instead of painting")
    parser.add_argument("--compare", action="append", default=[], metavar="NAME=DIR", help="measure these results too; may be repeated")
    parser.add_argument("--size", type=int, metavar="N", default=256, help="side of all squares in pixels (default: 256)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    add_painting_options(parser.add_argument_group("painting"))
    weights = parser.add_argument_group("weights of the measuring networks")
    weights.add_argument("--vgg-weights", metavar="FILE", help="VGG16 for all metrics, LPIPS included (default: the bundled one)")
    weights.add_argument("--lpips-weights", metavar="FILE|uniform", help="LPIPS's linear weights; with uniform ones it is not the published LPIPS")
    weights.add_argument("--inception-weights", metavar="FILE", help="torch-fidelity's Inception network")
    output = parser.add_argument_group("output")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the metrics of each pair here")
    output.add_argument("--plot", type=Path, metavar="FILE.png", help="draw content distance against style share; for --sweep and --compare")
    return parser.parse_args()


def add_painting_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", metavar="mini|PATH", help="the bundled model (default) or a checkpoint file")
    group.add_argument("--config", metavar="YAML", help="the checkpoint's config (default: that of the published model)")
    group.add_argument("--precision", choices=PRECISIONS, help="auto (default): bf16 where the device is fast at it, else fp32")
    group.add_argument("--content-scale", type=float, metavar="S", help="guidance by the content (default: 1)")
    group.add_argument("--style-scale", type=float, metavar="S", help="guidance by the style (default: 1)")
    group.add_argument("--detail", type=float, metavar="D", help="share of the photo's finest detail put back, 0 to 1 (default: the config's)")
    group.add_argument("--sampler", choices=SAMPLERS, help=f"default: {Settings.sampler}")
    steps = ", ".join(f"{count} for {name}" for name, count in SAMPLERS.items())
    group.add_argument("--steps", type=int, metavar="N", help=f"sampling steps (default: {steps})")
    group.add_argument("--seed", type=int, metavar="N", help="of every picture (default: 0)")
    group.add_argument("--save", type=Path, metavar="DIR", help="keep the painted pictures here")
    group.add_argument("--sweep", action="store_true", default=None, help="paint with every content scale and every style scale")
    group.add_argument("--content-scales", type=float, nargs="+", metavar="S", help="of --sweep (default: 0.25 0.5 1 2 4)")
    group.add_argument("--style-scales", type=float, nargs="+", metavar="S", help="of --sweep (default: 0.5 1 2 3 5)")


def main() -> None:
    args = parse_args()
    check_options(args)
    fill_in_defaults(args)
    settings = all_settings(args)
    check_outputs(args)
    content_files, style_files = by_name(args.content), by_name(args.style)
    pairs = all_pairs(content_files, list(style_files))
    sets = [result_folder(name, folder, pairs, args.size) for name, folder in named_folders(args, settings).items()]
    contents, styles = load_squares(content_files, args.size), load_squares(style_files, args.size)
    with memory_errors("choose a smaller --size"):
        metrics, inception = load_networks(args)
        if args.results is None:
            pipeline = StyleTransferPipeline.from_pretrained(args.checkpoint, args.config, args.device, args.precision)
            sets = PairPainter(pipeline, contents, styles, args.save).result_sets(settings, pairs) + sets
        measured = Evaluator(contents, styles, metrics, inception).measure(sets)
    if args.csv:
        report.write_csv(measured, args.csv)
    print("\n".join([report.table(measured, len(pairs)), "", *report.notes(measured, pairs)]))
    if args.plot:
        plot.draw_trade_off(measured, args.plot)


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, and for packages that they need and that are not there."""
    for name in (*PAINTING, *SWEEP):
        if args.results is not None and getattr(args, name) is not None:
            raise UserError(f"{option(name)} is for painting, but --results takes pictures that are there")
    for name in SWEEP:
        if not args.sweep and getattr(args, name) is not None:
            raise UserError(f"{option(name)} needs --sweep")
        if args.sweep and getattr(args, name[:-1]) is not None:
            raise UserError(f"{option(name[:-1])} is of a single run; --sweep takes {option(name)}")
    if args.plot and not args.sweep and not args.compare:
        raise UserError("--plot draws several sets of results: it needs --sweep or --compare")
    if args.plot:
        plot.check_extra()
    if args.inception_weights:
        fid.check_extra()


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def fill_in_defaults(args: argparse.Namespace) -> None:
    for name, value in (PAINTING | SWEEP).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def all_settings(args: argparse.Namespace) -> list[Settings]:
    """Those of every set to paint. Raises UserError for what no model can do; the size is checked for results too."""
    one = Settings(size=args.size, **{name: getattr(args, name) for name in DIALS})
    scales = product(dict.fromkeys(args.content_scales), dict.fromkeys(args.style_scales))
    settings = [replace(one, content_scale=c, style_scale=s) for c, s in scales] if args.sweep else [one]
    for each in settings:
        each.check()  # before the weights are read; the pipeline checks again by the model's own numbers
    return settings if args.results is None else []


def check_outputs(args: argparse.Namespace) -> None:
    if args.csv:
        report.check_file(args.csv, ".csv")
    if args.plot:
        report.check_file(args.plot, ".png")
    if args.save:
        check_folder(args.save)


def named_folders(args: argparse.Namespace, settings: list[Settings]) -> dict[str, Path]:
    """The folders of results by their names in the table. Raises UserError for NAME=DIR that is none, or a name twice."""
    folders = {} if args.results is None else {args.results.resolve().name: args.results}
    for text in args.compare:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UserError(f"--compare {text}: expected NAME=DIR, as in --compare other=results_of_another_program")
        if name in folders or name in map(set_name, settings):
            raise UserError(f"--compare {text}: other results are called {name!r} already")
        folders[name] = Path(folder)
    return folders


def load_networks(args: argparse.Namespace) -> tuple[PairMetrics, Inception | None]:
    """The measuring networks that the options ask for. Raises UserError where their weights cannot be had or used."""
    device = choose_device(args.device)
    vgg = load_vgg(args.vgg_weights)
    lpips = load_lpips(args.lpips_weights, vgg, args.vgg_weights) if args.lpips_weights else None
    inception = fid.load_inception(args.inception_weights, device) if args.inception_weights else None
    return PairMetrics(vgg, lpips, device), inception


if __name__ == "__main__":
    run(main)
