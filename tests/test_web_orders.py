"""ldm.web.orders: what a visitor of the page asks for, read and checked."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pipeline_builders import picture

from ldm.errors import UserError
from ldm.media.images import save_image
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.settings import Settings
from ldm.web import orders
from ldm.web.orders import order, receive, regions_of, settings_in, settings_of

BASE = Settings(size=64)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    return saved(picture(90, 60, seed=1), tmp_path / "photo.png")


@pytest.fixture
def paintings(tmp_path: Path) -> list[str]:
    return [saved(picture(50, 40, seed=seed), tmp_path / f"painting{seed}.png") for seed in (2, 3, 4)]


def saved(image: Image.Image, path: Path) -> str:
    image.save(path)
    return str(path)


def drawn(*marks: tuple[str, tuple[int, int, int, int]], size: tuple[int, int] = (90, 60)) -> str:
    """A drawing with rectangles of these colours, as the browser sends it."""
    image = Image.new("RGB", size)
    for colour, box in marks:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    content = io.BytesIO()
    image.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def asked(
    photo: str | None,
    *paintings: str | None,
    drawing: Any = None,
    weights: tuple[Any, ...] = (1, 1, 1),
    settings: Settings = BASE,
) -> orders.Order:
    chosen = [*paintings, None, None, None][:3]
    return order(photo, list(zip(chosen, weights)), drawing, settings, 128)


# Pictures


def test_an_upload_is_read_upright_and_no_larger_than_results_are(tmp_path: Path) -> None:
    image = picture(300, 200, seed=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert receive(tmp_path / "turned.jpg", 100).size == (100, 150)


def test_what_is_no_picture_is_one_line_without_the_path(tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear reader")
    with pytest.raises(UserError, match=r"^letter\.jpg: not a picture that can be read$"):
        receive(tmp_path / "letter.jpg", 100)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "large.png").write_bytes(b"\0" * (3 * 2**20))
    with pytest.raises(UserError, match=r"^large\.png: 3 MB are more than the limit of 1 MB$"):
        receive(tmp_path / "large.png", 100)


def test_a_picture_with_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MAX_UPLOAD_PIXELS", 5000)
    with pytest.raises(UserError, match=r"^many\.png: 90x60 pixels are more than the limit of 5000"):
        receive(saved(picture(90, 60, seed=1), tmp_path / "many.png"), 100)


def test_an_upload_that_was_deleted_meanwhile_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^gone\.png: is no longer there; choose the picture again$"):
        receive(tmp_path / "gone.png", 100)


# Styles


def test_one_painting_is_the_style(photo: str, paintings: list[str]) -> None:
    made = asked(photo, paintings[0])
    assert made.content.size == (90, 60) and made.keep is None
    assert made.style == picture(50, 40, seed=2)
    assert made.about == {"content": "photo", "style": "painting2"}


def test_several_are_mixed_by_their_weights(photo: str, paintings: list[str]) -> None:
    made = asked(photo, paintings[0], None, paintings[2], weights=(1, 5, 0.5))
    assert isinstance(made.style, StyleMix)
    assert made.style.weights == [1, 0.5] and made.about["style"] == "painting2+painting4"


def test_what_is_drawn_is_kept_or_another_paintings(photo: str, paintings: list[str]) -> None:
    drawing = drawn(("#ff0000", (0, 0, 9, 59)), ("#00ff00", (30, 0, 59, 59)), ("#0000ff", (60, 0, 89, 59)))
    made = asked(photo, *paintings, drawing=drawing)
    assert isinstance(made.style, StyleRegions) and made.keep is not None
    columns = [np.asarray(mask)[30] for mask in (made.keep, *made.style.masks)]
    expected = [range(0, 10), range(0, 30), range(30, 60), range(60, 90)]
    for column, where in zip(columns, expected, strict=True):
        assert [x for x in range(90) if column[x] == 255] == list(where)
        assert set(column) == {0, 255}


def test_nothing_drawn_is_no_mask(photo: str, paintings: list[str]) -> None:
    assert regions_of(drawn()) == regions_of(None) == [None, None, None]
    assert isinstance(asked(photo, *paintings, drawing=drawn()).style, StyleMix)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"photo": None}, "choose a photo first"),
        ({"paintings": (None, "second")}, "choose a painting first"),
        ({"drawing": drawn(("#00ff00", (0, 0, 9, 9)))}, "a part is marked for the second painting, but there"),
        (
            {"paintings": ("first", "second", "third"), "drawing": drawn(("#00ff00", (0, 0, 9, 9)))},
            "the third painting has no part of the photo",
        ),
        ({"drawing": "data:image/png;base64,AAAA"}, "the drawing: not a picture that can be read"),
        ({"drawing": "data:image/png;base64,?"}, "the drawing cannot be read"),
        ({"drawing": "file:///etc/passwd"}, "the drawing cannot be read"),
        ({"drawing": {"path": "/etc/passwd"}}, "the drawing cannot be read"),
        ({"drawing": "data:image/png;base64," + "A" * 3 * 2**20}, "the drawing cannot be read"),
        ({"weights": (1, -1, 1), "paintings": ("first", "second")}, "style weights must be numbers from 0 on"),
        ({"settings": Settings(size=512)}, "size 512 is more than the 128 that this page takes"),
        ({"settings": Settings(size=(64, 32))}, "this page takes a size as the shorter side"),
        ({"settings": Settings(size=64, steps=500)}, "steps 500 is more than the 100"),
        ({"settings": Settings(size=64, effort=50)}, "effort 50 is more than the 4"),
        ({"settings": Settings(size=64, style_size=5000)}, "style_size 5000 is more than the 128"),
        ({"settings": Settings(size=64, sampler="euler")}, "sampler 'euler' is not one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    photo: str, paintings: list[str], given: dict[str, Any], line: str
) -> None:
    names = dict(zip(("first", "second", "third"), paintings))
    chosen = [names.get(name) for name in given.pop("paintings", ("first",))]
    with pytest.raises(UserError, match=line):
        made = asked(given.pop("photo", photo), *chosen, **given)
        if isinstance(made.style, StyleMix):
            made.style.shares()


def test_a_photo_that_is_too_long_is_refused(tmp_path: Path, paintings: list[str]) -> None:
    with pytest.raises(UserError, match="a photo of 400x40 pixels is too long for this page; crop it"):
        asked(saved(picture(400, 40, seed=1), tmp_path / "long.png"), paintings[0])


# Settings


def test_fields_become_settings_and_empty_ones_are_those_of_the_page() -> None:
    base = Settings(look="sampled", steps=7)
    given = {"steps": "", "size": 96.0, "style_size": "300", "seed": "5", "strength": 0.5, "detail": None}
    assert settings_of(given, base) == Settings(
        look="sampled", steps=7, size=96, style_size=300, seed=5, strength=0.5
    )


@pytest.mark.parametrize(
    "given", [{"steps": "many"}, {"steps": 2.5}, {"seed": "1.5"}, {"size": "nan"}, {"strength": "inf"}]
)
def test_a_field_that_is_no_number_is_one_line(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(UserError, match=f"^{name} must be "):
        orders.check_settings(settings_of(given, BASE), 128)


def test_settings_are_read_back_from_a_picture(tmp_path: Path) -> None:
    settings = Settings(
        content_scale=1, style_scale=2, guidance_interval=(0.1, 0.9), seed=8, sampler="ddim", size=96
    )
    said = json.dumps({**vars(settings), "checkpoint": "model.safetensors", "content": "photo"})
    save_image(picture(20, 20, seed=1), tmp_path / "result.png", {"artfusion": said})
    assert settings_in(tmp_path / "result.png") == settings
    # painted before photos took colours
    del (before := json.loads(said))["recolor"]
    save_image(picture(20, 20, seed=1), tmp_path / "before.png", {"artfusion": json.dumps(before)})
    assert settings_in(tmp_path / "before.png") == replace(settings, recolor=0.0)
    # what laid texture was called fast once
    for texture, expected in ((1.0, "sampled"), (None, "fast")):
        before = json.loads(said) | {"look": "fast", "texture": texture}
        save_image(picture(20, 20, seed=1), tmp_path / "before.png", {"artfusion": json.dumps(before)})
        assert settings_in(tmp_path / "before.png").look == expected
    # the page has the scales of a look on its dials, and no such look
    said = json.dumps(vars(Settings(look="free")))
    save_image(picture(20, 20, seed=1), tmp_path / "free.png", {"artfusion": said})
    assert settings_in(tmp_path / "free.png") == Settings(look="fine", content_scale=0.5, style_scale=1.5)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (None, "says nothing of how it was painted"),
        ("{", "cannot be read"),
        ("[1, 2]", "cannot be read"),
        ('{"seed": "x"}', "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_a_picture_that_says_nothing_of_use_is_one_line(tmp_path: Path, said: str | None, line: str) -> None:
    save_image(picture(20, 20, seed=1), tmp_path / "a.png", None if said is None else {"artfusion": said})
    with pytest.raises(UserError, match=rf"^a\.png: .*{line}"):
        settings_in(tmp_path / "a.png")
