"""Many pictures at once: every content in every style, finished ones skipped, broken ones reported at the end."""

import glob
import json
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ldm.data.pictures import find_pictures
from ldm.errors import UserError
from ldm.images import check_output, read_metadata, resize_short_side, save_image
from ldm.pipeline import StyleTransferPipeline
from ldm.styles import Style, StyleMix, StyleRegions, read_picture
from ldm.util import near

METADATA_KEY = "artfusion"
DEFAULT_TEMPLATE = "{content}__{style}.png"
FIELDS = ("content", "style", "seed", "content_scale", "style_scale")


@dataclass(frozen=True)
class Task:
    """One picture to paint: from which file, in what style, where to."""

    content: Path
    style: Style
    style_name: str
    output: Path

    def with_style(self, style: Style) -> "Task":
        return replace(self, style=style)


def expand(names: Sequence[str]) -> list[Path]:
    """The picture files that these names stand for: files, folders (with all below them), or globs such as `photos/*.jpg`.

    Each file once, in the order given. Raises UserError for a name that stands for none.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            found[path] = None
        elif path.is_dir():
            found |= dict.fromkeys(find_pictures(path))
        else:
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            if not matches:
                raise UserError(f"{name}: no such file or folder" + (", and no file matches it" if glob.has_magic(name) else ""))
            found |= dict.fromkeys(matches)
    return list(found)


def is_template(output: str) -> bool:
    return any(field is not None for _, field, _, _ in _parsed(output))


def _parsed(output: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(output))
    except ValueError as error:
        raise UserError(f"--output {output}: {error}; write {{{{ and }}}} for braces in a name") from error


def check_template(output: str) -> None:
    """Raises UserError for an unknown field in a template such as `results/{style}/{content}.png`."""
    for _, name, _, _ in _parsed(output):
        if name is not None and name not in FIELDS:
            raise UserError(f"--output {output}: there is no field {{{name}}}{near(name, FIELDS)}; fields are {', '.join(FIELDS)}")


def plan(contents: Sequence[Path], styles: Sequence[tuple[str, Style]], output: str, values: dict[str, Any]) -> list[Task]:
    """A task for every content in every (named) style. Raises UserError if two would write the same file, or one cannot.

    output: a template with fields, or a folder, in which the pictures are named CONTENT__STYLE.png, or, for a single
    picture, a file. values: of the fields besides content and style.
    """
    check_template(output)
    single = len(contents) * len(styles) == 1
    if not is_template(output):
        looks_like_file = Path(output).suffix != "" and not Path(output).is_dir()
        if looks_like_file and not single:
            raise UserError(f"--output {output}: {len(contents) * len(styles)} pictures do not fit into one file; give a folder, or a name with {{content}} and {{style}}")
        if not looks_like_file:
            output = str(Path(output.replace("{", "{{").replace("}", "}}")) / DEFAULT_TEMPLATE)
    tasks = []
    for content, (style_name, style) in product(contents, styles):
        path = output.format(content=content.stem, style=style_name, **values) if is_template(output) else output
        tasks.append(Task(content, style, style_name, check_output(path)))
    _check_distinct(tasks)
    return tasks


def _check_distinct(tasks: Sequence[Task]) -> None:
    taken: dict[Path, Task] = {}
    for task in tasks:
        other = taken.setdefault(task.output.absolute(), task)
        if other is not task:
            raise UserError(
                f"{task.output}: would be written for both {other.content} in {other.style_name} and {task.content} in {task.style_name}; "
                "rename one, or put {content} and {style} into --output"
            )


def share_of(tasks: Sequence[Task]) -> list[Task]:
    """This process's share where torchrun started several (RANK of WORLD_SIZE); everything otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return list(tasks[rank::world])


def is_finished(task: Task, description: dict[str, Any]) -> bool:
    """Whether the picture is there and was painted like this. A format without metadata tells only that it is there."""
    if not task.output.is_file():
        return False
    if task.output.suffix.lower() != ".png":
        return True
    return read_metadata(task.output).get(METADATA_KEY) == describe(task, description)


def describe(task: Task, description: dict[str, Any]) -> str:
    """What a picture's file says of how it was made, as JSON."""
    return json.dumps({"content": task.content.name, "style": task.style_name, **description}, sort_keys=True)


def read_styles(styles: dict[str, Style], size: int, failures: list[str]) -> dict[str, Style]:
    """The named styles with their pictures read and scaled as the pipeline would. What cannot be read goes to `failures`."""
    ready = {}
    for name, style in styles.items():
        try:
            ready[name] = _read_style(style, size)
        except UserError as error:
            failures.append(str(error))
    return ready


def _read_style(style: Style, size: int) -> Style:
    if isinstance(style, (StyleMix, StyleRegions)):
        return replace(style, styles=[_read_style(part, size) for part in style.styles])
    return resize_short_side(read_picture(style), size)


class ManyPainter:
    """Paints tasks batch by batch; each picture is written as soon as it is there.

    `failures` has a line for each task that could not be done. `options` go to the pipeline's call.
    """

    def __init__(self, pipeline: StyleTransferPipeline, description: dict[str, Any], batch_size: int, **options: Any):
        self.pipeline, self.description, self.batch_size, self.options = pipeline, description, batch_size, options
        self.failures: list[str] = []
        self._last: tuple[Path, Image.Image | UserError] | None = None

    def paint(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        with tqdm(total=len(tasks), unit="picture", smoothing=0.1) as bar:
            for start in range(0, len(tasks), self.batch_size):
                batch = tasks[start : start + self.batch_size]
                self._paint_batch(batch)
                bar.update(len(batch))

    def _paint_batch(self, batch: Sequence[Task]) -> None:
        readable = [(task, content) for task in batch if (content := self._content(task)) is not None]
        try:
            self._paint_together(readable)
        except UserError as error:
            if len(readable) == 1:
                self._fail(readable[0][0], error)
                return
            for pair in readable:  # one picture's trouble is not the others'; and alone they need less memory
                self._paint_alone(pair)

    def _paint_alone(self, pair: tuple[Task, Image.Image]) -> None:
        try:
            self._paint_together([pair])
        except UserError as error:
            self._fail(pair[0], error)

    def _paint_together(self, pairs: Sequence[tuple[Task, Image.Image]]) -> None:
        if not pairs:
            return
        painted = self.pipeline([content for _, content in pairs], [task.style for task, _ in pairs], batch_size=self.batch_size, **self.options)
        for (task, _), picture in zip(pairs, painted):
            save_image(picture, task.output, {"Software": "ArtFusion", METADATA_KEY: describe(task, self.description)})

    def _content(self, task: Task) -> Image.Image | None:
        """The task's content picture; tasks of the same one follow each other, so it is kept until the next."""
        if self._last is None or self._last[0] != task.content:
            try:
                self._last = task.content, read_picture(task.content)
            except UserError as error:
                self._last = task.content, error
        if isinstance(self._last[1], UserError):
            self._fail(task, self._last[1])
            return None
        return self._last[1]

    def _fail(self, task: Task, error: UserError) -> None:
        self.failures.append(f"{task.output}: {error}")
