"""The programs that draw sheets, guidance_grid.py, sample_styles.py and interpolate_styles.py, and the help of all painters."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import SMALL, largest_difference, mean_difference, picture, pixels, run_program, script

from ldm.commands import COMMANDS
from ldm.media.images import load_image
from ldm.pipeline.pipeline import StyleTransferPipeline

PROGRAMS = ["stylize", "guidance_grid", "sample_styles", "interpolate_styles"]
COMMAND = {Path(command.script).stem: name for name, command in COMMANDS.items() if command.script}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a photo, two styles that the tiny model tells apart, and a file that is no picture."""
    picture(48, 32, seed=1).save(tmp_path / "photo.png")
    (tmp_path / "styles").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "styles/s.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        tmp_path / "styles/t.png"
    )
    (tmp_path / "text.jpg").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The pipeline's calls: inputs, options, and what was painted."""
    made, call = [], StyleTransferPipeline.__call__

    def spy(self: StyleTransferPipeline, content: Any, style: Any, **options: Any) -> Any:
        painted = call(self, content, style, **options)
        made.append({"content": content, "style": style, "painted": painted, **options})
        return painted

    monkeypatch.setattr(StyleTransferPipeline, "__call__", spy)
    return made


@pytest.fixture
def program(
    folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], int]:
    """Runs a program with these options, and returns its exit code."""
    return lambda name, options: run_program(
        script(name).main, [*model_files, *SMALL, *options.split()], monkeypatch
    )


def cells(path: str, size: tuple[int, int], left: int, top: int) -> list[list[Image.Image]]:
    """The pictures of a sheet whose first one begins `left` and `top`, by row."""
    sheet, (width, height) = load_image(path), size
    rows = range(top, sheet.height - height + 1, height + 4)
    return [
        [sheet.crop((x, y, x + width, y + height)) for x in range(left, sheet.width - width + 1, width + 4)]
        for y in rows
    ]


