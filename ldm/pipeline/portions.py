"""Many pictures in portions, which any process can paint: finished ones skipped, broken ones told.

What is made of a portion depends on it alone, so a run may be stopped, started again and spread over
processes and machines at will.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.errors import UserError, in_one_line
from ldm.media.images import short_side_at, upright_size
from ldm.media.packs import pack_at
from ldm.media.places import (
    Place,
    Unreached,
    found_by,
    name_within,
    place_of,
    read_bytes,
    size_of,
    write_bytes,
)
from ldm.media.shards import pictures_in
from ldm.memory import main_memory
from ldm.pipeline.batch_options import BatchOptions
from ldm.pipeline.batches import Painted, Ready, Row, RowPainter
from ldm.pipeline.inputs import Style
from ldm.pipeline.outcomes import Outcome, outcome_of
from ldm.pipeline.pack_index import outcomes_of, write_index
from ldm.pipeline.pairing import Pairing
from ldm.pipeline.provenance import hashes_of
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import Task, batchable, is_finished, settings_of_tasks, task_of
from ldm.pipeline.together import shared

PART = "part-"  # begins the names of packs of single photos
Given = tuple[Task, bytes | UserError]  # and its photo's file, or why there is none


@dataclass(frozen=True)
class Portion:
    """Tasks, those that can be painted together next to each other. pack: the one file that takes
    all results, in place of a file for each."""

    tasks: tuple[Task, ...]
    pack: Place | None = None

    @property
    def settings(self) -> dict[str, Settings]:
        """See `settings_of_tasks`."""
        return settings_of_tasks(self.tasks)

    def given(self) -> Iterator[Given]:
        """The tasks with their photos' files; tasks of one photo that follow each other get the same
        bytes."""
        last: tuple[Place, bytes | UserError] | None = None
        for task in self.tasks:
            if last is None or last[0] != task.content:
                last = task.content, _read(task.content)
            yield task, last[1]

    def made_of(self) -> list[Any]:
        """What it is painted from, as far as can be seen without reading the photos."""
        styles = {task.style_name: task.style for task in self.tasks}
        hashes = {name: _hashes(style) for name, style in styles.items()}
        assert self.pack is not None  # others have no index
        how = {key: number for number, key in enumerate(self.settings)}
        outputs = [name_within(self.pack.parent, task.output) for task in self.tasks]
        return [
            [
                how[str(task.settings)],
                str(task.content),
                _bytes(task.content),
                hashes[task.style_name],
                output,
            ]
            for task, output in zip(self.tasks, outputs)
        ]

    def pixels(self) -> int:
        """How much there is to paint, about."""
        photos = Counter((task.content, task.settings.shape, task.settings.short_side) for task in self.tasks)
        return sum(count * _pixels(*photo) for photo, count in photos.items())


@dataclass(frozen=True)
class ShardPortion:
    """The photos in a tar shard, in the styles that the pairing has for each, into a pack, by one's
    own settings."""

    shard: Place
    styles: tuple[tuple[str, Style], ...]
    pairing: Pairing
    pack: Place
    own: Settings

    @property
    def settings(self) -> dict[str, Settings]:
        """See `Portion.settings`."""
        return {str(self.own): self.own}

    def given(self) -> Iterator[Given]:
        """See `Portion.given`. Raises UserError where the shard cannot be read to its end."""
        for name, content in pictures_in(str(self.shard)):
            named = _name_in(name[len(str(self.shard)) + 1 :]), place_of(name)
            try:
                pairs = list(self.pairing.pairs([named], self.styles))
            except UserError as error:  # of a photo with which there is no style to go
                yield Task(named[1], "", "", self.pack, self.own), error
                continue
            for found, style in pairs:
                folder = str(self.pack.parent)
                yield task_of(found, style, folder + "/{content}__{style}.png", self.own), content

    def made_of(self) -> list[Any]:
        """See `Portion.made_of`."""
        hashes = [[name, _hashes(style)] for name, style in self.styles]
        return [str(self.shard), size_of(self.shard), hashes, asdict(self.pairing)]

    def pixels(self) -> int:
        """See `Portion.pixels`: of all shards the same."""
        return 1


AnyPortion = Portion | ShardPortion


@dataclass(frozen=True)
class Done:
    """What a worker tells of a portion. memory: the most it has taken so far, in bytes."""

    outcomes: list[Outcome]
    memory: int


Run = Generator[Done, None, None]  # closed, it ends at once
Engine = Callable[[Sequence[AnyPortion], Callable[[], "Worker"]], Run]


class Worker:
    """Paints portions and writes what comes of them.

    overwrite: what is there already, too. whole: where some of a portion is there, paint that again
    beside the rest, without writing it. Pictures painted together differ by a bit here and there from
    pictures painted otherwise; so each is, to the last bit, as it had been without a stop.
    """

    def __init__(self, options: BatchOptions, overwrite: bool = False, whole: bool = False):
        self.painter = RowPainter(options)
        self.overwrite, self.whole = overwrite, whole

    def __call__(self, portion: AnyPortion) -> Done:
        """Everything of a portion that is not done yet. Raises UserError without a model, which is
        not the portion's fault; whatever else happens is told of its pictures."""
        about = {key: self.painter.description(settings) for key, settings in portion.settings.items()}
        try:
            if portion.pack is None:
                outcomes = self._filed(portion, about)
            else:
                outcomes = self._packed(portion, portion.pack, list(about.values()))
        except Exception as error:
            outcomes = lost(portion, in_one_line(error))
        return Done(outcomes, main_memory())

    def _filed(self, portion: Portion, about: Mapping[str, dict[str, Any]]) -> list[Outcome]:
        """Each result into a file of its own. about: the settings' descriptions."""
        there = {
            task.output
            for task in portion.tasks
            if not self.overwrite and is_finished(task, about[str(task.settings)])
        }
        if len(there) == len(portion.tasks):
            return [outcome_of(task, "there") for task in portion.tasks]
        asked = [one for one in portion.given() if self.whole or one[0].output not in there]
        told = {task.output: outcome_of(task, "there") for task in portion.tasks if task.output in there}
        for task, painted in self._painted(asked, there):
            if task.output not in there:
                told[task.output] = _written(task, painted)
        return [told[task.output] for task in portion.tasks]

    def _painted(self, given: Iterable[Given], there: set[Place]) -> Iterator[tuple[Task, Painted]]:
        """The tasks with what came of them, batch by batch; of one all of which is there, nothing
        is."""
        for settings, some in groupby(given, lambda one: shared(one[0].settings)):
            for batch in _batched(some, self.painter.together(settings)):
                yield from self._painted_batch(batch, there)

    def _painted_batch(self, batch: Sequence[Given], there: set[Place]) -> Iterator[tuple[Task, Painted]]:
        rows = [
            Row(content, str(task.content), task.style_name, task.settings, task.output.suffix)
            for task, content in batch
            if isinstance(content, bytes)
        ]
        read = iter(self.painter.read(rows))
        ready = [content if isinstance(content, UserError) else next(read) for _, content in batch]
        wanted = any(
            isinstance(one, Ready) and task.output not in there for (task, _), one in zip(batch, ready)
        )
        able = [one for one in ready if isinstance(one, Ready)]
        painted = iter(self.painter.paint(able) if wanted else ())
        for (task, _), one in zip(batch, ready):
            if isinstance(one, UserError):
                yield (
                    task,
                    Painted(None, None, str(one), 0.0, is_unread=True, may_pass=isinstance(one, Unreached)),
                )
            elif wanted:
                yield task, next(painted)

    def _packed(
        self, portion: AnyPortion, pack: Place, painted_with: Sequence[dict[str, Any]]
    ) -> list[Outcome]:
        """All results into one file; the index beside it, written last, says that it is whole and
        what is in it."""
        made_of = {"with": painted_with, "from": portion.made_of()}
        known = None if self.overwrite else outcomes_of(pack, made_of)
        if known is None:
            known = self._into(pack, portion)
            write_index(pack, made_of, known)
        return known

    def _into(self, pack: Place, portion: AnyPortion) -> list[Outcome]:
        outcomes = []
        with pack_at(pack) as file:
            for task, painted in self._painted(portion.given(), set()):
                if painted.picture is not None:
                    output = name_within(pack.parent, task.output)
                    said = {"output": output, "metadata": str(painted.metadata)}
                    said |= {"content": str(task.content), "style": task.style_name}
                    file.add(painted.picture, said)
                outcomes.append(replace(_ended(task, painted), pack=str(pack)))
        return outcomes


