"""ldm.media.images: whatever file a user has becomes correct RGB or one clear error, and writing is all or nothing."""

import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from pipeline_builders import picture, pixels

from ldm.errors import UserError
from ldm.media.images import (
    check_output,
    contact_sheet,
    exif_of,
    load_image,
    read_metadata,
    resize_short_side,
    save_animation,
    save_image,
    upright_size,
    with_colors_of,
    without_alpha,
)
from ldm.media.rgb import to_rgb
from ldm.media.tensors import image_to_tensor, tensor_to_image

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


# Reading


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".ppm", ".webp"])
def test_rgb_files_are_read_as_they_are(tmp_path: Path, extension: str) -> None:
    path = saved(
        picture(9, 7), tmp_path / f"a{extension}", **({"lossless": True} if extension == ".webp" else {})
    )
    image = load_image(str(path))
    assert image.mode == "RGB" and np.array_equal(pixels(image), pixels(picture(9, 7)))


@pytest.mark.parametrize("mode, colour", [("RGBA", RED), ("LA", (60,))])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str, colour: tuple, alpha: int) -> None:
    path = saved(Image.new(mode, (4, 4), (*colour, alpha)), tmp_path / "a.png")
    on_white = [round((value * alpha + 255 * (255 - alpha)) / 255) for value in (colour * 3)[:3]]
    assert np.abs(pixels(load_image(path)) - on_white).max() <= 1


@pytest.mark.parametrize("extension", [".png", ".webp", ".tif", ".avif"])
def test_transparency_is_kept_where_it_is_wanted(tmp_path: Path, extension: str) -> None:
    image = picture(24, 16)
    assert load_image(saved(image, tmp_path / f"whole{extension}"), keep_alpha=True).mode == "RGB"
    image.putalpha(Image.linear_gradient("L").resize((24, 16)))
    path = saved(image, tmp_path / f"a{extension}", **({"lossless": True} if extension == ".webp" else {}))
    read = load_image(path, keep_alpha=True)
    assert read.mode == "RGBA"
    assert np.abs(np.asarray(read.getchannel("A"), int) - np.asarray(image.getchannel("A"))).max() <= 8
    opaque = picture(24, 16)
    opaque.putalpha(255)
    assert load_image(saved(opaque, tmp_path / f"opaque{extension}"), keep_alpha=True).mode == "RGB"


def test_what_is_transparent_takes_the_mean_colour_of_what_is_not() -> None:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.paste((0, 100, 200, 0), (0, 0, 2, 2))
    image.paste((100, 0, 0, 255), (2, 0, 3, 2))
    rgb, alpha = without_alpha(image)
    assert pixels(rgb)[:, :2].reshape(-1, 3).tolist() == [[178, 0, 0]] * 4
    assert np.array_equal(np.asarray(alpha), np.asarray(image.getchannel("A")))
    assert pixels(rgb)[0, 3].tolist() == list(RED)
    assert without_alpha(picture(4, 4))[1] is None
    assert without_alpha(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))[0].getpixel((0, 0)) == (0, 0, 0)


