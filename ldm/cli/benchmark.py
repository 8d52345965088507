"""Measure speed, memory and accuracy on this machine; each suite prints a Markdown table.

    artfusion benchmark --suite training --config configs/kl16_content12.yaml --batch-size 2
    artfusion benchmark --suite training --config configs/mini.yaml --batch-size 48
    artfusion benchmark --suite sampling --config configs/mini.yaml --reference
    artfusion benchmark --suite sampling --config configs/kl16_content12.yaml --published-steps 10
    artfusion benchmark --suite convergence --config configs/mini.yaml
    artfusion benchmark --suite brush
    artfusion benchmark --suite gpu

`training`: one optimiser step on made-up data and random weights, which serve for time; reading pictures is not
counted. Rows go from the published way to all that makes it faster; each prints the loss of its first step, which
speed must not change. Median of the steps after two to warm up.

`sampling`: a whole picture with guidance in both conditions: encoding content and style, all sampling steps, decoding;
reading pictures and weights is not counted, but for the whole process, the last row. Rows go from the published way to
ours, one change at a time. Median of the runs after one to warm up.

`convergence`: how near each sampler comes to the picture of 1000 steps of DDIM, by its number of steps.

`brush`: the fine look: time and memory of whole processes by size, and how much sooner its energy is low when it begins with a
sampled picture instead of the photo.

`gpu`: training and sampling in full on a GPU, at several sizes and numbers of pictures, beside what the machine can do at most and how exact
each way is. Results go to --output as they come; called again, it goes on where it was.

All rows of training and sampling are measured in one run, each in a process of its own.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm.benchmarking.models import checkpoint_for
from ldm.errors import UserError
from ldm.files import ROOT
from ldm.program import ArgumentParser

# What each suite takes beside --device, with the defaults. The parser's own are None, to tell what was given.
PAINTING = {
    "config": str(ROOT / "configs/mini.yaml"),
    "checkpoint": None,
    "contents": ROOT / "data/contents",
    "styles": ROOT / "data/styles",
    "size": 256,
    "seed": 0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "training": {
        "config": str(ROOT / "configs/kl16_content12.yaml"),
        "batch_size": 2,
        "steps": 5,
        "rows": None,
    },
    "sampling": {**PAINTING, "repeats": 3, "rows": None, "published_steps": 250, "reference": False},
    "convergence": {**PAINTING, "pictures": 4},
    "brush": {**PAINTING, "pictures": 4, "sizes": [256, 512, 1024], "repeats": 3},
    "gpu": {
        **{name: value for name, value in PAINTING.items() if name != "size"},
        "config": str(ROOT / "configs/kl16_content12.yaml"),
        "sizes": [256, 512],
        "batch_sizes": [1, 8, 64],
        "training_batch_sizes": [16, 64, 256],
        "repeats": 10,
        "published_steps": 10,
        "rows": None,
        "output": Path("outputs/gpu"),
        "tables_only": False,
    },
}
AT_LEAST_ONE = ("batch_size", "steps", "repeats", "pictures")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--suite", choices=OPTIONS, default="training")
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="the model's config (default: the published model for training, else the bundled one)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        metavar="N",
        help="only these rows, counted from 1 (training, sampling, gpu)",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=int, help="(default: 2)")
    training.add_argument("--steps", type=int, help="measured steps of each row (default: 5)")
    add_painting_options(parser.add_argument_group("sampling, convergence, brush and gpu"))
    gpu = parser.add_argument_group("gpu")
    gpu.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="N",
        help="gpu, brush: sides of the pictures in pixels (default: 256 512; brush: and 1024)",
    )
    gpu.add_argument(
        "--batch-sizes", type=int, nargs="+", metavar="N", help="pictures painted at once (default: 1 8 64)"
    )
    gpu.add_argument(
        "--training-batch-sizes",
        type=int,
        nargs="+",
        metavar="N",
        help="of a training step (default: 16 64 256)",
    )
    gpu.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the results (default: outputs/gpu)"
    )
    gpu.add_argument(
        "--tables-only", action="store_true", default=None, help="measure nothing, print what --output has"
    )
    parser.add_argument("--one-row", type=int, help=argparse.SUPPRESS)  # how the parent process calls a row,
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # or several,
    parser.add_argument("--results", help=argparse.SUPPRESS)  # and where it wants the picture
    return with_defaults(parser.parse_args())


def add_painting_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint",
        metavar="mini|PATH|random",
        help="weights (default: mini for its own config, else random)",
    )
    group.add_argument(
        "--contents", type=Path, metavar="DIR", help="folder of photos (default: data/contents)"
    )
    group.add_argument(
        "--styles", type=Path, metavar="DIR", help="folder of paintings (default: data/styles)"
    )
    group.add_argument("--size", type=int, help="side of the pictures in pixels (default: 256)")
    group.add_argument("--seed", type=int, help="of the first picture's noise (default: 0)")
    group.add_argument(
        "--repeats", type=int, help="sampling, brush, gpu: measured runs of each row (default: 3; gpu: 10)"
    )
    group.add_argument(
        "--published-steps",
        type=int,
        metavar="N",
        help="sampling, gpu: run only N of the published 250 steps, and scale",
    )
    group.add_argument(
        "--reference",
        action="store_true",
        default=None,
        help="sampling: also paint with 1000 steps, for the column of PSNR",
    )
    group.add_argument(
        "--pictures",
        type=int,
        help="convergence, brush: pairs of photo and painting to take the mean over (default: 4)",
    )


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Raises UserError for options of another suite, and for numbers below 1."""
    taken = OPTIONS[args.suite]
    for name in sorted(set().union(*OPTIONS.values()) - set(taken)):
        if getattr(args, name) is not None:
            raise UserError(f"{option(name)} is not for --suite {args.suite}")
    for name, value in taken.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in AT_LEAST_ONE:
        if name in taken and getattr(args, name) < 1:
            raise UserError(f"{option(name)} must be at least 1, got {getattr(args, name)}")
    if "checkpoint" in taken and args.checkpoint is None:
        args.checkpoint = checkpoint_for(args.config)
    return args


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def main() -> None:
    args = parse_args()
    # Only now: Lightning, which training imports, would count in the memory of sampling.
    import_module(f"ldm.benchmarking.{args.suite}").main(args)
