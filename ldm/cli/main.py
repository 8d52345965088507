"""The command `artfusion`: finds the sub-command that is meant and runs it."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ldm import __version__
from ldm.commands import COMMANDS
from ldm.errors import UserError, did_you_mean
from ldm.program import call_as, run

USAGE = """usage: artfusion PHOTO PAINTING [RESULT]      paint a photo in the style of a painting
       artfusion COMMAND [OPTIONS]           --help after a command shows its options
       artfusion --version

commands:
"""


def main() -> NoReturn:
    """Run what the program's arguments say, and exit."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"artfusion {__version__}")
    elif not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE + "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()))
    else:
        name, rest = _command(arguments)
        run_command(name, rest)
    sys.exit(0)


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the sub-command that is meant, what is left for it)."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    if arguments[0] != "--version" and _is_picture(arguments[0]):
        return "stylize", list(arguments)
    return arguments[0], list(arguments[1:])


def _is_picture(text: str) -> bool:
    """Whether this is no mistyped command, but a photo to paint, or an option of painting it."""
    return text.startswith("-") or bool(Path(text).suffix) or Path(text).exists()


def run_command(name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a sub-command and exit; its script gives no arguments, which are the program's own."""
    if arguments is not None:
        call_as(name, arguments)

    def command() -> int | None:
        if name == "--version":
            raise UserError(f"--version stands alone, got {' '.join(arguments or ())!r} after it")
        if name not in COMMANDS:
            raise UserError(
                f"{name}: no such command{did_you_mean(name, COMMANDS)}; `artfusion --help` lists them all"
            )
        return importlib.import_module(COMMANDS[name].module).main()

    run(command, leave_at_once=name in COMMANDS and COMMANDS[name].leave_at_once)
