"""Tables of pictures to paint, in CSV or Parquet: a row for each, its photo, painting, settings."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from ldm.cli.options import dial_value
from ldm.errors import UserError, did_you_mean
from ldm.files import check_folder
from ldm.media.packs import check_pack
from ldm.media.places import (
    Place,
    check_file,
    is_there,
    is_url,
    key_of,
    name_within,
    place_of,
    read_bytes,
    written_at,
)
from ldm.pipeline.folders import distinct_names
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.library import library
from ldm.pipeline.looks import COLOURING, LOOKS
from ldm.pipeline.settings import DIALS, Flag, Interval, Number, Settings, Size
from ldm.pipeline.tasks import (
    Task,
    check_inputs_survive,
    check_tasks,
    check_template,
    folder_of_results,
    output_at,
    task_of,
)

PICTURES = ("content", "style", "output")
WAIT = 2.0  # seconds before a bar is shown
# File names may be of any bytes.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
# What pandas writes for a whole number in a column with gaps: 3.0.
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


def read_manifest(path: Place, settings: Settings, output: str | None, progress: bool = False) -> list[Task]:
    """What a table asks for, row by row. Raises UserError, with the row's number; a picture that is
    not there is one only if every row lacks one: else it fails alone.

    Columns: content and style, paths from the table's folder; output, a path within the folder of
    `output`, where it is not to be named as usual; settings, by their names; what is empty is as in
    `settings`. progress: show a bar, should it take long.
    """
    rows = _rows(path)
    output = output or "."
    check_template(output)
    results = folder_of_results(output)
    contents = [_place(path.parent, row["content"]) for _, row in rows]
    styles = [_style_file(path.parent, row["style"]) for _, row in rows]
    names = [_names(contents), _names(styles)]
    tasks, known_settings = list[Task](), dict[str, Settings]()
    bar = tqdm(rows, desc=str(path), unit="row", disable=not progress, delay=WAIT, leave=False)
    for (number, row), content, style in zip(bar, contents, styles, strict=True):
        try:
            if "\0" in "".join(row.values()):
                raise UserError("no name or number has a zero byte in it")
            own = _own_settings(settings, row)
            key = str(own)
            if key not in known_settings:  # of a million rows few differ
                own.check()
            own = known_settings.setdefault(key, own)
            named = [(known[key_of(each)], each) for known, each in zip(names, (content, style), strict=True)]
            if row.get("output"):
                place = output_at(_within(results, row["output"]))
                task = Task(content, style, named[1][0], place, own)
            else:
                task = task_of(*named, output, own)
        except (UserError, OSError, ValueError) as error:  # the last two of names that cannot be
            raise UserError(f"{path}:{number}: {error}") from error
        tasks.append(task)
    missing = [next(_missing(*pictures), None) for pictures in zip(contents, styles, strict=True)]
    if all(missing):
        others = "; every other row lacks a file, too" * (len(rows) > 1)
        raise UserError(f"{path}:{rows[0][0]}: {missing[0]}{others}")
    check_tasks(tasks)
    return tasks


def _place(folder: Place, name: str) -> Place:
    """A url, or a path from the table's folder. Raises UserError."""
    if is_url(name) or os.path.isabs(name):
        return place_of(name)
    return folder / name if isinstance(folder, Path) else (folder / name).resolve()


def _missing(*pictures: Place) -> Iterator[str]:
    """What is wrong with those that are not there."""
    for picture in pictures:
        if isinstance(picture, Path):  # asking elsewhere takes a while
            try:
                check_file(picture)
            except UserError as error:
                yield str(error)


def _within(folder: str, name: str) -> str:
    """A result's name in the folder of results, be that a url. Raises UserError for one outside of
    it."""
    if is_url(folder):
        joined, path = f"{folder.rstrip('/')}/{name}", PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts
    else:
        joined = os.path.join(folder, name)
        leaves = os.path.relpath(joined, folder or ".").split(os.sep)[0] == os.pardir
    if leaves or is_url(name):
        raise UserError(
            f"output {name}: leaves the folder of results, {folder or '.'} (--output); give a path within it"
        )
    return joined


def _style_file(folder: Place, name: str) -> Place:
    """A picture or saved style, or that of this name in the library."""
    file, ours = _place(folder, name), library().get(name)
    if ours is None:
        return file
    return file if (file.exists() if isinstance(file, Path) else is_there(file)) else ours


