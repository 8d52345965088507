"""The trade-off between content and style as a picture."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.files import written_whole

if TYPE_CHECKING:
    from ldm.evaluation.evaluator import Measured

X, Y = "content_cosine", "style_share"


def check_extra() -> None:
    """Raises UserError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError("--plot needs the package matplotlib: pip install 'artfusion[evaluation]'") from error


def draw_trade_off(measured: "Sequence[Measured]", path: Path) -> None:
    """Content distance to the right, style share upwards: a line for each style scale, other
    results as points.

    `path` ends in .png and is written whole or not at all. Raises OSError, and UserError where no
    set has a style share.
    """
    from matplotlib.figure import Figure

    measured = [one for one in measured if one.mean(Y) is not None]
    if not measured:
        raise UserError(f"nothing to draw in {path}: every content has its style's statistics already")
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    swept = [one for one in measured if one.results.style_scale is not None]
    swept = swept if len(swept) > 1 else []
    _draw_curves(axes, swept)
    if swept:
        axes.legend()  # the points have their names beside them
    _draw_points(axes, [one for one in measured if one not in swept])
    _label(axes, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=150)


def _draw_curves(axes: Any, swept: "Sequence[Measured]") -> None:
    from matplotlib import colormaps

    scales = sorted({scale for one in swept if (scale := one.results.style_scale) is not None})
    for i, scale in enumerate(scales):
        curve = sorted(
            (one for one in swept if one.results.style_scale == scale),
            key=lambda one: one.results.content_scale or 0.0,
        )
        colour = colormaps["plasma"](0.8 * i / max(1, len(scales) - 1))  # its last fifth is too pale on white
        axes.plot(
            [one.mean(X) for one in curve],
            [one.mean(Y) for one in curve],
            "o-",
            color=colour,
            ms=5,
            label=f"style scale {scale:g}",
        )
        for one in curve:
            _note(axes, one, f"{one.results.content_scale:g}", color=colour, fontsize=8)


def _draw_points(axes: Any, points: "Sequence[Measured]") -> None:
    for one, marker in zip(points, cycle("sD^vP*X")):
        axes.plot(one.mean(X), one.mean(Y), marker, color="crimson", ms=9, label=one.results.name)
    for one in points:
        # names there go to the left of their points, to stay within the frame
        right = one.mean(X) > sum(axes.get_xlim()) / 2
        _note(axes, one, one.results.name, left=right, color="crimson", fontsize=9)


def _note(axes: Any, one: "Measured", text: str, left: bool = False, **options: Any) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]  # lines pass behind some of the texts
    side = {"xytext": (-7, -3), "ha": "right"} if left else {"xytext": (7, -3)}
    axes.annotate(
        text,
        (one.mean(X), one.mean(Y)),
        textcoords="offset points",
        path_effects=halo,
        zorder=5,
        **side,
        **options,
    )


def _label(axes: Any, measured: "Sequence[Measured]") -> None:
    counts = sorted({len(one.rows) for one in measured})
    pairs = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    scales = "; numbers at points: content scale" if axes.get_legend() else ""
    axes.set_title(f"Content against style, means (pairs: {pairs}){scales}", fontsize=11)
    axes.set_xlabel(f"content distance ({X}), 0: the photo's layout kept")
    axes.set_ylabel(f"style share ({Y}), 1: photo untouched, 0: style met")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
