"""What every command-line program here shares: one clear line and exit code 2 for bad input."""

import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from ldm.errors import UserError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main` and exit: its own code or 0; 2 with one line for a UserError; 130 on Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = main() or 0
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)
