"""Go from one style to another in small steps: a strip of pictures, or a moving GIF.

    artfusion interpolate --content photo.jpg --style a.jpg b.jpg --output strip.png
    artfusion interpolate --content photo.jpg --style a.jpg b.jpg --frames 24 --output there_and_back.gif

All pictures are painted from one noise.
"""

import argparse

import numpy as np
from PIL import Image

from ldm.cli.options import (
    add_batch_size_option,
    add_model_options,
    add_settings_options,
    load_pipeline,
    settings_of,
)
from ldm.errors import UserError
from ldm.media.images import check_output, load_image, save_animation, save_image
from ldm.media.sheets import labelled_sheet, thumbnail
from ldm.pipeline.inputs import OneStyle, StyleMix, read_style, shown
from ldm.pipeline.tasks import check_inputs_survive
from ldm.program import ArgumentParser, at_least


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--content", required=True, metavar="FILE", help="the picture that says what to paint"
    )
    parser.add_argument(
        "--style", required=True, nargs=2, metavar="FILE", help="the styles to go from and to"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="a strip (.png or .jpg), or a moving picture there and back (.gif)",
    )
    parser.add_argument(
        "--frames",
        type=at_least(2),
        default=5,
        metavar="N",
        help="pictures, the two ends included (default: 5)",
    )
    parser.add_argument(
        "--duration",
        type=int,
        default=80,
        metavar="MS",
        help="of a GIF's frame, in milliseconds (default: 80)",
    )
    add_batch_size_option(parser)
    add_settings_options(parser)
    add_model_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output, settings = check_output(args.output), settings_of(args)
    if not 10 <= args.duration <= 60_000:  # a GIF counts hundredths of a second
        raise UserError(f"--duration must be from 10 to 60000 milliseconds, got {args.duration}")
    check_inputs_survive([output], [args.content, *args.style])
    content, styles = load_image(args.content), [read_style(path) for path in args.style]
    shares = np.linspace(0, 1, args.frames).tolist()
    mixes = [StyleMix(styles, [1 - share, share]) for share in shares]
    painted = load_pipeline(args)(
        content, mixes, batch_size=args.batch_size, progress=True, settings=settings
    )
    if output.suffix.lower() == ".gif":
        save_animation([*painted, *painted[-2:0:-1]], output, args.duration)
    else:
        save_image(strip(styles, painted, shares), output)
    print(output)


def strip(styles: list[OneStyle], painted: list[Image.Image], shares: list[float]) -> Image.Image:
    """The pictures between the two paintings, in a row, each labelled with the second one's
    share."""
    first, last = (thumbnail(shown(style), painted[0]) for style in styles)
    return labelled_sheet([[first, *painted, last]], ["from", *(f"{share:.0%}" for share in shares), "to"])