def _name_in(member: str) -> str:
    """What the results of a member of a shard are called: its path, which may say anything."""
    path = PurePosixPath(member)
    return "-".join(part for part in (*path.parent.parts, path.stem) if part not in ("/", "..", ".")) or "_"


def _batched(given: Iterable[Given], size: int) -> Iterator[list[Given]]:
    given = iter(given)
    while batch := list(islice(given, size)):
        yield batch


def _written(task: Task, painted: Painted) -> Outcome:
    if painted.picture is not None:
        try:
            write_bytes(task.output, painted.picture)
        except UserError as error:
            return outcome_of(task, "failed", painted.seconds, str(error))
    return _ended(task, painted)


def _ended(task: Task, painted: Painted) -> Outcome:
    status = "painted" if painted.problem is None else "failed"
    told = outcome_of(task, status, painted.seconds, painted.problem)
    return replace(told, is_unread=painted.is_unread, may_pass=painted.may_pass)


def lost(portion: AnyPortion, problem: str) -> list[Outcome]:
    """What is told of a portion of which nothing came."""
    if isinstance(portion, Portion) and portion.pack is None:
        return [outcome_of(task, "failed", problem=problem) for task in portion.tasks]
    pack = str(portion.pack)
    lost = Outcome(pack, "", pack, "failed", 0.0, problem, is_unread=True, pack=pack)
    if isinstance(portion, ShardPortion):
        return [lost]  # nobody knows how many there are
    return [replace(lost, content=str(task.content), style=task.style_name) for task in portion.tasks]


