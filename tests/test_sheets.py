"""ldm.media.sheets: pictures in rows and columns, each where it belongs, with its words beside it."""

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import picture, pixels

from ldm.media.sheets import GAP, labelled_sheet, thumbnail

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(width: int, height: int, colour: tuple = RED) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def box(sheet: Image.Image, colour: tuple = RED) -> list[int]:
    """[left, top, right, bottom] of all that has this colour."""
    rows, columns = np.nonzero((pixels(sheet) == colour).all(axis=2))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def ink(sheet: Image.Image) -> np.ndarray:
    """(H, W): where there is grey or black, that is, a word."""
    values = pixels(sheet)
    return (values.max(axis=2) < 200) & (np.ptp(values, axis=2) == 0)


@pytest.mark.parametrize(
    "size, cell", [((96, 96), (96, 96)), ((48, 96), (48, 96)), ((96, 24), (96, 24)), ((24, 12), (96, 48))]
)
def test_without_labels_a_sheet_is_its_cells_and_gaps(size: tuple, cell: tuple) -> None:
    sheet = labelled_sheet([[plain(*size)] * 3, [plain(*size)] * 3], cell=96)
    assert sheet.size == (3 * (cell[0] + GAP) + GAP, 2 * (cell[1] + GAP) + GAP)
    assert box(sheet) == [GAP, GAP, sheet.width - GAP, sheet.height - GAP]


def test_a_cell_holds_upright_and_lying_pictures() -> None:
    sheet = labelled_sheet([[plain(80, 40), plain(40, 80, BLUE)]], cell=80)
    assert sheet.size == (2 * 84 + 4, 80 + 8)
    assert box(sheet) == [4, 24, 84, 64] and box(sheet, BLUE) == [88 + 20, 4, 88 + 60, 84]


def test_a_gap_stays_white() -> None:
    sheet = labelled_sheet([[plain(32, 32), None], [None, plain(32, 32)]], cell=32)
    assert sheet.getpixel((56, 20)) == sheet.getpixel((20, 56)) == (255, 255, 255)


@pytest.mark.parametrize(
    "columns, rows",
    [(["one", "two"], []), ([], ["one", "two"]), (["one", "two"], ["three", "four"]), (["", "two"], [])],
)
def test_words_stand_over_their_columns_and_before_their_rows(columns: list[str], rows: list[str]) -> None:
    sheet = labelled_sheet([[plain(96, 96)] * 2] * 2, columns, rows, cell=96)
    left, top, right, bottom = box(sheet)
    assert (right, bottom) == (sheet.width - GAP, sheet.height - GAP) and (right - left, bottom - top) == (
        196,
        196,
    )
    assert (left == GAP) == (not rows) and (top == GAP) == (not columns)
    written = ink(sheet)
    for i in range(2):
        across, down = slice(left + 100 * i, left + 100 * i + 96), slice(top + 100 * i, top + 100 * i + 96)
        assert written[:top, across].any() == bool(columns and columns[i])
        assert written[down, :left].any() == bool(rows)
    assert not written[top:, left:].any()


def test_a_label_stands_in_the_middle_of_its_column() -> None:
    columns = np.nonzero(ink(labelled_sheet([[plain(96, 96)] * 2], ["", "word"], cell=96)))[1]
    assert abs((columns.min() + columns.max()) / 2 - (GAP + 100 + 48)) <= 2


def test_the_longest_row_label_fits() -> None:
    long = "a rather long label of a row"
    wide, narrow = (labelled_sheet([[plain(96, 96)]], [], [label], cell=96) for label in (long, "a"))
    assert wide.width > narrow.width + 100 and not ink(wide)[:, :3].any()


def test_a_label_too_long_for_its_column_is_made_smaller() -> None:
    def height(label: str) -> int:
        rows = np.nonzero(ink(labelled_sheet([[plain(192, 192)]], [label], cell=192)))[0]
        return np.ptp(rows)

    assert height("HHHHHHHHHHHHHHHHHHHHHHHH") < height("HHH")


def test_a_label_made_smaller_keeps_to_its_column() -> None:
    columns = np.nonzero(ink(labelled_sheet([[plain(192, 192)] * 3], ["", "H" * 24, ""], cell=192)))[1]
    assert GAP + 196 <= columns.min() and columns.max() < GAP + 196 + 192


def test_a_thumbnail_has_the_others_size_and_is_cropped_not_squeezed() -> None:
    image = plain(120, 40)
    image.paste(BLUE, (40, 0, 80, 40))
    small = thumbnail(image, picture(20, 20))
    assert small.size == (20, 20) and np.abs(pixels(small)[:, 3:-3] - BLUE).max() < 20
