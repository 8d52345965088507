"""Some results of a set as a picture, kept while they are measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, product

from PIL import Image

from ldm.evaluation.pairs import Pair, ResultSet
from ldm.media.sheets import labelled_sheet

CELL = 192  # pixels


class Sheet:
    """The first `rows` contents down the left, the first `columns` styles along the top, results
    between them."""

    def __init__(
        self, contents: Mapping[str, Image.Image], styles: Mapping[str, Image.Image], rows: int, columns: int
    ):
        self.contents, self.styles = (
            dict(islice(named.items(), count)) for named, count in ((contents, rows), (styles, columns))
        )
        self._shown = set(product(self.contents, self.styles))
        self._results: dict[Pair, Image.Image] = {}

    def watch(self, results: ResultSet) -> ResultSet:
        """The same set; the pictures that are got from it and belong here are kept."""

        def pictures(pairs: Sequence[Pair]) -> list[Image.Image]:
            got = results.pictures(pairs)
            self._results |= {pair: picture for pair, picture in zip(pairs, got) if pair in self._shown}
            return got

        return replace(results, pictures=pictures)

    def draw(self) -> Image.Image:
        """A result that the set lacks is a gap."""
        rows = [
            [photo, *(self._results.get((name, style)) for style in self.styles)]
            for name, photo in self.contents.items()
        ]
        return labelled_sheet([[None, *self.styles.values()], *rows], cell=CELL)
