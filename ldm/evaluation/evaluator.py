"""Measuring result sets: every content and style goes through the networks once, results in batches."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.evaluation.fid import Inception, art_fid, frechet_distance
from ldm.evaluation.metrics import PairMetrics, chosen
from ldm.evaluation.pairs import BATCH, Pair, ResultSet
from ldm.images import image_to_tensor

T = TypeVar("T")


@dataclass
class Measured:
    """A result set with its pairs' metrics, and those of the set as a whole; None is a metric that was not run."""

    results: ResultSet
    rows: dict[Pair, dict[str, float | None]] = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)  # Inception's, of the results
    fid: float | None = None
    fid_biased: bool = False  # fewer pictures than features

    @property
    def art_fid(self) -> float | None:
        return art_fid(self.mean("lpips"), self.fid)

    def mean(self, metric: str) -> float | None:
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def median(self, metric: str) -> float | None:
        values = self._values(metric)
        return statistics.median(values) if values else None

    def _values(self, metric: str) -> list[float]:
        return [row[metric] for row in self.rows.values() if row[metric] is not None]


class Evaluator:
    """Measures result sets of these contents and styles, squares of one size by name."""

    def __init__(
        self,
        contents: Mapping[str, Image.Image],
        styles: Mapping[str, Image.Image],
        metrics: PairMetrics,
        inception: Inception | None = None,
    ):
        self.contents, self.styles, self.metrics, self.inception = contents, styles, metrics, inception

    def measure(self, sets: Sequence[ResultSet]) -> list[Measured]:
        """Content by content through all sets, so that no more than one content's features are held."""
        measured = [Measured(results) for results in sets]
        style_pictures = [to_tensors(batch) for batch in in_batches(self.styles.values())]
        self._style_statistics = self.metrics.styles(style_pictures)
        with tqdm(total=sum(len(results.pairs) for results in sets), unit="picture") as progress:
            for name in self.contents:
                self._measure_content(name, measured, progress)
        if self.inception is not None:
            self._measure_sets(measured, torch.cat([self.inception(batch) for batch in style_pictures]))
        return measured

    def _measure_content(self, name: str, measured: Sequence[Measured], progress: tqdm) -> None:
        content = self.metrics.content(to_tensors([self.contents[name]]))
        index = {style: i for i, style in enumerate(self.styles)}
        for one in measured:
            for pairs in in_batches(pair for pair in one.results.pairs if pair[0] == name):
                pictures = to_tensors(one.results.pictures(pairs))
                styles = chosen(self._style_statistics, [index[style] for _, style in pairs])
                one.rows |= zip(pairs, self.metrics.measure(pictures, content, styles))
                if self.inception is not None:
                    one.features.append(self.inception(pictures))
                progress.update(len(pairs))

    def _measure_sets(self, measured: Sequence[Measured], style_features: Tensor) -> None:
        """Against the styles that a set has results of. One picture has no covariance: nothing is run then."""
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
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
