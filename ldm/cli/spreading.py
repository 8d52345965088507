"""The options of `artfusion stylize` that spread work over processes and machines, and pack its results."""

import argparse
import os
import re
from collections.abc import Sequence

from ldm.errors import UserError
from ldm.media.packs import KINDS, check_pack
from ldm.pipeline.portions import AnyPortion, Engine, in_this_process, share
from ldm.pipeline.ray_engine import RayEngine, check_ray
from ldm.pipeline.tasks import is_folder
from ldm.program import at_least
from ldm.ranks import rank_and_world

ENGINES = ("here", "ray")
PACK_SIZE = 1000


def add_spreading_options(parser: argparse.ArgumentParser) -> None:
    """See docs/cluster.md."""
    group = parser.add_argument_group("on many processors and machines (docs/cluster.md)")
    group.add_argument(
        "--shard",
        type=parse_shard,
        metavar="I/N",
        help="paint share I (from 0 on) of N alone: neighbours, of about as many pixels as the others'; for jobs that are started N times",
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="here",
        help="ray: paint with workers of Ray Data (pip install -e '.[cluster]') (default: in this process)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a Ray cluster, or auto for the one that this machine belongs to (default: one that is started here)",
    )
    group.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="of Ray (default: one for each GPU, or processor where there are none)",
    )
    group.add_argument("--gpus-per-worker", type=float, metavar="G", help="default: 1 where there are any")
    group.add_argument(
        "--pack",
        choices=KINDS,
        help="put results together into files of this kind in the folder --output, which photos in tar shards (--content 'photos-{000..099}.tar') need",
    )
    group.add_argument(
        "--pack-size",
        type=at_least(1),
        metavar="N",
        help=f"for --pack: results of single photos in each (default: {PACK_SIZE}); a shard of photos makes one of its own",
    )
    group.add_argument(
        "--max-failed",
        type=parse_fraction,
        metavar="SHARE",
        help="exit with 0 if no more than this share of the pictures (with --shard and torchrun, of this process's) failed, and stop as soon as more have (default: exit with 1 if any has, at the end; with 0 under torchrun, which stops all processes if one does not)",
    )


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8`: number, from 0 on, and how many there are."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not number < of:
        raise argparse.ArgumentTypeError(
            f"expected a share's number from 0 on and how many there are, such as 0/8 to 7/8, got {text!r}"
        )
    return number, of


def parse_fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def check_spreading(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, or whose package is missing."""
    if args.engine == "ray":
        check_ray()
        if shard_of(args)[1] > 1:
            raise UserError("--engine ray spreads the work itself; leave out --shard, and torchrun")
    else:
        for name in ("ray_address", "workers", "gpus_per_worker"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --engine ray")
    if args.pack is None and args.pack_size is not None:
        raise UserError("--pack-size is for --pack")
    if args.pack is not None:
        check_pack(args.pack)
        if args.output is not None and not is_folder(args.output):
            raise UserError(f"--pack takes a folder as --output, for the files it makes; got {args.output}")
        if args.dry_run:
            raise UserError("--dry-run does not look into packs; leave out --pack")
    if args.gpus_per_worker is not None and not args.gpus_per_worker >= 0:
        raise UserError(f"--gpus-per-worker must be 0 or more, got {args.gpus_per_worker}")


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """(number, of): this process's share, also where torchrun started several. Raises UserError."""
    if args.shard is None:
        return rank_and_world()
    if rank_and_world()[1] > 1:
        raise UserError("torchrun gives each process its share; leave out --shard")
    number, of = args.shard
    return number, of


def is_job(args: argparse.Namespace) -> bool:
    """Whether this is one process of several."""
    return args.engine == "ray" or shard_of(args)[1] > 1


def engine_of(args: argparse.Namespace) -> Engine:
    """What has portions painted."""
    if args.engine == "here":
        return in_this_process
    return RayEngine(args.ray_address, args.workers, args.gpus_per_worker)


def own_share(portions: Sequence[AnyPortion], args: argparse.Namespace) -> list[AnyPortion]:
    """Those that this process is to paint."""
    return share(portions, *shard_of(args))


def may_fail(args: argparse.Namespace) -> float:
    """The share of the pictures that may fail without an exit code that says so."""
    if args.max_failed is not None:
        return float(args.max_failed)
    # It starts all processes again if one ends otherwise, and the broken picture is still broken.
    return 1.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