def test_formats_without_transparency_get_it_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (*RED, 0))
    for extension in (".jpg", ".bmp", ".ppm"):
        save_image(image, tmp_path / f"a{extension}")
        assert np.abs(pixels(load_image(tmp_path / f"a{extension}")).astype(int) - 255).max() <= 1
    save_image(image, tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", keep_alpha=True).mode == "RGBA"


# Colours, and what cameras write


def rgb_profile(gamma: float) -> bytes:
    """An ICC profile of sRGB's primaries and a tone curve of this gamma."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    text = b"A gamma of its own\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": description,
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"cprt": b"text" + bytes(4) + b"none\0",
    }
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", place + len(data), len(value))
        data += value
    size = place + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_by_the_profile_that_comes_with_them(tmp_path: Path, mode: str) -> None:
    grey = Image.new("RGB", (8, 8), (128, 128, 128)).convert(mode)
    linear = load_image(saved(grey, tmp_path / "a.png", icc_profile=rgb_profile(1.0)))
    # light of a half is 188 in sRGB
    assert np.abs(pixels(linear).astype(int) - 188).max() <= 1
    for profile in (None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"nonsense"):
        same = load_image(saved(grey, tmp_path / "b.png", icc_profile=profile))
        assert (pixels(same) == 128).all()


def exif() -> Image.Exif:
    """As a phone writes it: to be turned, camera, size, exposure and place."""
    data = Image.Exif()
    data[ExifTags.Base.Orientation], data[ExifTags.Base.Make] = 6, "A camera"
    data[ExifTags.Base.ImageWidth], data[ExifTags.Base.ImageLength] = 24, 16
    data[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.5, ExifTags.Base.ExifImageWidth: 24}
    data[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitude: (48.0, 8.0, 30.0)}
    return data


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_what_the_camera_wrote_can_be_kept_but_for_what_was_its_files_own(
    tmp_path: Path, source: str, extension: str
) -> None:
    photo = saved(picture(24, 16), tmp_path / f"photo{source}", exif=exif().tobytes())
    upright = load_image(photo)
    assert upright.size == upright_size(photo) == (16, 24)
    save_image(upright, tmp_path / f"a{extension}", {"artfusion": "x"}, exif_of(photo))
    with Image.open(tmp_path / f"a{extension}") as result:
        kept = result.getexif()
        assert kept[ExifTags.Base.Make] == "A camera" and kept.get(ExifTags.Base.Orientation, 1) == 1
        assert float(kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime]) == 0.5
        assert ExifTags.Base.ExifImageWidth not in kept.get_ifd(ExifTags.IFD.Exif)
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (48.0, 8.0, 30.0)
        assert kept.get(ExifTags.Base.ImageWidth, 16) == 16
    read = load_image(tmp_path / f"a{extension}")
    assert read.size == (16, 24) and np.abs(pixels(read).astype(int) - pixels(upright)).mean() < 40


def test_text_of_any_script_is_kept_as_it_was_written(tmp_path: Path) -> None:
    data = Image.Exif()
    data[ExifTags.Base.Copyright] = "© Jürgen 写真".encode()
    photo = saved(picture(24, 16), tmp_path / "a.jpg", exif=data.tobytes())
    save_image(picture(24, 16), tmp_path / "b.jpg", exif=exif_of(photo))
    with Image.open(tmp_path / "b.jpg") as result:
        assert result.getexif()[ExifTags.Base.Copyright].encode("latin-1").decode() == "© Jürgen 写真"


def test_a_picture_without_such_data_has_none_to_keep(tmp_path: Path) -> None:
    assert exif_of(saved(picture(8, 8), tmp_path / "a.png")) is None
    (tmp_path / "text.jpg").write_text("no picture")
    for path in (tmp_path / "text.jpg", tmp_path / "missing.jpg"):
        with pytest.raises(UserError, match="not a picture|no such file"):
            exif_of(path)


def test_what_cannot_be_kept_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = exif()
    data[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b"x" * 70_000}
    photo = saved(picture(24, 16), tmp_path / "a.png", exif=data)
    assert exif_of(photo) is None and "a.png: its EXIF data cannot be kept (70" in caplog.text
    assert load_image(photo).size == (16, 24)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40)])
def test_a_turn_that_cannot_be_understood_is_none(tmp_path: Path, exif: bytes) -> None:
    photo = saved(picture(24, 16), tmp_path / "a.jpg", exif=exif)
    assert load_image(photo).size == upright_size(photo) == (24, 16)
    exif_of(photo)  # None, or what can be kept


def test_broken_data_beside_a_turn_do_not_keep_a_picture_from_standing_upright(tmp_path: Path) -> None:
    make, width = b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02"  # the name of a camera as a number of pixels
    data = exif().tobytes().replace(make, width)
    photo = saved(picture(24, 16), tmp_path / "a.jpg", exif=data)
    assert width in data and load_image(photo).size == upright_size(photo) == (16, 24)


def test_what_iphones_write_is_read_where_there_is_a_package_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    path = saved(picture(64, 48), tmp_path / "a.heic", quality=95)
    named_wrongly = Path(shutil.copy(path, tmp_path / "a.jpg"))
    for source in (path, named_wrongly):
        assert np.abs(pixels(load_image(source)).astype(int) - pixels(picture(64, 48))).mean() < 25
    with path.open("rb") as file:
        assert load_image(file).size == upright_size(path) == (64, 48)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for source in (path, named_wrongly):
        with pytest.raises(UserError, match=r"HEIC pictures need pip install 'artfusion\[heic\]'"):
            load_image(source)


def test_a_picture_that_is_not_of_the_size_that_its_head_states_is_refused(tmp_path: Path) -> None:
    """A HEIC file that is to be cropped to more than there is."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = saved(picture(64, 48), tmp_path / "a.heic")
    content = path.read_bytes()
    assert content.count(b"clap" + struct.pack(">I", 64)) == 1
    path.write_bytes(content.replace(b"clap" + struct.pack(">I", 64), b"clap" + struct.pack(">I", 320)))
    with pytest.raises(UserError, match="a.heic: the picture is broken: it is not of the size that its head"):
        load_image(path)


def test_a_palettes_transparent_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "a.png", transparency=0)
    assert pixels(load_image(path)).tolist() == [[list(WHITE), [0, 0, 255]]]


