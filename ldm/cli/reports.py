"""What `artfusion stylize` tells people and scripts, and pictures from and to pipes."""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ldm.errors import UserError
from ldm.pipeline.folders import Task

STREAM = "-"  # in place of a file: standard input or output


class Report:
    """Tells how a run goes: in words, or as a line of JSON for each result; errors are not its
    business."""

    def __init__(self, as_json: bool, quiet: bool):
        self.as_json, self.quiet = as_json, quiet
        self.begin()

    def begin(self) -> None:
        """From now on time counts for the next result."""
        self._since = time.monotonic()

    def say(self, line: str) -> None:
        """A line for people; none where scripts listen or nobody does."""
        if not (self.as_json or self.quiet):
            print(line, flush=True)

    def result(self, task: Task, status: str, error: str | None = None, seconds: float | None = None) -> None:
        """A result that is over. seconds: since the last one, where not given."""
        now = time.monotonic()
        taken = now - self._since if seconds is None else seconds
        self._since = now
        if self.as_json:
            said = {
                "status": status,
                "content": str(task.content),
                "style": task.style_name,
                "output": str(task.output),
                "seconds": 0.0 if status == "there" else round(taken, 2),
            }
            print(json.dumps(said | ({"error": error} if error else {})), flush=True)


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

    def __enter__(self) -> "Streams":
        if self.reads or self.writes:
            self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="artfusion-")))
        if self.reads:
            self._received = self._folder / "stdin"
            self._received.write_bytes(sys.stdin.buffer.read())
            for name in ("content", "style"):
                given = getattr(self._args, name)
                setattr(self._args, name, [str(self._received) if one == STREAM else one for one in given])
        if self.writes:
            self._args.output = str(self._folder / "stdout.png")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stack.close()
        if isinstance(error, UserError) and self.reads:
            raise UserError(str(error).replace(str(self._received), "standard input")) from error

    def check(self, results: int) -> None:
        """Raises UserError for so many results where standard output takes one."""
        if self.writes and results > 1:
            raise UserError(
                f"--output - takes a single result, not {results}: give one photo and one painting"
            )

    def write(self) -> None:
        """The result to standard output, if that is where it goes."""
        result = self._folder / "stdout.png" if self.writes else None
        if result is not None and result.exists():
            sys.stdout.buffer.write(result.read_bytes())
            sys.stdout.buffer.flush()


def spoken(seconds: float) -> str:
    """A span of time, as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
