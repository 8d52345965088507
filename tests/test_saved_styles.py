"""Styles in files: what is kept, where they go, the library that comes along."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_builders import safetensors_bytes
from PIL import Image
from pipeline_builders import (
    SMALL,
    assert_refused,
    everything_in,
    largest_difference,
    mean_difference,
    picture,
    run_program,
    script,
)
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from ldm.cli import samples, save_style, styles
from ldm.errors import UserError
from ldm.files import ROOT
from ldm.media.images import load_image, save_image
from ldm.media.saved_styles import SavedStyle, load_style, load_thumbnail
from ldm.media.saved_styles import save_style as save
from ldm.pipeline.inputs import PictureReader, StyleMix, StyleRegions, read_style, shown
from ldm.pipeline.library import library
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.web.orders import STYLE_KEY, painting_of

Program = Callable[..., int]


def plain(red: int, green: int, blue: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, (red, green, blue))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a photo, two paintings, a saved style of both."""
    (tmp_path / "paintings").mkdir()
    picture(48, 32, seed=5).save(tmp_path / "photo.png")
    plain(200, 30, 30).save(tmp_path / "paintings/red.png")
    picture(40, 50, seed=1).save(tmp_path / "paintings/rough.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def saver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return lambda *given: run_program(save_style.main, given, monkeypatch)


@pytest.fixture
def painter(folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    main = script("stylize").main
    return lambda *given: run_program(main, [*model_files, *SMALL, *given], monkeypatch)


# The file


def test_a_style_is_kept_with_its_weights_names_note_and_thumbnail(saver: Program, folder: Path) -> None:
    note = "by Ann; yours to keep"
    pictures = ["paintings/red.png", "paintings/rough.png"]
    assert saver("my.safetensors", *pictures, "--weights", "3", "1", "--note", note) == 0
    style = load_style("my.safetensors")
    assert (list(style.weights), list(style.names), style.note) == (
        [0.75, 0.25],
        ["red.png", "rough.png"],
        note,
    )
    assert [each.size for each in style.pictures] == [(40, 40), (40, 50)]
    assert mean_difference(style.pictures[0], plain(200, 30, 30)) < 3
    thumbnail, told = load_thumbnail("my.safetensors")
    assert told == note and thumbnail.size == (256, 256)
    assert mean_difference(thumbnail, plain(200, 30, 30, (256, 256)), slice(0, 120)) < 3


def test_large_pictures_are_made_smaller_and_a_folder_is_a_style(saver: Program, folder: Path) -> None:
    picture(300, 200, seed=2).save("paintings/large.png")
    assert saver("my.safetensors", "paintings", "--size", "64") == 0
    style = load_style("my.safetensors")
    assert sorted(style.names) == ["large.png", "red.png", "rough.png"]
    assert max(min(each.size) for each in style.pictures) == 64 and list(style.weights) == [1 / 3] * 3


def test_styles_may_be_made_of_styles(saver: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert saver("one.safetensors", "paintings", "--note", "by Ann") == 0
    assert saver("two.safetensors", "one.safetensors", "photo.png", "--weights", "1", "3") == 0
    style = load_style("two.safetensors")
    assert list(style.weights) == [0.125, 0.125, 0.75] and style.names[-1] == "photo.png"
    assert style.note == "by Ann" and "3 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, problem",
    [
        (["my.jpg", "photo.png"], "names end with .safetensors"),
        (["paintings", "photo.png"], "is a folder"),
        (["my.safetensors", "none.png"], "none.png: no such file or folder"),
        (["my.safetensors", "photo.png", "--weights", "1", "2"], "2 style weights for 1 styles"),
        (["my.safetensors", "photo.png", "--size", "3"], "--size"),
        (["there.safetensors", "photo.png"], "is there already"),
        (["there.safetensors", "there.safetensors", "--overwrite"], "would be lost"),
        (["my.safetensors", "text.png"], "text.png: not a picture"),
        (["my.safetensors", "nothing.png"], "nothing.png: all of it is transparent"),
        (["my.safetensors", "model.safetensors"], "is no saved style"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(
    saver: Program, folder: Path, given: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SavedStyle([plain(1, 2, 3)], [1.0], ["a"]), Path("there.safetensors"))
    Path("text.png").write_text("no picture")
    Image.new("RGBA", (40, 40)).save("nothing.png")
    save_tensors({"w": torch.zeros(2)}, "model.safetensors")
    before = everything_in(folder)
    assert_refused(saver(*given), capsys.readouterr(), problem)
    assert everything_in(folder) == before


def test_broken_files_are_told_in_one_line(folder: Path) -> None:
    whole = SavedStyle([plain(1, 2, 3), plain(4, 5, 6)], [0.5, 0.5], ["a", "b"])
    save(whole, Path("whole.safetensors"))
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-200])
    Path("empty.safetensors").touch()
    metadata = {"format": "artfusion style 1", "names": '["a"]', "weights": "[1.0]", "note": ""}
    save_file({"picture.0": np.zeros(30, np.uint8)}, "noise.safetensors", metadata)
    save_file({"picture.0": np.zeros(3, np.uint8)}, "weights.safetensors", {**metadata, "weights": "[NaN]"})
    save_file({"picture.0": np.zeros(3, np.uint8)}, "words.safetensors", {**metadata, "names": "{"})
    save_file({}, "nothing.safetensors", {**metadata, "names": "[]", "weights": "[]"})
    save_file({"picture.\x1b[2J": np.zeros(3, np.uint8)}, "names.safetensors", metadata)
    Path("page.safetensors").write_text("<!doctype html><title>Sign in</title>")
    for name, problem in {
        "cut": "cut short: it should have",
        "empty": "the file is empty",
        "words": "the style is broken",
        "nothing": "the style is broken",
        "names": r"has the name picture.\?\[2J",
        "page": "a web page saved under a checkpoint's name",
        "noise": "not a picture",
        "weights": "the style is broken",
        "none": "no such file",
    }.items():
        with pytest.raises(UserError, match=problem):
            load_style(f"{name}.safetensors")


def test_no_flipped_bit_goes_unnoticed(folder: Path) -> None:
    save(SavedStyle([picture(40, 40)], [1.0], ["a"], "by Ann"), Path("whole.safetensors"))
    content = Path("whole.safetensors").read_bytes()
    for place in (content.index(b"by Ann"), len(content) // 2, len(content) - 9):
        damaged = bytearray(content)
        damaged[place] ^= 1
        Path("damaged.safetensors").write_bytes(damaged)
        for load in (load_style, load_thumbnail):
            with pytest.raises(UserError, match="damaged.safetensors .*its own hash was made of"):
                load("damaged.safetensors")


def test_a_style_that_says_its_hash_is_a_number_is_refused(folder: Path) -> None:
    header = {"__metadata__": {"format": "artfusion style 1", "sha256": 1}}
    Path("a.safetensors").write_bytes(safetensors_bytes(header, b""))
    with pytest.raises(UserError, match="damaged"):
        load_style("a.safetensors")


def test_a_note_does_nothing_to_a_terminal(
    folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SavedStyle([plain(1, 2, 3)], [1.0], ["a"], "by \x1b[2J Ann\nerror: none"), Path("a.safetensors"))
    assert run_program(styles.main, ["a.safetensors", "--output", "sheet.png"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a  by ?[2J Ann?error: none"


# Wherever a style goes


def test_it_paints_as_the_mix_of_its_pictures(folder: Path, tiny: StyleTransferPipeline) -> None:
    pictures = [load_image(path) for path in ("paintings/red.png", "paintings/rough.png")]
    save(SavedStyle(pictures, [0.75, 0.25], ["a", "b"]), Path("my.safetensors"))
    kept = load_style("my.safetensors").pictures  # as WebP has them
    expected = tiny("photo.png", StyleMix(kept, [3, 1]), steps=2, look="sampled", size=32)
    for style in ("my.safetensors", Path("my.safetensors"), StyleMix(["my.safetensors"])):
        assert largest_difference(tiny("photo.png", style, steps=2, look="sampled", size=32), expected) == 0
    half = picture(48, 32, seed=9).convert("L").point(lambda value: 255 * (value > 100))
    regions = [
        tiny("photo.png", StyleRegions([style, pictures[0]], [half]), steps=2, look="sampled", size=32)
        for style in ("my.safetensors", StyleMix(kept, [3, 1]))
    ]
    assert largest_difference(*regions) == 0


def test_mixes_of_mixes_share_their_shares() -> None:
    a, b, c = (plain(i, i, i) for i in (1, 2, 3))
    read = PictureReader().style(StyleMix([StyleMix([a, b], [1, 3]), c], [1, 1]))
    assert [share for _, share in read.regions[0]] == [0.125, 0.375, 0.5]
    assert [image.getpixel((0, 0))[0] for image, _ in read.regions[0]] == [1, 2, 3]


def test_the_command_takes_saved_styles_beside_pictures_and_a_folder_as_one(
    saver: Program, painter: Program
) -> None:
    assert saver("styles/both.safetensors", "paintings") == 0
    picture(40, 40, seed=3).save("styles/other.png")
    assert painter("--content", "photo.png", "--style", "styles", "--output", "out/") == 0
    assert {path.name for path in Path("out").iterdir()} == {"photo__both.png", "photo__other.png"}
    assert painter("--content", "photo.png", "--style-from", "paintings", "--output", "out/") == 0
    assert painter("photo.png", "styles/both.safetensors", "alone.png") == 0
    assert largest_difference(load_image("alone.png"), load_image("out/photo__both.png")) == 0
    # WebP's loss aside, the same style
    assert mean_difference(load_image("out/photo__paintings.png"), load_image("alone.png")) < 8
    # Guidance would enlarge the last digit, in which a picture alone and one of two differ.
    plain = ["--content", "photo.png", "--content-scale", "1", "--style-scale", "1"]
    mixed = ["--style", "styles/other.png", "--style-from", "paintings", "--style-weights", "1", "0"]
    assert painter(*plain, "--style", "styles", "--output", "plain/") == 0
    assert painter(*plain, *mixed, "--output", "mixed.png") == 0
    assert largest_difference(load_image("mixed.png"), load_image("plain/photo__other.png")) == 0


def test_a_changed_style_is_painted_again(
    saver: Program, painter: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert saver("a.safetensors", "paintings/red.png") == saver("b.safetensors", "paintings/rough.png") == 0
    given = ["--content", "photo.png", "--style", "a.safetensors", "b.safetensors", "--output", "out/"]
    assert painter(*given) == painter(*given) == 0
    assert "0 painted, 2 there already" in capsys.readouterr().out
    assert saver("b.safetensors", "paintings", "--overwrite") == painter(*given) == 0
    assert "1 painted, 1 there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, problem",
    [
        (["--style", "none.safetensors"], "none.safetensors: no such file or folder"),
        (["--style", "model.safetensors"], "is no saved style"),
        (["--style", "ukio-e"], "ukio-e: no such file or folder; did you mean ukiyo-e?"),
        (["--style", "klimt", "--style-region", "0,0,40,40"], "is a saved style"),
        (["--style", "klimt", "--not-style", "turner", "--style-scale", "1.5"], "turner: is a saved style"),
        (["--style", "klimt", "--palette-from", "turner"], "turner: is a saved style"),
        (["--style", "klimt", "--palette-from", "nothing.png"], "all of it is transparent"),
        (["--style", "klimt", "--keep", "square.png"], "square.png, for photo.png: a mask of 40x40"),
        (["--style-from", "none"], "none: no such file or folder"),
        (["--style-from", "empty"], "no pictures in it"),
        ([], "--style"),
    ],
)
def test_styles_that_cannot_be_are_refused_before_the_model_is_read(
    painter: Program, folder: Path, given: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tensors({"w": torch.zeros(2)}, "model.safetensors")
    Path("empty").mkdir()
    Image.new("RGBA", (40, 40)).save("nothing.png")
    plain(0, 0, 0).save("square.png")
    code = painter("--content", "photo.png", *given, "--output", "out.png")
    assert_refused(code, capsys.readouterr(), problem)
    assert not Path("out.png").exists()


def test_a_third_name_is_no_style(painter: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(painter("photo.png", "klimt", "turner"), capsys.readouterr(), "turner: is a style")


def test_what_of_a_picture_is_transparent_stays_so(saver: Program, folder: Path) -> None:
    half = picture(40, 40, seed=4).convert("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, 20, 40))
    half.save("half.png")
    assert saver("half.safetensors", "half.png") == 0
    (kept,) = load_style("half.safetensors").pictures
    assert kept.mode == "RGBA" and kept.getpixel((5, 5))[3] == 0 and kept.getpixel((30, 5))[3] == 255


def test_a_manifest_names_saved_styles(saver: Program, painter: Program) -> None:
    assert saver("my.safetensors", "paintings/red.png") == 0
    Path("table.csv").write_text("content,style\nphoto.png,my.safetensors\nphoto.png,vermeer\n")
    assert painter("--manifest", "table.csv", "--output", "out/") == 0
    assert {path.name for path in Path("out").iterdir()} == {"photo__my.png", "photo__vermeer.png"}
    given = ["--content", "photo.png", "--style", "vermeer", "--output", "out/", "--keep", "photo.png"]
    assert painter(*given, "--write-manifest", "again.csv", "--dry-run") == 0
    assert ",vermeer," in Path("again.csv").read_text()


def test_sheets_of_samples_take_them_and_show_their_first_picture(
    saver: Program, model_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saver("my.safetensors", "paintings") == 0
    options = [*model_files, "--look", "sampled", "--size", "32", "--steps", "1"]
    given = ["--style", "my.safetensors", "--seeds", "0", "--output", "sheet.png"]
    assert run_program(samples.main, [*options, *given], monkeypatch) == 0
    assert Path("sheet.png").is_file()
    assert mean_difference(shown("my.safetensors"), plain(200, 30, 30)) < 3
    assert isinstance(read_style("my.safetensors"), StyleMix)


# The library


def test_twenty_styles_come_along_with_their_sources() -> None:
    sources = (ROOT / "data/SOURCES.md").read_text(encoding="utf-8")
    assert len(library()) == 20
    for name, path in library().items():
        style = load_style(path)
        assert "CC0" in style.note and min(min(each.size) for each in style.pictures) >= 300
        assert f"`{name}`" in sources
        for file in style.names:
            assert Path(file).stem.removeprefix("met-") in sources, file


def test_a_name_is_a_style_unless_a_file_has_it(folder: Path, tiny: StyleTransferPipeline) -> None:
    by_name, by_path = (
        tiny("photo.png", style, steps=1, look="sampled", size=32)
        for style in ("turner", library()["turner"])
    )
    assert largest_difference(by_name, by_path) == 0
    save_image(plain(200, 30, 30), "turner.png")
    Path("turner.png").rename("turner")
    assert largest_difference(tiny("photo.png", "turner", steps=1, look="sampled", size=32), by_path) > 0


def test_the_sheet_shows_what_comes_along_or_what_is_named(
    saver: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(styles.main, [], monkeypatch) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 21 and told[-1] == "outputs/styles.png"
    assert any(line.startswith("ukiyo-e ") and "CC0" in line for line in told)
    width, height = load_image("outputs/styles.png").size
    assert width > 5 * 224 and height > 4 * 224
    assert saver("mine/a.safetensors", "paintings", "--note", "by Ann") == 0
    capsys.readouterr()
    assert run_program(styles.main, ["mine", "klimt", "--output", "two.png"], monkeypatch) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["a", "klimt", "two.png"]


@pytest.mark.parametrize(
    "given, problem",
    [
        (["photo.png"], "photo.png: is no saved style"),
        (["klimmt"], "klimmt: no such style; did you mean klimt?"),
        (["paintings"], "no pictures in it"),
        (["klimt", "--output", "sheet.txt"], "unknown picture format"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    folder: Path,
    given: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(run_program(styles.main, given, monkeypatch), capsys.readouterr(), problem)


def test_the_pages_pictures_of_styles_stand_for_them(folder: Path) -> None:
    picture(60, 60).save("plain.png")
    assert isinstance(painting_of("plain.png", 64), Image.Image)
    save_image(picture(60, 60), "van-gogh.png", {STYLE_KEY: "van-gogh"})
    read = PictureReader().style(painting_of("van-gogh.png", 64))
    assert len(read.regions[0]) == 3 and max(min(p.size) for p in read.pictures) == 64
    save_image(picture(60, 60), "none.png", {STYLE_KEY: "../../etc"})
    assert isinstance(painting_of("none.png", 64), Image.Image)