def _read(place: Place) -> bytes | UserError:
    try:
        return read_bytes(place)
    except UserError as error:
        return error


def _hashes(style: Style) -> list[str] | None:
    """Of a style's files; None where one cannot be read, which is the trouble of its pictures alone."""
    try:
        return hashes_of(style)
    except (UserError, OSError):
        return None


def _bytes(photo: Place) -> int | None:
    """Of a photo's file; None where asking would take a while."""
    return size_of(photo) if isinstance(photo, Path) else None


def _pixels(content: Place, shape: tuple[int, int] | None, short_side: int) -> int:
    """Of the result, by the head of a photo on this machine; as of a square one elsewhere. Of what
    cannot be read, none."""
    if shape is not None or not isinstance(content, Path):
        width, height = shape or (short_side, short_side)
        return width * height
    try:
        width, height = short_side_at(upright_size(content), short_side)
    except UserError:
        return 0
    return width * height


def results_of(portions: Sequence[AnyPortion]) -> Iterator[Path]:
    """The files of this machine that portions are painted into."""
    for portion in portions:
        files = [task.output for task in portion.tasks] if portion.pack is None else [portion.pack]
        yield from (file for file in files if isinstance(file, Path))


def portions_of(
    tasks: Sequence[Task], batch_size: int, shares: int = 1, pack: tuple[Place, str, int] | None = None
) -> list[AnyPortion]:
    """All tasks in portions of as many as are painted together, or fewer where there are not as many
    for each share; or, for a pack, in parts: (folder, kind, rows in each)."""
    groups = batchable(tasks)
    if pack:
        folder, kind, size = pack
        parts = _cut([task for group in groups for task in group], size)
        return [Portion(part, folder / f"{PART}{i:05}.{kind}") for i, part in enumerate(parts)]
    most = [1 if group[0].settings.has_brush else max(1, len(group) // shares) for group in groups]
    return [Portion(part) for group, size in zip(groups, most) for part in _cut(group, min(batch_size, size))]


def _cut(tasks: Sequence[Task], size: int) -> Iterator[tuple[Task, ...]]:
    return (tuple(tasks[start : start + size]) for start in range(0, len(tasks), size))


def packs_in(folder: Place, kind: str) -> list[Place]:
    """The packs of `portions_of` that are in a folder, whichever run has made them. Raises
    UserError."""
    name = re.compile(rf"{PART}[0-9]{{5,}}\.{kind}")
    if isinstance(folder, Path):
        found: list[Place] = sorted(folder.glob(f"{PART}*.{kind}"))
    else:
        found = found_by(f"{folder}/{PART}*.{kind}", ())
    return [place for place in found if name.fullmatch(place.name)]


def share(portions: Sequence[AnyPortion], number: int, of: int) -> list[AnyPortion]:
    """The share `number`, from 0 on, of so many: neighbours, of about as many pixels as the others'.
    All processes that see the same files agree on it."""
    if of == 1:
        return list(portions)
    pixels = [portion.pixels() for portion in portions]
    total = sum(pixels) or 1
    middles = [end - here / 2 for end, here in zip(accumulate(pixels), pixels)]
    return [
        portion
        for portion, middle in zip(portions, middles)
        if min(int(of * middle / total), of - 1) == number
    ]


def in_this_process(portions: Sequence[AnyPortion], make: Callable[[], Worker]) -> Run:
    """The engine that there is everywhere."""
    if portions:
        yield from map(make(), portions)
