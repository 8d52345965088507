"""scripts/stylize.py with folders, mixtures and masks; tests/test_cli.py has the rest of the single picture."""

import io
import json
import mmap
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pipeline_builders import SMALL, largest_difference, left_half, picture, pixels, run_program, script

from ldm.cli.reports import spoken
from ldm.device import peak_memory, reset_peak_memory
from ldm.errors import UserError
from ldm.files import file_hash
from ldm.media.images import load_image, read_metadata
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.progress import Meter

ALL = {"a__s", "a__t", "b__s", "b__t", "c__s", "c__t"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: three photos, two of them of one size; two styles; a mask of the left half; bad files."""
    for i, (name, size) in enumerate(
        {"photos/a.png": (48, 32), "photos/b.png": (48, 32), "photos/deep/c.png": (32, 40)}.items()
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(*size, seed=i).save(tmp_path / name)
    (tmp_path / "styles").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "styles/s.png")  # two styles that the tiny model tells apart
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        tmp_path / "styles/t.png"
    )
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 24, 32))
    mask.save(tmp_path / "left.png")
    (tmp_path / "text.jpg").write_text("Dear diary, today I was renamed.")
    (tmp_path / "empty.png").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def stylize(folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the program on the folder with these options and returns its exit code."""
    main = script("stylize").main

    def call(options: str = "", content: str = "photos", style: str = "styles", output: str = "out") -> int:
        inputs = ["--content", *content.split(), "--style", *style.split(), "--output", output]
        return run_program(main, [*model_files, *SMALL, *inputs, *options.split()], monkeypatch)

    return call


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The pipeline's calls: number of pictures, options."""
    calls, call = [], StyleTransferPipeline.__call__

    def spy(self: StyleTransferPipeline, content: Any, style: Any, **options: Any) -> Any:
        calls.append({"count": len(content) if isinstance(content, list) else 1, "style": style, **options})
        return call(self, content, style, **options)

    monkeypatch.setattr(StyleTransferPipeline, "__call__", spy)
    return calls


@pytest.fixture
def pipeline(small_pipeline: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return small_pipeline


def written(folder: str | Path = "out") -> set[str]:
    """The names of the files below, whatever they are called."""
    return {
        path.stem if path.suffix == ".png" else path.name
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def told(path: str) -> dict[str, Any]:
    return json.loads(read_metadata(path)["artfusion"])


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out.splitlines()[-1]


# Every content in every style


@pytest.mark.parametrize(
    "content, style",
    [
        ("photos", "styles"),
        ("photos/a.png photos/b.png photos/deep/c.png", "styles/s.png styles/t.png"),
        ("photos/*.png photos/deep", "styles/?.png"),
        ("photos/a.png --content photos/b.png photos/deep/c.png", "styles/s.png --style styles/t.png"),
    ],
)
def test_every_content_is_painted_in_every_style(
    stylize: Callable, capsys: pytest.CaptureFixture, content: str, style: str
) -> None:
    assert stylize(content=content, style=style) == 0
    assert written() == ALL and last_line(capsys) == "6 painted, 0 there already, 0 failed"
    assert load_image("out/c__t.png").size == (32, 40)


def test_transparency_and_what_the_camera_wrote_reach_the_result(stylize: Callable) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    logo = picture(40, 32, 5)
    logo.putalpha(Image.linear_gradient("L").resize((40, 32)))
    logo.save("logo.png", exif=exif)
    for options in ("--keep-exif", ""):
        assert stylize(options, content="logo.png", style="styles/s.png", output="one.png") == 0
        assert stylize(f"{options} --overwrite", content="logo.png", style="styles") == 0
        for path in ("one.png", "out/logo__s.png", "out/logo__t.png"):
            with Image.open(path) as result:
                assert result.mode == "RGBA" and (0x010F in result.getexif()) == bool(options)


def test_metadata_and_names_tell_the_scales_that_a_look_has(stylize: Callable) -> None:
    assert (
        stylize(
            "--look free --effort 0.1",
            content="photos/a.png",
            style="styles/s.png",
            output="{content_scale}_{style_scale}.png",
        )
        == 0
    )
    assert told("0.5_1.5.png")["content_scale"] == 0.5 and told("0.5_1.5.png")["style_scale"] == 1.5


def test_each_result_shows_its_own_content_and_style(stylize: Callable, pipeline: Callable) -> None:
    assert stylize("--seed 4 --style-scale 2") == 0
    for content in ("a", "deep/c"):
        for style in "st":
            expected = pipeline(f"photos/{content}.png", f"styles/{style}.png", seed=4, style_scale=2.0)
            assert largest_difference(load_image(f"out/{content[-1]}__{style}.png"), expected) <= 1
    assert largest_difference(load_image("out/a__s.png"), load_image("out/a__t.png")) > 4


def test_the_same_seed_gives_the_same_picture_alone_and_among_others(stylize: Callable) -> None:
    options = "--seed 7 --sampler ancestral --content-scale 1.5"
    assert stylize(options) == 0
    assert stylize(options, content="photos/b.png", style="styles/t.png", output="alone.png") == 0
    assert largest_difference(load_image("alone.png"), load_image("out/b__t.png")) <= 1


def test_pictures_are_painted_in_batches(stylize: Callable, painted: list) -> None:
    assert stylize("--batch-size 4") == 0
    assert [(call["count"], call["batch_size"]) for call in painted] == [(4, 4), (2, 4)]


def test_styles_of_the_same_name_get_results_of_their_own(stylize: Callable) -> None:
    Path("more").mkdir()
    picture(40, 40, seed=30).save("more/s.png")
    assert stylize(content="photos/a.png photos/b.png", style="styles more") == 0
    assert written() == {"a__styles-s", "a__more-s", "a__t", "b__styles-s", "b__more-s", "b__t"}
    assert largest_difference(load_image("out/a__styles-s.png"), load_image("out/a__more-s.png")) > 4


def test_a_template_names_the_results(stylize: Callable) -> None:
    assert (
        stylize("--seed 5", content="photos/a.png photos/b.png", output="new/{style}/{content}-{seed}.jpg")
        == 0
    )
    assert {path.as_posix() for path in Path("new").rglob("*.*")} == {
        f"new/{s}/{c}-5.jpg" for s in "st" for c in "ab"
    }
    with Image.open("new/s/a-5.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))


def test_a_single_picture_goes_into_a_new_folder_too(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert stylize(content="photos/a.png", style="styles/s.png", output="new/er") == 0
    assert last_line(capsys) == "new/er/a__s.png" and Path("new/er/a__s.png").is_file()


def test_odd_pictures_come_out_upright_and_right(stylize: Callable, pipeline: Callable) -> None:
    upright, exif = picture(48, 32, seed=1), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Path("odd").mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save("odd/turned.png", exif=exif)
    upright.convert("RGBA").save("odd/rgba.png")
    upright.quantize(16).save("odd/palette.png")
    Image.fromarray(np.asarray(upright.convert("L"), dtype=np.uint16) * 257).save("odd/deep.png")
    upright.convert("CMYK").save("odd/cmyk.tif")
    assert stylize(content="odd", style="styles/s.png") == 0
    sixteen, grey = upright.quantize(16).convert("RGB"), upright.convert("L").convert("RGB")
    for name, expected in {
        "turned": upright,
        "rgba": upright,
        "palette": sixteen,
        "deep": grey,
        "cmyk": upright,
    }.items():
        assert (
            largest_difference(load_image(f"out/{name}__s.png"), pipeline(expected, "styles/s.png")) <= 1
        ), name


# The fine look

FINE = "--look fine --size 64 --effort 0.1"


@pytest.fixture
def stop_at_level(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the gradient steps at the level of this number, counted over all pictures, stop as Ctrl-C does."""

    def arrange(number: int) -> None:
        monkeypatch.setattr(Meter, "brushing", lambda meter, level, picture: stopped(level, number))

    def stopped(level: Any, number: int) -> Iterator[int]:
        begun.append(level)
        for i in range(level.steps):
            if len(begun) == number and i == 2:
                raise KeyboardInterrupt
            yield i

    begun: list[Any] = []
    return arrange


def test_fine_pictures_of_a_folder_are_those_painted_alone(stylize: Callable) -> None:
    """A painting larger than the picture is shrunk for all of them, but not to less than the brush looks at."""
    picture(150, 170, seed=8).save("styles/large.png")
    assert stylize(FINE, "photos/a.png photos/b.png", "styles/large.png") == 0
    assert stylize(FINE, "photos/b.png", "styles/large.png", "alone.png") == 0
    assert load_image("alone.png") == load_image("out/b__large.png") != load_image("out/a__large.png")
    assert load_image("alone.png").size == (96, 64)


def test_a_fine_picture_that_is_stopped_is_kept_as_far_as_it_came(
    stylize: Callable, stop_at_level: Callable, capsys: pytest.CaptureFixture
) -> None:
    stop_at_level(1)
    assert stylize(FINE, "photos/a.png", "styles/s.png") == 130
    captured = capsys.readouterr()
    assert (
        captured.out == "" and captured.err.splitlines()[-1] == "stopped: out/a__s.png is as far as it came"
    )
    assert load_image("out/a__s.png").size == (96, 64) and told("out/a__s.png")["stopped"] is True
    stop_at_level(0)
    before = load_image("out/a__s.png")
    assert stylize(FINE, "photos/a.png photos/b.png", "styles/s.png") == 0
    assert last_line(capsys) == "2 painted, 0 there already, 0 failed"  # what was stopped is not finished
    assert load_image("out/a__s.png") != before and "stopped" not in told("out/a__s.png")


def test_of_many_fine_pictures_those_that_are_done_are_kept(
    stylize: Callable, stop_at_level: Callable, capsys: pytest.CaptureFixture
) -> None:
    stop_at_level(2)
    assert stylize(FINE, style="styles/s.png") == 130
    assert (
        written() == {"a__s"}
        and "stopped" not in told("out/a__s.png")
        and capsys.readouterr().err.endswith("stopped: 1 of 3 painted; the same command does the rest\n")
    )


# Metadata


@pytest.mark.parametrize("content", ["photos/a.png", "photos/a.png photos/b.png"])
def test_a_png_says_how_it_was_made(stylize: Callable, model_files: list, content: str) -> None:
    assert (
        stylize(
            "--seed 3 --content-scale 0.5 --style-scale 2 --sampler ddim --keep left.png",
            content,
            "styles/s.png",
        )
        == 0
    )
    expected = {
        "content": "a.png",
        "style": "s",
        "seed": 3,
        "content_scale": 0.5,
        "style_scale": 2.0,
        "sampler": "ddim",
        "steps": 2,
    }
    expected |= {"keep": "left.png", "size": 32, "precision": "fp32", "checkpoint": "tiny.safetensors"}
    expected |= {"checkpoint_sha256": file_hash(model_files[1]), "content_sha256": file_hash("photos/a.png")}
    assert told("out/a__s.png").items() >= expected.items()


def test_default_steps_are_told_as_a_number(
    folder: Path, model_files: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ["--content", "photos/a.png", "--style", "styles/s.png", "--output", "o.png"]
    # but for --steps
    assert run_program(script("stylize").main, [*model_files, *SMALL[:-2], *inputs], monkeypatch) == 0
    assert told("o.png")["steps"] == 10


# Starting again


def test_what_is_finished_is_not_painted_again(
    stylize: Callable, painted: list, capsys: pytest.CaptureFixture
) -> None:
    assert stylize() == 0
    Path("out/b__t.png").unlink()
    kept = Path("out/a__s.png").stat().st_mtime_ns
    painted.clear()
    assert stylize() == 0
    assert [call["count"] for call in painted] == [1] and written() == ALL
    assert (
        Path("out/a__s.png").stat().st_mtime_ns == kept
        and last_line(capsys) == "1 painted, 5 there already, 0 failed"
    )


@pytest.mark.parametrize("again", ["--seed 1", "--style-scale 2", "--keep all.png", "--overwrite"])
def test_pictures_are_painted_again_where_asked_or_made_differently(
    stylize: Callable, painted: list, again: str
) -> None:
    Image.new("L", (48, 32)).save("all.png")
    assert stylize(content="photos/*.png", style="styles/s.png") == 0
    painted.clear()
    assert stylize(again, content="photos/*.png", style="styles/s.png") == 0
    assert [call["count"] for call in painted] == [2]


@pytest.mark.parametrize(
    "changed, options",
    [("photos/a.png", ""), ("left.png", "--keep left.png"), ("left.png", "--mask left.png")],
)
def test_a_changed_photo_or_mask_is_painted_again(
    stylize: Callable, painted: list, changed: str, options: str
) -> None:
    style = "styles" if "--mask" in options else "styles/s.png"
    assert stylize(options, content="photos/*.png", style=style) == 0
    painted.clear()
    picture(48, 32, seed=50).save(changed)
    assert stylize(options, content="photos/*.png", style=style) == 0
    assert sum(call["count"] for call in painted) == (1 if changed == "photos/a.png" else 2)


def test_an_interrupted_run_goes_on_where_it_was(
    stylize: Callable, painted: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    call = StyleTransferPipeline.__call__

    def stop_at_the_second(self: StyleTransferPipeline, *inputs: Any, **options: Any) -> Any:
        if painted:
            raise KeyboardInterrupt
        return call(self, *inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StyleTransferPipeline, "__call__", stop_at_the_second)
        assert stylize("--batch-size 2") == 130
    assert (
        written() == {"a__s", "a__t"}
        and "stopped: 2 of 6 painted; the same command does the rest" in capsys.readouterr().err
    )
    painted.clear()
    assert stylize("--batch-size 2") == 0
    assert [call["count"] for call in painted] == [2, 2] and written() == ALL


@pytest.mark.parametrize("output", ["photos", "photos/out"])
def test_results_among_the_photos_are_not_painted_in_turn(
    stylize: Callable, painted: list, output: str
) -> None:
    for _ in range(2):
        assert stylize(output=output) == 0
    assert written("photos") == {"a", "b", "c", *ALL} and sum(call["count"] for call in painted) == 6


def test_results_among_the_styles_are_no_styles(stylize: Callable) -> None:
    for _ in range(2):
        assert stylize(output="styles/out") == 0
    assert written("styles/out") == ALL


# What goes wrong on the way


def test_contents_that_cannot_be_read_are_listed_at_the_end(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert stylize(content="text.jpg photos empty.png") == 1
    printed = capsys.readouterr()
    assert written() == ALL and printed.out.endswith("6 painted, 0 there already, 4 failed\n")
    listed = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert len(listed) == 2  # a photo once, whatever the number of its styles
    assert listed[0].startswith("failed: text.jpg: not a picture") and listed[1].startswith(
        "failed: empty.png: the file is empty"
    )


def test_styles_that_cannot_be_read_are_listed_at_the_end(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    for painted in (6, 0):  # the second time nothing is left but what fails again
        assert stylize(style="text.jpg styles") == 1
        printed = capsys.readouterr()
        assert f"{painted} painted, {6 - painted} there already, 3 failed\n" in printed.out
        assert "failed: text.jpg: not a picture" in printed.err.splitlines()[-1]
    assert written() == ALL


def test_a_picture_that_cannot_be_painted_is_listed_at_the_end(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (80_000, 1)).save("photos/wide.png")
    assert stylize(style="styles/s.png") == 1
    printed = capsys.readouterr()
    assert written() == {"a__s", "b__s", "c__s"} and "3 painted, 0 there already, 1 failed" in printed.out
    assert "failed: out/wide__s.png: a photo of 80000x1 pixels cannot be scaled" in printed.err


def test_a_style_that_cannot_be_used_is_listed_at_the_end(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (80_000, 1)).save("styles/wide.png")
    assert stylize(content="photos/*.png") == 1
    printed = capsys.readouterr()
    assert written() == ALL - {"c__s", "c__t"} and "4 painted, 0 there already, 2 failed" in printed.out
    assert "80000x1 pixels" in printed.err


def test_a_mask_that_fits_some_photos_only_leaves_the_others_undone(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert stylize("--keep left.png", style="styles/s.png") == 1
    assert (
        written() == {"a__s", "b__s"}
        and "failed: out/c__s.png: a mask of 48x32 pixels" in capsys.readouterr().err
    )


def test_running_out_of_memory_paints_one_by_one(stylize: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    call = StyleTransferPipeline.__call__

    def little_memory(self: StyleTransferPipeline, content: list, style: list, **options: Any) -> Any:
        if len(content) > 1:
            raise UserError("not enough memory")
        return call(self, content, style, **options)

    monkeypatch.setattr(StyleTransferPipeline, "__call__", little_memory)
    assert stylize() == 0 and written() == ALL


@pytest.mark.parametrize("wrong", [{"content": "text.jpg"}, {"style": "empty.png"}])
def test_a_single_picture_that_cannot_be_read_is_an_error(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys, wrong: dict
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    assert (
        stylize(**{"content": "photos/a.png", "style": "styles/s.png", "output": "new/o.png", **wrong}) == 2
    )
    assert capsys.readouterr().err.startswith("error: ") and not Path("new").exists()


# Several processes


def test_processes_share_the_work(stylize: Callable, monkeypatch: pytest.MonkeyPatch, painted: list) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    done = [0]
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        assert stylize() == 0
        done.append(len(written()))
    assert written() == ALL and {b - a for a, b in zip(done, done[1:])} == {1, 2}


@pytest.mark.parametrize("content, rank", [("photos/a.png", "2"), ("photos/*.png", "1")])
def test_a_process_without_a_share_has_nothing_to_complain_of(
    stylize: Callable, monkeypatch, painted: list, capsys, content: str, rank: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", rank)
    assert stylize(content=content, style="styles/s.png") == 0
    assert not painted and not Path("out").exists() and "failed:" not in capsys.readouterr().err


# Mixtures, masks


def test_weights_mix_all_styles_into_one(stylize: Callable, pipeline: Callable) -> None:
    assert stylize("--style-weights 3 1", content="photos/*.png") == 0
    assert written() == {"a__s+t", "b__s+t"}
    result, styles = load_image("out/b__s+t.png"), ["styles/s.png", "styles/t.png"]
    assert largest_difference(result, pipeline("photos/b.png", StyleMix(styles, [3, 1]))) <= 1
    assert largest_difference(result, pipeline("photos/b.png", StyleMix(styles, [1, 1]))) > 1
    assert told("out/b__s+t.png")["style_weights"] == [3, 1]


@pytest.mark.parametrize("masks", ["left.png", "left.png right.png", "left.png --mask right.png"])
def test_masks_give_each_style_its_region(stylize: Callable, pipeline: Callable, masks: str) -> None:
    load_image("left.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("right.png")
    assert stylize(f"--mask {masks}", content="photos/a.png", output="o.png") == 0
    result, styles = load_image("o.png"), ["styles/s.png", "styles/t.png"]
    assert largest_difference(result, pipeline("photos/a.png", StyleRegions(styles, ["left.png"]))) <= 1
    assert largest_difference(result, pipeline("photos/a.png", StyleRegions(styles, ["right.png"]))) > 1


@pytest.mark.parametrize("content", ["photos/a.png", "photos/*.png"])
def test_what_is_kept_stays_the_photo(stylize: Callable, content: str) -> None:
    assert stylize("--keep left.png", content, "styles/s.png") == 0
    result, photo = pixels(load_image("out/a__s.png")), pixels(load_image("photos/a.png"))
    assert np.array_equal(result[:, :24], photo[:, :24]) and not np.array_equal(result[:, 24:], photo[:, 24:])


# What is refused before the model is read


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"options": "--style-weights 1"}, "1 style weights for 2 styles"),
        ({"options": "--style-weights 1 -1"}, "style weights must be numbers from 0 on"),
        ({"options": "--style-weights 0 0"}, "not all of them 0"),
        ({"options": "--style-weights 1 nan"}, "style weights must be numbers"),
        ({"options": "--mask left.png left.png left.png"}, "3 masks for 2 styles"),
        (
            {"options": "--mask left.png", "style": "styles/s.png styles/t.png photos/a.png"},
            "1 masks for 3 styles",
        ),
        ({"options": "--mask left.png --style-weights 1 1"}, "--style-weights and --mask do not go together"),
        ({"options": "--mask text.jpg"}, "text.jpg: not a picture"),
        ({"options": "--mask nowhere.png"}, "nowhere.png: no such file"),
        ({"options": "--keep empty.png"}, "empty.png: the file is empty"),
        ({"options": "--keep photos"}, "photos: is a folder"),
        (
            {
                "options": "--keep left.png",
                "output": "left.png",
                "content": "photos/a.png",
                "style": "styles/s.png",
            },
            "is one of the pictures to work from",
        ),
        ({"options": "--eta 0.5"}, "eta is for the sampler ddim"),
        ({"options": "--batch-size 0"}, "--batch-size: expected a whole number between 1 and"),
        ({"output": "{colour}.png"}, "there is no field {colour}"),
        ({"output": "{content.png"}, "--output {content.png"),
        ({"output": "one.png"}, "6 pictures do not fit into one file"),
        (
            {"output": "{content}.png"},
            "a.png: would be written for both photos/a.png in s and photos/a.png in t",
        ),
        ({"output": "text.jpg/out"}, "text.jpg is a file, not a folder"),
        (
            {"output": "photos/{content}.png", "style": "styles/s.png"},
            "photos/a.png: is one of the pictures to work from",
        ),
        ({"content": "photos nowhere.png"}, "nowhere.png: no such file or folder"),
        ({"style": "nowhere/*.png"}, "no file matches it"),
        ({"content": "blank"}, "blank: no pictures in it"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_read(
    stylize: Callable,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    wrong: dict,
    problem: str,
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    (folder / "blank").mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, printed = stylize(**wrong), capsys.readouterr()
    assert (
        code == 2 and printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("error: ")
    )
    assert problem in printed.err and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_width_and_height_crop_the_photo(stylize: Callable) -> None:
    assert stylize("--size 64x48") == 0
    assert {load_image(path).size for path in Path("out").iterdir()} == {(64, 48)}


# Colours


def test_a_palette_is_told_and_makes_another_picture(stylize: Callable) -> None:
    given = {"content": "photos/a.png", "style": "styles/s.png"}
    for output in ("one.png", "many/"):
        assert stylize("--palette-from styles/t.png", output=output, **given) == 0
    assert told("one.png")["palette_from"] == "styles/t.png"
    assert told("one.png")["palette_from_sha256"] == file_hash("styles/t.png")
    assert stylize("", output="plain.png", **given) == 0
    assert largest_difference(load_image("one.png"), load_image("plain.png")) > 1


@pytest.mark.parametrize(
    "options, problem",
    [
        ("--palette-from styles/t.png --preserve-color", "both say whose colours"),
        ("--palette-from missing.png", "missing.png: no such file"),
    ],
)
def test_palettes_that_cannot_be(
    stylize: Callable, capsys: pytest.CaptureFixture, options: str, problem: str
) -> None:
    assert stylize(options) == 2 and problem in capsys.readouterr().err and not written()


def test_a_style_that_is_not_wanted_is_told_and_makes_another_picture(stylize: Callable) -> None:
    given = {"content": "photos/a.png", "style": "styles/t.png"}
    for output in ("one.png", "many/"):
        assert stylize("--not-style styles/s.png --style-scale 3", output=output, **given) == 0
    assert told("one.png")["not_style"] == "styles/s.png"
    assert told("one.png")["not_style_sha256"] == file_hash("styles/s.png")
    assert stylize("--style-scale 3", output="plain.png", **given) == 0
    assert largest_difference(load_image("one.png"), load_image("plain.png")) > 1


@pytest.mark.parametrize(
    "options, problem",
    [
        (
            "--not-style styles/s.png --style-scale 1",
            "style_scale is above 1, and it is 1; give a larger one",
        ),
        ("--not-style missing.png --style-scale 2", "missing.png: no such file"),
    ],
)
def test_styles_that_cannot_be_avoided(
    stylize: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: str,
    problem: str,
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    assert stylize(options) == 2 and problem in capsys.readouterr().err and not written()


# A part of the paintings


def test_a_part_of_a_painting_is_a_style(stylize: Callable) -> None:
    with Image.open("styles/s.png") as painting:
        wide = picture(90, 60, 9)
        wide.paste(painting, (48, 16))
        box = f"48,16,{painting.width},{painting.height}"
    Path("wide").mkdir()
    wide.save("wide/s.png")
    for content in ("photos/a.png", "photos"):
        assert stylize("", content, "styles/s.png", "whole/") == 0
        assert stylize(f"--style-region {box}", content, "wide/s.png", "part/") == 0
    for name in "abc":
        whole, part = (f"{folder}/{name}__s.png" for folder in ("whole", "part"))
        assert largest_difference(load_image(whole), load_image(part)) <= 1
    assert told("part/a__s.png")["style_region"] == [int(side) for side in box.split(",")]


@pytest.mark.parametrize(
    "region, problem",
    [
        ("0,0,32", "expected left, top, width and height"),
        ("0,0,31,40", "the last two at least 32"),
        ("-1,0,32,32", "expected left, top, width and height"),
        ("0,0,4000,32", "pixels have no part of 4000x32 at 0,0"),
    ],
)
def test_parts_that_cannot_be(
    stylize: Callable, capsys: pytest.CaptureFixture, region: str, problem: str
) -> None:
    assert stylize(f"--style-region={region}", "photos/a.png", "styles/s.png", "one.png") == 2
    assert problem in capsys.readouterr().err and not Path("one.png").exists()


def test_a_mask_of_a_painting_is_its_part(stylize: Callable) -> None:
    """A white rectangle is its four numbers; of another form, nothing beside it counts."""
    mask, oval = Image.new("L", (60, 70)), Image.new("L", (60, 70))
    mask.paste(255, (10, 20, 50, 60))
    ImageDraw.Draw(oval).ellipse((10, 20, 49, 59), fill=255)
    given = picture(60, 70, 9)
    Image.composite(given, picture(60, 70, 8), oval).save("other.png")
    for name, each in {"mask": mask, "oval": oval, "painting": given}.items():
        each.save(f"{name}.png")
    stylize("--style-region 10,20,40,40", "photos/a.png", "painting.png", "box.png")
    for content, output in (("photos/a.png", "mask_{style}.png"), ("photos", "many/")):
        assert stylize("--style-region mask.png", content, "painting.png", output) == 0
    assert not largest_difference(load_image("mask_painting.png"), load_image("box.png"))
    assert largest_difference(load_image("many/a__painting.png"), load_image("box.png")) <= 1
    said = told("mask_painting.png")
    assert (said["style_region"], said["style_region_sha256"]) == ("mask.png", file_hash("mask.png"))
    for style in ("painting.png", "other.png"):
        assert stylize("--style-region oval.png", "photos/a.png", style, "oval_{style}.png") == 0
    assert not largest_difference(load_image("oval_painting.png"), load_image("oval_other.png"))
    assert largest_difference(load_image("oval_painting.png"), load_image("box.png"))


@pytest.mark.parametrize(
    "mask, style, problem",
    [
        (lambda: Image.new("L", (40, 40)), "styles/s.png", "mask.png: all of the mask is black"),
        (
            lambda: left_half(40, 40),
            "styles/s.png styles/t.png",
            "a mask is of one painting, and there are 2",
        ),
        (lambda: left_half(80, 40), "square.png", "mask.png: a mask of 80x40 pixels does not have"),
        (lambda: left_half(40, 40), "square.png", "20x40 pixels, must be at least 32"),
        (lambda: left_half(40, 40), "mask.png", "mask.png: is one of the pictures to work from"),
    ],
)
def test_masks_of_paintings_that_cannot_be(
    stylize: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    mask: Callable,
    style: str,
    problem: str,
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    mask().save("mask.png")
    picture(40, 40, 1).save("square.png")
    output = "mask.png" if style == "mask.png" else "out/"
    assert stylize("--style-region mask.png", "photos/a.png", style, output) == 2
    assert problem in capsys.readouterr().err and not written()


# Pairs


@pytest.mark.parametrize(
    "options, expected",
    [
        ("--pair zip", ["a__s", "b__t"]),
        ("--pair random --group-by photos", ["a__s", "b__s"]),
    ],
)
def test_photos_and_styles_are_paired(stylize: Callable, options: str, expected: list[str]) -> None:
    assert stylize(options, content="photos/a.png photos/b.png") == 0
    names = sorted(written())
    assert names == expected or (options != "--pair zip" and names == ["a__t", "b__t"])
    assert stylize(options, content="photos/a.png photos/b.png") == 0 and sorted(written()) == names


@pytest.mark.parametrize(
    "options, problem",
    [
        ("--pair zip", "3 photos and 2 styles do not pair up"),
        ("--pair random --per-content 3", "there are only 2 styles"),
        ("--per-content 2", "--per-content is for --pair random"),
        ("--pair zip --group-by a", "--group-by is for --pair random"),
        ("--pair random --group-by [", "no regular expression"),
    ],
)
def test_pairs_that_cannot_be(
    stylize: Callable, capsys: pytest.CaptureFixture, options: str, problem: str
) -> None:
    assert stylize(options) == 2 and problem in capsys.readouterr().err and not written()


# For scripts


def said(capsys: pytest.CaptureFixture) -> list[dict[str, Any]]:
    """The lines of JSON on standard output, which has nothing else."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_result_is_a_line_of_json(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    Path("photos/b.png").write_text("no picture")
    assert stylize("--json") == 1
    lines = said(capsys)
    assert len(lines) == 6 and {line["output"] for line in lines} == {
        f"out/{content}__{style}.png" for content in "abc" for style in "st"
    }
    for line in lines:
        assert set(line) >= {"status", "content", "style", "output", "seconds"} and line["seconds"] >= 0
        assert line["status"] == ("failed" if line["content"] == "photos/b.png" else "painted")
        assert ("error" in line) == (line["status"] == "failed") == (not Path(line["output"]).exists())
    assert stylize("--json", content="photos/a.png") == 0
    assert [line["status"] for line in said(capsys)] == ["there", "there"]
    assert stylize("--json", content="photos/a.png", style="styles/s.png", output="one.png") == 0
    assert [(line["status"], line["output"]) for line in said(capsys)] == [("painted", "one.png")]


def test_quiet_says_nothing_but_errors(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    assert stylize("--quiet") == stylize("--quiet", "photos/a.png", "styles/s.png", "one.png") == 0
    assert capsys.readouterr() == ("", "") and Path("one.png").exists()
    Path("photos/b.png").write_text("no picture")
    assert stylize("--quiet --overwrite") == 1
    out, err = capsys.readouterr()
    assert not out and all(line.startswith("failed: ") for line in err.splitlines()) and "b.png" in err


def test_a_dry_run_paints_nothing_and_tells_what_and_how_long(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert stylize("", "photos/a.png", "styles/s.png", "out/") == 0
    before = written()
    capsys.readouterr()
    assert stylize("--dry-run") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert written() == before and len(lines) == 5
    assert all(re.fullmatch(r"out/\w__\w\.png: \d+x\d+, about \d+ s", line) for line in lines)
    assert re.fullmatch(r"5 to paint, 1 there already, 0 would fail; about \d+ s in all(, at most .*)?", last)
    assert "out/c__t.png: 32x40, " in "\n".join(lines)
    assert stylize("--dry-run --json") == 0
    assert [line["status"] for line in said(capsys)] == ["there"] + 5 * ["would be painted"]


def test_results_of_names_that_are_too_long_together_are_shortened_and_found_again(
    stylize: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, other = "a" * 200, "ü" * 100
    picture(40, 40, seed=8).save(folder / f"photos/{long}.png")
    for name in (f"{long}1", f"{long}2", other):
        picture(40, 40, seed=len(name)).save(folder / f"styles/{name}.png")
    content = f"photos/{long}.png"
    assert stylize(content=content) == 0
    names = written()
    assert len(names) == 5 and max(len(name.encode()) for name in names) <= 255 - len(".png")
    assert sum(name.startswith(f"{long}__aaa") for name in names) == 2
    capsys.readouterr()
    assert stylize(content=content) == 0
    assert "0 painted, 5 there already" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory is taken anew")
def test_a_dry_run_tells_the_memory_of_the_largest_pictures_painted_together(
    stylize: Callable[..., int], painted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stylize("--dry-run --batch-size 2") == 0
    assert re.search(r"about .* in all, at most about \d+\.\d GB of memory$", capsys.readouterr().out.strip())
    assert painted[-1]["count"] == 2 and painted[-1]["settings"].steps == 1 and not written()
    assert stylize("--dry-run --look fine --effort 2") == 0
    assert painted[-1]["count"] == 1 and painted[-1]["settings"].effort < 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory is taken anew")
def test_peaks_of_memory_can_begin_anew() -> None:
    cpu = torch.device("cpu")
    assert reset_peak_memory(cpu)
    taken = mmap.mmap(-1, 2**28)  # 268 MB that go back to the system, unlike a heap's
    for place in range(0, len(taken), mmap.PAGESIZE):
        taken[place] = 1
    high = peak_memory(cpu)
    taken.close()
    assert reset_peak_memory(cpu) and peak_memory(cpu) < high - 2e8


def test_a_dry_run_tells_what_would_fail_and_goes_on(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    whole = Path("photos/a.png").read_bytes()
    Path("photos/0.png").write_bytes(whole[: len(whole) // 2])  # its head is good
    Path("photos/b.png").write_text("no picture")
    picture(4000, 32, 5).save("photos/deep/c.png")
    assert stylize("--dry-run --size 1000 --look sampled --steps 1") == 1 and not written()
    out, err = capsys.readouterr()
    assert "2 to paint, 0 there already, 6 would fail" in out
    assert "would fail: photos/0.png: the picture is broken or cut short" in err
    assert "would fail: photos/b.png: not a picture" in err and "4000x32 pixels cannot be scaled" in err
    assert stylize("--dry-run --json") == 1
    lines = said(capsys)
    failed = {line["content"]: line["error"] for line in lines if line["status"] == "failed"}
    assert all(path in error for path, error in failed.items()) and "photos/b.png" in failed
    for mask in ("--keep", "--mask"):
        style = "styles/s.png styles/t.png"
        options = f"--dry-run {mask} photos/deep/c.png"
        assert stylize(options, "photos/a.png", style if mask == "--mask" else "styles/s.png", "x.png") == 1
        assert "does not have the picture's aspect" in capsys.readouterr().err


def test_a_single_picture_is_always_painted_so_a_dry_run_says_so(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    for options in ("", "--dry-run"):
        assert stylize(options, "photos/a.png", "styles/s.png", "one.png") == 0
    assert "1 to paint, 0 there already" in capsys.readouterr().out


def test_exif_data_are_added_to_what_was_painted_without(stylize: Callable) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    picture(48, 32, 1).save("photos/a.png", exif=exif)
    assert stylize() == stylize("--keep-exif") == 0
    with Image.open("out/a__s.png") as result:
        assert result.getexif()[0x010F] == "A camera"


class Pipe:
    """Standard input or output, as bytes."""

    def __init__(self, content: bytes = b""):
        self.buffer = io.BytesIO(content)

    def flush(self) -> None:
        """As of a text stream."""


def test_pictures_come_from_and_go_to_pipes(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert stylize("", "photos/a.png", "styles/s.png", "one.png") == 0
    expected, given = load_image("one.png"), {"content": "photos/a.png", "style": "styles/s.png"}
    for kind in given:
        monkeypatch.setattr("sys.stdin", Pipe(Path(given[kind]).read_bytes()))
        monkeypatch.setattr("sys.stdout", out := Pipe())
        options = "--quiet --pair random"  # one result, of however many
        assert stylize(options, **(given | {kind: "-"}), output="-") == 0
        out.buffer.name = "result"
        assert largest_difference(load_image(out.buffer), expected) == 0


@pytest.mark.parametrize(
    "options, given, problem",
    [
        ("", {"content": "-", "style": "-"}, "only one picture can come from standard input"),
        ("--json", {"output": "-"}, "leave out --json and --dry-run"),
        ("--dry-run", {"output": "-"}, "leave out --json and --dry-run"),
        ("", {"output": "-"}, "--output - takes a single result, not 6"),
        ("", {"content": "-"}, "standard input or output is closed"),
    ],
)
def test_pipes_that_cannot_be(
    stylize: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    given: dict,
    problem: str,
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert stylize(options, **given) == 2 and problem in capsys.readouterr().err


def test_nothing_on_a_pipe_is_no_picture(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", Pipe())
    assert stylize("", "-", "styles/s.png", "one.png") == 2
    assert "standard input: the file is empty" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "seconds, words", [(0.4, "0 s"), (99, "99 s"), (600, "10 minutes"), (9000, "2.5 hours")]
)
def test_spans_of_time_are_said_in_words(seconds: float, words: str) -> None:
    assert spoken(seconds) == words