def test_rgb_with_a_transparent_colour_becomes_white_there(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (1, 2, 3))
    path = saved(image, tmp_path / "a.png", transparency=RED)
    assert pixels(load_image(path)).tolist() == [[list(WHITE), [1, 2, 3]]]


@pytest.mark.parametrize("mode, value, expected", [("L", 77, 77), ("1", 1, 255), ("P", 0, 0)])
def test_grey_modes_become_equal_channels(tmp_path: Path, mode: str, value: int, expected: int) -> None:
    path = saved(Image.new(mode, (3, 2), value), tmp_path / "a.png")
    assert load_image(path).mode == "RGB" and np.unique(pixels(load_image(path))).tolist() == [expected]


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(grey), tmp_path / f"a{extension}")
    assert pixels(load_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colours_are_scaled_not_clipped(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    # two pixels, which Pillow cannot write
    values = np.array([0, 257, 32896, 65535, 12850, 257], dtype=">u2")
    header = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert pixels(load_image(tmp_path / "a.png")).tolist() == [[[0, 1, 128], [255, 50, 1]]]


def test_float_grey_from_0_to_1_is_scaled(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), tmp_path / "a.tif")
    assert pixels(load_image(path))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([-0.01, 0.5, 1.2], [0, 128, 255]),  # highlights, and what a filter undershoots
        ([0.0, 0.001, 0.01], [0, 0, 3]),
        ([0, 127.5, 300], [0, 128, 255]),
        ([0, 20, 20], [0, 20, 20]),
        ([0, 32896, 70_000], [0, 128, 255]),
    ],
)
def test_floats_are_on_the_scale_that_their_maximum_fits(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    path = saved(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "a.tif")
    assert pixels(load_image(path))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "values, problem",
    [
        ([0, 0.5, float("nan")], "not all of its numbers are finite"),
        ([0, float("inf"), 1], "not all of its numbers are finite"),
        ([0, 1, 5], "from 0 to 5, are on none of the scales 0 to 1, 0 to 255 and 0 to 65535"),
        ([0, 1000, 3000], "on none of the scales"),
        ([0, 1, 1e6], "on none of the scales"),
        ([-1, 0, 1], "from -1 to 1, are on none of the scales"),
    ],
)
def test_floats_on_no_scale_are_refused_not_guessed(
    tmp_path: Path, values: list[float], problem: str
) -> None:
    path = saved(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "a.tif")
    with pytest.raises(UserError, match=problem) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values, expected", [([0, 128, 255], [0, 128, 255]), ([0, 32896, 65535], [0, 128, 255])]
)
def test_whole_numbers_of_32_bits_are_of_8_or_16(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    path = saved(Image.fromarray(np.array([values], dtype=np.int32)), tmp_path / "a.tif")
    assert pixels(load_image(path))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[0, 1, 65536], [-1, 0, 1]])
