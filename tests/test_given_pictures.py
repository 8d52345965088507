"""What callers give the pipeline: pictures in every form, each where a picture goes, and calls that make no sense."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import picture, pixels

from ldm.errors import UserError
from ldm.pipeline.inputs import PictureReader, StyleMix, StyleRegions, read_content, read_picture
from ldm.pipeline.jobs import Request
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

RGB, RGBA, GREY = picture(40, 36), picture(40, 36).convert("RGBA"), picture(40, 36).convert("L")
RGBA.putalpha(Image.linear_gradient("L").resize(RGBA.size))


class InATree:
    """A path of a library of its own."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def tensor(image: Image.Image) -> torch.Tensor:
    """(C, H, W) of uint8."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


FORMS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "path": lambda image, path: path,
    "name": lambda image, path: str(path),
    "path-like": lambda image, path: InATree(path),
    "open file": lambda image, path: path.open("rb"),
    "bytes in memory": lambda image, path: io.BytesIO(path.read_bytes()),
    "PIL picture": lambda image, path: image,
    "opened PIL picture": lambda image, path: Image.open(path),
    "array": lambda image, path: np.array(image),
    "array from the right": lambda image, path: np.ascontiguousarray(np.array(image)[:, ::-1])[:, ::-1],
    "tensor": lambda image, path: tensor(image),
    "tensor of floats": lambda image, path: tensor(image) / 255,
    "tensor of halves": lambda image, path: (tensor(image) / 255).half(),
    "tensor with gradients": lambda image, path: (tensor(image) / 255).requires_grad_(),
}


@pytest.fixture
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What makes a form of a picture."""

    def of(image: Image.Image) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        image.save(path)
        given = FORMS[request.param](image, path)
        if hasattr(given, "close") and given is not image:
            request.addfinalizer(given.close)
        return given

    return of


@pytest.mark.parametrize("form", FORMS, indirect=True)
@pytest.mark.parametrize("image", [RGB, RGBA, GREY], ids=lambda image: image.mode)
def test_every_form_of_a_picture_is_the_same_picture(form: Callable, image: Image.Image) -> None:
    expected, read = read_content(image), read_content(form(image))
    assert read.mode == expected.mode and np.array_equal(pixels(read), pixels(expected))


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_goes_wherever_a_picture_goes(form: Callable) -> None:
    photo, painting, mask, other = RGB, picture(48, 40, 1), GREY, picture(50, 40, 3)
    settings = Settings(size=36, style_scale=1.5)

    def job(of: Callable[[Image.Image], Any]) -> Any:
        style = StyleRegions([StyleMix([of(painting), of(other)]), of(painting)], [of(mask)])
        return Request(of(photo), style, of(mask), of(other.resize((40, 36))), of(other), of(painting)).jobs(
            settings, 32
        )[0]

    given, expected = job(form), job(lambda image: image)
    for name in ("content", "keep", "start", "not_style"):
        assert np.array_equal(pixels(getattr(given, name)), pixels(getattr(expected, name)))
    assert np.array_equal(given.style.shares(given.size), expected.style.shares(expected.size))
    for one, same in zip(given.style.pictures, expected.style.pictures, strict=True):
        assert np.array_equal(pixels(one), pixels(same))


def test_tensors_of_one_channel_or_none_are_grey() -> None:
    for grey in (tensor(GREY), tensor(GREY)[0], tensor(GREY) / 255):
        assert read_picture(grey) == read_picture(GREY)


