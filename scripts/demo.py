"""Stylise the bundled photos with the bundled paintings and draw one contact sheet.

    python scripts/demo.py --output outputs/demo.png
"""

import argparse
import time
from pathlib import Path

from PIL import ImageOps

from ldm.cli import ArgumentParser, run
from ldm.data.pictures import find_pictures
from ldm.images import check_output, contact_sheet, load_image, save_image
from ldm.pipeline import ROOT, StyleTransferPipeline
from ldm.settings import LOOKS, Settings


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--contents", default=ROOT / "data/contents", type=Path, metavar="DIR", help="folder of photos")
    parser.add_argument("--styles", default=ROOT / "data/styles", type=Path, metavar="DIR", help="folder of paintings")
    parser.add_argument("--output", default="outputs/demo.png", metavar="FILE")
    parser.add_argument("--look", choices=LOOKS, default=Settings.look, help=f"default: {Settings.look}; fast takes a fraction of the time")
    parser.add_argument("--content-scale", type=float, default=1.0)
    parser.add_argument("--style-scale", type=float, default=1.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    output = check_output(args.output)
    contents = [ImageOps.fit(load_image(p), (args.size, args.size)) for p in find_pictures(args.contents)]
    styles = [load_image(p) for p in find_pictures(args.styles)]
    pipeline = StyleTransferPipeline.from_pretrained(precision=args.precision)
    pairs = [(content, style) for content in contents for style in styles]
    painted = pipeline(
        [content for content, _ in pairs],
        [style for _, style in pairs],
        look=args.look,
        content_scale=args.content_scale,
        style_scale=args.style_scale,
        steps=args.steps,
        size=args.size,
        seed=args.seed,
        batch_size=len(styles),
        progress=True,
    )
    rows = [[content, *painted[i * len(styles) : (i + 1) * len(styles)]] for i, content in enumerate(contents)]
    heads = [ImageOps.fit(style, (args.size, args.size)) for style in styles]
    save_image(contact_sheet([[None, *heads], *rows], cell=args.size // 4 * 3), output)
    print(f"{output}: {len(painted)} pictures in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    run(main)