# Help


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_explains_every_option(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    parsers, parse = [], argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, *args: parsers.append(self) or parse(self, *args)
    )
    assert run_program(script(name).main, ["--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"artfusion {COMMAND[name]} " in text  # an example
    for action in parsers[0]._actions:
        assert action.help and (action.option_strings or [action.metavar])[-1] in text, action


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_examples_of_the_help_are_accepted(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script(name)
    examples = [
        line.split("#")[0].replace("'", "").split()[2:]
        for line in module.__doc__.splitlines()
        if line.startswith("    artfusion ")
    ]
    assert examples
    for example in examples:
        monkeypatch.setattr("sys.argv", ["program", *example])
        assert module.parse_args().output


# The grid of scales

GRID = "--content photo.png --style styles/t.png --output new/grid.png --cell 48 "


@pytest.mark.parametrize(
    "rows, columns", [([0.5, 2.0], [1.0, 2.0, 3.0]), ([1.0], [0.0, 4.0]), ([0.5, 1.0, 2.0], [1.5])]
)
def test_the_grid_has_every_combination(
    program: Callable, calls: list, small_pipeline: Callable, rows: list, columns: list
) -> None:
    scales = (
        f"--content-scales {' '.join(map(str, rows))} --style-scales {' '.join(map(str, columns))} --seed 5"
    )
    assert program("guidance_grid", GRID + scales) == 0
    given = 2 if len(rows) == 1 else 1  # photo and painting, beside each other or one below the other
    grid = cells(
        "new/grid.png", (48, 32), load_image("new/grid.png").width - (given + len(columns)) * 52, 22 + 4
    )
    assert [len(row) for row in grid] == [given + len(columns)] * len(rows)
    for content_scale, row in zip(rows, grid):
        for style_scale, cell in zip(columns, row[given:]):
            expected = small_pipeline(
                "photo.png", "styles/t.png", content_scale=content_scale, style_scale=style_scale, seed=5
            )
            assert largest_difference(cell, expected) <= 1
    assert largest_difference(grid[0][0], load_image("photo.png")) <= 1


def test_the_painting_stands_below_the_photo_or_beside_it(program: Callable) -> None:
    for rows, place in ((1, (0, 1)), (2, (1, 0))):
        assert program("guidance_grid", GRID + f"--content-scales {'1 ' * rows} --style-scales 1") == 0
        grid = cells(
            "new/grid.png", (48, 32), load_image("new/grid.png").width - (2 if rows == 2 else 3) * 52, 26
        )
        painting = load_image("styles/t.png").resize((48, 48), Image.Resampling.LANCZOS).crop((0, 8, 48, 40))
        assert mean_difference(grid[place[0]][place[1]], painting) < 12


def test_the_grid_is_painted_from_one_noise_in_one_call(program: Callable, calls: list) -> None:
    assert program("guidance_grid", GRID + "--content-scales 1 2 --style-scales 1 2 3 --seed 5") == 0
    (call,) = calls
    assert len(call["painted"]) == call["batch_size"] == 6 and call["settings"].seed == 5
    assert call["settings"].content_scale == [1, 1, 1, 2, 2, 2]
    assert call["settings"].style_scale == [1, 2, 3, 1, 2, 3]


def test_the_grid_is_labelled(program: Callable) -> None:
    assert program("guidance_grid", GRID + "--content-scales 1 2 --style-scales 1 2") == 0
    sheet = load_image("new/grid.png")
    left = sheet.width - 3 * 52
    words = pixels(sheet).max(axis=2) < 128
    assert all(words[:22, left + 52 * i : left + 52 * i + 48].any() for i in range(3))
    assert all(words[26 + 36 * i : 58 + 36 * i, :left].any() for i in range(2))


# Styles alone


def test_styles_alone_have_a_row_each_and_a_column_for_each_seed(
    program: Callable, calls: list, small_pipeline: Callable
) -> None:
    assert program("sample_styles", "--style styles --seeds 3 1 2 --output sheet.png --batch-size 4") == 0
    (call,) = calls
    assert call["content"] is None and call["settings"].seed == [3, 1, 2] * 2 and call["batch_size"] == 4
    sheet = cells("sheet.png", (192, 192), 4, 2 * 16 + 4)
    assert [len(row) for row in sheet] == [4, 4]
    for row, (style, first) in enumerate((("s", 0), ("t", 3))):
        assert (
            largest_difference(
                call["painted"][first + 2], small_pipeline(None, f"styles/{style}.png", seed=2)
            )
            <= 1
        )
        shown = [
            load_image(f"styles/{style}.png").resize((32, 32), Image.Resampling.LANCZOS),
            *call["painted"][first : first + 3],
        ]
        for cell, expected in zip(sheet[row], shown):
            assert mean_difference(cell, expected.resize((192, 192), Image.Resampling.LANCZOS)) < 2


# From one style to another

BETWEEN = "--content photo.png --style styles/s.png styles/t.png "


def test_the_way_between_styles_ends_at_the_pure_styles(
    program: Callable, calls: list, small_pipeline: Callable
) -> None:
    assert program("interpolate_styles", BETWEEN + "--output strip.png --frames 4 --seed 2") == 0
    (call,) = calls
    ends = [small_pipeline("photo.png", f"styles/{style}.png", seed=2) for style in "st"]
    assert len(call["painted"]) == 4 and largest_difference(*ends) > 8
    assert (
        largest_difference(call["painted"][0], ends[0]) <= 1
        and largest_difference(call["painted"][-1], ends[1]) <= 1
    )


def test_the_styles_shares_go_up_in_equal_steps(program: Callable, calls: list) -> None:
    assert program("interpolate_styles", BETWEEN + "--output strip.png --frames 5") == 0
    assert [mix.shares()[1] for mix in calls[0]["style"]] == [0, 0.25, 0.5, 0.75, 1]


def test_the_strip_stands_between_the_paintings(program: Callable, calls: list) -> None:
    assert program("interpolate_styles", BETWEEN + "--output strip.png --frames 3") == 0
    (row,) = cells("strip.png", (192, 128), 4, 2 * 16 + 4)
    assert len(row) == 5 and pixels(row[0]).max() == 0
    for cell, expected in zip(row[1:4], calls[0]["painted"]):
        assert mean_difference(cell, expected.resize((192, 128), Image.Resampling.LANCZOS)) < 2


@pytest.mark.parametrize("frames", [2, 4])
def test_a_gif_goes_there_and_back_for_ever(program: Callable, calls: list, frames: int) -> None:
    assert (
        program("interpolate_styles", BETWEEN + f"--output moving.gif --frames {frames} --duration 120") == 0
    )
    painted = calls[0]["painted"]
    with Image.open("moving.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (2 * frames - 2, 0, (48, 32))
        for i, expected in enumerate([*painted, *painted[-2:0:-1]]):
            gif.seek(i)
            assert gif.info["duration"] == 120
            nearest = min(range(frames), key=lambda k: np.abs(pixels(gif) - pixels(painted[k])).sum())
            assert painted[nearest] is expected


# What is refused


@pytest.mark.parametrize(
    "name, options, problem",
    [
        ("guidance_grid", GRID + "--cell 31", "--cell: expected a whole number between 32 and"),
        ("guidance_grid", GRID + "--style-scales 1 nan", "style_scale must be a finite number"),
        ("guidance_grid", GRID + "--content-scales much", "--content-scales: invalid float value"),
        ("guidance_grid", GRID + "--style text.jpg", "text.jpg: not a picture"),
        ("guidance_grid", GRID + "--content styles", "styles: is a folder"),
        ("guidance_grid", GRID + "--output photo.png", "photo.png: is one of the pictures to work from"),
        ("guidance_grid", GRID + "--output new/grid", "unknown picture format ''"),
        ("sample_styles", "--style styles text.jpg --output sheet.png", "text.jpg: not a picture"),
        ("sample_styles", "--style none --output sheet.png", "none: no such file or folder"),
        ("sample_styles", "--style styles --output styles/s.png", "is one of the pictures to work from"),
        ("sample_styles", "--style styles --output sheet.png --content photo.png", "--content"),
        ("sample_styles", "--style styles --output sheet.png --seeds lucky", "--seeds: invalid int value"),
        (
            "interpolate_styles",
            BETWEEN + "--output strip.png --frames 1",
            "--frames: expected a whole number between 2 and",
        ),
        (
            "interpolate_styles",
            BETWEEN + "--output a.gif --duration 0",
            "--duration must be from 10 to 60000 milliseconds, got 0",
        ),
        (
            "interpolate_styles",
            BETWEEN + "--output a.gif --duration 700000",
            "--duration must be from 10 to 60000",
        ),
        ("interpolate_styles", BETWEEN + "--output styles/t.png", "is one of the pictures to work from"),
        (
            "interpolate_styles",
            "--content photo.png --style styles/s.png --output strip.png",
            "--style: expected 2 arguments",
        ),
        ("interpolate_styles", BETWEEN + "--output strip.png --steps -1", "steps must be between"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_read(
    program: Callable,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    options: str,
    problem: str,
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, printed = program(name, options), capsys.readouterr()
    assert (
        code == 2 and printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("error: ")
    )
    assert problem in printed.err and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
