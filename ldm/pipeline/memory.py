"""How much memory a result takes, told before it is begun."""

from collections.abc import Iterable

from ldm.errors import UserError

# What painting takes beside the model: measured on a CPU in bfloat16, of squares of 1 to 4 megapixels;
# longer pictures take less.
BYTES_A_PIXEL = {"sampled": 140, "brushed": 400}
WINDOWS = 300_000_000  # what the networks take, which see so much of a picture at a time
MOST = 0.8  # of what the device has, so that the rest of the system goes on


def bytes_of(sizes: Iterable[tuple[int, int]], brushed: bool) -> int:
    """What painting results of these (width, height) together takes at most, about."""
    pixels = sum(width * height for width, height in sizes)
    return WINDOWS + BYTES_A_PIXEL["brushed" if brushed else "sampled"] * pixels


def check_memory(sizes: list[tuple[int, int]], brushed: bool, there: int) -> None:
    """Raises UserError for results of these (width, height) that take more together than MOST of
    the bytes of memory that are there; 0 is an unknown number."""
    needed = bytes_of(sizes, brushed)
    if there and needed > MOST * there:
        several = f"{len(sizes)} pictures" if len(sizes) > 1 else "a picture"
        raise UserError(
            f"{several} of {sizes[0][0]}x{sizes[0][1]} pixels would take about {needed / 1e9:.1f} GB of memory, more "
            f"than {MOST:.0%} of the {there / 1e9:.1f} GB there are; choose a smaller size"
            + " or batch_size"
            * (len(sizes) > 1)
        )
