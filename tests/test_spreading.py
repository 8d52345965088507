"""The options that spread `artfusion stylize` over processes and machines."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from pipeline_builders import picture, run_program

from ldm.cli.stylize import main
from ldm.errors import UserError
from ldm.pipeline.ray_engine import RayEngine

LOOK = ["--look", "palette", "--size", "32"]  # which needs no model


@pytest.fixture
def stylize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in a folder with six photos, one of them broken, and two paintings."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(6):
        picture(40, 36, i).save(f"photos/{i}.png")
    Path("photos/3.png").write_text("no picture")
    for i, name in enumerate("st"):
        picture(40, 36, 10 + i).save(f"{name}.png")

    def call(*options: str, content: str = "photos") -> int:
        inputs = ["--content", content, "--style", "s.png", "--output", "out/"]
        return run_program(main, [*LOOK, *inputs, *options], monkeypatch)

    return call


def written() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_shares_by_number_make_the_whole(stylize: Callable) -> None:
    codes = [stylize("--shard", f"{number}/2") for number in range(2)]
    assert written() == [f"{i}__s.png" for i in (0, 1, 2, 4, 5)] and sorted(codes) == [0, 1]


@pytest.mark.parametrize("given", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_a_share_that_cannot_be_is_one_line(stylize: Callable, capsys, given: str) -> None:
    assert stylize(f"--shard={given}") == 2
    assert "such as 0/8 to 7/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--workers", "2"], "--workers is for --engine ray"),
        (["--ray-address", "auto"], "--ray-address is for --engine ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker is for --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], "leave out --shard"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], "--gpus-per-worker must be 0 or more"),
        (["--max-failed", "2"], "expected a number from 0 to 1"),
        (["--pack-size", "4"], "--pack-size is for --pack"),
        (["--pack-size", "1000"], "--pack-size is for --pack"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    stylize: Callable, capsys, options: list[str], problem: str
) -> None:
    assert stylize(*options) == 2 and problem in capsys.readouterr().err and not Path("out").exists()


def test_a_share_may_fail(stylize: Callable) -> None:
    assert stylize() == 1
    assert stylize("--max-failed", "0.2") == 0
    assert stylize("--max-failed", "0.1") == 1


def test_so_it_may_in_a_dry_run(stylize: Callable) -> None:
    assert stylize("--dry-run") == 1
    assert stylize("--dry-run", "--max-failed", "0.2") == 0
    assert stylize("--dry-run", "--max-failed", "0.1") == 1


def test_a_photo_alone_may_fail_as_one_of_many(stylize: Callable, capsys) -> None:
    assert stylize(content="photos/3.png") == 2
    assert stylize("--max-failed", "1", content="photos/3.png") == 0
    assert "failed: photos/3.png" in capsys.readouterr().err
    assert stylize("--max-failed", "1", "--output", "-", content="photos/0.png") == 2
    assert "it may not fail" in capsys.readouterr().err


def test_a_dry_run_says_whose_time_it_tells(stylize: Callable, capsys) -> None:
    pytest.importorskip("ray")
    stylize("--dry-run", "--engine", "ray")
    assert " in all for one worker" in capsys.readouterr().out


def test_an_empty_share_says_so_in_words_alone(stylize: Callable, capsys) -> None:
    assert stylize("--shard", "1/99") == 0
    said = capsys.readouterr()
    assert said.out == "0 painted, 0 there already, 0 failed\n" and said.err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_a_picture_that_goes_nowhere_is_exit_code_1(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert stylize("--output", "-", content="photos/0.png") == 1
    assert "error: standard output: [Errno 28]" in capsys.readouterr().err


def test_under_torchrun_a_broken_photo_is_no_failure_of_the_process(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert stylize() == 0 and "failed: photos/3.png" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert stylize("--shard", "0/2") == 2


@pytest.mark.parametrize("output", ["out.png", "out/{content}.png"])
def test_packs_need_a_folder(stylize: Callable, capsys, output: str) -> None:
    assert stylize("--pack", "tar", "--output", output) == 2
    assert "--pack takes a folder as --output" in capsys.readouterr().err


def test_names_do_nothing_to_a_terminal(stylize: Callable, capsys) -> None:
    Path("photos/\x1b[31m\n.png").write_text("no picture")
    assert stylize() == 1
    err = capsys.readouterr().err
    assert "failed: photos/\\x1b[31m\\n.png: not a picture" in err and "\x1b[31m" not in err


def test_urls_of_this_machine_are_its_files(stylize: Callable, tmp_path: Path) -> None:
    assert stylize("--max-failed", "1", content=(tmp_path / "photos").as_uri()) == 0
    assert stylize("--max-failed", "1", content=f"{tmp_path.as_uri()}/photos/[01].png") == 0
    assert len(written()) == 5


def test_a_pack_that_cannot_be_written_counts_as_its_pictures(stylize: Callable, capsys) -> None:
    Path("out/part-00000.tar").mkdir(parents=True)
    assert stylize("--pack", "tar", "--pack-size", "4", "--max-failed", "0.5") == 1
    assert "0 there already, 4 failed" in capsys.readouterr().out


def test_a_shard_and_single_photos_do_not_overwrite_each_other(stylize: Callable, capsys) -> None:
    with tarfile.open("part-00000.tar", "w") as file:
        file.add("photos/0.png")
    assert stylize("--pack", "tar", "--content", "part-00000.tar") == 2
    assert "would be lost" in capsys.readouterr().err and not Path("out").exists()


def test_shards_by_a_pattern(stylize: Callable) -> None:
    for number in range(2):
        with tarfile.open(f"photos-{number}.tar", "w") as file:
            file.add(f"photos/{number}.png")
    assert stylize("--pack", "tar", content="photos-*.tar") == 0
    assert written() == [f"photos-{i}.{end}" for i in range(2) for end in ("json", "tar")]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_results_are_packed(stylize: Callable, kind: str) -> None:
    pytest.importorskip("pyarrow")
    assert stylize("--pack", kind, "--pack-size", "4", "--max-failed", "1") == 0
    assert written() == [f"part-0000{i}.{end}" for i in (0, 1) for end in sorted(("json", kind))]


def test_packs_of_an_earlier_larger_run_are_told_of_and_left_alone(stylize: Callable, capsys) -> None:
    assert stylize("--pack", "tar", "--pack-size", "2", "--max-failed", "1") == 0
    assert "earlier" not in capsys.readouterr().err
    for name in ("part-x.tar", "others.tar", "part-00009.parquet"):
        Path("out", name).write_bytes(b"something else")
    before = written()
    assert stylize("--pack", "tar", "--pack-size", "2", content="photos/[01].png") == 0
    assert (
        "out: packs of an earlier, larger run are there, too, and in no index of this one: 2, from part-00001.tar on"
        in capsys.readouterr().err
    )
    assert written() == before
    # each share sees those of the others as such, and one speaks for all
    for number, told in enumerate((1, 0)):
        stylize("--pack", "tar", "--pack-size", "2", "--shard", f"{number}/2", content="photos/[0124].png")
        assert capsys.readouterr().err.count("in no index of this one: 1, from") == told


def test_so_are_those_elsewhere(stylize: Callable, capsys) -> None:
    memory, output = fsspec.filesystem("memory"), ["--output", "memory://packs/out", "--pack", "tar"]
    try:
        for content in ("photos/[012].png", "photos/0.png"):
            assert stylize(*output, "--pack-size", "1", content=content) == 0
        err = capsys.readouterr().err
        assert "memory://packs/out: packs of an earlier" in err and ": 2, from part-00001.tar on" in err
    finally:
        memory.rm("/packs", recursive=True)


def test_photos_in_shards_are_grouped_by_their_paths_in_them(stylize: Callable, capsys) -> None:
    with tarfile.open("photos-0.tar", "w") as file:
        for i in (0, 1):
            file.add(f"photos/{i}.png", f"clip7/{i}.png")
    options = ["--pack", "tar", "--style", "t.png", "--pair", "random", "--group-by"]
    assert stylize(*options, "clip[0-9]", "--json", content="photos-0.tar") == 0
    assert len({json.loads(line)["style"] for line in capsys.readouterr().out.splitlines()}) == 1
    # one in which it finds nothing fails alone
    assert stylize(*options, "clip7/0", content="photos-0.tar") == 1
    said = capsys.readouterr()
    assert "1 painted, 0 there already, 1 failed" in said.out
    assert said.err.endswith("failed: --group-by clip7/0: finds nothing in photos-0.tar/clip7/1.png\n")


def test_photos_in_shards_are_painted_into_shards(stylize: Callable, capsys) -> None:
    for number in range(2):
        with tarfile.open(f"photos-{number}.tar", "w") as file:
            for i in range(3):
                file.add(f"photos/{3 * number + i}.png", f"{i}.png")
    options = ["--pack", "tar", "--json", "--style", "t.png", "--pair", "random"]
    assert stylize(*options, content="photos-{0..1}.tar") == 1
    assert written() == [f"photos-{i}.{end}" for i in range(2) for end in ("json", "tar")]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["content"] for line in lines][:2] == ["photos-0.tar/0.png", "photos-0.tar/1.png"]
    assert [line["status"] for line in lines].count("painted") == 5


@pytest.mark.parametrize(
    "options, problem",
    [
        ([], "photos in tar shards need --pack"),
        (["--pack", "tar", "--pair", "zip"], "--pair zip is not for photos in tar shards"),
        (["--pack", "tar", "--dry-run"], "--dry-run does not look into packs"),
        (["--pack", "tar", "--write-manifest", "m.csv"], "--write-manifest has no row for photos in tar"),
        (["--pack", "tar", "--pair", "random", "--per-content", "2"], "there are only 1 styles"),
        (["--pack", "tar", "--pack-size", "2"], "--pack-size is for single photos"),
    ],
)
def test_what_shards_cannot_have_is_told(stylize: Callable, capsys, options: list[str], problem: str) -> None:
    with tarfile.open("photos.tar", "w") as file:
        file.add("photos/0.png")
    assert stylize(*options, content="photos.tar") == 2 and problem in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_shard_that_is_missing_is_told_before_anything_is_painted(stylize: Callable, capsys) -> None:
    assert stylize("--pack", "tar", content="photos-{0..1}.tar") == 2
    assert "photos-0.tar: no such shard (2 of 2 are missing)" in capsys.readouterr().err


def test_what_a_killed_run_left_is_removed_by_the_next(stylize: Callable) -> None:
    Path("out").mkdir()
    Path("out/.0__s.abcdefgh.png").write_bytes(b"half")
    stylize()
    assert not Path("out/.0__s.abcdefgh.png").exists()


@pytest.mark.parametrize(
    "engine, resources, sizes",
    [
        (RayEngine(), {"CPU": 8.0}, (8, 0.0)),
        (RayEngine(workers=3), {"CPU": 8.0}, (3, 0.0)),
        (RayEngine(), {"CPU": 8.0, "GPU": 2.0}, (2, 1.0)),
        (RayEngine(gpus_per_worker=0.5), {"CPU": 8.0, "GPU": 2.0}, (4, 0.5)),
        (RayEngine(gpus_per_worker=0), {"CPU": 8.0, "GPU": 2.0}, (8, 0.0)),
    ],
)
def test_as_many_workers_as_the_cluster_has_places_for(
    engine: RayEngine, resources: dict[str, float], sizes: tuple[int, float]
) -> None:
    assert engine.sizes(resources) == sizes


@pytest.mark.parametrize("engine", [RayEngine(workers=9), RayEngine(gpus_per_worker=4)])
def test_more_workers_than_fit_are_refused(engine: RayEngine) -> None:
    with pytest.raises(UserError, match="workers do not fit into a cluster"):
        engine.sizes({"CPU": 8.0, "GPU": 2.0})
