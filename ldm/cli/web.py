"""A page to paint on, in your browser: upload a photo and a painting, turn two dials, watch the
picture appear.

    artfusion web
    artfusion web --size 512 --port 8000

It is for this computer alone, and works without a network. Uploads and results are deleted after an
hour, and all of them at the end. The settings given here are those that the page begins with.

To open it to a network, give a file of accounts, with a line NAME:PASSWORD for each:

    artfusion web --host 0.0.0.0 --auth-file accounts.txt

One painting is made at a time; others wait, and see their place. docs/web.md has the page's
functions for programs.
"""

import argparse
import sys
from functools import cache, partial
from pathlib import Path

from ldm.cli.options import (
    add_model_options,
    add_settings_options,
    as_the_model,
    load_pipeline,
    model_of,
    painted_by,
    painted_with,
    settings_of,
)
from ldm.errors import UserError
from ldm.pipeline.settings import Settings
from ldm.program import ArgumentParser, at_least

LARGEST = 1024  # shorter side of a result: a minute of a CPU's work


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    group = parser.add_argument_group("where, and for whom")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen at; 0.0.0.0 opens the page to the network (default: 127.0.0.1, this computer alone)",
    )
    group.add_argument(
        "--port", type=at_least(1), metavar="N", help="default: the first free one from 7860 on"
    )
    group.add_argument(
        "--share",
        action="store_true",
        help="also at an address in the internet, through gradio's servers, for a week",
    )
    group.add_argument("--auth-file", metavar="FILE", help="who may come in: a line NAME:PASSWORD for each")
    group.add_argument("--no-open", dest="opens", action="store_false", help="do not open a browser")
    group.add_argument(
        "--max-size",
        type=at_least(64),
        default=LARGEST,
        metavar="N",
        help=f"the largest shorter side of a result (default: {LARGEST})",
    )
    group.add_argument(
        "--mcp",
        action="store_true",
        help="also a tool server for language models (needs pip install 'gradio[mcp]')",
    )
    add_settings_options(
        parser, leave_out=("tile", "refine", "eta", "guidance_interval", "face_detail"), size=320
    )
    add_model_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    settings = checked(args)
    from ldm.web.serving import Address, read_accounts, serve

    accounts = None if args.auth_file is None else read_accounts(args.auth_file)
    address = Address(args.host, args.port, args.share, accounts, args.opens, args.mcp)
    if not address.is_local and accounts is None:
        print(
            "warning: everybody who reaches this address can paint here; --auth-file lets in only those with a password",
            file=sys.stderr,
        )
    # the page works in an empty folder
    checkpoint, config = model_of(args).files()
    settings = as_the_model(settings, config, ["recolor", "texture"])  # the page shows numbers
    args.checkpoint, args.config = str(checkpoint.absolute()), str(Path(config).absolute())
    model = cache(
        lambda: painted_by(args)
    )  # seconds for a large checkpoint: once, and not before the page is up
    serve(
        address,
        partial(load_pipeline, args, settle_threads=False),
        lambda settings, precision: {**painted_with(settings, precision), **model()},
        settings,
        args.max_size,
    )


def checked(args: argparse.Namespace) -> Settings:
    """The settings that the page begins with. Raises UserError."""
    from ldm.web.orders import check_settings

    settings = settings_of(args)
    if args.port is not None and args.port > 65535:
        raise UserError(f"--port must be at most 65535, got {args.port}")
    if not args.host:
        raise UserError("--host needs an address, such as 0.0.0.0 for all of this computer's")
    check_settings(settings, args.max_size)
    return settings
