"""Tiles: they cover everything, all alike; what is put together of them has no seam."""

from collections.abc import Sequence

import pytest
import torch
from golden_rules import rnd
from torch import Tensor

from ldm.pipeline.tiles import UNCUT, Tile, Tiling, blend, cut

SIZES = [
    (8, 8, 8),
    (12, 12, 8),
    (13, 12, 8),
    (13, 40, 8),
    (100, 17, 8),
    (64, 64, 16),
    (25, 26, 16),
    (7, 9, 1),
    (5, 5, 3),
    (30, 31, 6),
]
every_size = pytest.mark.parametrize("height, width, size", SIZES)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


# Where they lie


@every_size
def test_tiles_cover_everything(height: int, width: int, size: int) -> None:
    covered = torch.zeros(height, width)
    for tile in Tiling(height, width, size).tiles:
        covered[tile] += 1
    assert covered.min() >= 1


@every_size
def test_tiles_have_one_shape_and_none_reaches_over_the_end(height: int, width: int, size: int) -> None:
    tiles = Tiling(height, width, size).tiles
    assert len({(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in tiles}) == 1
    assert (
        max(rows.stop for rows, _ in tiles) == height and max(columns.stop for _, columns in tiles) == width
    )
    assert min(min(rows.start, columns.start) for rows, columns in tiles) == 0


@every_size
def test_a_side_is_cut_only_where_it_is_longer_than_a_tile_and_a_half(
    height: int, width: int, size: int
) -> None:
    rows, columns = Tiling(height, width, size).tiles[0]
    for length, part in ((height, rows), (width, columns)):
        assert part.stop - part.start == (length if length <= UNCUT * size else size)


@every_size
def test_no_tile_is_there_twice(height: int, width: int, size: int) -> None:
    tiles = [(rows.start, columns.start) for rows, columns in Tiling(height, width, size).tiles]
    assert len(set(tiles)) == len(tiles)


@pytest.mark.parametrize("length", range(25, 200, 7))
def test_neighbours_share_a_quarter_or_more(length: int) -> None:
    starts = [rows.start for rows, _ in Tiling(length, 16, 16).tiles]
    assert starts == sorted(starts) and max(b - a for a, b in zip(starts, starts[1:])) <= 12


def test_cut_gives_the_tiles_one_below_the_other() -> None:
    x, tiles = rnd("x", 2, 3, 9, 20), Tiling(9, 20, 4).tiles
    parts = cut(x, tiles)
    assert parts.shape == (2 * len(tiles), 3, 4, 4)
    for part, (rows, columns) in zip(parts.chunk(len(tiles)), tiles):
        assert torch.equal(part, x[:, :, rows, columns])


# Put together


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
@every_size
def test_what_acts_on_each_position_alone_is_the_same_in_tiles(
    height: int, width: int, size: int, at_once: int, scale: int
) -> None:
    x = rnd("x", 3, 2, height, width)
    act = (lambda x: doubled(x).sin()) if scale == 2 else torch.sin
    whole = blend(lambda tiles: act(cut(x, tiles)), Tiling(height, width, size), at_once, scale)
    torch.testing.assert_close(whole, act(x), rtol=1e-5, atol=1e-6)


def test_a_constant_stays_itself() -> None:
    whole = blend(lambda tiles: torch.full((len(tiles), 1, 8, 8), 0.7), Tiling(50, 33, 8))
    torch.testing.assert_close(whole, torch.full((1, 1, 50, 33), 0.7), rtol=1e-6, atol=0)


def some_tiles(tiles: Sequence[Tile]) -> Tensor:
    """Different for every tile and place in it, two rows each."""
    return torch.cat([rnd(str(tile), 2, 1, 8, 8) for tile in tiles])


def test_how_many_tiles_go_at_once_does_not_change_the_result() -> None:
    tiling = Tiling(30, 21, 8)
    one, three, all_at_once = (blend(some_tiles, tiling, at_once) for at_once in (1, 3, 100))
    assert torch.equal(one, three) and torch.equal(one, all_at_once)


def test_no_more_tiles_go_at_once_than_asked_for() -> None:
    counts = []
    tiling = Tiling(30, 21, 8)
    blend(lambda tiles: counts.append(len(tiles)) or some_tiles(tiles), tiling, at_once=5)
    assert max(counts) == 5 and sum(counts) == len(tiling.tiles)


def test_what_fits_goes_through_whole_and_untouched() -> None:
    calls, result = [], rnd("result", 2, 3, 24, 24)
    assert blend(lambda tiles: calls.append(tiles) or result, Tiling(12, 12, 8), scale=2) is result
    assert calls == [[(slice(0, 12), slice(0, 12))]]


def test_every_position_lies_between_what_the_tiles_over_it_say() -> None:
    """Weights are positive and sum to 1."""
    tiling = Tiling(30, 21, 8)
    low, high = torch.full((30, 21), 9.0), torch.full((30, 21), -9.0)
    for tile in tiling.tiles:
        part = some_tiles([tile])[0, 0]
        low[tile], high[tile] = low[tile].minimum(part), high[tile].maximum(part)
    whole = blend(some_tiles, tiling)[0, 0]
    assert ((whole >= low - 1e-6) & (whole <= high + 1e-6)).all()


def test_one_tile_fades_into_the_next_without_a_step() -> None:
    """Tiles of 0 and 1 side by side make a slope over what they share, not an edge."""
    tiling = Tiling(8, 14, 8)
    line = blend(lambda tiles: torch.full((1, 1, 8, 8), float(tiles[0][1].start > 0)), tiling)[0, 0, 4]
    slopes = line.diff()
    assert line[:6].eq(0).all() and line[8:].eq(1).all() and (slopes >= 0).all() and slopes.max() < 0.6
    wide = blend(lambda tiles: torch.full((1, 1, 80, 80), float(tiles[0][1].start > 0)), Tiling(80, 140, 80))[
        0, 0, 40
    ]
    assert wide[:60].eq(0).all() and wide[80:].eq(1).all() and wide.diff().max() < 0.06


def test_a_quarter_of_the_tile_at_each_edge_counts_less() -> None:
    """Two tiles that share more than that: each is alone in its own part's full weight, and half counts half."""
    tiling = Tiling(80, 125, 80)
    assert [columns.start for _, columns in tiling.tiles] == [0, 45]
    line = blend(lambda tiles: torch.full((1, 1, 80, 80), float(tiles[0][1].start > 0)), tiling)[0, 0, 40]
    column = torch.arange(45, 80) + 0.5
    first, second = ((80 - column) / 20).clamp(max=1), ((column - 45) / 20).clamp(max=1)
    torch.testing.assert_close(line[45:80], second / (first + second))
