"""Measuring result sets: every content and style goes through the networks once, results in
batches."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.evaluation.colours import Alike, Colours
from ldm.evaluation.efficientnet import EfficientNetLite0
from ldm.evaluation.fid import Inception, art_fid, frechet_distance
from ldm.evaluation.metrics import PairMetrics, chosen
from ldm.evaluation.pairs import BATCH, Pair, ResultSet
from ldm.evaluation.retrieval import Retrieval, ranks, standardised
from ldm.media.tensors import image_to_tensor

T = TypeVar("T")


@dataclass
class Measured:
    """A result set with its pairs' metrics, and those of the set as a whole. A metric that is None,
    or no row has, was not run."""

    results: ResultSet
    rows: dict[Pair, dict[str, float | None]] = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)  # Inception's, of the results
    style_distances: list[Tensor] = field(default_factory=list)  # the judge's, of the results to all styles
    alikes: list[float] = field(default_factory=list)  # of each content with results in at least two styles
    fid: float | None = None
    fid_biased: bool = False  # fewer pictures than features

    @property
    def art_fid(self) -> float | None:
        """ArtFID of the mean LPIPS and the FID; None where one was not run."""
        return art_fid(self.mean("lpips"), self.fid)

    @property
    def alike(self) -> float | None:
        """How much alike the textures of one content's results are, the mean over contents; None
        where none has two."""
        return statistics.fmean(self.alikes) if self.alikes else None

    @property
    def palette_share(self) -> float | None:
        """A ratio of means: of one pair it says little where photo and painting have much the same
        colours."""
        distance, untouched = self.mean("palette_distance"), self.mean("palette_untouched")
        return distance / untouched if distance is not None and untouched else None

    def share_within(self, rank: int, metric: str) -> float | None:
        """The share of results whose rank is at most that."""
        values = self._values(metric)
        return statistics.fmean(value <= rank for value in values) if values else None

    def mean(self, metric: str) -> float | None:
        """Over the pairs that have the metric; None where none has."""
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def median(self, metric: str) -> float | None:
        """Over the pairs that have the metric; None where none has."""
        values = self._values(metric)
        return statistics.median(values) if values else None

    def _values(self, metric: str) -> list[float]:
        return [value for row in self.rows.values() if (value := row.get(metric)) is not None]


class Evaluator:
    """Measures result sets of these contents and styles, squares of one size by name."""

    def __init__(
        self,
        contents: Mapping[str, Image.Image],
        styles: Mapping[str, Image.Image],
        metrics: PairMetrics,
        inception: Inception | None = None,
        judge: EfficientNetLite0 | None = None,
    ):
        self.contents, self.styles, self.metrics, self.inception, self.judge = (
            contents,
            styles,
            metrics,
            inception,
            judge,
        )
        self._content_index, self._style_index = (
            {name: i for i, name in enumerate(named)} for named in (contents, styles)
        )

    def measure(self, sets: Sequence[ResultSet]) -> list[Measured]:
        """Content by content through all sets, so that no more than one content's features are
        held."""
        measured = [Measured(results) for results in sets]
        style_pictures = [to_tensors(batch) for batch in in_batches(self.styles.values())]
        self._style_statistics = self.metrics.styles(style_pictures)
        self._colours = Colours(torch.cat(style_pictures))
        if self.judge is not None:
            self._retrieval = Retrieval(
                self.judge, map(to_tensors, in_batches(self.contents.values())), style_pictures
            )
        with tqdm(total=sum(len(results.pairs) for results in sets), unit="picture") as progress:
            for name in self.contents:
                self._measure_content(name, measured, progress)
        if self.inception is not None:
            self._measure_sets(measured, torch.cat([self.inception(batch) for batch in style_pictures]))
        if self.judge is not None:
            self._rank_styles(measured)
        return measured

    def _measure_content(self, name: str, measured: Sequence[Measured], progress: tqdm) -> None:
        picture = to_tensors([self.contents[name]])
        content, untouched = self.metrics.content(picture), self._colours.untouched(picture)
        for one in measured:
            alike = Alike()
            for pairs in in_batches(pair for pair in one.results.pairs if pair[0] == name):
                pictures, styles = (
                    to_tensors(one.results.pictures(pairs)),
                    [self._style_index[style] for _, style in pairs],
                )
                rows = self.metrics.measure(pictures, content, chosen(self._style_statistics, styles))
                colours = self._colours.measure(pictures, untouched, styles)
                one.rows |= zip(pairs, (row | more for row, more in zip(rows, colours)))
                alike.add(pictures)
                self._look_at(pictures, pairs, one)
                progress.update(len(pairs))
            if (value := alike.value()) is not None:
                one.alikes.append(value)

    def _look_at(self, pictures: Tensor, pairs: Sequence[Pair], one: Measured) -> None:
        """What the networks that compare with all others see of the results of these pairs."""
        if self.inception is not None:
            one.features.append(self.inception(pictures))
        if self.judge is not None:
            style, content = self._retrieval.compare(pictures)
            one.style_distances.append(style)
            for pair, rank in zip(pairs, ranks(content, [self._content_index[name] for name, _ in pairs])):
                one.rows[pair]["content_rank"] = rank

    def _rank_styles(self, measured: Sequence[Measured]) -> None:
        """By distances standardised over the set. A single result has no spread to standardise by:
        it gets no rank."""
        for one in measured:
            distances = torch.cat(one.style_distances)
            if len(distances) > 1:
                own = [self._style_index[style] for _, style in one.rows]
                for row, rank in zip(one.rows.values(), ranks(standardised(distances), own)):
                    row["style_rank"] = rank

    def _measure_sets(self, measured: Sequence[Measured], style_features: Tensor) -> None:
        """Against the styles that a set has results of. One picture has no covariance: nothing is
        run then."""
        for one in measured:
            used = {style for _, style in one.results.pairs}
            styles = style_features[[style in used for style in self.styles]]
            results = torch.cat(one.features)
            if min(len(styles), len(results)) > 1:
                one.fid = frechet_distance(results, styles)
                one.fid_biased = min(len(styles), len(results)) <= styles.shape[1]


def to_tensors(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 3, H, W) in [-1, 1]."""
    return torch.stack([image_to_tensor(picture) for picture in pictures])


def in_batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of BATCH items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
