"""Show saved styles on a sheet, with their names and the notes on their pictures: those that come
along, or your own.

    artfusion styles
    artfusion styles klimt.safetensors mystyles/ --output mystyles.png

What is named here goes wherever a style picture goes:

    artfusion stylize photo.jpg ukiyo-e
    artfusion stylize --content photo.jpg --style van-gogh turner --style-weights 2 1 --output result.png

`artfusion style save` makes your own.
"""

import argparse
from pathlib import Path

from ldm.data.splits import find_files
from ldm.errors import UserError
from ldm.media.images import check_output, save_image
from ldm.media.saved_styles import SUFFIX, load_thumbnail
from ldm.media.sheets import captioned_sheet
from ldm.pipeline.library import hint, library, saved_style
from ldm.program import ArgumentParser
from ldm.text import printable

COLUMNS = 5
MAX_NOTE = 300  # characters of it that are shown


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "styles",
        nargs="*",
        metavar="STYLE",
        help="saved styles, folders of them, or names (default: all that come along)",
    )
    parser.add_argument(
        "--output",
        default="outputs/styles.png",
        metavar="FILE",
        help="the sheet (default: outputs/styles.png)",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    output = check_output(args.output)
    paths = [path for name in args.styles for path in files_of(name)] or list(library().values())
    if not paths:
        raise UserError("no styles came along with this installation; name files or folders of your own")
    styles = {path.stem: load_thumbnail(path) for path in paths}
    width = max(map(len, styles))
    for name, (_, note) in styles.items():
        print(f"{name:<{width}}  {printable(note, MAX_NOTE)}".rstrip())
    pictures = [picture for picture, _ in styles.values()]
    save_image(captioned_sheet(pictures, list(styles), min(COLUMNS, len(pictures))), output)
    print(output)


def files_of(name: str) -> list[Path]:
    """The saved styles of that name, or in that folder. Raises UserError for none."""
    if Path(name).is_dir():
        return find_files(Path(name), (SUFFIX,))
    path = saved_style(name)
    if path is None:
        known = Path(name).exists()
        raise UserError(f"{name}: {'is no saved style' if known else f'no such style{hint(name)}'}")
    return [path]