def test_whole_numbers_of_more_than_16_bits_are_refused(tmp_path: Path, values: list[int]) -> None:
    path = saved(Image.fromarray(np.array([values], dtype=np.int32)), tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif: grey numbers .* are more than 16 bits"):
        load_image(path)


def test_a_dark_picture_of_16_bits_stays_dark_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 255], dtype=">u2").tobytes())
    assert pixels(load_image(tmp_path / "a.ppm"))[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "F", "LA"])
def test_a_picture_of_many_strips_is_read_as_one(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = picture(23, 17)
    if mode in ("I;16", "F"):
        image = Image.fromarray(np.asarray(image.convert("L")).astype({"F": np.float32}.get(mode, np.uint16)))
    else:
        image = image.convert(mode)
    image.info["icc_profile"] = rgb_profile(1.0)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    whole = [to_rgb(image, keep_alpha) for keep_alpha in (False, True)]
    monkeypatch.setattr("ldm.media.rgb.STRIP_PIXELS", 50)
    for keep_alpha in (False, True):
        assert to_rgb(image, keep_alpha).mode == ("RGBA" if keep_alpha and "A" in mode else "RGB")
        assert np.array_equal(pixels(to_rgb(image, keep_alpha)), pixels(whole[keep_alpha]))


@pytest.mark.parametrize("colour", [WHITE, BLACK, RED])
def test_cmyk_jpegs_have_the_right_colours(tmp_path: Path, colour: tuple) -> None:
    path = saved(Image.new("RGB", (16, 16), colour).convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert np.abs(pixels(load_image(path)) - colour).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_by_their_exif_tag(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (20, 10), BLACK)
    upright.paste(RED, (0, 0, 5, 5))  # no two of the eight positions look alike
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Pillow operation that each tag's own undoes
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(load_image(path)), pixels(upright))


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLACK)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(load_image(tmp_path / "a.gif"))[0, 0].tolist() == list(RED)


