"""Draw what the model knows of a style: paintings without a photo, from several noises.

    artfusion samples --style painting.jpg another.jpg --output samples.png
    artfusion samples --style paintings/ --seeds 1 2 3 4 5 6 --style-scale 2 --output samples.png

Each column has its own noise, the same for every painting.
"""

import argparse

from ldm.cli.options import (
    add_batch_size_option,
    add_model_options,
    add_settings_options,
    load_pipeline,
    settings_of,
)
from ldm.media.images import check_output, save_image
from ldm.media.sheets import labelled_sheet, thumbnail
from ldm.pipeline.folders import expand
from ldm.pipeline.inputs import read_style, shown
from ldm.pipeline.tasks import check_inputs_survive
from ldm.program import ArgumentParser


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--style",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="the paintings or saved styles: files, folders, quoted globs, names of `artfusion styles`",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the sheet (.png or .jpg): a row for each painting"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        metavar="N",
        help="a column for each (default: 0 1 2 3)",
    )
    add_batch_size_option(parser)
    add_settings_options(
        parser,
        leave_out=(
            "content_scale",
            "detail",
            "recolor",
            "texture",
            "strength",
            "face_detail",
            "preserve_color",
            "seed",
        ),
    )
    add_model_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output, settings = check_output(args.output), settings_of(args, seed=args.seeds)
    paths = expand(args.style, styles=True)
    check_inputs_survive([output], paths)
    styles = [read_style(path) for path in paths]
    settings = settings.but(seed=args.seeds * len(styles))
    painted = load_pipeline(args)(
        None,
        [style for style in styles for _ in args.seeds],
        settings=settings,
        batch_size=args.batch_size,
        progress=True,
    )
    width = len(args.seeds)
    rows = [
        [thumbnail(shown(style), painted[0]), *painted[i * width : (i + 1) * width]]
        for i, style in enumerate(styles)
    ]
    save_image(labelled_sheet(rows, ["painting", *(f"seed {seed}" for seed in args.seeds)]), output)
    print(output)
