"""Tar shards of pictures, as WebDataset has them: their names, and what is in them."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import chain, product
from math import prod
from pathlib import Path, PurePosixPath
from tarfile import (  # type: ignore[attr-defined]  # whose types lack two of them
    EmptyHeaderError,
    ReadError,
    TarFile,
    TarInfo,
    TruncatedHeaderError,
)

from ldm.errors import ConfigError, UserError, in_short
from ldm.media.images import EXTENSIONS

MOST_NAMES = 1_000_000  # of a pattern; as shards of a thousand pictures, a thousand million of these
# {000..099}, or {one,other}
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class _Member(TarInfo):
    """A header, or the end mark: a tar file that ends without one is cut short."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError) as error:
            if tarfile.offset == 0:  # of no tar file at all tarfile says enough
                raise
            raise ReadError("it ends without the mark of its end") from error


def pictures_in(shard: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each picture file in a shard, in its order. Raises UserError if it cannot
    be read to its end."""
    import fsspec  # takes a while

    try:
        # Not fsspec.open, which takes "::" in a name for several file systems in each other.
        with (
            fsspec.filesystem(_scheme(shard) or "file").open(shard) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar,
        ):
            for member in tar:
                content = tar.extractfile(member) if member.isfile() and _is_picture(member.name) else None
                if content is not None:
                    yield f"{shard}/{member.name}", content.read()
    except Exception as error:  # every file system has its own
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{shard}: this shard cannot be read to its end; is it a tar file, and whole? ({reason})"
        ) from error


def shard_names(patterns: str | Sequence[str]) -> list[str]:
    """All shards that brace patterns name. Raises ConfigError for a kind of url that is not read,
    UserError for missing files."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    names = [name for pattern in patterns for name in expanded(pattern)]
    for name in names:
        _check_scheme(name)
    missing = [name for name in names if not _scheme(name) and not Path(name).is_file()]
    if missing or not names:
        what = (
            f"{missing[0]}: no such shard ({len(missing)} of {len(names)} are missing)"
            if names
            else "no shards are named"
        )
        raise UserError(
            f"{what}; write names such as paintings-{{000..099}}.tar, in quotes on a command line"
        )
    return names


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for: numbers of {000..099}, words of {one,other}, all
    combinations of several. Raises UserError for more than MOST_NAMES."""
    found = list(BRACES.finditer(pattern))
    if prod(max(1, _count(braces)) for braces in found) > MOST_NAMES:
        raise UserError(
            f"{in_short(pattern, str)}: stands for more than {MOST_NAMES:,} names, the most that a pattern may; name those that there are"
        )
    ends = [0, *(braces.end() for braces in found)]
    between = [pattern[end : braces.start()] for end, braces in zip(ends, found)]
    return [
        "".join(chain(*zip(between, texts, strict=True))) + pattern[ends[-1] :]
        for texts in product(*map(_texts, found))
    ]


def _count(braces: re.Match[str]) -> int:
    """How many texts one of BRACES stands for."""
    first, last, words = braces.groups()
    if words:
        return len(words.split(","))
    try:
        return max(0, int(last) - int(first) + 1)
    except ValueError:  # more digits than Python reads
        return MOST_NAMES + 1


def _texts(braces: re.Match[str]) -> list[str]:
    first, last, words = braces.groups()
    return words.split(",") if words else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]


def _check_scheme(name: str) -> None:
    """Raises ConfigError for urls that fsspec does not know, or whose package is missing."""
    if name.startswith("pipe:"):
        raise ConfigError(
            f"{name}: pipe: urls run a command; name a file or a url such as https://, gs:// or s3://"
        )
    try:
        if _scheme(name):
            import fsspec  # takes a while

            fsspec.get_filesystem_class(_scheme(name))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{name}: shards of this kind cannot be read ({error})") from error


def _scheme(shard: str) -> str:
    """What stands before "://", or nothing for a path."""
    return shard.partition("://")[0] if "://" in shard else ""


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS's tar adds such files to every one
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith("._")
