"""What was measured, as a Markdown table and as a CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ldm.evaluation.colours import COLOUR_METRICS
from ldm.evaluation.evaluator import Measured
from ldm.evaluation.metrics import METRICS
from ldm.evaluation.pairs import Pair, result_name
from ldm.evaluation.retrieval import RANKS
from ldm.files import written_whole
from ldm.text import markdown_table

SET_METRICS = ("fid", "artfid")
CSV_COLUMNS = ("set", "content_scale", "style_scale", "content", "style", *METRICS, *RANKS, *COLOUR_METRICS)
WHOLE_METRICS = ("style_top1", "style_top3", "content_top1", "alike", "palette_share", "chroma_bw")
_NOT_RUN = "not run"


def table(measured: Sequence[Measured], expected: int) -> str:
    """One row for each set: how many of the expected pairs it has, and each metric's mean
    (median)."""
    rows = []
    for one in measured:
        pairs = f"{len(one.rows)} of {expected}" if len(one.rows) < expected else str(expected)
        rows.append([one.results.name, pairs, *(_cell(one, name) for name in METRICS), *_set_cells(one)])
    return markdown_table(["results", "pairs", *METRICS, *SET_METRICS], rows)


def _cell(one: Measured, metric: str) -> str:
    mean, median = one.mean(metric), one.median(metric)
    return _NOT_RUN if mean is None else f"{mean:.3g} ({median:.3g})"


def _set_cells(one: Measured) -> list[str]:
    note = " (biased)" if one.fid_biased else ""
    return [_NOT_RUN if value is None else f"{value:.4g}{note}" for value in (one.fid, one.art_fid)]


def whole_table(measured: Sequence[Measured]) -> str:
    """One row for each set: what is said of its results together, WHOLE_METRICS."""
    rows = []
    for one in measured:
        tops = (
            one.share_within(1, "style_rank"),
            one.share_within(3, "style_rank"),
            one.share_within(1, "content_rank"),
        )
        others = one.alike, one.palette_share, one.mean("chroma_bw")
        cells = [_NOT_RUN if value is None else f"{value:.2f}" for value in tops] + [
            "none" if value is None else f"{value:.3g}" for value in others
        ]
        rows.append([one.results.name, *cells])
    return markdown_table(["whose style, whose photo, which colours", *WHOLE_METRICS], rows)


def notes(measured: Sequence[Measured], pairs: Sequence[Pair], judge: bool) -> list[str]:
    """Lines below the table: pairs that are missing, networks that are, numbers to be read with
    care."""
    lines = _missing_pairs(measured, pairs)
    if not judge:
        lines.append(
            "Retrieval (style_top1, style_top3, content_top1) was not run: it needs --judge-weights."
        )
    if any(one.fid_biased for one in measured):
        lines.append(
            "biased: fewer pictures than Inception features, so the distance comes out too large; compare equal numbers of pictures only."
        )
    return lines


def _missing_pairs(measured: Sequence[Measured], pairs: Sequence[Pair]) -> list[str]:
    """A line for each set that lacks pairs, with the first of them."""
    lines = []
    for one in measured:
        missing = [result_name(pair) for pair in pairs if pair not in one.rows]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            lines.append(
                f"{one.results.name}: {len(missing)} of {len(pairs)} pairs missing: {', '.join(missing[:3])}{more}"
            )
    return lines


def write_csv(measured: Sequence[Measured], path: Path) -> None:
    """One row for each pair of each set, metrics that were not run left empty; whole or not at all.
    Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)  # writes None as an empty field
        writer.writeheader()
        for one in measured:
            shared = {
                "set": one.results.name,
                "content_scale": one.results.content_scale,
                "style_scale": one.results.style_scale,
            }
            writer.writerows(
                shared | {"content": content, "style": style} | row
                for (content, style), row in one.rows.items()
            )
