"""Which photo is painted in which styles, of many of both."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from typing import TypeVar

from ldm.errors import UserError
from ldm.media.places import Place, parts_of

KINDS = ("all", "zip", "random")
Named = TypeVar("Named")


@dataclass(frozen=True)
class Pairing:
    """How photos and styles go together.

    kind: all, every photo in every style; zip, the first in the first, the second in the second,
    and so on; random, every photo in `per_content` styles of its own. What is drawn depends on the
    seed, the photo's file name and the styles alone, so that shares of a folder agree on it.
    group_by: photos in whose whole paths this regular expression finds the same (its first group, if
    it has one) have the same styles: frames of a clip, views of a thing. What it finds counts, so
    it should find nothing of the folders above.
    """

    kind: str = "all"
    per_content: int = 1
    group_by: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for a regular expression that is none."""
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise UserError(f"--group-by {self.group_by}: no regular expression ({error})") from error

    def check_styles(self, count: int) -> None:
        """Raises UserError for fewer styles than each photo is to have."""
        if self.kind == "random" and self.per_content > count:
            raise UserError(f"--per-content {self.per_content}: there are only {count} styles")

    def pairs(
        self, contents: Sequence[tuple[str, Place]], styles: Sequence[tuple[str, Named]]
    ) -> Iterator[tuple[tuple[str, Place], tuple[str, Named]]]:
        """Named contents with named styles. Raises UserError where they do not pair up."""
        if self.kind == "all":
            return product(contents, styles)
        if self.kind == "zip":
            if len(contents) != len(styles):
                raise UserError(
                    f"--pair zip: {len(contents)} photos and {len(styles)} styles do not pair up; give as many of each"
                )
            return zip(contents, styles)
        self.check_styles(len(styles))
        return ((content, style) for content in contents for style in self._drawn(content[1], styles))

    def _drawn(self, content: Place, styles: Sequence[tuple[str, Named]]) -> list[tuple[str, Named]]:
        """Those whose names come first once they are scrambled: by a hash that every process, machine
        and version has in common."""
        key = f"{self.seed}/{self._group(content)}/"
        return sorted(styles, key=lambda style: sha256((key + style[0]).encode()).digest())[
            : self.per_content
        ]

    def _group(self, content: Place) -> str:
        if self.group_by is None:
            return content.name
        found = re.search(self.group_by, parts_of(content).as_posix())
        if found is None:
            raise UserError(f"--group-by {self.group_by}: finds nothing in {content}")
        return (found[1] if found.re.groups else None) or found[0]
