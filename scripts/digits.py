"""A small data set for configs/class_conditional.yaml, and how well its samples are recognised.
Needs pip install 'artfusion[digits]'.

    python scripts/digits.py --write datasets/digits
    python scripts/digits.py --recognise logs/digits/checkpoints/last.ckpt --scale 3

The data are scikit-learn's 1,797 handwritten digits, enlarged from 8 to 32 pixels: a folder for
each digit. They are recognised by a support vector machine trained on the real ones, at 8 pixels;
it prints the share that is taken for what it should be.
"""

from ldm.early import stop_at_once

if __name__ == "__main__":
    stop_at_once()

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.checks import DEVICES
from ldm.errors import UserError
from ldm.files import own_or
from ldm.media.images import save_image
from ldm.pipeline.bundled import CLASSES_CONFIG, config_for
from ldm.program import ArgumentParser, at_least, run

SIDE, LARGE, WHITE = 8, 32, 16  # of the originals: pixels per side, and the value of white


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--write", type=Path, metavar="DIR", help="write the pictures into this folder, which must not exist"
    )
    what.add_argument(
        "--recognise", metavar="PATH", help="sample this checkpoint and tell how much is recognised"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help=f"the checkpoint's config (default: the one in it, else {CLASSES_CONFIG})",
    )
    parser.add_argument(
        "--n", type=at_least(1), default=20, metavar="N", help="samples of each digit (default: 20)"
    )
    parser.add_argument("--scale", type=float, default=3.0, metavar="S", help="guidance (default: 3)")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="DDIM steps (default: 50)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the first sample; the others count on (default: 0)",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if find_spec("sklearn") is None:
        raise UserError("the digits need a package more: pip install 'artfusion[digits]'")
    write(args.write) if args.write else recognise(args)


def digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


def write(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another folder")
    data = digits()
    for i, (image, label) in enumerate(zip(data.images, data.target)):
        target = folder / str(label) / f"{i:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(enlarged(image), target)
    print(f"{folder}: {len(data.images)} pictures of {LARGE} pixels, in a folder for each digit")


def enlarged(image: np.ndarray) -> Image.Image:
    """(8, 8) values up to 16 as a picture."""
    small = Image.fromarray(np.round(image / WHITE * 255).astype(np.uint8))
    return small.resize((LARGE, LARGE), Image.Resampling.BICUBIC).convert("RGB")


def features(picture: Image.Image) -> np.ndarray:
    """(64,) what a digit is recognised by."""
    return (
        np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64).ravel()
        / 255
        * WHITE
    )


def recognise(args: argparse.Namespace) -> None:
    from sklearn.svm import SVC

    from ldm.pipeline.classes import class_pictures, load_class_model

    config = config_for(own_or(args.recognise), args.config, CLASSES_CONFIG)
    model = load_class_model(args.recognise, config, args.device)
    data = digits()
    classifier = SVC(gamma=0.001).fit([features(enlarged(image)) for image in data.images], data.target)
    labels = np.repeat(np.arange(10), args.n)
    seeds = [args.seed + i for i in range(len(labels))]
    pictures = class_pictures(model, labels=labels.tolist(), seeds=seeds, scale=args.scale, steps=args.steps)
    taken_for = classifier.predict([features(picture) for picture in pictures])
    for digit in range(10):
        print(f"{digit}: {np.mean(taken_for[labels == digit] == digit):.0%}")
    print(
        f"all: {np.mean(taken_for == labels):.1%} of {len(labels)} samples at scale {args.scale:g}, {args.steps} steps"
    )


if __name__ == "__main__":
    run(main)
