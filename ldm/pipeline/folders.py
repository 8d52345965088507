"""Many pictures at once: contents in styles, finished ones skipped, broken ones reported at the
end."""

import glob
import json
import logging
import os
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from ldm.data.splits import find_files
from ldm.errors import UserError, did_you_mean
from ldm.files import file_hash, short_enough
from ldm.media.images import EXTENSIONS, at_most, check_output, exif_of, read_metadata, save_image
from ldm.media.saved_styles import SUFFIX
from ldm.pipeline.inputs import Picture, Style, StyleMix, StyleRegions, read_content, with_paintings
from ldm.pipeline.library import hint, of_library
from ldm.pipeline.pairing import Pairing
from ldm.pipeline.parts import Part, part_of
from ldm.pipeline.recolouring import Recolourer
from ldm.pipeline.settings import Settings
from ldm.ranks import rank_and_world
from ldm.text import first_of

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline

log = logging.getLogger(__name__)

METADATA_KEY = "artfusion"
EVERY_PAIR = Pairing()
DEFAULT_TEMPLATE = "{content}__{style}.png"
FIELDS = ("content", "style", "seed", "content_scale", "style_scale")


@dataclass(frozen=True)
class Task:
    """One picture to paint: from which file, in what style, where to."""

    content: Path
    style: Style
    style_name: str
    output: Path


def expand(names: Sequence[str], results: str | None = None, styles: bool = False) -> list[Path]:
    """The picture files that these names stand for: files, folders (with all below them), or globs
    such as `photos/*.jpg`. styles: saved styles, too, also those of the library by their names.

    Each file once, in the order given. Of a folder, hidden files are left out; of folders and
    globs, what earlier runs put into the folder `results`. Raises UserError for a name that stands
    for none.
    """
    found: dict[str, Path] = {}
    for name in names:
        file = Path(name) if os.path.isfile(name) else of_library(name) if styles else None
        for path in _search(name, results, styles) if file is None else [file]:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _search(name: str, results: str | None, styles: bool) -> list[Path]:
    """The pictures of a folder or glob, and its saved styles if asked for. Raises UserError if there
    are none."""
    if os.path.isdir(name):
        folder = Path(name)
        found = [
            path
            for path in find_files(folder, (*EXTENSIONS, *([SUFFIX] if styles else [])))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    else:
        folder = Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parts))
        found = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
        if not found:
            raise UserError(
                f"{name}: no such file or folder"
                + (", and no file matches it" if glob.has_magic(name) else hint(name) if styles else "")
            )
    pictures = [path for path in found if results is None or not _is_result(path, folder, results)]
    if not pictures:
        raise UserError(f"{name}: no pictures in it but hidden ones and results of earlier runs")
    if len(pictures) < len(found):
        log.info(
            "%s: left out %d pictures in %s, where the results go", name, len(found) - len(pictures), results
        )
    return pictures


def _is_result(path: Path, searched: Path, results: str) -> bool:
    """Whether a picture found in the folder `searched` was put there by an earlier run with the
    same folder of results."""
    picture, folder, ours = (Path(os.path.abspath(name)) for name in (path, searched, results))
    if folder == ours:  # photos and results side by side
        return METADATA_KEY in read_metadata(picture)
    return folder in ours.parents and ours in picture.parents


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own, without extension, or with as much of its path as tells it
    from the others."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    forms = [
        [path.stem for path in whole],
        [f"{path.parent.name}-{path.stem}" for path in whole],
        [path.name for path in whole],
        ["-".join(path.parts[1:]) for path in whole],
    ]
    counts = [Counter(form) for form in forms]
    names = [
        next((form[i] for form, count in zip(forms, counts) if count[form[i]] == 1), forms[-1][i])
        for i in range(len(paths))
    ]
    if len(set(names)) < len(names):
        raise UserError(
            f"the names of these files cannot be told apart: {first_of(_alike(paths, names))}; rename some"
        )
    return names


def _alike(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    counts = Counter(names)
    return [str(path) for path, name in zip(paths, names) if counts[name] > 1]


def _parsed(output: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(output))
    except ValueError as error:
        raise UserError(f"--output {output}: {error}; write {{{{ and }}}} for braces in a name") from error


def check_template(output: str) -> None:
    """Raises UserError for an unknown field in a template such as
    `results/{style}/{content}.png`."""
    for _, name, _, _ in _parsed(output):
        if name is not None and name not in FIELDS:
            raise UserError(
                f"--output {output}: there is no field {{{name}}}{did_you_mean(name, FIELDS)}; fields are {', '.join(FIELDS)}; "
                "write {{ and }} for braces in a name"
            )


def _has_fields(output: str) -> bool:
    return any(field is not None for _, field, _, _ in _parsed(output))


def _is_folder(output: str) -> bool:
    return not _has_fields(output) and (
        Path(output).suffix == "" or output.endswith(os.sep) or os.path.isdir(output)
    )


def _as_template(output: str) -> str:
    """A folder as the template of the pictures in it; anything else as it is."""
    return str(Path(output) / DEFAULT_TEMPLATE) if _is_folder(output) else output


def _filled(template: str, values: dict[str, Any]) -> str:
    try:
        return template.format_map(values)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, MemoryError, OverflowError) as error:
        raise UserError(f"--output {template}: a field cannot be written like this ({error})") from error


