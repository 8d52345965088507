"""Draw what the two dials do: one photo in one style at every combination of content scale and
style scale.

    artfusion grid --content photo.jpg --style painting.jpg --output grid.png
    artfusion grid --content photo.jpg --style painting.jpg --content-scales 1 --style-scales 0.5 1 2 4 --output row.png

All pictures start from the same noise and are painted together, so that nothing but the scales
differs.
"""

import argparse

from ldm.cli.options import (
    add_batch_size_option,
    add_model_options,
    add_scales_options,
    add_settings_options,
    load_pipeline,
    settings_of,
)
from ldm.media.images import check_output, load_image, save_image
from ldm.media.sheets import guidance_sheet, thumbnail
from ldm.pipeline.inputs import read_style, shown
from ldm.pipeline.tasks import check_inputs_survive
from ldm.program import ArgumentParser, at_least


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--content", required=True, metavar="FILE", help="the picture that says what to paint"
    )
    parser.add_argument("--style", required=True, metavar="FILE", help="the picture that says how")
    parser.add_argument("--output", required=True, metavar="FILE", help="the sheet (.png or .jpg)")
    add_scales_options(parser, [0.25, 0.5, 1, 2], [0.5, 1, 1.5, 2, 3], of=("rows", "columns"))
    add_batch_size_option(parser, default=None)
    parser.add_argument(
        "--cell",
        type=at_least(32),
        default=192,
        metavar="N",
        help="side of a picture in the sheet, in pixels (default: 192)",
    )
    add_settings_options(parser, leave_out=("content_scale", "style_scale"))
    add_model_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    pairs = [(c, s) for c in args.content_scales for s in args.style_scales]
    settings = settings_of(args, content_scale=[c for c, _ in pairs], style_scale=[s for _, s in pairs])
    output = check_output(args.output)
    check_inputs_survive([output], [args.content, args.style])
    content, style = load_image(args.content), read_style(args.style)
    pipeline = load_pipeline(args)
    batch_size = len(pairs) if args.batch_size is None else args.batch_size
    painted = pipeline([content] * len(pairs), style, settings=settings, batch_size=batch_size, progress=True)
    width = len(args.style_scales)
    rows = [painted[i : i + width] for i in range(0, len(painted), width)]
    givens = [thumbnail(content, painted[0]), thumbnail(shown(style), painted[0])]
    sheet = guidance_sheet(givens, rows, args.content_scales, args.style_scales, args.cell)
    save_image(sheet, output)
    print(output)
