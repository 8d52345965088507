"""Which pictures there are to measure: contents, styles, and a result for each pair of them.

The result of painting the content `photo.jpg` in the style `sea.png` is called `photo__sea`, with
any picture's extension.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ldm.data.splits import find_pictures
from ldm.errors import UserError
from ldm.media.images import load_image, load_square

UNTOUCHED = "untouched photo"  # the set of the contents themselves, for orientation
BATCH = 8  # pictures painted, and measured, together

Pair = tuple[str, str]  # the names of a content and a style, without extensions


@dataclass(frozen=True)
class ResultSet:
    """Results of one way to paint: what it is called, the pairs it has, and how to get their
    pictures, in order."""

    name: str
    pairs: Sequence[Pair]
    pictures: Callable[[Sequence[Pair]], list[Image.Image]]
    content_scale: float | None = None
    style_scale: float | None = None


def result_name(pair: Pair) -> str:
    """The name of a pair's picture, without extension: content__style."""
    return "__".join(pair)


def by_name(folder: str | Path) -> dict[str, Path]:
    """The pictures below a folder by their names without extension. Raises UserError if two share
    one, or for no picture."""
    paths = find_pictures(folder)
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise UserError(
                f"{folder}: {named[path.stem]} and {path} would both be called {path.stem!r} here; rename one"
            )
        named[path.stem] = path
    return named


def all_pairs(contents: Iterable[str], styles: Sequence[str]) -> list[Pair]:
    """Every content with every style. Raises UserError where two pairs would have one result
    name."""
    named: dict[str, Pair] = {}
    for pair in ((content, style) for content in contents for style in styles):
        other = named.setdefault(result_name(pair), pair)
        if other != pair:
            raise UserError(
                f"{result_name(pair)!r} could be the result of {other} or of {pair}; rename a picture"
            )
    return list(named.values())


def load_squares(paths: Mapping[str, Path], size: int) -> dict[str, Image.Image]:
    """The central squares of pictures at `size` x `size` pixels, by name. Raises UserError for one
    that cannot be read."""
    return {name: load_square(path, size) for name, path in paths.items()}


def result_folder(name: str, folder: str | Path, pairs: Sequence[Pair], size: int) -> ResultSet:
    """The pairs whose results are below a folder. Raises UserError if none is, or one of them
    cannot be read."""
    files = by_name(folder)
    found = {pair: files[result_name(pair)] for pair in pairs if result_name(pair) in files}
    if not found:
        raise UserError(
            f"{folder}: no result of any pair in it; the first would be called {result_name(pairs[0])}.png"
        )
    for path in found.values():
        load_image(path)  # a broken one is told now, not after an hour of painting the others
    return ResultSet(name, list(found), partial(_read_all, found, size))


def untouched(contents: Mapping[str, Image.Image], pairs: Sequence[Pair]) -> ResultSet:
    """The contents as if they were results in every style: what a measure says where nothing was
    painted."""
    return ResultSet(UNTOUCHED, pairs, lambda batch: [contents[content] for content, _ in batch])


def _read_all(files: Mapping[Pair, Path], size: int, pairs: Sequence[Pair]) -> list[Image.Image]:
    return [load_square(files[pair], size) for pair in pairs]