def test_a_draft_is_smaller_but_no_side_is_below_the_size_asked(tmp_path: Path) -> None:
    path = saved(picture(640, 480), tmp_path / "a.jpg")
    assert load_image(path, draft_size=100).size == (160, 120)
    assert load_image(path, draft_size=481).size == (640, 480)


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    saved(picture(8, 8), tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(pixels(load_image(tmp_path / "a.jpg")), pixels(picture(8, 8)))


def test_modes_without_a_file_format_are_converted() -> None:
    assert to_rgb(picture(4, 4).convert("HSV")).mode == "RGB"
    assert np.abs(pixels(to_rgb(picture(4, 4).convert("YCbCr"))) - pixels(picture(4, 4))).max() <= 3


# What cannot be read


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("missing.png", None, "no such file"),
        ("x" * 300 + ".png", None, "no such file"),
        ("empty.png", b"", r"empty \(0 bytes\)"),
        ("text.jpg", b"Dear diary, today I was renamed.\n" * 9, "not a picture"),
        ("page.png", b"<!DOCTYPE html><html><body>404</body></html>", "not a picture"),
        ("head.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "picture"),
        ("zeros.png", bytes(500), "not a picture"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, extension: str, share: float) -> None:
    path = saved(picture(64, 64), tmp_path / f"a{extension}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="broken or cut short|not a picture"):
        load_image(path)


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff's own words can be turned off on Linux")
def test_a_broken_tiff_is_an_error_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = saved(picture(64, 64), tmp_path / "a.tif", compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.tif: the picture is broken"):
        load_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)


def test_too_many_pixels_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Image.new("1", (400, 300)), tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="400x300 pixels are more than the limit of 100000"):
        load_image(path, max_pixels=100_000)


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, size: tuple
) -> None:
    path = saved(Image.new("L", (8, 8)), tmp_path / "bomb.png")
    data = bytearray(path.read_bytes())
    data[16:24] = b"".join(side.to_bytes(4, "big") for side in size)  # the header's width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UserError, match="pixels"):
        load_image(path)
    assert not recwarn.list


PEAK = """
import sys
from ldm.media.images import load_image

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])

load_image(sys.argv[1])
before = peak()
width, height = load_image(sys.argv[2], keep_alpha=True).size
print((peak() - before) / (width * height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory as Linux counts them")
@pytest.mark.parametrize(
    "mode, extension, most",
    [("F", "tif", 12), ("I;16", "png", 12), ("RGBA", "png", 12), ("RGBA", "webp", 20)],
)
def test_reading_takes_so_many_bytes_a_pixel_at_most(
    tmp_path: Path, mode: str, extension: str, most: int
) -> None:
    small, large = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    for side, path in ((64, small), (3000, large)):
        ramp = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
        if mode == "RGBA":
            image = Image.fromarray((255 * ramp).astype(np.uint8)).convert("RGBA")
            image.putpixel((0, 0), (0, 0, 0, 0))
        else:
            image = Image.fromarray(ramp if mode == "F" else (65535 * ramp).astype(np.uint16))
        image.save(path)
    taken = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), str(large)], capture_output=True, text=True, check=True
    )
    assert float(taken.stdout) < most


def test_what_would_take_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(picture(100, 100), tmp_path / "a.jp2")
    monkeypatch.setattr("ldm.media.images.MAX_BYTES", 239_999)
    with pytest.raises(UserError, match="a.jp2: 100x100 pixels are more than the limit of 9999"):
        load_image(path)
    assert load_image(saved(picture(100, 100), tmp_path / "a.png")).size == (100, 100)


# Warnings


class Watched(io.BytesIO):
    """A file that calls something whenever it is read."""

    def __init__(self, content: bytes, called: Callable[[], object]):
        super().__init__(content)
        self.called, self.name = called, "watched.png"

    def read(self, size: int | None = -1) -> bytes:
        self.called()
        return super().read(size)


def a_warning_of_pillow_is_heard() -> bool:
    """Whether the application, in which warnings are errors, would hear of one now."""
    try:
        warnings.warn_explicit("heard", UserWarning, "PIL/TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
    except UserWarning:
        return True
    return False


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    picture(8, 8).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_pillow_warns_of_is_unheard_in_the_thread_that_reads_alone() -> None:
    heard: dict[str, set[bool]] = {"here": set(), "elsewhere": set()}

    def listen() -> None:
        heard["here"].add(a_warning_of_pillow_is_heard())
        with ThreadPoolExecutor(1) as other:
            heard["elsewhere"].add(other.submit(a_warning_of_pillow_is_heard).result())

    load_image(Watched(png_bytes(), listen))
    assert heard == {"here": {False}, "elsewhere": {True}}


def test_threads_that_read_at_a_time_leave_the_filters_of_warnings_as_they_were() -> None:
    begun, go_on = Event(), Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(10)

    def second_begins_first_ends() -> None:
        if not go_on.is_set():
            go_on.set()
            first.result(10)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(load_image, Watched(png_bytes(), wait))
        assert begun.wait(10)
        load_image(Watched(png_bytes(), second_begins_first_ends))
    assert a_warning_of_pillow_is_heard()


# Tensors


def test_pictures_survive_the_way_to_tensors_and_back() -> None:
    every_value = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    tensor = image_to_tensor(every_value)
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    assert np.array_equal(pixels(tensor_to_image(tensor)), pixels(every_value))


def test_tensors_span_minus_1_to_1_channels_first() -> None:
    tensor = image_to_tensor(Image.new("RGB", (4, 2), RED))
    assert tensor[0].eq(1).all() and tensor[1:].eq(-1).all() and tensor.shape == (3, 2, 4)


def test_values_beyond_the_range_are_clipped() -> None:
    image = tensor_to_image(torch.tensor([-7.0, 0.0, 7.0])[:, None, None])
    assert image.getpixel((0, 0)) == (0, 128, 255)


def test_a_tensor_is_not_written_into() -> None:
    tensor = torch.full((3, 2, 2), 9.0)
    tensor_to_image(tensor)
    assert tensor.eq(9.0).all()


# Sizes


@pytest.mark.parametrize(
    "size, expected",
    [
        ((100, 50), (64, 32)),
        ((50, 100), (32, 64)),
        ((33, 32), (33, 32)),
        ((10, 7), (46, 32)),
        ((1, 1), (32, 32)),
    ],
)
def test_the_shorter_side_is_scaled_and_the_aspect_kept(size: tuple, expected: tuple) -> None:
    assert resize_short_side(Image.new("RGB", size), 32).size == expected


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    image = picture(40, 32)
    assert resize_short_side(image, 32) is image


# Writing


@pytest.mark.parametrize("extension", [".png", ".jpg", ".JPEG", ".webp", ".tiff", ".bmp"])
def test_the_extension_decides_the_format(tmp_path: Path, extension: str) -> None:
    path = tmp_path / "new" / "folder" / f"a{extension}"
    save_image(picture(12, 8), path)
    with Image.open(path) as image:
        assert image.size == (12, 8) and extension.lower() in {
            e for e, f in Image.EXTENSION.items() if f == image.format
        }


def test_metadata_is_kept_in_png(tmp_path: Path) -> None:
    save_image(picture(8, 8), tmp_path / "a.png", {"seed": "3", "style": "Mäda ☂"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"seed": "3", "style": "Mäda ☂"}


def test_metadata_is_read_back(tmp_path: Path) -> None:
    save_image(picture(8, 8), tmp_path / "a.png", {"seed": "3", "style": "Mäda ☂"})
    assert read_metadata(tmp_path / "a.png") == {"seed": "3", "style": "Mäda ☂"}


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_without_metadata_has_none(tmp_path: Path, content: bytes | None) -> None:
    picture(8, 8).save(tmp_path / "a.png") if content is None else (tmp_path / "a.png").write_bytes(content)
    assert read_metadata(tmp_path / "a.png") == {}


def test_a_file_that_is_not_there_has_no_metadata(tmp_path: Path) -> None:
    assert read_metadata(tmp_path / "a.png") == {}


def test_the_metadata_of_a_decompression_bomb_are_none_without_a_warning(tmp_path: Path) -> None:
    data = bytearray(saved(Image.new("L", (8, 8)), tmp_path / "bomb.png").read_bytes())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(data)
    assert read_metadata(tmp_path / "bomb.png") == {}


def test_other_formats_ignore_metadata(tmp_path: Path) -> None:
    save_image(picture(8, 8), tmp_path / "a.jpg", {"seed": "3"})
    assert load_image(tmp_path / "a.jpg").size == (8, 8)


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    save_image(picture(8, 8), tmp_path / "a.png")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failing_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write = Path.write_bytes
    write(tmp_path / "a.png", b"the old picture")

    def half(self: Path, content: bytes) -> None:
        write(self, b"half a pic")
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        save_image(picture(8, 8), tmp_path / "a.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"the old picture"}


def test_what_a_format_cannot_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image, file: object, **options: object) -> None:
        raise ValueError("cannot hold it")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(UserError, match="a.png: could not be written .cannot hold it"):
        save_image(picture(8, 8), tmp_path / "a.png")


def test_a_folder_that_refuses_new_files_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match="could not be written .*Permission denied"):
        save_image(picture(8, 8), tmp_path / "a.png")


@pytest.mark.parametrize(
    "name, problem",
    [("", "is a folder"), ("a", "format ''"), ("a.txt", "format '.txt'"), ("a.pdf", "format '.pdf'")],
)
def test_an_output_must_be_a_picture_files_name(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_output(tmp_path / name)


@pytest.mark.parametrize("name", ["file/a.png", "file/deeper/a.png"])
def test_an_output_below_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_output(tmp_path / name)


def test_an_output_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="no permission"):
        check_output(tmp_path / "a.png")


def test_checking_an_output_makes_nothing(tmp_path: Path) -> None:
    assert check_output(str(tmp_path / "new" / "a.png")) == tmp_path / "new" / "a.png"
    assert not list(tmp_path.iterdir())


# Animations


def test_an_animation_shows_its_frames_for_their_time_and_repeats(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLACK, WHITE)]
    save_animation(frames, tmp_path / "new" / "a.gif", 120)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (3, 0, (8, 6))
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info["duration"] == 120 and np.array_equal(pixels(gif), pixels(frame))


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failing_animation_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    (tmp_path / "a.gif").write_bytes(b"the old one")

    def half(self: Image.Image, name: str, **options) -> None:
        Path(name).write_bytes(b"half a pic")
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        save_animation([picture(8, 8)] * 2, tmp_path / "a.gif", 100)
    assert (tmp_path / "a.gif").read_bytes() == b"the old one" and os.listdir(tmp_path) == ["a.gif"]


# Colours


def test_colours_come_from_one_picture_and_brightness_from_the_other() -> None:
    colours, brightness = picture(24, 16, 1), picture(24, 16, 2)
    got, (y, *_), (_, cb, cr) = (
        with_colors_of(colours, brightness),
        brightness.convert("YCbCr").split(),
        colours.convert("YCbCr").split(),
    )
    assert np.array_equal(pixels(got), pixels(Image.merge("YCbCr", (y, cb, cr))))


def test_a_grey_pictures_colours_are_none() -> None:
    grey = with_colors_of(Image.new("RGB", (24, 16), (90, 90, 90)), picture(24, 16))
    assert np.ptp(pixels(grey), axis=2).max() <= 2
    assert np.abs(pixels(grey.convert("L")) - pixels(picture(24, 16).convert("L"))).max() <= 2


def test_a_pictures_own_colours_leave_it_as_it_is() -> None:
    assert (
        np.abs(pixels(with_colors_of(picture(24, 16), picture(24, 16))) - pixels(picture(24, 16))).max() <= 3
    )


# Contact sheets


def test_a_contact_sheet_has_a_cell_for_every_picture() -> None:
    sheet = contact_sheet(
        [[None, Image.new("RGB", (9, 9), RED)], [Image.new("RGB", (9, 9), BLACK), None]], cell=20, gap=2
    )
    assert sheet.size == (2 * 22 + 2, 2 * 22 + 2)
    centres = [sheet.getpixel((x, y)) for y in (12, 34) for x in (12, 34)]
    assert centres == [WHITE, RED, BLACK, WHITE]


def test_pictures_fit_their_cell_centred_with_their_aspect() -> None:
    sheet = contact_sheet([[Image.new("RGB", (40, 20), RED)]], cell=20, gap=3)
    red = np.argwhere((pixels(sheet) == RED).all(axis=2))
    assert red.min(axis=0).tolist() == [3 + 5, 3] and red.max(axis=0).tolist() == [3 + 14, 3 + 19]


def test_cells_may_be_wider_than_high() -> None:
    sheet = contact_sheet(
        [[Image.new("RGB", (40, 20), RED), Image.new("RGB", (20, 40), BLACK)]], cell=(20, 10), gap=2
    )
    assert sheet.size == (2 * 22 + 2, 12 + 2)
    for colour, left, width in ((RED, 2, 20), (BLACK, 24 + 7, 5)):
        rows, columns = np.nonzero((pixels(sheet) == colour).all(axis=2))
        assert [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1] == [left, left + width, 2, 12]


def test_rows_of_a_contact_sheet_may_differ_in_length() -> None:
    sheet = contact_sheet([[picture(9, 9)], [picture(9, 9)] * 3], cell=10, gap=1)
    assert sheet.size == (34, 23) and np.all(pixels(sheet)[:12, 12:] == 255)
