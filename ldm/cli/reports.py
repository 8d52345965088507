"""What `artfusion stylize` tells people and scripts, and pictures from and to pipes."""

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from ldm.errors import UserError
from ldm.pipeline.folders import Task

STREAM = "-"  # in place of a file: standard input or output


class Report:
    """Tells how a run goes: in words, or as a line of JSON for each result.

    names: what files are called in place of their paths.
    """

    def __init__(self, as_json: bool, quiet: bool, names: Mapping[str, str]):
        self.as_json, self.quiet, self.names = as_json, quiet, names

    def say(self, line: str) -> None:
        """A line for people; none where scripts listen or nobody does."""
        if not (self.as_json or self.quiet):
            _print(self.named(line), sys.stdout)

    def warn(self, line: str) -> None:
        """What went wrong, on standard error."""
        _print(self.named(line), sys.stderr)

    def result(self, task: Task, status: str, seconds: float = 0.0, error: str | None = None) -> None:
        """A result that is over, or would be painted."""
        if self.as_json:
            said = {
                "status": status,
                "content": self.named(str(task.content)),
                "style": task.style_name,
                "output": self.named(str(task.output)),
                "seconds": round(seconds, 2),
            }
            _print(json.dumps(said | ({"error": self.named(error)} if error else {})), sys.stdout)

    def named(self, line: str) -> str:
        """The line, with files called as they are to be."""
        return _renamed(line, self.names)


class Streams:
    """Puts files in place of `-`: the photo or the painting from standard input, the result to
    standard output as PNG. Raises UserError for what does not go together."""

    def __init__(self, args: argparse.Namespace):
        reading = [*args.content, *args.style].count(STREAM)
        self.reads, self.writes = reading > 0, args.output == STREAM
        if reading > 1:
            raise UserError("only one picture can come from standard input (-)")
        if self.writes and (args.json or args.dry_run):
            raise UserError("--output - has standard output for the picture; leave out --json and --dry-run")
        self._args, self._stack = args, ExitStack()
        self.names: dict[str, str] = {}  # of the files that stand for streams

    def __enter__(self) -> "Streams":
        if (self.reads and sys.stdin is None) or (self.writes and sys.stdout is None):
            raise UserError("standard input or output is closed; give a file in place of -")
        if self.reads or self.writes:
            self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="artfusion-")))
        if self.reads:
            received = self._folder / "stdin"
            received.write_bytes(sys.stdin.buffer.read())
            self.names[str(received)] = "standard input"
            for name in ("content", "style"):
                given = getattr(self._args, name)
                setattr(self._args, name, [str(received) if one == STREAM else one for one in given])
        if self.writes:
            self._args.output = str(self._folder / "stdout.png")
            self.names[self._args.output] = "standard output"
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stack.close()
        if isinstance(error, UserError):
            raise UserError(_renamed(str(error), self.names)) from error

    def check(self, results: int) -> None:
        """Raises UserError for so many results where standard output takes one."""
        if self.writes and results > 1:
            raise UserError(
                f"--output - takes a single result, not {results}: give one photo and one painting"
            )

    def write(self) -> None:
        """The result to standard output, if that is where it goes."""
        if self.writes:
            sys.stdout.buffer.write(Path(self._args.output).read_bytes())
            sys.stdout.buffer.flush()


def _renamed(line: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        line = line.replace(path, name)
    return line


def _print(line: str, stream: TextIO | None) -> None:
    """A line with names of whatever bytes, which not every terminal can show."""
    if stream is not None:  # closed by who started this
        encoding = stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def spoken(seconds: float) -> str:
    """A span of time, as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