def folder_of_results(output: str) -> str:
    """The folder that holds all results of an `--output`, be it in folders of its own. Raises
    UserError."""
    start = ""
    for text, field, _, _ in _parsed(_as_template(output)):
        start += text
        if field is not None:
            break
    return os.path.dirname(start)


def plan(
    contents: Sequence[Path],
    styles: Sequence[tuple[str, Style]],
    output: str,
    settings: Settings,
    pairing: Pairing = EVERY_PAIR,
) -> list[Task]:
    """A task for every content in every (named) style, or as `pairing` has it. Raises UserError if
    two would write the same file, or one cannot.

    output: a template with fields, or a folder, in which the pictures are named CONTENT__STYLE.png,
    or, for a single picture, a file. settings: values of the fields besides content and style.
    """
    check_template(output)
    pairs = list(pairing.pairs(list(zip(distinct_names(contents), contents)), styles))
    if len(pairs) > 1 and not _has_fields(output) and not _is_folder(output):
        raise UserError(
            f"--output {output}: {len(pairs)} pictures do not fit into one file; give a folder, with / at its end, "
            "or a name with {content} and {style}"
        )
    tasks = [task_of(content, style, output, settings) for content, style in pairs]
    check_tasks(tasks)
    return tasks


def task_of(content: tuple[str, Path], style: tuple[str, Style], output: str, settings: Settings) -> Task:
    """A named content in a named style. output: as in `plan`. Raises UserError where the result
    cannot be written."""
    named = {**settings.values(), "content": content[0], "style": style[0]}
    result = short_enough(Path(_filled(_as_template(output), named)))
    return Task(content[1], style[1], style[0], check_output(result))


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises UserError if two tasks would write the same file, or one a picture that another is made
    from."""
    _check_distinct(tasks)
    inputs = {path for task in tasks for path in (task.content, *files_of(task.style))}
    check_inputs_survive([task.output for task in tasks], inputs)


def _check_distinct(tasks: Sequence[Task]) -> None:
    taken: dict[Path, Task] = {}
    for task in tasks:
        other = taken.setdefault(task.output.absolute(), task)
        if other is not task:
            raise UserError(
                f"{task.output}: would be written for both {other.content} in {other.style_name} and {task.content} in {task.style_name}; "
                "put {content} and {style} into --output, or rename one"
            )


def check_inputs_survive(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raises UserError if a result would take the place of a picture that it is made from."""
    kept = {os.path.realpath(path) for path in inputs}
    for output in outputs:
        if os.path.realpath(output) in kept:
            raise UserError(
                f"{output}: is one of the pictures to work from and would be lost; choose another file to write"
            )


def files_of(style: Style) -> list[str | Path]:
    """The pictures, saved styles and masks of a style that is given by files."""
    masks = style.masks if isinstance(style, StyleRegions) else ()
    return [path for path in (*paintings_of(style), *masks) if isinstance(path, (str, Path))]


def paintings_of(style: Style) -> list[Picture]:
    """All that a style is made of: pictures, and saved styles as they are."""
    if isinstance(style, (StyleMix, StyleRegions)):
        return [picture for each in style.styles for picture in paintings_of(each)]
    return [style]


def share_of(tasks: Sequence[Task]) -> list[Task]:
    """This process's share where torchrun started several; everything otherwise. Raises
    UserError."""
    rank, world = rank_and_world()
    return list(tasks[rank::world])


def is_finished(task: Task, description: dict[str, Any]) -> bool:
    """Whether the picture is there and was painted like this. A format without metadata tells only
    that it is there."""
    if not task.output.is_file():
        return False
    if task.output.suffix.lower() != ".png":
        return True
    try:
        return read_metadata(task.output).get(METADATA_KEY) == describe(task, description)
    except OSError:  # what it was made from cannot be read now; painting it will say so
        return False


