"""Result sets that the pipeline paints while they are measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ldm.evaluation.pairs import BATCH, Pair, ResultSet, result_name
from ldm.images import save_image
from ldm.pipeline import StyleTransferPipeline
from ldm.settings import Settings


def set_name(settings: Settings) -> str:
    return f"content {settings.content_scale:g}, style {settings.style_scale:g}"


@dataclass(frozen=True)
class PairPainter:
    """Paints pairs of square pictures with one model; keeps them in `folder`, if there is one."""

    pipeline: StyleTransferPipeline
    contents: Mapping[str, Image.Image]
    styles: Mapping[str, Image.Image]
    folder: Path | None = None

    def result_sets(self, settings: Sequence[Settings], pairs: Sequence[Pair]) -> list[ResultSet]:
        """One for each settings; several are kept in a folder each, named after the scales."""
        folders = [self._folder(one, len(settings) > 1) for one in settings]
        return [
            ResultSet(set_name(one), pairs, partial(self.paint, one, folder), one.content_scale, one.style_scale)
            for one, folder in zip(settings, folders)
        ]

    def _folder(self, settings: Settings, several: bool) -> Path | None:
        return self.folder / set_name(settings).replace(", ", "_").replace(" ", "") if self.folder and several else self.folder

    def paint(self, settings: Settings, folder: Path | None, pairs: Sequence[Pair]) -> list[Image.Image]:
        """The pairs' pictures, in order. Raises UserError where one cannot be kept."""
        painted = self.pipeline(
            [self.contents[content] for content, _ in pairs],
            [self.styles[style] for _, style in pairs],
            batch_size=BATCH,
            **vars(settings),
        )
        for pair, picture in zip(pairs, painted):
            if folder is not None:
                save_image(picture, folder / f"{result_name(pair)}.png")
        return painted
