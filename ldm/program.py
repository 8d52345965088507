"""What every command-line program here shares: one clear line and exit code 2 for bad input."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from ldm.commands import COMMANDS
from ldm.early import STOPPED, TERMINATED, as_usual, was_terminated
from ldm.errors import UserError, did_you_mean
from ldm.files import PACKAGE
from ldm.streams import Lasting, lasting_streams

# The sub-command that `artfusion` runs, and its arguments. sys.argv stays what was typed: Lightning
# starts further processes by it.
_called: list[str] = []
_prints_result: list[bool] = []


def call_as(name: str, given: Sequence[str]) -> None:
    """From now on this process is the sub-command of that name."""
    _called[:] = [name, *given]


def arguments() -> list[str]:
    """Those of the sub-command, or of the script that it was called by."""
    return _called[1:] if _called else sys.argv[1:]


class ArgumentParser(argparse.ArgumentParser):
    """Shows the program's own docstring as help; a wrong option is a UserError instead of a page of
    usage."""

    other_options: Sequence[str] = ()  # which are not argparse's, but could be meant

    def __init__(self, description: str | None = None, epilog: str | None = None, **options: Any):
        if _called:
            options.setdefault("prog", f"artfusion {_called[0]}")
        super().__init__(
            description=description and _as_called(description),
            epilog=epilog and _as_called(epilog),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --content-scale is not --content-scales
            **options,
        )
        self._given: list[str] = []

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """The arguments given, by default those of the sub-command. Raises UserError for wrong
        ones."""
        return super().parse_args(self._taken(args), namespace)

    def parse_intermixed_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """The same, where others may stand between options."""
        return super().parse_intermixed_args(self._taken(args), namespace)

    def _taken(self, args: Iterable[str] | None) -> list[str]:
        self._given = list(arguments() if args is None else args)
        return self._given

    def parse_given(self) -> tuple[argparse.Namespace, set[str]]:
        """(the options, the names of those that were typed, whatever their value)."""
        # No default is set where there is a value already, be it None, which nobody can type.
        unset = argparse.Namespace(**dict.fromkeys(action.dest for action in self._actions))
        typed = self.parse_args(namespace=unset)
        return self.parse_args(), {name for name, value in vars(typed).items() if value is not None}

    def error(self, message: str) -> NoReturn:
        """Raises UserError, which names the options that are like a mistyped one."""
        known = [*self._option_string_actions, *self.other_options]
        # argparse looks for missing ones first, and would not say that one is mistyped
        if "required" in message:
            mistyped = [item for item in self._given if _is_option(item) and not _begins_one(item, known)]
            message = f"unrecognized arguments: {mistyped[0]}" if mistyped else message
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        hint = did_you_mean(unknown[1], known) if unknown else ""
        raise UserError(f"{message}{hint}; --help shows all options")


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number from `least` (not below 0) to 999999999."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number between {least} and 999999999, got {text!r}"
            )
        return int(text)

    return whole_number


def result_is_printed() -> None:
    """Have the exit code of this program say so where standard output is closed: what it prints is
    all that it was asked for."""
    _prints_result[:] = [True]


def run(main: Callable[[], int | None], leave_at_once: bool = False) -> NoReturn:
    """Run a program's `main` and exit: its own code or 0; 1 where what it printed went nowhere, or would
    have as `result_is_printed`; 2 with one line for what a user can mend; 130 on Ctrl-C, 143 on SIGTERM.

    leave_at_once: without Python's own clean-up, which takes half a second when torch is loaded.
    For programs that start no processes.
    """
    _prints_result.clear()
    output, errors = lasting_streams()
    with redirect_stdout(cast(TextIO, output)), redirect_stderr(cast(TextIO, errors)):
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        code = _code_of(main)
        code = TERMINATED if code == STOPPED and was_terminated() else code
        code = max(code, _flushed(output)) if code < 2 else code
        if output is None and _prints_result and code < 2:
            print("error: standard output is closed, where the result would have gone", file=sys.stderr)
            code = 1
        if output is not None and output.error and not isinstance(output.error, BrokenPipeError):
            print(f"error: standard output: {_one_line(str(output.error))}", file=sys.stderr)
        _flushed(errors)
    if leave_at_once:
        os._exit(code)
    sys.exit(code)


def _code_of(main: Callable[[], int | None]) -> int:
    """The exit code; what went wrong is told."""
    try:
        as_usual()
        return main() or 0
    except SystemExit as ended:  # argparse's, behind --help
        if not isinstance(ended.code, (int, type(None))):
            raise
        return ended.code or 0
    except BrokenPipeError:  # who listened has heard enough
        return 1
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without permission, no network
        print("error: " + _one_line(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _flushed(stream: Lasting | None) -> int:
    """The exit code by whether all that was printed has gone somewhere."""
    try:
        if stream is not None:
            stream.flush()
    except BrokenPipeError:
        return 1
    return 1 if stream is not None and stream.error else 0


def own_command(name: str, *arguments: str, before: Sequence[str] = ()) -> list[str]:
    """What starts a sub-command of `artfusion` with this Python; `before`: a module that starts it
    in turn, with its arguments."""
    return [sys.executable, *before, "-m", "ldm", *name.split(), *arguments]


def own_environment() -> dict[str, str]:
    """The environment in which a program started from here finds this project, and all that this
    one finds."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _is_option(item: str) -> bool:
    """Whether an argument is one of the long options, which may be mistyped."""
    return item.startswith("--") and item != "--"


def _begins_one(item: str, known: Iterable[str]) -> bool:
    """Whether an option is one of those that there are, or the beginning of one, which argparse
    takes, too."""
    return any(option.startswith(item.partition("=")[0]) for option in known)


def _as_called(text: str) -> str:
    """A text's examples of `artfusion`, as scripts of a clone where one of these was called."""
    if _called or Path(sys.argv[0]).suffix != ".py":
        return text
    for name, command in COMMANDS.items():
        text = text.replace(f"artfusion {name} ", f"python {command.script} ") if command.script else text
    return text


def _one_line(message: str) -> str:
    if "Original Traceback" in message:  # torch packs what a loader's worker raised into one text
        message = message.rstrip().rpartition("\n")[2].partition(": ")[2] or message
    return " ".join(message.split())
