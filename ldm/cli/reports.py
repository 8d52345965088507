"""What `artfusion stylize` tells people and scripts, and pictures from and to pipes."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from tqdm import tqdm

from ldm.early import STOPPED
from ldm.errors import UserError
from ldm.media.places import Place
from ldm.pipeline.outcomes import Outcome
from ldm.pipeline.portions import Done, Run

STREAM = "-"  # in place of a file: standard input or output


class Report:
    """Tells how a run goes: in words, or as a line of JSON for each result, on the standard output
    of when it is made, whatever others make of that.

    names: what files are called in place of their paths.
    """

    def __init__(self, as_json: bool, quiet: bool, names: Mapping[str, str]):
        self.as_json, self.quiet, self.names = as_json, quiet, names
        self._output = sys.stdout

    def say(self, line: str) -> None:
        """A line for people; none where scripts listen or nobody does."""
        if not (self.as_json or self.quiet):
            _print(_printable(self.named(line)), self._output)

    def warn(self, line: str) -> None:
        """What went wrong, on standard error."""
        _print(_printable(self.named(line)), sys.stderr)

    def left(self, packs: Sequence[Place]) -> None:
        """Packs of an earlier run, in order, which this one has no part in."""
        if packs:
            self.warn(
                f"{packs[0].parent}: packs of an earlier run are there, too, and in no index of this one: {len(packs)}, "
                f"from {packs[0].name} on; remove them, or leave them out where the packs are read"
            )

    def result(self, outcome: Outcome) -> None:
        """A result that is over, or would be painted."""
        if self.as_json:
            said = {
                "status": outcome.status,
                "content": self.named(outcome.content),
                "style": outcome.style,
                "output": self.named(outcome.output),
                "seconds": round(outcome.seconds, 2),
            }
            if outcome.pack:
                said["pack"] = outcome.pack
            if outcome.problem:
                said["error"] = self.named(outcome.problem)
            _print(json.dumps(said), self._output)

    def named(self, line: str) -> str:
        """The line, with files called as they are to be."""
        return _renamed(line, self.names)


class Tally:
    """Counts how tasks end, with a progress bar, and tells the report of them.

    planned: how many there are, None where nobody has counted. may_fail: the share of them that may
    fail without an exit code that says so. stops: as soon as more have, the run ends.
    """

    def __init__(self, report: Report, planned: int | None, may_fail: float, stops: bool):
        self.report, self.planned, self.may_fail, self.stops = report, planned, may_fail, stops
        self.counts = Counter[str]()
        self.failures = dict[str, None]()
        self.memory = 0

    def follow(self, run: Run, tells_rates: bool, written: Callable[[], int]) -> int:
        """Follow a run to its end, or end it: its exit code. tells_rates: at the end, pictures per
        second and memory, too. written: how many files it has written; of a run that is stopped,
        the last ones are not told."""
        began = time.monotonic()
        unseen = self.report.quiet or self.planned == 0  # an empty share, say
        with tqdm(total=self.planned, unit="picture", smoothing=0.1, disable=unseen) as bar:
            try:
                with closing(run):
                    for done in run:
                        self._add(done, bar)
                        if self.stops and self.planned and self._has_failed(self.planned):
                            break
            except KeyboardInterrupt:
                bar.close()
                self._stopped(written())
                return STOPPED
            bar.leave = self.counts["painted"] + self.counts["failed"] > 0
        seconds = time.monotonic() - began
        rates = f"; {self._rate(seconds)}" if tells_rates and self.counts["painted"] else ""
        self.report.say(self._counted() + rates)
        for line in self.failures:
            self.report.warn(f"failed: {line}")
        if not self._has_failed(self.counts.total()):
            return 0
        if self.stops:
            stopped = "stopped: " * (self.counts.total() < (self.planned or 0))
            self.report.warn(f"{stopped}more than {self.may_fail:.0%} of the pictures failed (--max-failed)")
        return 1

    def _add(self, done: Done, bar: "tqdm[Any]") -> None:
        self.memory = max(self.memory, done.memory)
        for outcome in done.outcomes:
            self.counts[outcome.status] += 1
            if outcome.problem is not None:
                self.failures[outcome.line] = None  # once, however many styles it was to be painted in
            self.report.result(outcome)
            if outcome.status != "there":
                bar.update()
            elif bar.total is not None:
                bar.total -= 1  # nothing to wait for
        bar.refresh()

    def _stopped(self, written: int) -> None:
        painted = max(self.counts["painted"], written)
        left = "" if self.planned is None else f" of {self.planned - self.counts['there']}"
        self.report.warn(f"stopped: {painted}{left} painted; the same command does the rest")

    def _has_failed(self, of: int) -> bool:
        return self.counts["failed"] > self.may_fail * of

    def _counted(self) -> str:
        counts = self.counts
        return f"{counts['painted']} painted, {counts['there']} there already, {counts['failed']} failed"

    def _rate(self, seconds: float) -> str:
        each = self.counts["painted"] / seconds
        return f"{each:.3g} pictures/s in {spoken(seconds)}, at most {self.memory / 1e9:.1f} GB for a worker"


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


def _printable(line: str) -> str:
    """Names come from anybody's files, and are to do nothing to a terminal."""
    return "".join(
        char if char.isprintable() or "\ud800" <= char <= "\udfff" else char.encode("unicode_escape").decode()
        for char in line
    )


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
