"""Make one style of any number of pictures, and keep it in a file.

    artfusion style save klimt.safetensors klimt1.jpg klimt2.jpg
    artfusion style save klimt.safetensors klimt/ --note 'Gustav Klimt, public domain'
    artfusion style save between.safetensors klimt.safetensors turner.jpg --weights 0.7 0.3

The file goes wherever a style picture goes:

    artfusion stylize photo.jpg klimt.safetensors
    artfusion stylize --content photo.jpg --style klimt.safetensors turner.jpg --style-weights 1 2 --output result.png
    artfusion styles klimt.safetensors --output klimt.png

It holds the pictures themselves, somewhat smaller: pass it on as you may pass them on, and say so in
its note.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ldm.errors import UserError
from ldm.media.images import at_most
from ldm.media.saved_styles import SIDE, SavedStyle, check_target, is_saved_style, load_style, save_style
from ldm.pipeline.folders import expand
from ldm.pipeline.inputs import StyleMix, check_seen, read_content
from ldm.pipeline.settings import MIN_SIDE
from ldm.pipeline.tasks import check_inputs_survive
from ldm.program import ArgumentParser, at_least
from ldm.text import as_typed


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="where to keep it (.safetensors)")
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="what it is made of: picture files, folders, quoted globs, other saved styles, names of `artfusion styles`",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="of the pictures and styles, in their order (default: all the same)",
    )
    parser.add_argument(
        "--note", default="", metavar="TEXT", help="whose the pictures are, and what may be done with them"
    )
    parser.add_argument(
        "--size",
        type=at_least(MIN_SIDE),
        default=SIDE,
        metavar="N",
        help=f"shorter side of the pictures that are kept, at most (default: {SIDE})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    check_target(args.file)
    paths = expand(args.pictures, styles=True)
    check_inputs_survive([args.file], paths)
    if args.file.exists() and not args.overwrite:
        raise UserError(f"{args.file}: is there already; give another name, or --overwrite")
    shares = StyleMix(paths, args.weights).shares()
    parts = [
        style_of(path, args.size) for path in tqdm(paths, "reading", unit="picture", leave=False, delay=2)
    ]
    style = merged(parts, shares, as_typed(args.note))
    save_style(style, args.file, args.size)
    pictures = f"{len(style.pictures)} picture{'s' * (len(style.pictures) > 1)}"
    print(f"{args.file}: {pictures}, {args.file.stat().st_size / 1e6:.2f} MB")


def style_of(path: Path, side: int) -> SavedStyle:
    """A saved style, or a picture as one."""
    if is_saved_style(path):
        return load_style(path)
    return SavedStyle([at_most(check_seen(read_content(path), str(path)), side)], [1.0], [path.name])


def merged(parts: Sequence[SavedStyle], shares: Sequence[float], note: str) -> SavedStyle:
    """One style of several, each with its share. Where there is no note, their own stay."""
    own = dict.fromkeys(part.note for part in parts if part.note)
    return SavedStyle(
        [picture for part in parts for picture in part.pictures],
        [
            share * weight / sum(part.weights)
            for part, share in zip(parts, shares, strict=True)
            for weight in part.weights
        ],
        [name for part in parts for name in part.names],
        note or "; ".join(own),
    )
