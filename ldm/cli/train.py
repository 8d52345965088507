"""The training command: its options, among which those of the published command line keep
working."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import fine_tune
from ldm.errors import UserError
from ldm.files import check_config_file, check_exists
from ldm.program import ArgumentParser, arguments
from ldm.training.published_flags import DEFAULT_SEED, TRAINER_FLAGS, translated

EPILOG = """examples:
  artfusion train --base configs/mini.yaml data.params.train.params.style_root=PAINTINGS data.params.train.params.content_root=PHOTOS
  artfusion train --base configs/mini.yaml --dry-run           build everything, run one step, report speed and memory
  artfusion train --resume logs/mini                           go on after a stop, with the same settings
  torchrun --nproc-per-node 4 -m ldm train --base configs/kl16_content12.yaml      four GPUs of one machine
  artfusion train --from mini --paintings PAINTINGS --output mymodel      the bundled model, fine-tuned on one artist
  artfusion train --base configs/mini.yaml --max_epochs 5      Lightning's Trainer flags set lightning.trainer

Ctrl-C and SIGTERM write a checkpoint after the step in progress and stop; SIGUSR1 writes one and goes on.
Watch a run with: tensorboard --logdir logs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training command; the exit code. Raises UserError for bad input before any work
    starts."""
    args = parse_args(argv)
    if args.start is not None:
        return fine_tune.fine_tune(args)
    for path in args.base:
        check_config_file(path)
    if args.resume:
        check_exists(args.resume, "file or folder")
    from ldm.training.train import train  # takes seconds, with torch and Lightning

    train(args)
    return 0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Raises UserError for options that do not exist or do not fit together."""
    parser = ArgumentParser("Train a model from config files.", epilog=EPILOG)
    parser.other_options = [f"--{name}" for name in TRAINER_FLAGS]
    parser.add_argument(
        "-b", "--base", nargs="+", default=[], metavar="YAML", help="config files, merged from left to right"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config values that come last")
    parser.add_argument(
        "-n", "--name", help="name of the run's folder (default: that of the last config file)"
    )
    parser.add_argument(
        "-l",
        "--logdir",
        "--basedir",
        default="logs",
        metavar="DIR",
        help="folder for all runs (default: logs)",
    )
    parser.add_argument(
        "-r",
        "--resume",
        metavar="DIR|FILE",
        help="go on from a run's folder (with its own config, unless --base is given) or from one checkpoint",
    )
    parser.add_argument(
        "-s",
        "--seed",
        type=int,
        help=f"seed of everything random (default: {DEFAULT_SEED}, or that of the resumed run)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run one training and one validation step, report, write nothing",
    )
    parser.add_argument(
        "--gpus",
        metavar="0,1",
        help="GPU numbers with commas (`0,` is the first), or how many (default: whatever Lightning finds)",
    )
    parser.add_argument(
        "--allow-target",
        action="append",
        default=[],
        metavar="PREFIX",
        help="also build classes under this dotted prefix",
    )
    fine_tune.add_options(parser)
    # Of the published command line, which has more: see published_flags.py.
    parser.add_argument("-f", "--postfix", default="", help=argparse.SUPPRESS)
    parser.add_argument("-t", "--train", nargs="?", const="True", default="True", help=argparse.SUPPRESS)
    # Overrides may stand before, between and after the options; argparse takes those behind `--base
    # FILE` for files.
    args = parser.parse_intermixed_args(translated(arguments() if argv is None else argv))
    taken = [item for item in args.base if "=" in item and not Path(item).is_file()]
    args.base = [item for item in args.base if item not in taken]
    args.overrides = taken + args.overrides
    _check(args, parser)
    return args


def _check(args: argparse.Namespace, parser: ArgumentParser) -> None:
    fine_tune.check(args)
    if not args.base and not args.resume and args.start is None:
        parser.error(
            "name a config file with --base, a run to go on with --resume, or weights to fine-tune with --from"
        )
    if args.train.lower() not in ("true", "1", "yes", "y", "t"):
        parser.error(f"--train {args.train}: this command trains; leave the option out")
    if args.seed is not None and not 0 <= args.seed < 2**32:  # what NumPy's generator takes
        raise UserError(f"--seed must be between 0 and 2^32 - 1, got {args.seed}")
