"""Damaged picture files of every format: the picture that the file states, or one line, without a word beside."""

import io
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from pipeline_builders import picture

from ldm.errors import UserError
from ldm.media.images import MAX_BYTES, exif_of, load_image, read_metadata, upright_size

pytestmark = pytest.mark.fuzz

SIZE = (23, 17)
DEEP = (np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])).astype(np.uint16)


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    """To be turned, with what cameras write."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "A camera"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.5}
    return exif


RGB, RGBA = picture(*SIZE), picture(*SIZE).convert("RGBA")
RGBA.putalpha(Image.linear_gradient("L").resize(SIZE))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
FILES = {
    "JPEG": file_of(RGB, "JPEG", exif=turned().tobytes(), icc_profile=PROFILE),
    "JPEG progressive": file_of(RGB, "JPEG", progressive=True),
    "JPEG CMYK": file_of(RGB.convert("CMYK"), "JPEG"),
    "PNG": file_of(RGBA, "PNG", exif=turned().tobytes(), icc_profile=PROFILE),
    "PNG palette": file_of(RGB.convert("P"), "PNG", transparency=3),
    "PNG 16 bit": file_of(Image.fromarray(DEEP), "PNG"),
    "WEBP": file_of(RGBA, "WEBP", exif=turned().tobytes()),
    "WEBP lossless": file_of(RGB, "WEBP", lossless=True),
    "WEBP animated": file_of(RGB, "WEBP", save_all=True, append_images=[RGBA]),
    "TIFF": file_of(RGB, "TIFF", exif=turned().tobytes()),
    "TIFF packed": file_of(RGBA, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF LZW": file_of(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": file_of(RGB, "TIFF", compression="jpeg"),
    "TIFF fax": file_of(RGB.convert("1"), "TIFF", compression="group4"),
    "TIFF floats": file_of(Image.fromarray(DEEP.astype(np.float32) / 65535), "TIFF"),
    "TIFF 16 bit": file_of(Image.fromarray(DEEP), "TIFF"),
    "GIF": file_of(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "BMP": file_of(RGB, "BMP"),
    "BMP palette": file_of(RGB.convert("P"), "BMP"),
    "PPM": file_of(RGB, "PPM"),
    "JPEG2000": file_of(RGBA, "JPEG2000"),
    "AVIF": file_of(RGBA, "AVIF", exif=turned().tobytes()),
    "AVIF animated": file_of(RGB, "AVIF", save_all=True, append_images=[RGB.rotate(180)]),
}


def of_phones() -> dict[str, bytes]:
    """What iPhones write; nothing without the package for it."""
    try:
        import pillow_heif
    except ImportError:
        return {}
    pillow_heif.register_heif_opener()
    deep = pillow_heif.from_bytes("RGB;16", SIZE, np.repeat(DEEP[..., None], 3, axis=2).tobytes())
    buffer = io.BytesIO()
    deep.save(buffer)
    several = file_of(RGB, "HEIF", save_all=True, append_images=[RGB.rotate(180)])
    return {
        "HEIC": file_of(RGBA, "HEIF", exif=turned().tobytes(), icc_profile=PROFILE),
        "HEIC lossless": file_of(RGB, "HEIF", quality=-1, chroma="444"),
        "HEIC of several": several,
        "HEIC 10 bit": buffer.getvalue(),
    }


FILES |= of_phones()


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes of it others, most of them in its head."""
    damaged = bytearray(content or b"?")
    places = st.one_of(st.integers(0, min(120, len(damaged) - 1)), st.integers(0, len(damaged) - 1))
    for place in draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] = draw(st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255)))
    return bytes(damaged)


@st.composite
def moved(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, doubled, a part of it gone, repeated or elsewhere, or spliced with a file of another kind."""
    first, second = sorted(draw(st.lists(st.integers(0, len(content)), min_size=2, max_size=2)))
    other = draw(st.sampled_from(sorted(FILES)))
    return draw(
        st.sampled_from(
            [
                content[:second],
                content + content,
                content[:first] + content[second:],
                content[:second] + content[first:],
                content[:first] + content[first:second][::-1] + content[second:],
                content[:first] + FILES[other][first:],
                content[:second] + FILES[other],
            ]
        )
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(flipped(content), moved(content), moved(content).flatmap(flipped))


def in_one_line(read: Callable[[], object]) -> object:
    """What it gives; None where that is a UserError of one line, which names the file."""
    try:
        return read()
    except UserError as error:
        assert str(error).isprintable() and "a.bin: " in str(error) and len(str(error)) < 500, error
        return None


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@examples(60)
def test_a_damaged_file_is_the_picture_that_it_states_or_one_line(
    kind: str,
    data: st.DataObject,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data.draw(damaged(FILES[kind])))
    keep_alpha = data.draw(st.booleans())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        image = in_one_line(lambda: load_image(path, max_pixels=10**6, keep_alpha=keep_alpha))
        stated = in_one_line(lambda: upright_size(path))
        in_one_line(lambda: exif_of(path))
        assert isinstance(read_metadata(path), dict)
    if image is not None:
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB" or (keep_alpha and image.mode == "RGBA")
        assert image.size == stated and np.asarray(image).shape[:2] == image.size[::-1]
    assert not heard, [str(one.message) for one in heard]
    assert capfd.readouterr() == ("", "")
    assert all("\n" not in record.getMessage() for record in caplog.records)


@given(st.binary(max_size=200), st.sampled_from(sorted(FILES)))
@examples(200)
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(FILES[kind][:12] + content)
    in_one_line(lambda: load_image(path, max_pixels=10**6))


BOUNDED = """
import sys
from pathlib import Path
from ldm.errors import UserError
from ldm.media.images import load_image

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])

before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_image(path)
    except UserError:
        pass
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory as Linux counts them")
def test_damaged_files_take_no_more_memory_than_whole_ones_may(tmp_path: Path) -> None:
    rng = random.Random(0)
    for kind, content in FILES.items():
        for number in range(8):
            bytes_of = bytearray(content)
            for _ in range(rng.randint(1, 4)):  # sizes are told in the head
                bytes_of[rng.randrange(min(80, len(content)))] = rng.choice([1, 15, 64, 255])
            (tmp_path / f"{kind} {number}").write_bytes(bytes_of)
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) < MAX_BYTES
