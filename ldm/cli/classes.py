"""Sample a class-conditional model: a sheet with a row for each class.

    artfusion classes --checkpoint logs/classes/checkpoints/last.ckpt --classes 3 7 --n 4 --scale 3 --steps 50 --output sheet.png

Averaged weights (EMA) are used where the checkpoint has them. Guidance leads away from the null
class, the last one.
"""

import argparse
from pathlib import Path

from ldm.checks import DEVICES
from ldm.files import check_config_file, check_exists, own_or
from ldm.media.images import check_output, save_image
from ldm.media.sheets import labelled_sheet
from ldm.pipeline.bundled import CLASSES_CONFIG, config_for
from ldm.program import ArgumentParser, at_least


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--classes", required=True, type=int, nargs="+", metavar="LABEL", help="a row for each"
    )
    parser.add_argument(
        "--n", type=at_least(1), default=4, metavar="N", help="pictures of each class (default: 4)"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=3.0,
        metavar="S",
        help="guidance: 1 none, more is more typical of the class (default: 3)",
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="DDIM steps (default: 50)")
    parser.add_argument(
        "--eta", type=float, default=0.0, help="0 is deterministic, 1 as noisy as training (default: 0)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the first picture of each class; the others count on (default: 0)",
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="a .ckpt or .safetensors file")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help=f"its config (default: the one in it, else {CLASSES_CONFIG})",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--output", required=True, metavar="FILE", help="the sheet (.png or .jpg)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output = check_output(args.output)
    check_exists(own_or(args.checkpoint))
    config = config_for(own_or(args.checkpoint), args.config, CLASSES_CONFIG)
    check_config_file(config)
    from ldm.pipeline.classes import class_pictures, load_class_model  # takes seconds, with torch

    model = load_class_model(args.checkpoint, config, args.device)
    labels = [label for label in args.classes for _ in range(args.n)]
    seeds = [args.seed + i for _ in args.classes for i in range(args.n)]
    pictures = class_pictures(
        model, labels=labels, seeds=seeds, scale=args.scale, steps=args.steps, eta=args.eta
    )
    rows = [pictures[i : i + args.n] for i in range(0, len(pictures), args.n)]
    save_image(
        labelled_sheet(rows, row_labels=[f"class {label}" for label in args.classes], cell=128), output
    )
    print(output)
