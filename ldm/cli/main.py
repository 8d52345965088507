"""The command `artfusion`: finds the sub-command that is meant and runs it."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ldm import __version__
from ldm.commands import COMMANDS
from ldm.errors import UserError, did_you_mean
from ldm.program import call_as, result_is_printed, run

HELP = ("-h", "--help")
USAGE = """usage: artfusion PHOTO PAINTING [RESULT]      paint a photo in the style of a painting
       artfusion COMMAND [OPTIONS]           --help after a command shows its options
       artfusion --version

commands:
"""


def main() -> NoReturn:
    """Run what the program's arguments say, and exit."""
    arguments = sys.argv[1:]
    told = _told(arguments)
    if told is None:
        run_command(*_command(arguments))

    def tell() -> None:
        result_is_printed()
        print(told)

    run(tell)


def _told(arguments: Sequence[str]) -> str | None:
    """The version, or the list of commands that is asked for; None for what is to be run."""
    if arguments == ["--version"]:
        return f"artfusion {__version__}"
    if not arguments or arguments[0] in HELP:
        return USAGE + _listed(list(COMMANDS))
    if (group := _group(arguments[0])) and (not arguments[1:] or arguments[1] in HELP):
        return "commands:\n" + _listed(group)
    return None


def _listed(names: Sequence[str]) -> str:
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {COMMANDS[name].help}" for name in names)


def _group(word: str) -> list[str]:
    """The commands of two words of which this is the first."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the sub-command that is meant, what is left for it)."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    if arguments[0] != "--version" and _is_picture(arguments[0]):
        return "stylize", list(arguments)
    words = 2 if _group(arguments[0]) else 1
    return " ".join(arguments[:words]), list(arguments[words:])


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
