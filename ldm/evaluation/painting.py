"""Result sets that the pipeline paints while they are measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.evaluation.pairs import BATCH, Pair, ResultSet, result_name
from ldm.media.images import save_image
from ldm.pipeline.settings import Settings

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline


def set_name(settings: Settings) -> str:
    """What tables call a set painted with these scales."""
    return f"content {settings.value('content_scale'):g}, style {settings.value('style_scale'):g}"


def folder_name(name: str) -> str:
    """A set's name as that of its folder, without blanks and commas."""
    return name.replace(", ", "_").replace(" ", "")


@dataclass(frozen=True)
class PairPainter:
    """Paints pairs of square pictures with one model; keeps them in `folder`, if there is one."""

    pipeline: "StyleTransferPipeline"
    contents: Mapping[str, Image.Image]
    styles: Mapping[str, Image.Image]
    folder: Path | None = None

    def result_sets(
        self, settings: Sequence[Settings], pairs: Sequence[Pair], named: Mapping[str, Settings] | None = None
    ) -> list[ResultSet]:
        """One for each settings, called after its scales, and for each of those that have a name;
        several are kept in a folder each."""
        named = named or {}
        several = len(settings) + len(named) > 1
        by_scales = [
            ResultSet(
                set_name(one),
                pairs,
                self._painter(one, set_name(one), several),
                one.value("content_scale"),
                one.value("style_scale"),
            )
            for one in settings
        ]
        # Their scales are not all that differs: they are no points of a sweep's curves.
        return by_scales + [
            ResultSet(name, pairs, self._painter(one, name, several)) for name, one in named.items()
        ]

    def _painter(
        self, settings: Settings, name: str, several: bool
    ) -> Callable[[Sequence[Pair]], list[Image.Image]]:
        return partial(
            self.paint, settings, self.folder / folder_name(name) if self.folder and several else self.folder
        )

    def paint(self, settings: Settings, folder: Path | None, pairs: Sequence[Pair]) -> list[Image.Image]:
        """The pairs' pictures, in order. Raises UserError where one cannot be kept."""
        painted: Any = self.pipeline(
            [self.contents[content] for content, _ in pairs],
            [self.styles[style] for _, style in pairs],
            batch_size=BATCH,
            settings=settings,
        )
        for pair, picture in zip(pairs, painted):
            if folder is not None:
                save_image(picture, folder / f"{result_name(pair)}.png")
        return painted
