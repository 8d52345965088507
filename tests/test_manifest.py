"""Tables of pictures to paint: artfusion stylize --manifest, --write-manifest."""

import csv
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pipeline_builders import SMALL, largest_difference, picture, run_program, script

from ldm.cli.manifest import read_manifest, write_manifest
from ldm.errors import UserError
from ldm.media.images import load_image, read_metadata
from ldm.media.places import place_of
from ldm.pipeline.inputs import StyleMix
from ldm.pipeline.settings import DIALS, Settings
from ldm.pipeline.tasks import folder_of_results, plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a folder `data` with two photos and two paintings."""
    (tmp_path / "data").mkdir()
    for i, name in enumerate(["a", "b", "s", "t"]):
        picture(48, 32, i).save(tmp_path / f"data/{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stylize(folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    main = script("stylize").main
    return lambda *options: run_program(main, [*model_files, *SMALL, *options], monkeypatch)


def table(*lines: str) -> Path:
    Path("data/table.csv").write_text("\n".join(lines))
    return Path("data/table.csv")


def told(path: str) -> dict[str, Any]:
    return json.loads(read_metadata(path)["artfusion"])


def test_each_row_is_painted_with_its_own_settings(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    path = table(
        "content, style, seed, style_scale, output",
        "a.png,s.png,,,",
        "b.png,t.png,3,2,own/name.png",
        "a.png,t.png,3,2,",
    )
    assert stylize("--manifest", path, "--output", "out/", "--seed", "1") == 0
    assert capsys.readouterr().out.endswith("3 painted, 0 there already, 0 failed\n")
    for name, seed, scale in (("a__s", 1, 1.75), ("own/name", 3, 2), ("a__t", 3, 2)):
        said = told(f"out/{name}.png")
        assert (said["seed"], said["style_scale"]) == (seed, scale)
    assert stylize("data/a.png", "data/t.png", "one.png", "--seed", "3", "--style-scale", "2") == 0
    assert largest_difference(load_image("one.png"), load_image("out/a__t.png")) <= 1
    assert stylize("--manifest", path, "--output", "out/", "--seed", "1", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line["status"] for line in lines] == ["there"] * 3
    assert stylize("--manifest", path, "--output", "out/", "--seed", "1", "--dry-run") == 0
    assert "0 to paint, 3 there already" in capsys.readouterr().out


def test_rows_may_paint_or_only_colour(
    folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = table("content,style,look", "a.png,s.png,palette", "b.png,t.png,sampled")
    given = [*model_files, "--manifest", path, "--output", "out/", "--size", "32", "--device", "cpu"]
    main = script("stylize").main
    assert run_program(main, given, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("2 painted, 0 there already, 0 failed\n")
    assert told("out/a__s.png")["look"] == "palette" and told("out/b__t.png")["look"] == "sampled"
    assert "seed" not in told("out/a__s.png") and told("out/b__t.png")["seed"] == 0
    assert run_program(main, given, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("0 painted, 2 there already, 0 failed\n")
    assert run_program(main, [*given, "--palette-from", "data/b.png"], monkeypatch) == 2
    assert "palette is for looks that paint" in capsys.readouterr().err


def test_what_is_to_be_painted_is_written_and_read_again(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    options = ["--pair", "zip", "--seed", "4", "--look", "free", "--effort", "0.1"]
    pictures = ["--content", "data/a.png", "data/b.png", "--style", "data/s.png", "data/t.png"]
    plan = ["--write-manifest", "plans/plan.csv"]
    assert stylize(*pictures, *options, *plan, "--output", "out/", "--dry-run") == 0
    assert not Path("out").exists()
    with open("plans/plan.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["output"]).name for row in rows] == ["a__s.png", "b__t.png"]
    assert all((row["look"], row["seed"]) == ("free", "4") for row in rows)
    assert stylize("--manifest", "plans/plan.csv", "--output", "out/") == 0
    assert told("out/b__t.png")["content_scale"] == 0.5
    assert stylize(*pictures, *options, "--output", "out/", "--json") == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [json.loads(line)["status"] for line in lines] == ["there"] * 2


VALUES = {
    "look": "sampled",
    "content_scale": 1.25,
    "style_scale": -0.5,
    "detail": 0.0,
    "recolor": 0.25,
    "texture": 0.5,
    "strength": 0.7,
    "preserve_color": True,
    "face_detail": 0.5,
    "size": (320, 200),
    "style_size": 300,
    "tile": 96,
    "refine": 0.75,
    "sampler": "ddim",
    "steps": 7,
    "eta": 0.5,
    "guidance_interval": (0.1, 0.9),
    "seed": 2**64 - 1,
}


def test_every_setting_comes_back_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.pipeline.settings.check_face_detector", lambda: None)  # with or without it
    assert {*VALUES, "effort"} == {*DIALS}
    for settings in (Settings(**VALUES), Settings(effort=2.5, size=64), Settings()):
        tasks = plan([Path("data/a.png")], [("s", Path("data/s.png"))], "out/", settings)
        write_manifest(Path("plan.csv"), tasks, [], "out/")
        [task] = read_manifest(Path("plan.csv"), Settings(), "out/")
        assert task.settings == settings and task.output == Path("out/a__s.png")
    mixed = plan([Path("data/a.png")], [("m", StyleMix(["data/s.png", "data/t.png"]))], "out/", Settings())
    with pytest.raises(UserError, match="a row has one painting"):
        write_manifest(Path("mixed.csv"), mixed, [], "out/")
    assert not Path("mixed.csv").exists()


@pytest.mark.parametrize(
    "lines, problem",
    [
        (["content,style"], "table.csv: no rows in it"),
        ([], "table.csv: no column 'content'"),
        (["photo,style", "a.png,s.png"], "table.csv: no column 'content'"),
        (["content,style,sede", "a.png,s.png,1"], "there is no column 'sede'; did you mean seed?"),
        (["content,style,seed,seed", "a.png,s.png,1,2"], "the column 'seed' is there twice"),
        (["content,style", "a.png"], "table.csv:2: not as many values as columns (2)"),
        (["content,style", "a.png,s.png,x"], "table.csv:2: not as many values as columns (2)"),
        (["content,style", "a.png,s.png", "a.png,"], "table.csv:3: no style"),
        (["content,style", "a.png,x.png"], "table.csv:2: data/x.png: no such file"),
        (["content,style,seed", "a.png,s.png,one"], "table.csv:2: seed 'one' is not a whole number between"),
        (
            ["content,style,seed", "a.png,s.png,1", "a.png,t.png,1.5"],
            "table.csv:3: seed '1.5' is not a whole",
        ),
        (["content,style,size", "a.png,s.png,64.5"], "table.csv:2: size '64.5' is not"),
        (
            ["content,style,output", "a.png,s.png,", "a.png,t.png,../x.png"],
            "table.csv:3: output ../x.png: leaves",
        ),
        (
            ["content,style,output", "a.png,s.png,data/../../x.png"],
            "table.csv:2: output data/../../x.png: leaves",
        ),
        (["content,style,output", "a.png,s.png,/tmp/x.png"], "table.csv:2: output /tmp/x.png: leaves"),
        (["content,style,output", "a.png,s.png,memory://b/x.png"], "output memory://b/x.png: leaves"),
        (
            ["content,style", "x.png,s.png", "a.png,x.png"],
            "x.png: no such file; every other row lacks a file",
        ),
        (["content,style,size", "a.png,s.png,9"], "table.csv:2: size must be at least 32 pixels, got 9"),
        (["content,style,preserve_color", "a.png,s.png,maybe"], "preserve_color 'maybe' is not yes or no"),
        (["content,style,look", "a.png,s.png,finest"], "look 'finest' is not one of"),
        (["content,style,output", "a.png,s.png,x.xyz"], "unknown picture format '.xyz'"),
        (["content,style", "a.png,s.png", "a.png,s.png"], "would be written for both"),
        (["content,style,output", "a.png,s.png,data/s.png"], "would be lost"),
        (["content,style,output", "a.png,s.png,x\0.png"], "table.csv:2: "),
        (["content;style", "a.png;s.png"], "separate values by commas"),
        (["content,style", "data,s.png"], "table.csv:2: data/data: no such file"),
    ],
)
def test_tables_that_cannot_be_are_refused_before_the_model_is_read(
    stylize: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr(
        "ldm.pipeline.chosen.ModelChoice.load", lambda *given, **named: pytest.fail("too late")
    )
    assert stylize("--manifest", table(*lines)) == 2
    assert problem in capsys.readouterr().err and {*Path().iterdir()} == {Path("data")}


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--content", "data/a.png"], "leave out --content"),
        (["data/a.png", "data/s.png"], "leave out photos"),
        (["--mask", "data/a.png"], "leave out --mask"),
        (["--pair", "zip"], "leave out --pair"),
        (["--output", "-"], "--manifest takes a folder"),
    ],
)
def test_what_a_table_says_options_cannot(
    stylize: Callable, capsys: pytest.CaptureFixture, options: list[str], problem: str
) -> None:
    path = table("content,style", "a.png,s.png")
    assert stylize("--manifest", path, *options) == 2 and problem in capsys.readouterr().err


def test_a_table_that_is_none(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    assert (
        stylize("--manifest", "missing.csv") == 2 and "missing.csv: no such file" in capsys.readouterr().err
    )
    Path("picture.csv").write_bytes(Path("data/a.png").read_bytes())
    assert stylize("--manifest", "picture.csv") == 2
    assert "picture.csv: no column 'content'" in capsys.readouterr().err
    assert stylize("--manifest", "data") == 2 and "data: is a folder" in capsys.readouterr().err


def test_a_table_takes_the_place_of_no_picture(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    before = Path("data/a.png").read_bytes()
    given = ["data/a.png", "data/s.png", "out.png", "--dry-run", "--write-manifest"]
    for name in ("data/a.png", "data", "-"):
        assert stylize(*given, name) == 2 and "ends with .csv" in capsys.readouterr().err
    shutil.copy("data/s.png", "data/s.csv")
    assert stylize("data/a.png", "data/s.csv", *given[2:], "data/s.csv") == 2
    assert "would be lost" in capsys.readouterr().err
    assert Path("data/a.png").read_bytes() == before and len({*Path().iterdir()}) == 1


def test_names_may_be_of_any_kind(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    odd = ["we{ird}, 'q'.png", " sp .png", "ü.png", os.fsdecode(b"l\xf6.png")]
    for name in odd:
        shutil.copy("data/a.png", f"data/{name}")
    pictures = ["--content", *(f"data/{name}" for name in odd), "--style", "data/s.png"]
    assert stylize(*pictures, "--output", "out/", "--write-manifest", "plan.csv", "--dry-run") == 0
    assert stylize("--manifest", "plan.csv", "--output", "out/") == 0
    assert {path.name for path in Path("out").iterdir()} == {f"{name[:-4]}__s.png" for name in odd}
    # the same file by several paths is one
    path = table(
        "content,style", "a.png,s.png", f"{Path('data/a.png').resolve()},t.png", "../data/a.png,ü.png"
    )
    assert stylize("--manifest", path, "--output", "more/", "--json") == 0
    assert {path.name for path in Path("more").iterdir()} == {"a__s.png", "a__t.png", "a__ü.png"}


def test_an_error_is_told_of_the_row_that_has_it(stylize: Callable, capsys: pytest.CaptureFixture) -> None:
    for name in ("x", "y"):
        Path(f"data/{name}.png").write_text("no picture")
    path = table("content,style,seed", "a.png,x.png,1", "a.png,y.png,1", "y.png,s.png,2", "a.png,s.png,3")
    for options in ([], ["--dry-run"]):
        assert stylize("--manifest", path, "--output", "out/", "--json", *options) == 1
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        by = {(Path(line["content"]).stem, line["style"]): line.get("error", "") for line in lines}
        assert "x.png" in by["a", "x"] and "y.png" not in by["a", "x"] and "y.png" in by["a", "y"]
        assert "y.png" in by["y", "s"] and not by["a", "s"]
        # a picture that is broken in two rows is told once at the end
        assert err.count("y.png: not a picture") == 1


# Parquet


def test_a_parquet_table_is_read_like_a_csv_file(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"content": "a.png", "style": "s.png", "seed": 3, "preserve_color": True, "output": None},
        {"content": "b.png", "style": "s.png", "seed": None, "preserve_color": None, "output": "y.png"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), "data/t.parquet")
    head = "content,style,seed,preserve_color,output"
    same = table(head, "a.png,s.png,3,yes,", "b.png,s.png,,,y.png")
    read = [read_manifest(Path(path), Settings(), "out") for path in ("data/t.parquet", same)]
    assert read[0] == read[1] and read[0][0].settings.seed == 3


@pytest.mark.parametrize("content", [b"no table", b""])
def test_a_parquet_file_that_is_none_is_one_line(folder: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    Path("data/t.parquet").write_bytes(content)
    with pytest.raises(UserError, match="t.parquet: not a Parquet table"):
        read_manifest(Path("data/t.parquet"), Settings(), "out")


def test_rows_may_name_urls(folder: Path) -> None:
    path = table("content,style,output", "memory://bucket/a.png,s.png,one.png")
    (task,) = read_manifest(path, Settings(), "memory://bucket/out")
    assert str(task.content) == "memory://bucket/a.png"
    assert str(task.output) == "memory://bucket/out/one.png"


# What pandas writes


def test_whole_numbers_may_have_a_point_as_columns_with_gaps_have_them(folder: Path) -> None:
    path = table("content,style,seed,size,preserve_color", "a.png,s.png,3.0,64.0,1.0", "b.png,s.png,,,0.0")
    first, second = read_manifest(path, Settings(), "out")
    assert (
        first.settings == Settings(seed=3, size=64, preserve_color=True) and type(first.settings.seed) is int
    )
    assert second.settings == Settings()


def test_a_frame_with_gaps_is_a_table(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {"content": ["a.png", "b.png"], "style": "s.png", "seed": [3, None], "output": [None, "y.png"]}
    )
    frame.to_csv("data/t.csv", index=False)
    frame.to_parquet("data/t.parquet", index=False)
    for name in ("data/t.csv", "data/t.parquet"):
        first, second = read_manifest(Path(name), Settings(), "out")
        assert (first.settings.seed, second.settings.seed) == (3, 0)
        assert second.output == Path("out/y.png")


def test_rows_of_all_settings_share_a_pack(
    folder: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        row
        for i in range(4)
        for row in (f"a.png,s.png,{i},sampled", f"b.png,s.png,,{'sampled' if i else 'palette'}")
    ]
    output = [f"{i}.png" for i in range(len(rows))]
    path = table("content,style,seed,look,output", *(f"{row},{name}" for row, name in zip(rows, output)))
    given = [*model_files, "--manifest", path, "--output", "out", "--size", "32", "--device", "cpu"]
    main = script("stylize").main
    assert run_program(main, [*given, "--pack", "tar", "--json"], monkeypatch) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(path.name for path in Path("out").iterdir()) == ["part-00000.json", "part-00000.tar"]
    assert {line["pack"] for line in lines} == {"out/part-00000.tar"}
    assert sorted(Path(line["output"]).name for line in lines) == output
    assert run_program(main, [*given, "--pack", "tar"], monkeypatch) == 0
    assert capsys.readouterr().out.endswith("0 painted, 8 there already, 0 failed\n")
    assert run_program(main, given, monkeypatch) == 0
    with tarfile.open("out/part-00000.tar") as packed:
        for name in output:
            assert packed.extractfile(name).read() == Path("out", name).read_bytes()
    Path(path).write_text(Path(path).read_text().replace("a.png,s.png,3,sampled", "a.png,s.png,4,sampled"))
    assert run_program(main, [*given, "--pack", "tar"], monkeypatch) == 0
    assert "8 painted, 0 there already" in capsys.readouterr().out


def test_what_is_given_for_rows_that_paint_is_not_meant_for_others(folder: Path) -> None:
    path = table("content,style,look,strength", "a.png,s.png,palette,0.5", "b.png,t.png,,")
    given = Settings(look="sampled", size=48, steps=1, seed=7)
    only_coloured, painted = (task.settings for task in read_manifest(path, given, "out"))
    assert only_coloured == Settings(look="palette", size=48, strength=0.5) and painted == given
    path = table("content,style,look,steps", "a.png,s.png,palette,3")
    with pytest.raises(UserError, match="table.csv:2: steps is for looks that paint"):
        read_manifest(path, given, "out")


def test_what_does_not_go_with_a_row_s_scale_is_told_before_anything_is_painted(
    stylize: Callable, capsys: pytest.CaptureFixture
) -> None:
    path = table("content,style,style_scale", "a.png,s.png,2", "b.png,s.png,1")
    assert stylize("--manifest", path, "--output", "out/", "--not-style", "data/t.png") == 2
    assert "style_scale is above 1, and it is 1" in capsys.readouterr().err and not Path("out").exists()


def test_the_index_of_a_frame_is_told(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"content": ["a.png"], "style": "s.png"}, index=[7])
    frame.to_csv("data/t.csv")
    frame.to_parquet("data/t.parquet")
    for name in ("data/t.csv", "data/t.parquet"):
        with pytest.raises(UserError, match="is the index of a data frame; write it with index=False"):
            read_manifest(Path(name), Settings(), "out")


# Files that are not there


def test_a_file_that_is_not_there_fails_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stylize(*options: Any) -> int:
        given = ["--manifest", path, "--output", "out/", "--look", "palette", "--size", "32", *options]
        return run_program(script("stylize").main, given, monkeypatch)

    path = table("content,style", "a.png,s.png", "gone.png,s.png", "b.png,missing.png", "b.png,s.png")
    for options in ([], ["--max-failed", "0.4"], ["--dry-run"], ["--pack", "tar"]):
        assert stylize(*options) == 1
        err = capsys.readouterr().err
        assert "data/gone.png: no such file" in err and "data/missing.png: no such file" in err
    assert stylize("--max-failed", "0.5") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("a__s.png", "b__s.png", "part-00000.json", "part-00000.tar")
    ]


# Where results go


def test_a_written_table_can_be_carried_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(size=64)
    for output, other in (
        ("out/", "elsewhere"),
        ("out/{style}/{content}.jpg", "elsewhere/{style}/{content}.jpg"),
        ("one.png", "two.png"),
        ("memory://bucket/out", "memory://other"),
        (str(folder / "deep/er"), "elsewhere"),
    ):
        tasks = plan([Path("data/a.png")], [("s", Path("data/s.png"))], output, settings)
        write_manifest(Path("plan.csv"), tasks, [], output)
        assert (
            str(folder / "deep") not in Path("plan.csv").read_text()
            and "bucket" not in Path("plan.csv").read_text()
        )
        [same], [moved] = (read_manifest(Path("plan.csv"), Settings(), place) for place in (output, other))
        assert str(same.output) == str(tasks[0].output)
        folders = (folder_of_results(each) or "." for each in (output, other))
        names = [str(task.output).removeprefix(f"{each}/") for task, each in zip((same, moved), folders)]
        assert names[0] == names[1]


def test_an_output_may_be_given_as_a_whole_path_within_the_folder(folder: Path) -> None:
    path = table("content,style,output", f"a.png,s.png,{folder / 'out/deep/x.png'}")
    (task,) = read_manifest(path, Settings(), "out")
    assert task.output == folder / "out/deep/x.png"


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "memory://bucket/x.png"])
def test_an_output_elsewhere_stays_in_its_folder_as_well(folder: Path, name: str) -> None:
    path = table("content,style,output", "a.png,s.png,fine.png", f"a.png,t.png,{name}")
    with pytest.raises(
        UserError, match="table.csv:3: output .*: leaves the folder of results, memory://b/out"
    ):
        read_manifest(path, Settings(), "memory://b/out")


# Tables elsewhere


def test_a_table_may_lie_at_a_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a", "s"):
        memory.pipe_file(f"/bucket/data/{name}.png", Path(f"data/{name}.png").read_bytes())
    photo = Path("data/b.png").absolute()
    lines = f"content,style\n../data/a.png,../data/s.png\n{photo},ukiyo-e\n{photo.as_uri()},../data/s.png\n"
    memory.pipe_file("/bucket/tables/t.csv", lines.encode())
    local = table("content,style", "a.png,s.png", "b.png,s.png")
    try:
        first, second, third = read_manifest(place_of("memory://bucket/tables/t.csv"), Settings(), "out")
        assert str(first.content) == "memory://bucket/data/a.png" and second.content == third.content == photo
        main, options = script("stylize").main, ["--output", "out/", "--look", "palette", "--size", "32"]
        written = "memory://bucket/tables/plan.csv"
        for url in ("memory://bucket/tables/t.csv", local.absolute().as_uri()):
            given = ["--manifest", url, "--write-manifest", written, *options]
            assert run_program(main, given, monkeypatch) == 0
            assert run_program(main, ["--manifest", written, *options], monkeypatch) == 0
            assert "0 painted, " in capsys.readouterr().out.splitlines()[-1]
        assert len(list(Path("out").iterdir())) == 3
        assert run_program(main, ["--manifest", "memory://bucket/gone.csv", *options], monkeypatch) == 2
        assert "memory://bucket/gone.csv: no such file" in capsys.readouterr().err
    finally:
        memory.rm("/bucket", recursive=True)
