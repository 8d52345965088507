"""Pack folders of pictures into small zip files of WebP pictures, to take them to a machine that
can be reached for minutes only.

    python benchmarks/pack_pictures.py --photos PHOTOS --paintings PAINTINGS --output packed

makes packed/photos.zip and packed/paintings.zip, neither above --megabytes: every picture scaled to
the shorter side --short-side, at the best of a few qualities that fits. benchmarks/gpu_run.py
unpacks them.
"""

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.data.splits import find_pictures
from ldm.errors import UserError
from ldm.files import check_folder, written_whole
from ldm.media.images import load_image, resize_short_side
from ldm.program import ArgumentParser, run

QUALITIES = (85, 75, 65, 55, 45, 35)
SAMPLED = 60  # pictures that tell how large all will be


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--photos", required=True, type=Path, metavar="DIR", help="folder of photos, of any depth"
    )
    parser.add_argument(
        "--paintings", required=True, type=Path, metavar="DIR", help="folder of paintings, of any depth"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the two files")
    parser.add_argument("--short-side", type=int, default=288, metavar="N", help="in pixels (default: 288)")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=24.0,
        metavar="M",
        help="the most that a file may have, in 2^20 bytes (default: 24)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.short_side < 16 or not args.megabytes > 0:
        raise UserError(
            f"--short-side must be at least 16 and --megabytes above 0, got {args.short_side} and {args.megabytes}"
        )
    folders = {"photos": find_pictures(args.photos), "paintings": find_pictures(args.paintings)}
    check_folder(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, paths in folders.items():
        pack(paths, args.output / f"{name}.zip", args.short_side, int(args.megabytes * 2**20))


def pack(paths: list[Path], output: Path, short_side: int, limit: int) -> None:
    """Write one file. Raises UserError where no quality makes it small enough."""
    quality = quality_for(paths, short_side, limit)
    left_out = 0
    with written_whole(output) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(tqdm(paths, desc=output.name, unit="picture")):
            try:
                archive.writestr(f"{number:05d}.webp", encoded(path, short_side, quality))
            except UserError as error:
                print(f"left out: {error}")
                left_out += 1
    print(
        f"{output}: {len(paths) - left_out} pictures at quality {quality}, {output.stat().st_size / 2**20:.1f} MiB"
    )
    if output.stat().st_size > limit:
        raise UserError(
            f"{output}: larger than the limit of {limit / 2**20:.1f} MiB after all; give a smaller --megabytes"
        )


def quality_for(paths: list[Path], short_side: int, limit: int) -> int:
    """The best quality at which all are small enough, by a sample of them."""
    sample = [path for path in paths[:: max(1, len(paths) // SAMPLED)] if readable(path)]
    for quality in QUALITIES:
        # 150: a zip file's own, for each
        size = sum(len(encoded(path, short_side, quality)) + 150 for path in sample)
        if size * len(paths) / max(1, len(sample)) <= 0.97 * limit:
            return quality
    raise UserError(
        f"{len(paths)} pictures do not fit into {limit / 2**20:.1f} MiB; give a smaller --short-side"
    )


def readable(path: Path) -> bool:
    try:
        load_image(path)
    except UserError:
        return False
    return True


def encoded(path: Path, short_side: int, quality: int) -> bytes:
    """The picture as WebP; smaller ones keep their size. Raises UserError."""
    image: Image.Image = load_image(path, draft_size=short_side)
    if min(image.size) > short_side:
        image = resize_short_side(image, short_side)
    with io.BytesIO() as file:
        image.save(file, "WEBP", quality=quality, method=4)
        return file.getvalue()


if __name__ == "__main__":
    run(main)
