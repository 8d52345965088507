"""Fine-tuning on one artist, `artfusion train --from mini --paintings DIR --output DIR`: the
recipe of configs/mini_finetune.yaml by the clock, then weights to paint with and a sheet of
pictures by the old and the new ones."""

import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ldm.data.splits import find_pictures
from ldm.early import STOPPED
from ldm.errors import UserError
from ldm.files import ROOT, check_folder
from ldm.media.images import load_image, save_image
from ldm.media.sheets import labelled_sheet
from ldm.pipeline.bundled import BUNDLED, resolve_checkpoint
from ldm.pipeline.settings import Settings
from ldm.ranks import local_rank
from ldm.training import FINISHED

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline

log = logging.getLogger(__name__)

CONFIG = "configs/mini_finetune.yaml"
MODEL_CONFIG = "configs/mini.yaml"  # of the weights to start from and of the result
PHOTOS = ROOT / "data/contents"
OTHERS = ROOT / "data/styles"  # trained on beside the artist's paintings, lest the model forget all others
MINUTES = 45.0
LEAST, FEW = 5, 15  # paintings: below the first refused, below the second doubtful
PAIRS = 6  # on the sheet
SETTINGS = Settings(look="sampled", size=256)
NEXT = """paint with:
  artfusion stylize --look sampled --checkpoint %s --content photo.jpg --style painting.jpg --output result.png
"""
# options of other training runs, as they are where nobody gives them
ELSEWHERE: dict[str, object] = {"base": [], "resume": None, "name": None, "postfix": "", "logdir": "logs"}
OPTIONS = ("paintings", "photos", "output", "minutes")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of fine-tuning, beside those of the training command."""
    group = parser.add_argument_group("fine-tune weights on a folder of paintings, see docs/fine-tuning.md")
    group.add_argument(
        "--from",
        dest="start",
        metavar="mini|FILE",
        help="the weights to start from: the bundled ones, or a file for configs/mini.yaml",
    )
    group.add_argument(
        "--paintings", type=Path, metavar="DIR", help="folder of an artist's paintings, some thirty"
    )
    group.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="folder of photos to learn on (default: the bundled ones, which are few)",
    )
    group.add_argument("--output", type=Path, metavar="DIR", help="folder of the run and of its result")
    group.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"of training, all sittings together (default: {MINUTES:g})",
    )


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that cannot be, before anything is made or read."""
    if args.start is None:
        alone = next((name for name in OPTIONS if getattr(args, name) is not None), None)
        if alone is not None:
            raise UserError(f"--{alone} is of fine-tuning, which needs --from mini, or --from and a file")
        return
    _check_alone(args)
    minutes = args.minutes if args.minutes is not None else MINUTES
    if not 0 < minutes < 1e5:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    if not _start(args).is_file():
        raise UserError(f"--from {args.start}: no such file; bundled weights are called {', '.join(BUNDLED)}")
    find_pictures(_photos(args))
    _check_number(args.paintings)
    check_folder(args.output)


def _check_alone(args: argparse.Namespace) -> None:
    """Raises UserError for options of other training runs, and for those that are missing."""
    for name, default in ELSEWHERE.items():
        if getattr(args, name) != default:
            raise UserError(
                f"--{name} and --from exclude each other: --from brings its own config, and begun again goes on in --output"
            )
    for name in ("paintings", "output"):
        if getattr(args, name) is None:
            raise UserError(f"--from {args.start} needs --{name} DIR")


def _check_number(folder: Path) -> None:
    """Raises UserError for too few paintings; says so where they are few."""
    number = len(find_pictures(folder))
    if number < LEAST:
        raise UserError(
            f"{folder}: {number} paintings are too few to train on, give {LEAST} or more; for single ones, paint with --look fine"
        )
    if number < FEW:
        log.warning("%s: only %d paintings; the recipe is for some thirty", folder, number)


