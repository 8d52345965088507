"""What an evaluation is to do, once its options and pictures are read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ldm.evaluation.pairs import Pair, ResultSet
from ldm.evaluation.sheet import Sheet
from ldm.pipeline.settings import Settings


@dataclass(frozen=True)
class Plan:
    """contents, styles: squares of one size by name. settings, named: of the sets to paint, in
    front of `sets`, whose results are there. sheet: shows the first set."""

    contents: Mapping[str, Image.Image]
    styles: Mapping[str, Image.Image]
    pairs: Sequence[Pair]
    settings: Sequence[Settings]
    named: Mapping[str, Settings]
    sets: list[ResultSet]
    sheet: Sheet | None = None