def write_manifest(
    path: Place, tasks: Sequence[Task], inputs: Sequence[str | Place], output: str | None
) -> None:
    """A table of these tasks, which `read_manifest` reads with the same `output`, or with another for
    results elsewhere; styles of the library by name. Raises UserError for styles of several pictures,
    which have no place in it, and for a file that is one of the `inputs`."""
    for task in tasks:
        if isinstance(task.style, (StyleMix, StyleRegions)):
            raise UserError(
                "--write-manifest: a row has one painting; leave out --style-weights, --style-from and --mask"
            )
    if path.suffix.lower() != ".csv":
        raise UserError(f"--write-manifest {path}: give a file name that ends with .csv")
    check_inputs_survive([path], inputs)
    usual, ours = Settings(), {str(path): name for name, path in library().items()}
    given = [
        one.name
        for one in fields(Settings)
        if any(getattr(task.settings, one.name) != getattr(usual, one.name) for task in tasks)
    ]
    if isinstance(path, Path):
        check_folder(path.parent, path)
    folder = place_of(folder_of_results(output or "."))
    with written_at(path) as aside, aside.open("w", newline="", **_TEXT) as file:
        table = csv.writer(file)
        table.writerow([*PICTURES, *given])
        for task in tasks:
            style = ours.get(str(task.style)) or key_of(place_of(str(task.style)))
            pictures = [key_of(task.content), style, name_within(folder, task.output)]
            table.writerow([*pictures, *(_text(getattr(task.settings, name)) for name in given)])


def _rows(path: Place) -> list[tuple[int, dict[str, str]]]:
    """(line number, values by column) of every row that has any. Raises UserError."""
    if isinstance(path, Path):
        check_file(path, "table")
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    if not rows:
        raise UserError(f"{path}: no rows in it")
    for number, row in rows:
        for name in PICTURES[:2]:
            if not row[name].strip():
                raise UserError(f"{path}:{number}: no {name}")
    return rows


def _parquet_rows(path: Place) -> list[tuple[int, dict[str, str]]]:
    check_pack("parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_bytes(path)
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet table ({' '.join(str(error).split())})") from error
    _check_head(path, table.column_names)
    rows = table.to_pylist()
    return [
        (number, {name: "" if value is None else str(value) for name, value in row.items()})
        for number, row in enumerate(rows, 1)
    ]


def _csv_rows(path: Place) -> list[tuple[int, dict[str, str]]]:
    text = read_bytes(path).decode(**{**_TEXT, "encoding": "utf-8-sig"})
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        head = [name.strip() for name in table.fieldnames or ()]
        _check_head(path, head)
        table.fieldnames = head
        rows = [(table.line_num, row) for row in table if any(row.values())]
    except csv.Error as error:
        raise UserError(f"{path}: no table of comma-separated values ({error})") from error
    for number, row in rows:
        if None in row or None in row.values():
            raise UserError(f"{path}:{number}: not as many values as columns ({len(head)})")
    return rows


def _check_head(path: Place, head: Sequence[str]) -> None:
    for name in PICTURES[:2]:
        if name not in head:
            hint = "; separate values by commas, not by semicolons" if ";" in "".join(head) else ""
            raise UserError(f"{path}: no column {name!r}; the first line names the columns{hint}")
    for name in head:
        if name == "" or name.startswith("__index_level_"):
            raise UserError(
                f"{path}: the column {name!r} is the index of a data frame; write it with index=False"
            )
        if name not in (*PICTURES, *DIALS):
            raise UserError(
                f"{path}: there is no column {name!r}{did_you_mean(name, [*PICTURES, *DIALS])}; columns are {', '.join(PICTURES)} "
                "and the settings of docs/settings.md"
            )
        if head.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice")


def _names(paths: Iterable[Place]) -> dict[str, str]:
    """By file, what results are called after it."""
    once = {key_of(path): path for path in paths}
    return dict(zip(once, distinct_names(list(once.values())), strict=True))


def _own_settings(settings: Settings, row: Mapping[str, str]) -> Settings:
    """A row's, those that it leaves out as given. A look that does not paint has few settings, and
    what is given for other rows is not meant for it. Raises UserError."""
    given = _settings(row)
    own = settings.but(**given)
    if own.look in LOOKS and not own.paints:
        usual = Settings()
        others = [name for name in DIALS if name not in (*COLOURING, *given)]
        own = own.but(**{name: getattr(usual, name) for name in others})
    return own


def _settings(row: Mapping[str, str]) -> dict[str, Any]:
    """Those of a row. Raises UserError for text that is none."""
    return {name: _value(name, text.strip()) for name, text in row.items() if name in DIALS and text.strip()}


def _value(name: str, text: str) -> Any:
    dial = DIALS[name]
    is_whole = isinstance(dial, (Flag, Size)) or (isinstance(dial, Number) and dial.whole)
    if is_whole:
        text = _WHOLE.sub(r"\1", text)
    try:
        match dial:
            case Flag():
                if text.lower() not in (*_YES, *_NO):
                    raise ValueError
                return text.lower() in _YES
            case Interval():
                return tuple(float(part) for part in text.split())
        return dial_value(name, text)
    except Exception as error:  # argparse has one of its own for what its types refuse
        what = "a whole number " if isinstance(dial, Number) and dial.whole else ""
        raise UserError(f"{name} {text!r} is not {what}{dial.range_help}") from error


def _text(value: Any) -> str:
    """A setting's value as `_value` reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ("x" if all(isinstance(part, int) for part in value) else " ").join(map(str, value))
    return str(value)