def test_a_file_may_be_given_twice_and_stays_open(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert read_picture(file) == read_picture(file) == RGB
        assert not file.closed


def test_two_pictures_are_never_taken_for_one_another() -> None:
    """They are known by their ids, which another gets where the first is gone."""
    read = PictureReader()
    for shade in range(50):
        assert read(np.full((8, 8, 3), shade, np.uint8)).getpixel((0, 0)) == (shade,) * 3


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (
            np.zeros((4, 4, 3)),
            "an array of shape (4, 4, 3) and float64 is no picture: numpy arrays are uint8",
        ),
        (np.zeros((3, 4, 5), np.uint8), "an array of shape (3, 4, 5) and uint8 is no picture"),
        (np.zeros((4, 4, 2), np.uint8), "is no picture"),
        (np.zeros((1, 4, 4, 3), np.uint8), "is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        (torch.zeros(1, 3, 4, 4), "a tensor of shape (1, 3, 4, 4) and torch.float32 is no picture"),
        (torch.zeros(5, 4, 3), "a tensor of shape (5, 4, 3) and torch.float32 is no picture"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "and torch.int64 is no picture"),
        (torch.zeros(3, 0, 4), "is no picture"),
        (
            torch.linspace(-1, 1, 48).reshape(3, 4, 4),
            "goes from 0 to 1, and this one from -1 to 1: give (x +",
        ),
        (torch.full((3, 4, 4), torch.nan), "goes from 0 to 1, and this one from nan to nan"),
        (torch.full((3, 4, 4), 1.5), "from 1.5 to 1.5"),
        (io.StringIO("text"), "open as text; open it for reading bytes"),
        (io.BytesIO(), "the picture in an open file: the file is empty"),
        (io.BytesIO(b"text"), "the picture in an open file: not a picture"),
        (b"a.png", "lists of them; got bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_picture_is_refused_with_what_is_one(wrong: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read_picture(wrong)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipe_is_told_how_to_be_given(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(UserError, match=r"cannot be read twice; give io.BytesIO"):
        read_picture(Pipe(b"picture"))


def test_a_picture_in_memory_has_the_limit_of_one_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.media.images.check_pixels.__defaults__", (1000,))
    for given in (RGB, np.array(RGB)):
        with pytest.raises(UserError, match="40x36 pixels are more than the limit of 1000"):
            read_picture(given)


# Threads


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "webp", "gif"])
def test_a_picture_that_is_only_opened_may_be_shared_by_threads(tmp_path: Path, extension: str) -> None:
    picture(600, 500).save(tmp_path / f"a.{extension}")
    expected = read_picture(tmp_path / f"a.{extension}")
    for _ in range(5):
        with Image.open(tmp_path / f"a.{extension}") as opened, ThreadPoolExecutor(4) as threads:
            read = list(threads.map(read_picture, [opened] * 4))
        assert all(np.array_equal(pixels(one), pixels(expected)) for one in read)


def test_an_open_file_may_be_shared_by_threads(tmp_path: Path) -> None:
    picture(600, 500).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file, ThreadPoolExecutor(4) as threads:
        read = list(threads.map(read_picture, [file] * 8))
    assert all(one == picture(600, 500) for one in read)


def test_threads_that_paint_an_opened_picture_paint_the_same(
    tiny: StyleTransferPipeline, tmp_path: Path
) -> None:
    picture(300, 300).save(tmp_path / "a.png")
    options = {"look": "sampled", "size": 32, "steps": 2}
    expected = tiny(tmp_path / "a.png", tmp_path / "a.png", **options)
    with Image.open(tmp_path / "a.png") as opened, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda seed: tiny(opened, opened, **options), range(4)))
    assert all(result == expected for result in results)


# Calls


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda paint: paint(RGB, RGB, content=RGB), "multiple values for argument 'content'"),
        (lambda paint: paint(RGB), "missing a required argument: 'style'"),
        (lambda paint: paint(RGB, RGB, RGB), "too many positional arguments"),
        (lambda paint: paint(RGB, RGB, batch_size="8"), "batch_size must be a whole number, got '8'"),
        (lambda paint: paint(RGB, RGB, batch_size=2.5), "batch_size must be a whole number, got 2.5"),
        (lambda paint: paint(RGB, RGB, batch_size=None), "batch_size must be a whole number, got None"),
        (lambda paint: paint(RGB, RGB, batch_size=True), "batch_size must be a whole number, got True"),
        (lambda paint: paint(RGB, RGB, progress="yes"), "progress must be True or False, got 'yes'"),
        (lambda paint: paint(RGB, RGB, watch=3), "watch must be a function, got 3"),
        (
            lambda paint: paint(RGB, RGB, settings={"size": 64}),
            "settings must be a Settings, got {'size': 64}",
        ),
        (lambda paint: paint(RGB, RGB, sampler=["ddim"]), "sampler ['ddim'] is not one of"),
        (lambda paint: paint({1}, RGB), "lists of them; got set"),
        (lambda paint: paint(iter([RGB]), RGB), "lists of them; got list_iterator"),
        (lambda paint: paint(RGB, StyleMix([RGB, RGB], [1e308, 1e308])), "style weights must be numbers"),
        (lambda paint: paint(RGB, StyleMix([RGB], [10**5000])), "style weights must be numbers"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_in_one_line(
    tiny: StyleTransferPipeline, call: Callable, problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        call(tiny)
    assert problem in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300