def fine_tune(args: argparse.Namespace) -> int:
    """Train as checked options say, or go on; then write the result. The exit code: 130 for a run
    that was stopped. Raises UserError where training fails."""
    from ldm.training.train import train  # takes seconds, with torch and Lightning

    finished = args.output / FINISHED
    if finished.exists():
        log.info(
            "%s: trained already; for more, train --from %s into another folder", args.output, _result(args)
        )
    else:
        train(training_of(args))
    if args.dry_run:
        return 0
    if not finished.exists():
        log.warning("stopped; the same command goes on from there")
        return STOPPED
    if local_rank() in (None, 0):
        write_result(args)
    return 0


def training_of(args: argparse.Namespace) -> argparse.Namespace:
    """The options of the training command that fine-tune."""
    folder = args.output.resolve()
    begun = (folder / "checkpoints/last.ckpt").exists()
    values = {
        "model.params.ckpt_path": str(_start(args).resolve()),
        "data.params.train.params.style_root": [str(args.paintings.resolve()), str(OTHERS)],
        "data.params.train.params.content_root": str(_photos(args).resolve()),
        "lightning.callbacks.budget.params.hours": (args.minutes or MINUTES) / 60,
    }
    # in JSON, which YAML can read, whatever is in a path
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    changes = {
        "base": [CONFIG],
        "overrides": [*overrides, *args.overrides],
        "resume": str(folder) if begun else None,
        "name": folder.name,
        "logdir": str(folder.parent),
    }
    return argparse.Namespace(**{**vars(args), **changes})


def write_result(args: argparse.Namespace) -> None:
    """The weights to paint with and the sheet, and what to do with them."""
    from ldm.checkpoint.converting import convert
    from ldm.models.inference import without_training
    from ldm.pipeline.pipeline import StyleTransferPipeline

    result, sheet = _result(args), args.output / "before_after.png"
    convert(
        args.output / "checkpoints/last.ckpt",
        result,
        ["vgg."],
        keep_live=False,
        half=True,
        config=MODEL_CONFIG,
        without_training=without_training,
    )
    models = {
        name: StyleTransferPipeline.from_pretrained(weights, MODEL_CONFIG)
        for name, weights in (("before", _start(args)), ("after", result))
    }
    photos, paintings = find_pictures(_photos(args)), find_pictures(args.paintings)
    save_image(before_and_after(models, photos, paintings, SETTINGS), sheet)
    log.info("%s: the same photos, paintings and seeds with the weights before and after", sheet)
    log.info(NEXT, shlex.quote(str(result)))


def before_and_after(
    models: "dict[str, StyleTransferPipeline]",
    photos: Sequence[Path],
    paintings: Sequence[Path],
    settings: Settings,
) -> Image.Image:
    """A sheet: some photos, each with a painting and painted in its style by every model."""
    contents, styles = _squares(photos), _squares(paintings)
    contents = [contents[i % len(contents)] for i in range(len(styles))]
    painted = [model(contents, styles, settings=settings) for model in models.values()]
    return labelled_sheet(
        [list(row) for row in zip(contents, styles, *painted)], ["photo", "painting", *models], cell=256
    )


def _squares(paths: Sequence[Path], side: int = 256) -> list[Image.Image]:
    """The central squares of some pictures, evenly of all that can be read."""
    count = min(PAIRS, len(paths))
    chosen = [i * len(paths) // count for i in range(count)]
    squares: list[Image.Image] = []
    for place in dict.fromkeys([*chosen, *range(len(paths))]):
        try:
            squares.append(ImageOps.fit(load_image(paths[place]), (side, side), Image.Resampling.LANCZOS))
        except UserError:  # told in training
            continue
        if len(squares) == count:
            break
    return squares


def _start(args: argparse.Namespace) -> Path:
    return resolve_checkpoint(args.start, None)[0]


def _photos(args: argparse.Namespace) -> Path:
    return PHOTOS if args.photos is None else args.photos


def _result(args: argparse.Namespace) -> Path:
    return args.output / "model.safetensors"
