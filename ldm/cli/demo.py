"""Paint a bundled photo in the style of each bundled painting, and draw one sheet of them.

    artfusion demo --output outputs/demo.png
    artfusion demo --all --look fast --size 256   # every photo in every painting's style

Photos and paintings are those that come along, or those of two folders.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from ldm.cli.options import add_model_options, add_settings_options, load_pipeline, settings_of
from ldm.data.splits import find_pictures
from ldm.files import ROOT
from ldm.media.images import check_output, contact_sheet, load_image, save_image
from ldm.media.sheets import panel
from ldm.program import ArgumentParser

# painting -> a photo that goes well with it; one photo twice
MATCHES = {
    "cezanne_still_life_with_apples": "coffee_cup",
    "gong_xian_landscape": "brandenburg_gate",
    "hashiguchi_ducks": "chenonceau_castle",
    "klimt_mada_primavesi": "chenonceau_castle",
    "seurat_study_for_la_grande_jatte": "astronaut",
    "turner_whalers": "great_wall",
    "van_gogh_wheat_field_with_cypresses": "moose",
}
COLUMNS = 4
GAP = 8


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--contents", default=ROOT / "data/contents", type=Path, metavar="DIR", help="folder of photos"
    )
    parser.add_argument(
        "--styles", default=ROOT / "data/styles", type=Path, metavar="DIR", help="folder of paintings"
    )
    parser.add_argument(
        "--output", default="outputs/demo.png", metavar="FILE", help="the sheet (default: outputs/demo.png)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every photo in every style; without it every style once, photos in turn",
    )
    add_settings_options(parser, only=("look", "content_scale", "style_scale", "steps", "seed"))
    parser.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="N",
        help="side of the results, which are squares (default: 512)",
    )
    add_model_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    settings = settings_of(args)
    output = check_output(args.output)
    contents = {
        p.stem: ImageOps.fit(load_image(p), (args.size, args.size), Image.Resampling.LANCZOS)
        for p in find_pictures(args.contents)
    }
    styles = {p.stem: load_image(p) for p in find_pictures(args.styles)}
    pipeline = load_pipeline(args)
    pairs = every_pair(contents, styles) if args.all else matched(contents, styles)
    painted = pipeline(
        [contents[c] for c, _ in pairs],
        [styles[s] for _, s in pairs],
        settings=settings,
        batch_size=len(styles),
        progress=True,
    )
    # Of an upright painting the upper part: heads are there.
    squares = {
        name: ImageOps.fit(style, (args.size, args.size), Image.Resampling.LANCZOS, centering=(0.5, 0))
        for name, style in styles.items()
    }
    if args.all:
        sheet = table(list(contents.values()), list(squares.values()), painted, args.size // 4 * 3)
    else:
        sheet = gallery([block(contents[c], squares[s], result) for (c, s), result in zip(pairs, painted)])
    save_image(sheet, output)
    print(f"{output}: {len(painted)} pictures in {time.monotonic() - started:.0f} s")


def every_pair(contents: Sequence[str], styles: Sequence[str]) -> list[tuple[str, str]]:
    return [(content, style) for content in contents for style in styles]


def matched(contents: Sequence[str], styles: Sequence[str]) -> list[tuple[str, str]]:
    """Every style with a content: the one that MATCHES names, if it is there, else they take
    turns."""
    turns = list(contents)
    return [
        (MATCHES[s] if MATCHES.get(s) in contents else turns[i % len(turns)], s) for i, s in enumerate(styles)
    ]


def table(
    contents: Sequence[Image.Image], styles: Sequence[Image.Image], painted: Sequence[Image.Image], cell: int
) -> Image.Image:
    """A row for each photo and a column for each painting, themselves at the edges."""
    rows = [
        [content, *painted[i * len(styles) : (i + 1) * len(styles)]] for i, content in enumerate(contents)
    ]
    return contact_sheet([[None, *styles], *rows], cell)


def block(content: Image.Image, style: Image.Image, result: Image.Image) -> Image.Image:
    """A result with, small below it, what it was made from."""
    side = result.width
    whole = Image.new("RGB", (side, side + GAP + (side - GAP) // 2), "white")
    whole.paste(result, (0, 0))
    for small, left in ((content, 0), (style, side - (side - GAP) // 2)):
        whole.paste(small.resize(((side - GAP) // 2,) * 2, Image.Resampling.LANCZOS), (left, side + GAP))
    return whole


def gallery(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks in rows; a place that is left over at the end tells what is what."""
    side = blocks[0].width
    legend = block(*(panel(words, side) for words in ("photo", "painting", "result")))
    places = [*blocks, legend] if len(blocks) % COLUMNS else [*blocks]
    rows = [places[i : i + COLUMNS] for i in range(0, len(places), COLUMNS)]
    return contact_sheet(rows, blocks[0].size, 3 * GAP)
