"""How much memory a result takes, told before it is begun."""

from collections.abc import Iterable, Sequence

from ldm.errors import UserError

Size = tuple[int, int]  # width, height

# What painting takes beside the model: measured on a CPU in bfloat16, of squares of 1 to 4 megapixels;
# longer pictures take less.
BYTES_A_PIXEL = {"sampled": 140, "brushed": 400}
WINDOWS = 300_000_000  # what the networks take, which see so much of a picture at a time
PLACES = 250_000_000  # and what comparing the places in a window with a painting's takes
STYLE_BYTES = 550  # a pixel of a painting whose statistics are taken, in float32
# Of the look palette, measured at 9 megapixels: without regions, and what these add.
RECOLOURED, BY_REGION, EACH_REGION = 20, 22, 8
MOST = 0.8  # of what the device has, so that the rest of the system goes on


def check_painted(sizes: Sequence[Size], brushed: bool, there: int) -> None:
    """Raises UserError for results of these sizes, painted together, that take more than MOST of the
    bytes of memory that are there; 0 is an unknown number."""
    needed = WINDOWS + BYTES_A_PIXEL["brushed" if brushed else "sampled"] * _pixels(sizes)
    needed += PLACES if brushed else 0
    advice = "choose a smaller size" + " or batch_size" * (len(sizes) > 1)
    _check(sizes, "picture", needed, there, advice)


def check_style(size: Size, there: int) -> None:
    """The same for a painting that is looked at in this size."""
    _check([size], "style picture", WINDOWS + STYLE_BYTES * _pixels([size]), there, "crop it")


def check_recoloured(sizes: Sequence[Size], regions: int, there: int) -> None:
    """The same for results of the look palette, in the colours of so many regions."""
    each = RECOLOURED + (BY_REGION + EACH_REGION * regions if regions > 1 else 0)
    advice = "choose a smaller size" + " or fewer pictures at a time" * (len(sizes) > 1)
    _check(sizes, "picture", each * _pixels(sizes), there, advice)


def _pixels(sizes: Iterable[Size]) -> int:
    return sum(width * height for width, height in sizes)


def _check(sizes: Sequence[Size], name: str, needed: int, there: int, advice: str) -> None:
    if there and needed > MOST * there:
        several = f"{len(sizes)} {name}s" if len(sizes) > 1 else f"a {name}"
        raise UserError(
            f"{several} of {sizes[0][0]}x{sizes[0][1]} pixels would take about {needed / 1e9:.1f} GB of memory, more "
            f"than {MOST:.0%} of the {there / 1e9:.1f} GB there are; {advice}"
        )