def _hash(path: str | Path) -> str:
    """Of the file as it is now; read again only if it has changed, since a photo and a painting
    have many results."""
    status = os.stat(path)
    return _hash_of(str(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _hash_of(path: str, *state: int) -> str:
    return file_hash(path)


def describe(task: Task, description: dict[str, Any]) -> str:
    """What a picture's file says of how it was made, as JSON. Raises OSError."""
    return metadata_of(task, description)[METADATA_KEY]


def metadata_of(task: Task, description: dict[str, Any]) -> dict[str, str]:
    """What is written into a picture's file. Raises OSError."""
    made_from = {
        "content": task.content.name,
        "content_sha256": _hash(task.content),
        "style": task.style_name,
        "style_sha256": [_hash(path) for path in files_of(task.style)],
    }
    return metadata_saying({**made_from, **description})


def metadata_saying(said: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a picture's file that says how it was made."""
    return {"Software": "ArtFusion", METADATA_KEY: json.dumps(said, sort_keys=True)}


def read_styles(
    tasks: Sequence[Task], size: int, part: Part | None = None
) -> tuple[dict[str, Style], dict[str, str]]:
    """(the tasks' styles by name, pictures read, cut to `part` and as small as the pipeline
    takes them; by name, what is wrong with each that cannot be)."""
    ready, problems = {}, {}
    for name, style in {task.style_name: task.style for task in tasks}.items():
        try:
            ready[name] = _read_style(style, size, part)
        except UserError as error:
            problems[name] = str(error)
    return ready, problems


def _read_style(style: Style, size: int, part: Part | None) -> Style:
    # Smaller ones are left to the pipeline, which sees first whether they can be enlarged.
    return with_paintings(style, lambda picture: at_most(part_of(picture, part), size))


def progress_bar(total: int, disable: bool = False) -> "tqdm[Any]":
    """Of so many pictures."""
    return tqdm(total=total, unit="picture", smoothing=0.1, disable=disable)


class ManyPainter:
    """Paints tasks batch by batch; each picture is written as soon as it is there.

    `styles` are those of the tasks by name, read; `description` goes into the files, with
    `keep_exif` beside the photos' EXIF data, and `options` to the pipeline's call. `tell` is called
    with each task that is over, what went wrong, if anything did, and its seconds. `failures` has a
    line for each picture that cannot be read and each task that could not be done; `done` and
    `failed` count tasks.
    """

    def __init__(
        self,
        pipeline: "StyleTransferPipeline | Recolourer",
        styles: dict[str, Style],
        description: dict[str, Any],
        batch_size: int,
        keep_exif: bool = False,
        tell: Callable[[Task, str | None, float], None] = lambda task, problem, seconds: None,
        bar: "tqdm[Any] | None" = None,
        **options: Any,
    ):
        self.pipeline, self.styles, self.description = pipeline, styles, description
        self.batch_size, self.keep_exif, self.options = batch_size, keep_exif, options
        self.tell, self.bar = tell, bar
        self.failures: list[str] = []
        self.done = self.failed = 0
        self._last: tuple[Path, Image.Image | UserError] | None = None

    def paint(self, tasks: Sequence[Task]) -> None:
        """Paint the tasks, and move the progress bar `bar`, or one of its own; what goes wrong is in
        `failures`."""
        if not tasks:
            return
        with nullcontext(self.bar) if self.bar is not None else progress_bar(len(tasks)) as bar:
            for start in range(0, len(tasks), self.batch_size):
                batch = tasks[start : start + self.batch_size]
                self._paint_batch(batch)
                bar.update(len(batch))

    def _paint_batch(self, batch: Sequence[Task]) -> None:
        began = time.monotonic()
        readable = [(task, content) for task in batch if (content := self._content(task)) is not None]
        if not readable:
            return
        if self._try(readable) is None:
            seconds = (time.monotonic() - began) / len(readable)
            for task, _ in readable:
                self._over(task, None, seconds)
            return
        for pair in readable:  # one picture's trouble is not the others'; and alone they need less memory
            began = time.monotonic()
            problem = self._try([pair])
            if problem is not None:
                self.failures.append(
                    problem if str(pair[0].output) in problem else f"{pair[0].output}: {problem}"
                )
            self._over(pair[0], problem, time.monotonic() - began)

    def _over(self, task: Task, problem: str | None, seconds: float) -> None:
        if problem is None:
            self.done += 1
        else:
            self.failed += 1
        self.tell(task, problem, seconds)

    def _try(self, pairs: Sequence[tuple[Task, Image.Image]]) -> str | None:
        """Paint these together and write them. Returns what went wrong, as text: an error would
        keep the memory of its batch."""
        try:
            painted = self.pipeline(
                [content for _, content in pairs],
                [self.styles[task.style_name] for task, _ in pairs],
                batch_size=self.batch_size,
                **self.options,
            )
            assert isinstance(painted, list)  # as several were asked for
            for (task, _), picture in zip(pairs, painted):
                exif = exif_of(task.content) if self.keep_exif else None
                save_image(picture, task.output, metadata_of(task, self.description), exif)
        except (UserError, OSError) as error:
            return str(error)
        return None

    def _content(self, task: Task) -> Image.Image | None:
        """The task's content picture; tasks of the same one follow each other, so it is kept until
        the next."""
        if self._last is None or self._last[0] != task.content:
            try:
                self._last = task.content, read_content(task.content)
            except UserError as error:
                self._last = task.content, error
                self.failures.append(str(error))  # once, however many styles it was to be painted in
        if isinstance(self._last[1], UserError):
            self._over(task, str(self._last[1]), 0.0)
            return None
        return self._last[1]
