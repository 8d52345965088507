"""What is to be painted: a task for every picture, with its settings, and what of it is done."""

import os
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError, did_you_mean
from ldm.files import short_enough
from ldm.media.images import check_output, read_metadata
from ldm.media.places import Place, is_there, is_url, key_of, place_of
from ldm.pipeline.folders import distinct_names
from ldm.pipeline.inputs import Style
from ldm.pipeline.pairing import Pairing
from ldm.pipeline.provenance import METADATA_KEY, files_of, hash_of, made_from, metadata_saying
from ldm.pipeline.settings import Settings
from ldm.pipeline.together import shared

EVERY_PAIR = Pairing()
DEFAULT_TEMPLATE = "{content}__{style}.png"
FIELDS = ("content", "style", "seed", "content_scale", "style_scale")


@dataclass(frozen=True)
class Task:
    """One picture to paint: from which file, in what style, where to, how."""

    content: Place
    style: Style
    style_name: str
    output: Place
    settings: Settings


def settings_of_tasks(tasks: Iterable[Task]) -> dict[str, Settings]:
    """The settings of tasks, each once, by what they are as text."""
    return {str(task.settings): task.settings for task in tasks}


def batchable(tasks: Iterable[Task]) -> list[list[Task]]:
    """The tasks in groups that can be painted together, in the order in which these come first."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(str(shared(task.settings)), []).append(task)
    return list(groups.values())


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


def is_folder(output: str) -> bool:
    """Whether an `--output` is a folder, in which pictures get names of their own."""
    return not _has_fields(output) and (
        Path(output).suffix == "" or output.endswith(("/", os.sep)) or os.path.isdir(output)
    )


def _as_template(output: str) -> str:
    """A folder as the template of the pictures in it; anything else as it is."""
    if not is_folder(output):
        return output
    return (
        f"{output.rstrip('/')}/{DEFAULT_TEMPLATE}" if is_url(output) else str(Path(output) / DEFAULT_TEMPLATE)
    )


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
    contents: Sequence[Place],
    styles: Sequence[tuple[str, Style]],
    output: str,
    settings: Settings,
    pairing: Pairing = EVERY_PAIR,
) -> list[Task]:
    """A task for every content in every (named) style, or as `pairing` has it. Raises UserError if
    two would write the same file, or one cannot.

    output: a template with fields, or a folder, in which the pictures are named CONTENT__STYLE.png,
    or, for a single picture, a file. settings: of all, and values of the fields besides content
    and style.
    """
    check_template(output)
    pairs = list(pairing.pairs(list(zip(distinct_names(contents), contents)), styles))
    if len(pairs) > 1 and not _has_fields(output) and not is_folder(output):
        raise UserError(
            f"--output {output}: {len(pairs)} pictures do not fit into one file; give a folder, with / at its end, "
            "or a name with {content} and {style}"
        )
    tasks = [task_of(content, style, output, settings) for content, style in pairs]
    check_tasks(tasks)
    return tasks


def task_of(content: tuple[str, Place], style: tuple[str, Style], output: str, settings: Settings) -> Task:
    """A named content in a named style. output: as in `plan`. Raises UserError where the result
    cannot be written."""
    named = {**settings.values(), "content": content[0], "style": style[0]}
    return Task(content[1], style[1], style[0], output_at(_filled(_as_template(output), named)), settings)


def output_at(name: str) -> Place:
    """Where a result of that name is written. Raises UserError where it cannot be."""
    place = place_of(name)
    return check_output(short_enough(place) if isinstance(place, Path) else place)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises UserError if two tasks would write the same file, or one a picture that another is made
    from."""
    _check_distinct(tasks)
    inputs = {path for task in tasks for path in (task.content, *files_of(task.style))}
    check_inputs_survive([task.output for task in tasks], inputs)


def _check_distinct(tasks: Sequence[Task]) -> None:
    taken: dict[str, Task] = {}
    for task in tasks:
        other = taken.setdefault(key_of(task.output), task)
        if other is not task:
            raise UserError(
                f"{task.output}: would be written for both {other.content} in {other.style_name} and {task.content} in {task.style_name}; "
                "put {content} and {style} into --output, or rename one"
            )


def check_inputs_survive(outputs: Iterable[Place], inputs: Iterable[str | Place]) -> None:
    """Raises UserError if a result would take the place of a picture that it is made from."""
    kept = set(map(_real, inputs))
    for output in outputs:
        if _real(output) in kept:
            raise UserError(
                f"{output}: is one of the pictures to work from and would be lost; choose another file to write"
            )


def _real(name: str | Place) -> str:
    """The same for all names of a file, links included."""
    return str(name) if is_url(name) else os.path.realpath(str(name))


def is_finished(task: Task, description: dict[str, Any]) -> bool:
    """Whether the picture is there and was painted like this. A format without metadata tells only
    that it is there."""
    if not is_there(task.output):
        return False
    if task.output.suffix.lower() != ".png":
        return True
    try:
        return read_metadata(task.output).get(METADATA_KEY) == describe(task, description)
    except (OSError, UserError):  # what it was made from cannot be read now; painting it will say so
        return False


def describe(task: Task, description: dict[str, Any]) -> str:
    """What a picture's file says of how it was made, as JSON. Raises OSError."""
    return metadata_of(task, description)[METADATA_KEY]


def metadata_of(task: Task, description: dict[str, Any]) -> dict[str, str]:
    """What is written into a picture's file. Raises OSError."""
    return metadata_saying(
        made_from(task.content.name, hash_of(task.content), task.style_name, task.style) | description
    )
