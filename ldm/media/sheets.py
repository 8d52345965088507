"""Sheets of pictures with words beside them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ldm.media.images import contact_sheet

GAP = 4


def labelled_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    columns: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    cell: int = 192,
) -> Image.Image:
    """Pictures in rows and columns, none larger than `cell` pixels a side, a line of words over
    each column and before each row (none where the list is empty). Words that are too long for
    their column are made smaller."""
    width, height = _cell_for([image for row in rows for image in row if image is not None], cell)
    sheet = contact_sheet(rows, (width, height), GAP)
    font_size = max(11, cell // 12)
    top = 2 * font_size if columns else 0
    left = (
        max((round(_font(font_size).getlength(label)) for label in row_labels), default=-font_size)
        + font_size
    )
    canvas = Image.new("RGB", (sheet.width + left, sheet.height + top), "white")
    canvas.paste(sheet, (left, top))
    draw = ImageDraw.Draw(canvas)
    for i, label in enumerate(columns):
        middle = left + GAP + i * (width + GAP) + width // 2
        draw.text((middle, top // 2), label, "black", _fitting(label, font_size, width), anchor="mm")
    for i, label in enumerate(row_labels):
        draw.text(
            (left - font_size // 2, top + GAP + i * (height + GAP) + height // 2),
            label,
            "black",
            _font(font_size),
            anchor="rm",
        )
    return canvas


def captioned_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, cell: int = 224
) -> Image.Image:
    """Pictures in so many columns, each in a square of `cell` pixels with its words below."""
    font_size = max(11, cell // 14)
    squares = []
    for picture, caption in zip(pictures, captions, strict=True):
        square = Image.new("RGB", (cell, cell + 2 * font_size), "white")
        fitted = ImageOps.contain(picture, (cell, cell), Image.Resampling.LANCZOS)
        square.paste(fitted, ((cell - fitted.width) // 2, (cell - fitted.height) // 2))
        place, font = (cell // 2, cell + font_size), _fitting(caption, font_size, cell)
        ImageDraw.Draw(square).text(place, caption, "black", font, anchor="mm")
        squares.append(square)
    rows = [squares[i : i + columns] for i in range(0, len(squares), columns)]
    return contact_sheet(rows, squares[0].size, GAP)


def guidance_sheet(
    givens: Sequence[Image.Image],
    rows: Sequence[Sequence[Image.Image]],
    content_scales: Sequence[float],
    style_scales: Sequence[float],
    cell: int = 192,
) -> Image.Image:
    """Pictures at every pair of scales, a row for each content scale; before them `givens`, the photo
    and the painting, in a column, or, for a single row, in two."""
    columns = [f"style {scale:g}" for scale in style_scales]
    labels = [f"content {scale:g}" for scale in content_scales]
    if len(rows) == 1:
        return labelled_sheet([[*givens, *rows[0]]], ["photo", "painting", *columns], labels, cell)
    before = [*givens, *[None] * (len(rows) - len(givens))]
    lines = [[given, *row] for given, row in zip(before, rows)]
    return labelled_sheet(lines, ["photo, painting", *columns], labels, cell)


def _cell_for(images: Sequence[Image.Image], limit: int) -> tuple[int, int]:
    """(width, height) of the smallest cell that holds every picture, scaled so that its longer side
    is `limit`."""
    scales = [limit / max(image.size) for image in images]
    widths, heights = zip(*(image.size for image in images))
    return max(round(w * s) for w, s in zip(widths, scales)), max(
        round(h * s) for h, s in zip(heights, scales)
    )


def _fitting(label: str, size: int, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    while size > 8 and _font(size).getlength(label) > width:
        size -= 1
    return _font(size)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def panel(words: str, side: int) -> Image.Image:
    """A pale square with words in its middle."""
    square = Image.new("RGB", (side, side), "whitesmoke")
    ImageDraw.Draw(square).text(
        (side // 2, side // 2), words, "dimgray", _fitting(words, max(11, side // 9), side), anchor="mm"
    )
    return square


def thumbnail(image: Image.Image, like: Image.Image) -> Image.Image:
    """The picture cropped and scaled to the size of another, to stand beside it."""
    return ImageOps.fit(image, like.size, Image.Resampling.LANCZOS)
