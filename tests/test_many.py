"""ldm.pipeline.folders and tasks: which pictures are meant, what their results are called, which of them are done."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_builders import picture

from ldm.errors import UserError
from ldm.media.images import save_image
from ldm.pipeline.folders import distinct_names, expand
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.provenance import METADATA_KEY
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import Task, check_inputs_survive, describe, folder_of_results, is_finished, plan

VALUES = {"seed": 3, "content_scale": 1.0, "style_scale": 1.5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos/ with three pictures, one of them deeper, a text and some hidden files."""
    for name in (
        "photos/b.png",
        "photos/a.jpg",
        "photos/deep/c.png",
        "photos/._b.png",
        "photos/.thumbs/b.png",
        "single.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(40, 36, len(name)).save(tmp_path / name)
    (tmp_path / "photos/notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: Sequence[Path]) -> list[str]:
    return [path.as_posix() for path in paths]


def painted(path: str | Path) -> Path:
    """A picture with the metadata of a result."""
    save_image(picture(8, 8), path, {METADATA_KEY: "{}"})
    return Path(path)


# Which pictures


@pytest.mark.parametrize(
    "given, meant",
    [
        (["single.png"], ["single.png"]),
        (["single.png", "photos/b.png"], ["single.png", "photos/b.png"]),
        (["photos"], ["photos/a.jpg", "photos/b.png", "photos/deep/c.png"]),
        (["photos/"], ["photos/a.jpg", "photos/b.png", "photos/deep/c.png"]),
        (["photos/*.png"], ["photos/b.png"]),
        (["photos/**/*.png"], ["photos/b.png", "photos/deep/c.png"]),
        (["photos/[ab].*"], ["photos/a.jpg", "photos/b.png"]),
        (["photos/b.png", "photos"], ["photos/b.png", "photos/a.jpg", "photos/deep/c.png"]),
        (["single.png", "./single.png", "photos/../single.png"], ["single.png"]),
        (["photos/notes.txt"], ["photos/notes.txt"]),  # that it is no picture shows when it is read
        (["photos/._b.png"], ["photos/._b.png"]),
    ],
)
def test_names_stand_for_files_each_once_in_order(folder: Path, given: list[str], meant: list[str]) -> None:
    assert names(expand(given)) == meant


def test_the_same_file_by_another_path_is_one(folder: Path) -> None:
    assert names(expand(["single.png", str(folder / "single.png")])) == ["single.png"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(folder: Path) -> None:
    picture(8, 8).save("[ab].png")
    picture(8, 8).save("a.png")
    assert names(expand(["[ab].png"])) == ["[ab].png"]


@pytest.mark.parametrize(
    "name, problem",
    [
        ("nowhere.png", "nowhere.png: no such file or folder$"),
        ("x" * 300, "no such file"),
        ("photos/*.bmp", "no file matches it"),
        ("photos/deep/*/", "no file matches it"),
        ("photos/.thumbs/deeper", "no such file"),
        ("empty", "empty: no pictures"),
        ("hidden", "hidden: no pictures in it but hidden ones"),
    ],
)
def test_a_name_that_stands_for_nothing_is_an_error(folder: Path, name: str, problem: str) -> None:
    (folder / "empty").mkdir()
    (folder / "hidden").mkdir()
    picture(8, 8).save("hidden/.a.png")
    with pytest.raises(UserError, match=problem):
        expand(["single.png", name])


@pytest.mark.parametrize("given", ["photos", "photos/**/*.png"])
def test_results_in_a_folder_below_the_photos_are_no_photos(folder: Path, given: str) -> None:
    before = expand([given])
    painted("photos/out/x/b__s.png")
    save_image(picture(8, 8), "photos/out/b__s.jpg")
    assert expand([given], "photos/out") == before


def test_results_beside_the_photos_are_no_photos(folder: Path) -> None:
    before = expand(["photos"])
    painted("photos/b__s.png")
    assert expand(["photos"], "photos") == before


def test_results_are_painted_again_where_they_are_named(folder: Path) -> None:
    result = painted("out/b__s.png")
    for given in ("out/b__s.png", "out", "out/*.png"):
        assert expand([given], "other") == [result]
    assert expand(["out/b__s.png"], "out") == expand(["out"], ".") == [result]


def test_a_folder_of_nothing_but_results_says_so(folder: Path) -> None:
    painted("out/b__s.png")
    with pytest.raises(UserError, match="results of earlier runs"):
        expand(["out"], "out")


@pytest.mark.parametrize(
    "output, results",
    [
        ("out", "out"),
        ("out.v2/", "out.v2"),
        ("out/a.png", "out"),
        ("a.png", ""),
        ("out/{style}/{content}.png", "out"),
        ("out/x_{content}.png", "out"),
        ("{content}.png", ""),
        ("{{out}}/{content}.png", "{out}"),
        ("photos", "photos"),
    ],
)
def test_the_folder_of_all_results(folder: Path, output: str, results: str) -> None:
    assert folder_of_results(output) == results


# Names


@pytest.mark.parametrize(
    "paths, expected",
    [
        (["a/x.png", "a/y.jpg"], ["x", "y"]),
        (["a/x.png", "b/x.png", "b/y.png"], ["a-x", "b-x", "y"]),
        (["a/x.png", "a/x.jpg"], ["x.png", "x.jpg"]),
    ],
)
def test_files_get_distinct_names(paths: list[str], expected: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == expected


@pytest.mark.parametrize(
    "paths",
    [["p/a/x.png", "q/a/x.png"], ["a/x.png", "a/x.jpg", "b/x.png"], ["x.png", "a/x.png", "a/a/x.png"]],
)
def test_names_are_distinct_however_alike_the_paths(paths: list[str]) -> None:
    assert len(set(distinct_names([Path(path) for path in paths]))) == len(paths)


def test_names_that_stay_alike_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be told apart"):
        distinct_names([Path("/x.png.png"), Path("/x.png"), Path("/x.jpg")])


def test_names_do_not_depend_on_the_order() -> None:
    paths = [Path(name) for name in ("a/x.png", "b/x.png", "b/y.png", "b/y.jpg")]
    assert distinct_names(paths[::-1]) == distinct_names(paths)[::-1]


# Where the results go


def outputs(contents: list[str], styles: list[str], output: str) -> list[str]:
    tasks = plan(
        [Path(c) for c in contents], [(Path(s).stem, Path(s)) for s in styles], output, Settings(**VALUES)
    )
    return names([task.output for task in tasks])


@pytest.mark.parametrize(
    "output, expected",
    [
        ("out", ["out/a__s.png", "out/a__t.png", "out/b__s.png", "out/b__t.png"]),
        ("out.v2/", ["out.v2/a__s.png", "out.v2/a__t.png", "out.v2/b__s.png", "out.v2/b__t.png"]),
        ("{style}/{content}.jpg", ["s/a.jpg", "t/a.jpg", "s/b.jpg", "t/b.jpg"]),
        (
            "{content}_{style}_{seed:03d}_{style_scale}.png",
            ["a_s_003_1.5.png", "a_t_003_1.5.png", "b_s_003_1.5.png", "b_t_003_1.5.png"],
        ),
        ("{{x}}/{content}{style}.png", ["{x}/as.png", "{x}/at.png", "{x}/bs.png", "{x}/bt.png"]),
    ],
)
def test_every_content_in_every_style_has_a_file(folder: Path, output: str, expected: list[str]) -> None:
    assert outputs(["a.png", "b.png"], ["s.png", "t.png"], output) == expected


@pytest.mark.parametrize(
    "output, expected",
    [
        ("new.png", "new.png"),
        ("new", "new/a__s.png"),
        ("photos", "photos/a__s.png"),
        ("{content}.jpg", "a.jpg"),
        ("x{{y}}.png", "x{y}.png"),
    ],
)
def test_a_single_picture_goes_to_a_file_or_a_folder(folder: Path, output: str, expected: str) -> None:
    assert outputs(["a.png"], ["s.png"], output) == [expected]


def test_photos_of_one_name_in_two_folders_are_told_apart(folder: Path) -> None:
    assert outputs(["x/a.png", "y/a.png", "y/b.png"], ["s.png"], "out") == [
        "out/x-a__s.png",
        "out/y-a__s.png",
        "out/b__s.png",
    ]


def test_a_folder_may_have_a_dot_if_it_is_there(folder: Path) -> None:
    (folder / "out.png").mkdir()
    assert outputs(["a.png"], ["s.png", "t.png"], "out.png") == ["out.png/a__s.png", "out.png/a__t.png"]


def test_braces_and_blanks_in_names_are_kept(folder: Path) -> None:
    assert outputs(["{seed} é ☂.png"], ["my {style}.png"], "out") == ["out/{seed} é ☂__my {style}.png"]


@pytest.mark.parametrize(
    "contents, output, problem",
    [
        (["a.png", "b.png"], "one.png", "2 pictures do not fit into one file"),
        (["a.png", "b.png"], "{style}.png", "s.png: would be written for both a.png in s and b.png in s"),
        (
            ["x/a.png", "y/a.png"],
            "{style}.png",
            "s.png: would be written for both x/a.png in s and y/a.png in s",
        ),
        (["a.png"], "{styel}.png", r"no field \{styel\}; did you mean style"),
        (["a.png"], "{}.png", r"no field \{\}"),
        (["a.png"], "{content.__class__}.png", "no field"),
        (["a.png"], "{0}.png", "no field"),
        (["a.png"], "{content", "write {{ and }} for braces"),
        (["a.png"], "{seed:word}.png", "cannot be written like this"),
        (["a.png"], "{seed:{other}}.png", "cannot be written like this"),
        (["a.png"], "out.txt", "unknown picture format '.txt'"),
        (["a.png"], "{content}", "unknown picture format ''"),
        (["a.png"], "single.png/out", "is a file, not a folder"),
    ],
)
def test_an_output_that_will_not_do_is_refused(
    folder: Path, contents: list[str], output: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        outputs(contents, ["s.png"], output)


@pytest.mark.parametrize("output", ["single.png", "./photos/../single.png", "{content}.png", "link.png"])
def test_a_result_may_not_replace_a_content(folder: Path, output: str) -> None:
    (folder / "link.png").symlink_to("single.png")
    with pytest.raises(UserError, match="is one of the pictures to work from"):
        outputs(["single.png"], ["s.png"], output)


@pytest.mark.parametrize(
    "style", [Path("s.png"), StyleMix(["t.png", "s.png"]), StyleRegions(["t.png"], ["s.png"])]
)
def test_a_result_may_not_replace_a_style_or_mask(folder: Path, style: Any) -> None:
    with pytest.raises(UserError, match="s.png: is one of the pictures to work from"):
        plan([Path("single.png")], [("t", style)], "s.png", Settings(**VALUES))


def test_other_files_may_be_replaced(folder: Path) -> None:
    check_inputs_survive([Path("photos/b.png")], ["single.png", Path("photos/a.jpg")])


# What is done already


@pytest.fixture
def task(folder: Path) -> Task:
    """A task whose result is there."""
    done = Task(
        Path("single.png"),
        StyleRegions(["photos/b.png"], ["photos/a.jpg"]),
        "b",
        Path("out/single__b.png"),
        Settings(),
    )
    save_image(picture(8, 8), done.output, {METADATA_KEY: describe(done, VALUES)})
    return done


def test_a_picture_that_is_there_is_finished(task: Task) -> None:
    assert is_finished(task, VALUES)


def test_a_picture_that_is_not_there_is_not_finished(task: Task) -> None:
    task.output.unlink()
    assert not is_finished(task, VALUES)


def test_a_picture_painted_with_other_settings_is_not_finished(task: Task) -> None:
    assert not is_finished(task, {**VALUES, "seed": 4})


@pytest.mark.parametrize("changed", ["single.png", "photos/b.png", "photos/a.jpg"])
def test_a_picture_made_from_other_files_of_the_same_name_is_not_finished(task: Task, changed: str) -> None:
    picture(40, 36, 99).save(changed)
    assert not is_finished(task, VALUES)


def test_a_picture_whose_content_is_gone_is_not_finished(task: Task) -> None:
    task.content.unlink()
    assert not is_finished(task, VALUES)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_file_that_says_nothing_of_how_it_was_made_is_not_finished(
    task: Task, content: bytes | None
) -> None:
    picture(8, 8).save(task.output) if content is None else task.output.write_bytes(content)
    assert not is_finished(task, VALUES)


def test_formats_without_metadata_are_finished_when_they_are_there(task: Task) -> None:
    other = replace(task, output=Path("out/a.jpg"))
    assert not is_finished(other, VALUES)
    save_image(picture(8, 8), other.output)
    assert is_finished(other, VALUES)


def test_a_description_says_what_a_picture_was_made_from(task: Task) -> None:
    told = json.loads(describe(task, VALUES))
    assert (told["content"], told["style"], told["seed"]) == ("single.png", "b", 3)
    assert len({told["content_sha256"], *told["style_sha256"]}) == 3
