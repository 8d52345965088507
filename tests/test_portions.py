"""ldm.pipeline.portions and batches: pictures painted in portions, by any process, whatever happens to some of them."""

import gc
import json
import os
import pickle
import pkgutil
import re
import tarfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import picture, pixels

from ldm.errors import UserError
from ldm.files import remove_left_asides
from ldm.media.images import load_image, read_metadata, save_image
from ldm.media.places import Unreached
from ldm.pipeline.batches import BatchOptions, BatchPainter
from ldm.pipeline.chosen import ModelChoice
from ldm.pipeline.inputs import Style, StyleMix, StyleRegions
from ldm.pipeline.outcomes import Outcome
from ldm.pipeline.pairing import Pairing
from ldm.pipeline.portions import (
    AnyPortion,
    Portion,
    ShardPortion,
    Worker,
    in_this_process,
    portions_of,
    results_of,
    share,
)
from ldm.pipeline.provenance import METADATA_KEY
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import Task, describe, plan

PALETTE = Settings(look="palette", size=32)  # the look that needs no model


class Inverter:
    """In the pipeline's place: inverts the contents, and fails where a picture is as wide as one in `bad`, or with more than `most`."""

    def __init__(self, bad: Sequence[int] = (), most: int = 99):
        self.bad, self.most, self.calls = bad, most, []

    def __call__(self, contents: list[Image.Image], styles: list[Any], **options: Any) -> list[Image.Image]:
        self.calls.append([content.width for content in contents])
        if len(contents) > self.most or any(content.width in self.bad for content in contents):
            raise UserError("not enough memory")
        return [Image.fromarray(255 - np.asarray(content)) for content in contents]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Five tasks; the picture of number i is 40 + i pixels wide."""
    monkeypatch.chdir(tmp_path)
    picture(40, 36, 9).save("s.png")
    for i in range(5):
        picture(40 + i, 36, i).save(f"{i}.png")
    return tasks_for(5)


def tasks_for(count: int, styles: Sequence[str] = ("s",), output: str = "out") -> list[Task]:
    named = [(name, Path("s.png")) for name in styles]
    return plan([Path(f"{i}.png") for i in range(count)], named, output, PALETTE)


def worker(
    paint: Any = None, batch_size: int = 3, styles: dict[str, Style] | None = None, **how: Any
) -> Worker:
    """One that paints with `paint`, or for real."""
    styles = styles or dict.fromkeys("stuv", Path("s.png"))
    made = Worker(BatchOptions(styles, PALETTE, batch_size=batch_size), **how)
    if paint is not None:
        made.painter.painter_of = lambda settings: paint
    return made


def run(tasks: Sequence[Task], made: Worker, batch_size: int = 3, **pack: Any) -> list[Outcome]:
    portions = portions_of(tasks, batch_size, **pack)
    return [one for done in in_this_process(portions, lambda: made) for one in done.outcomes]


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    return [one.line for one in outcomes if one.status == "failed"]


def assert_written(tasks: Sequence[Task], but: Sequence[int] = ()) -> None:
    about = worker().painter.description(PALETTE)
    for i, task in enumerate(tasks):
        assert task.output.exists() == (i not in but)
        if i not in but:
            assert np.array_equal(pixels(load_image(task.output)), 255 - pixels(load_image(task.content)))
            assert read_metadata(task.output)[METADATA_KEY] == describe(task, about)


# Painting


def test_tasks_are_painted_batch_by_batch(tasks: list[Task]) -> None:
    paint = Inverter()
    told = run(tasks, worker(paint))
    assert paint.calls == [[40, 41, 42], [43, 44]] and {one.status for one in told} == {"painted"}
    assert_written(tasks)


def test_what_is_there_is_not_painted_again(tasks: list[Task]) -> None:
    run(tasks, worker(Inverter()))
    tasks[1].output.unlink()
    told = run(tasks, worker(paint := Inverter()))
    assert paint.calls == [[41]] and [one.status for one in told] == ["there", "painted", *["there"] * 3]


def test_with_overwrite_it_is(tasks: list[Task]) -> None:
    run(tasks, worker(Inverter()))
    assert {one.status for one in run(tasks, worker(Inverter(), overwrite=True))} == {"painted"}


def test_a_whole_portion_is_painted_for_a_missing_one_which_alone_is_written(tasks: list[Task]) -> None:
    run(tasks, worker(Inverter(), whole=True))
    tasks[1].output.unlink()
    times = [task.output.stat().st_mtime_ns for task in tasks if task.output.exists()]
    run(tasks, worker(paint := Inverter(), whole=True))
    assert paint.calls == [[40, 41, 42]] and tasks[1].output.exists()
    assert [task.output.stat().st_mtime_ns for task in tasks if task is not tasks[1]] == times


def test_a_portion_whose_missing_ones_cannot_be_read_is_not_painted(tasks: list[Task]) -> None:
    Path("1.png").write_text("no picture")
    for calls in ([[40, 42], [43, 44]], []):
        told = run(tasks, worker(paint := Inverter(), whole=True))
        assert paint.calls == calls and failures(told) == ["1.png: not a picture that can be read"]


def test_a_content_in_several_styles_is_read_once(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        "ldm.pipeline.batches.load_image",
        lambda file, **options: read.append(file.name) or load_image(file, **options),
    )
    run(tasks_for(2, "stuv"), worker(Inverter(), batch_size=4), batch_size=4)
    assert read == ["0.png", "1.png"]


def test_one_unusable_picture_does_not_stop_its_batch(tasks: list[Task]) -> None:
    told = run(tasks, worker(paint := Inverter(bad=[41])))
    assert paint.calls == [[40, 41, 42], [40], [41], [42], [43, 44]]
    assert failures(told) == ["out/1__s.png: not enough memory"]
    assert_written(tasks, but=[1])


@pytest.mark.parametrize("error", [MemoryError(), KeyError("a bug"), OSError("no space")], ids=repr)
@pytest.mark.parametrize("pack", [None, (Path("packs"), "tar", 3)], ids=["files", "packs"])
@pytest.mark.parametrize("where", ["ldm.pipeline.portions.Worker._painted", "ldm.pipeline.portions._ended"])
def test_an_error_nobody_has_thought_of_fails_its_portion_and_the_rest_is_painted(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch, error: Exception, pack: Any, where: str
) -> None:
    work, calls = pkgutil.resolve_name(where), iter(range(99))

    def at_first(*given: Any) -> Any:
        if not next(calls):
            raise error
        return work(*given)

    monkeypatch.setattr(where, at_first)
    told = run(tasks, worker(Inverter()), pack=pack)
    assert [one.status for one in told] == ["failed"] * 3 + ["painted"] * 2
    unforeseen = "" if isinstance(error, OSError) else f"unforeseen {type(error).__name__}"
    assert all(str(one.problem).startswith(unforeseen or "no space") for one in told[:3])
    assert {one.status for one in run(tasks, worker(Inverter()), pack=pack)} <= {"painted", "there"}


def test_a_bug_that_one_picture_meets_is_that_ones_failure(tasks: list[Task]) -> None:
    def paint(contents: list[Image.Image], styles: list[Any], **options: Any) -> list[Image.Image]:
        return [Inverter()([content], styles)[0] for content in contents if 1 / (content.width - 41)]

    told = run(tasks, worker(paint))
    assert [one.status for one in told] == ["painted", "failed", "painted", "painted", "painted"]
    (line,) = failures(told)
    assert re.fullmatch(
        r"out/1__s.png: unforeseen ZeroDivisionError: .* \(test_portions.py, line \d+\)", line
    )


def test_a_batch_that_is_too_large_is_painted_one_by_one(tasks: list[Task]) -> None:
    assert not failures(run(tasks, worker(Inverter(most=1))))
    assert_written(tasks)


def test_a_failed_batchs_memory_is_free_when_its_pictures_are_tried_alone(tasks: list[Task]) -> None:
    class Tensor:
        pass

    made, kept = [], []

    def paint(contents: list[Image.Image], styles: list[Any], **options: Any) -> list[Image.Image]:
        if len(contents) == 1:
            kept.append(made[0]() is not None)
            return contents
        tensor = Tensor()
        made.append(weakref.ref(tensor))
        raise UserError("not enough memory")

    gc.disable()  # what only the collector would free is not free in time
    try:
        run(tasks[:3], worker(paint))
    finally:
        gc.enable()
    assert kept == [False, False, False]


def test_contents_that_cannot_be_read_are_told_and_the_rest_painted(tasks: list[Task]) -> None:
    Path("1.png").write_text("no picture")
    Path("3.png").unlink()
    Path("4.png").write_bytes(b"")
    told = run(tasks, worker(Inverter(), batch_size=2), batch_size=2)
    assert failures(told) == [
        "1.png: not a picture that can be read",
        "3.png: no such file",
        "4.png: the file is empty (0 bytes)",
    ]
    assert_written(tasks, but=[1, 3, 4])


def test_trouble_with_a_file_is_the_same_line_for_all_tasks_that_have_it(tasks: list[Task]) -> None:
    Path("0.png").write_text("no picture")
    told = run(tasks_for(2, "st"), worker(Inverter()))
    assert failures(told) == ["0.png: not a picture that can be read"] * 2


def test_a_result_that_cannot_be_written_is_told_and_the_rest_painted(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.stem.startswith("2"):
            raise UserError("No space left on device")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("ldm.pipeline.portions.write_bytes", full)
    assert failures(run(tasks, worker(Inverter()))) == ["out/2__s.png: No space left on device"]
    assert_written(tasks, but=[2])


def test_an_interrupted_run_leaves_whole_files_only(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        if self.name.startswith(".1"):
            write(self, content[:100])
            raise KeyboardInterrupt
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        run(tasks, worker(Inverter()))
    assert [path.name for path in Path("out").iterdir()] == ["0__s.png"]
    assert_written(tasks[:1])


# Styles


def test_styles_are_read_once_and_no_larger_than_needed(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(900, 600).save("large.png")
    painter = worker(styles={"large": Path("large.png"), "small": Path("s.png")}).painter
    sizes = {name: painter.style(name, PALETTE).size for name in ("large", "small")}
    assert sizes == {"large": (384, 256), "small": (40, 36)}
    assert painter.style("large", PALETTE) is painter.style("large", PALETTE)


def test_a_style_that_cannot_be_read_is_a_problem_of_its_own(tasks: list[Task]) -> None:
    Path("n.txt").write_text("no picture")
    styles = {
        "n": "n.txt",
        "m": StyleMix(["s.png", "n.txt"]),
        "r": StyleRegions(["s.png"], ["m"]),
        "s": "s.png",
    }
    painter = worker(styles=styles).painter
    bad = [name for name in styles if isinstance(painter.style(name, PALETTE), UserError)]
    assert bad == ["n", "m"] and "n.txt: not a picture" in str(painter.style("m", PALETTE))


def test_a_narrow_style_is_not_blown_up_while_it_is_read(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4000, 2)).save("narrow.png")
    monkeypatch.setattr(Image.Image, "resize", lambda *args: pytest.fail("resized"))
    assert worker(styles={"n": "narrow.png"}).painter.style("n", PALETTE).size == (4000, 2)


# Rows by columns, as engines have them


def columns(**given: Any) -> dict[str, Any]:
    return {"bytes": [Path(f"{i}.png").read_bytes() for i in range(2)], "path": ["a/0.png", "1.png"], **given}


def test_a_batch_of_rows_comes_back_painted(tasks: list[Task]) -> None:
    run(tasks, worker())
    painted = BatchPainter(BatchOptions({"s": "s.png"}, PALETTE))(columns(label=[7, 8]))
    assert set(painted) == {"path", "label", "picture", "metadata", "error"} and painted["label"] == [7, 8]
    assert painted["picture"] == [task.output.read_bytes() for task in tasks[:2]]
    assert json.loads(painted["metadata"][0])["content"] == "0.png" and painted["error"] == [None, None]


def test_arrays_are_rows_as_well(tasks: list[Task]) -> None:
    painter = BatchPainter(BatchOptions({"s": "s.png"}, PALETTE))
    arrays = [np.asarray(load_image("0.png")), np.zeros((4, 4, 2), np.uint8)]
    painted = painter({"image": arrays})
    expected = painter({"bytes": [Path("0.png").read_bytes()]})
    assert np.array_equal(*[pixels(load_image(_file(one["picture"][0]))) for one in (painted, expected)])
    assert painted["picture"][1] is None and "row 1: an array of shape (4, 4, 2)" in painted["error"][1]


def _file(content: bytes) -> Path:
    Path("opened.png").write_bytes(content)
    return Path("opened.png")


def test_a_broken_row_is_told_in_its_place(tasks: list[Task]) -> None:
    given = columns(style=["s", "z"])
    given["bytes"][0] = b"no picture"
    painted = BatchPainter(BatchOptions({"s": "s.png"}, PALETTE))(given)
    assert painted["picture"] == [None, None] and painted["metadata"] == [None, None]
    assert painted["error"] == ["a/0.png: not a picture that can be read", "1.png: there is no style 'z'"]


@pytest.mark.parametrize(
    "batch, styles, problem",
    [
        ({"path": ["a"]}, "s", "needs a column `bytes` or `image`; it has path"),
        ({"bytes": [b""]}, "st", "needs a column `style`"),
        (
            {"bytes": [b""], "error": [None]},
            "s",
            "has a column 'error', which the results are to have; rename it",
        ),
    ],
)
def test_columns_that_are_missing_or_taken_are_named(
    tasks: list[Task], batch: dict[str, Any], styles: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        BatchPainter(BatchOptions(dict.fromkeys(styles, "s.png"), PALETTE))(batch)


def test_options_and_portions_travel(tasks: list[Task]) -> None:
    options = BatchOptions({"s": "s.png"}, PALETTE, said={"mask": "m.png"})
    portion = portions_of(tasks, 3)[0]
    assert pickle.loads(pickle.dumps((options, portion))) == (options, portion)


# Shares


def portions_with(counts: Sequence[int]) -> list[AnyPortion]:
    """Portions of as many tasks each; a picture has 32 x 32 pixels."""
    one = Task(Path("a.png"), "s", "s", Path("o.png"), Settings(look="palette", size=(32, 32)))
    return [Portion((one,) * count) for count in counts]


@pytest.mark.parametrize("counts, of", [([1] * 7, 3), ([1, 1], 4), ([], 2), ([5] * 5, 1), ([9, 1, 1, 1], 2)])
def test_shares_are_neighbours_disjoint_and_complete(counts: list[int], of: int) -> None:
    portions = portions_with(counts)
    shares = [share(portions, number, of) for number in range(of)]
    assert [portion for each in shares for portion in each] == portions


def test_shares_have_about_as_many_pixels() -> None:
    portions = portions_with([1] * 90 + [10] * 1)
    sizes = [sum(len(portion.tasks) for portion in share(portions, n, 4)) for n in range(4)]
    assert sizes == [25, 25, 25, 25]


def test_a_wide_photo_counts_for_more(tasks: list[Task]) -> None:
    picture(320, 32).save("wide.png")
    wide = replace(tasks[0], content=Path("wide.png"))
    assert Portion((wide,)).pixels() == 10 * 32 * 32
    assert Portion((replace(wide, content=Path("gone.png")),)).pixels() == 0


def test_few_tasks_make_a_portion_for_each_share(tasks: list[Task]) -> None:
    portions = portions_of(tasks, 8, shares=4)
    assert sorted(len(share(portions, number, 4)) for number in range(4)) == [1, 1, 1, 2]
    assert [len(portion.tasks) for portion in portions_of(tasks, 8, shares=5)] == [1] * 5


# Packs


def packed(tasks: Sequence[Task], kind: str = "tar", size: int = 3, **how: Any) -> list[Outcome]:
    return run(tasks, worker(**how), batch_size=2, pack=(Path("packs"), kind, size))


def members(path: str | Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def test_results_are_packed_into_shards(tasks: list[Task]) -> None:
    run(tasks, worker())
    told = packed(tasks)
    assert [path.name for path in sorted(Path("packs").iterdir())] == [
        *("part-00000.json", "part-00000.tar", "part-00001.json", "part-00001.tar")
    ]
    inside = members("packs/part-00000.tar")
    assert list(inside)[:2] == ["0__s.png", "0__s.json"] and len(inside) == 6
    assert inside["1__s.png"] == tasks[1].output.read_bytes()
    said = json.loads(inside["1__s.json"])
    assert said["content"] == "1.png" and json.loads(said["metadata"])["style"] == "s"
    assert [one.status for one in told] == ["painted"] * 5


def test_results_are_packed_into_tables(tasks: list[Task]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run(tasks, worker())
    packed(tasks, "parquet")
    rows = parquet.read_table("packs/part-00001.parquet").to_pylist()
    assert [row["output"] for row in rows] == ["3__s.png", "4__s.png"]
    assert [row["picture"] for row in rows] == [task.output.read_bytes() for task in tasks[3:]]


def test_a_pack_that_is_there_is_not_painted_again_and_its_failures_are_told_again(tasks: list[Task]) -> None:
    Path("1.png").write_text("no picture")
    packed(tasks)
    first, before = Path("packs/part-00000.tar"), Path("packs/part-00000.tar").stat().st_mtime_ns
    told = packed(tasks, paint=lambda *given, **options: pytest.fail("painted"))
    assert [one.status for one in told] == ["there", "failed", "there", "there", "there"]
    assert failures(told) == ["1.png: not a picture that can be read"]
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize("lost", ["part-00000.tar", "part-00000.json"])
def test_a_pack_without_its_index_or_an_index_without_its_pack_is_painted_again(
    tasks: list[Task], lost: str
) -> None:
    packed(tasks)
    whole = Path("packs/part-00000.tar").read_bytes()
    Path("packs", lost).unlink()
    told = packed(tasks)
    assert [one.status for one in told] == ["painted"] * 3 + ["there"] * 2
    assert Path("packs/part-00000.tar").read_bytes() == whole


@pytest.mark.parametrize("size", [0, 700])
def test_a_pack_that_has_been_cut_short_since_is_painted_again(tasks: list[Task], size: int) -> None:
    packed(tasks)
    first = Path("packs/part-00000.tar")
    whole = first.read_bytes()
    os.truncate(first, size)
    assert [one.status for one in packed(tasks)] == ["painted"] * 3 + ["there"] * 2
    assert first.read_bytes() == whole and {one.status for one in packed(tasks)} == {"there"}


def test_the_same_job_begun_twice_at_once_ends_well_twice(tasks: list[Task]) -> None:
    pack = {"pack": (Path("packs"), "tar", 3)}
    paint, second = Inverter(), list[Outcome]()

    def begun_again(*given: Any, **options: Any) -> list[Image.Image]:
        if not second:
            remove_left_asides(results_of(portions_of(tasks, 2, **pack)))
            second.extend(packed(tasks, paint=Inverter()))
        return paint(*given, **options)

    first = packed(tasks, paint=begun_again)
    assert [one.status for one in second] == ["painted"] * 5
    assert [one.status for one in first] == ["painted"] * 3 + ["there"] * 2
    assert len(list(Path("packs").iterdir())) == 4 and {one.status for one in packed(tasks)} == {"there"}


def test_a_pack_of_another_style_or_photo_is_painted_again(tasks: list[Task]) -> None:
    packed(tasks)
    picture(50, 36, 5).save("4.png")
    assert [one.status for one in packed(tasks)] == ["there"] * 3 + ["painted"] * 2
    picture(40, 36, 77).save("s.png")
    assert {one.status for one in packed(tasks)} == {"painted"}


def test_without_a_model_nothing_is_a_failure_of_the_pictures(tasks: list[Task]) -> None:
    made = Worker(BatchOptions({"s": "s.png"}, model=ModelChoice("gone.ckpt")))
    fast = [replace(task, settings=Settings(look="sampled")) for task in tasks]
    portions = portions_of(fast, 3, pack=(Path("packs"), "tar", 3))
    with pytest.raises(UserError, match="gone.ckpt: no such file"):
        list(in_this_process(portions, lambda: made))
    assert not Path("packs").exists()


def test_a_pack_that_is_stopped_is_not_there(tasks: list[Task]) -> None:
    with pytest.raises(KeyboardInterrupt):
        packed(tasks, paint=lambda *given, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(Path("packs").iterdir()) == []


def test_names_with_dots_stay_one_sample_each(tasks: list[Task]) -> None:
    for name in ("a.b.png", "a_b.png"):
        picture(40, 36).save(name)
    dotted = plan([Path("a.b.png"), Path("a_b.png")], [("s", Path("s.png"))], "out", PALETTE)
    packed(dotted)
    inside = members("packs/part-00000.tar")
    assert {name.partition(".")[0] for name in inside} == {"a_b__s", "a_b__s-1"} and len(inside) == 4


def of_two_sizes() -> list[Task]:
    """Five tasks, every second of which is larger than the others."""
    sizes = [PALETTE.but(size=16 * (1 + i % 2)) for i in range(5)]
    return [replace(task, settings=each) for task, each in zip(tasks_for(5), sizes)]


def test_pictures_of_different_seeds_and_scales_are_painted_together(tasks: list[Task]) -> None:
    fast = Settings(look="sampled", size=32)
    own = [fast, fast.but(seed=7), fast.but(style_scale=2), fast.but(seed=7, detail=0.0), fast.but(seed=3)]
    varied = [replace(task, settings=each) for task, each in zip(tasks, own)]
    given: list[Settings] = []

    def paint(contents: list[Image.Image], styles: Any, settings: Settings, **options: Any) -> Any:
        given.append(settings)
        return Inverter()(contents, styles)

    made = worker(paint)
    made.painter.description = Settings.values
    told = run(varied, made)
    seeds = [one.seed for one in given], [one.value("style_scale") for one in given]
    assert seeds == ([[0, 7, 0], 3, 7], [[1.75, 1.75, 2], 1.75, 1.75]) and given[2] == own[3]
    assert {one.status for one in told} == {"painted"}
    assert [said["seed"] for said in map(_said, tasks)] == [0, 7, 0, 7, 3]


def _said(task: Task) -> dict[str, Any]:
    return json.loads(read_metadata(task.output)[METADATA_KEY])


def test_tasks_of_different_settings_share_a_pack_and_are_painted_by_settings(tasks: list[Task]) -> None:
    told = packed(of_two_sizes(), size=99, paint=(paint := Inverter()), batch_size=2)
    assert paint.calls == [[40, 42], [44], [41, 43]] and len(list(Path("packs").iterdir())) == 2
    assert [Path(one.content).stem for one in told] == ["0", "2", "4", "1", "3"]
    said = {name: json.loads(json.loads(each)["metadata"]) for name, each in _texts("packs/part-00000.tar")}
    assert [said[f"{i}__s.json"]["size"] for i in range(5)] == [16, 32, 16, 32, 16]


def _texts(path: str) -> list[tuple[str, bytes]]:
    return [(name, content) for name, content in members(path).items() if name.endswith(".json")]


def test_a_pack_is_there_for_the_same_settings_of_each_task_alone(tasks: list[Task]) -> None:
    packed(of_two_sizes(), size=99)
    assert {one.status for one in packed(of_two_sizes(), size=99)} == {"there"}
    other = of_two_sizes()
    other[1], other[2] = (replace(other[i], settings=other[3 - i].settings) for i in (1, 2))
    assert {one.status for one in packed(other, size=99)} == {"painted"}


def test_a_pack_of_other_photos_of_the_same_names_and_sizes_is_painted_again(tasks: list[Task]) -> None:
    for folder in ("clip1", "clip2"):
        Path(folder).mkdir()
        for i in range(3):
            picture(40, 36, i + 10 * int(folder[-1])).save(f"{folder}/{i}.bmp")  # all as long as each other
    for folder in ("clip1", "clip2"):
        frames = plan([Path(folder, f"{i}.bmp") for i in range(3)], [("s", Path("s.png"))], "packs", PALETTE)
        assert {one.status for one in packed(frames)} == {"painted"}
        assert {one.status for one in packed(frames)} == {"there"}
    photos = [shard(Path(folder, "photos.tar"), [f"{folder}/0.bmp"]) for folder in ("clip1", "clip2")]
    assert photos[0].stat().st_size == photos[1].stat().st_size
    for path in photos:
        assert {one.status for one in worker()(shard_portion(path)).outcomes} == {"painted"}


def named(*outputs: str) -> list[Task]:
    return [replace(task, output=Path("packs", name)) for task, name in zip(tasks_for(5), outputs)]


def test_a_pack_whose_results_are_called_otherwise_is_painted_again(tasks: list[Task]) -> None:
    packed(named("a.png", "b.png"))
    assert {one.status for one in packed(named("a.png", "c.jpg"))} == {"painted"}
    assert set(members("packs/part-00000.tar")) == {"a.png", "a.json", "c.jpg", "c.json"}


def test_results_keep_their_folders_in_a_pack(tasks: list[Task]) -> None:
    outputs = ["a/x.png", "b/x.png", "b/x-1.png", "b/v1.0/x.y.png", "b/x.jpg"]
    packed(named(*outputs), size=9)
    inside = members("packs/part-00000.tar")
    assert [name for name in inside if not name.endswith(".json")] == [
        *("a/x.png", "b/x.png", "b/x-1.png", "b/v1.0/x_y.png", "b/x-2.jpg")
    ]
    assert [json.loads(text)["output"] for _, text in _texts("packs/part-00000.tar")] == outputs
    parquet = pytest.importorskip("pyarrow.parquet")
    packed(named(*outputs), "parquet", size=9)
    assert parquet.read_table("packs/part-00000.parquet")["output"].to_pylist() == outputs


def test_a_folder_of_packs_may_be_moved(tasks: list[Task]) -> None:
    packed(named("a/x.png"))
    Path("packs").rename("moved")
    given = [replace(task, output=Path("moved/a/x.png")) for task in tasks[:1]]
    (told,) = run(given, worker(), pack=(Path("moved"), "tar", 3))
    assert (told.status, told.output, told.pack) == ("there", "moved/a/x.png", "moved/part-00000.tar")


def test_what_could_not_be_reached_is_tried_again_in_packs(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreached(place: Path) -> bytes:
        if place.stem == "1":
            raise Unreached("https://host/1.png: no connection")
        return place.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("ldm.pipeline.portions.read_bytes", unreached)
        (line,) = failures(packed(tasks[:3]))
        assert line == "https://host/1.png: no connection"
    assert {one.status for one in packed(tasks[:3])} == {"painted"}
    assert {one.status for one in packed(tasks[:3])} == {"there"}


def test_results_tell_which_pack_they_are_in(tasks: list[Task]) -> None:
    Path("1.png").write_text("no picture")
    for _ in range(2):
        told = packed(tasks)
        assert [one.pack for one in told] == ["packs/part-00000.tar"] * 3 + ["packs/part-00001.tar"] * 2


# Shards in


def shard(path: Path, pictures: Sequence[str]) -> Path:
    with tarfile.open(path, "w") as file:
        for name in pictures:
            file.add(name)
    return path


def shard_portion(path: Path, **pairing: Any) -> ShardPortion:
    styles = tuple((name, Path("s.png")) for name in "st")
    return ShardPortion(path, styles, Pairing(**pairing), Path("packs", path.name), PALETTE)


def test_a_shard_of_photos_becomes_a_shard_of_results(tasks: list[Task]) -> None:
    Path("broken.png").write_text("no picture")
    portion = shard_portion(shard(Path("photos.tar"), ["0.png", "broken.png", "1.png"]))
    told = worker()(portion).outcomes
    assert [one.status for one in told] == ["painted"] * 2 + ["failed"] * 2 + ["painted"] * 2
    assert failures(told)[0] == "photos.tar/broken.png: not a picture that can be read"
    run(tasks_for(2, "st"), worker())
    inside = members("packs/photos.tar")
    assert inside["1__t.png"] == Path("out/1__t.png").read_bytes() and len(inside) == 8
    again = worker(lambda *given, **options: pytest.fail("painted"))(portion).outcomes
    assert [one.status for one in again] == ["there"] * 2 + ["failed"] * 2 + ["there"] * 2


def test_each_photo_of_a_shard_has_styles_of_its_own(tasks: list[Task]) -> None:
    path = shard(Path("photos.tar"), [f"{i}.png" for i in range(5)])
    told = worker()(shard_portion(path, kind="random")).outcomes
    pairs = Pairing("random").pairs([(str(i), Path(f"{i}.png")) for i in range(5)], [("s", 0), ("t", 0)])
    assert [one.style for one in told] == [style for _, (style, _) in pairs]


@pytest.mark.parametrize("member", ["../up.png", "/root/up.png", "x/../../up.png", "..png.png", "a/.png.png"])
def test_members_may_be_called_anything_and_stay_inside(tasks: list[Task], member: str) -> None:
    with tarfile.open("photos.tar", "w") as file:
        file.add("0.png", filter=lambda info: info.replace(name=member, deep=False))
    (done, _) = worker()(shard_portion(Path("photos.tar"))).outcomes
    assert done.status == "painted" and "/" not in list(members("packs/photos.tar"))[0]


def test_a_shard_without_its_end_is_a_failure(tasks: list[Task]) -> None:
    path = shard(Path("photos.tar"), ["0.png", "1.png"])
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole + b"\0" * (-len(whole) % 512))
    (told,) = worker()(shard_portion(path)).outcomes
    assert told.status == "failed" and "cannot be read to its end" in told.line


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": "8"},
        {"batch_size": 0},
        {"settings": {}},
        {"styles": ["s.png"]},
        {"settings": Settings(size="x")},
    ],
)
def test_options_that_cannot_be_are_told_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        BatchOptions(**{"styles": {"s": "s.png"}, **wrong})


def test_a_shard_that_is_cut_short_is_one_failure_and_leaves_nothing(tasks: list[Task]) -> None:
    path = shard(Path("photos.tar"), ["0.png", "1.png"])
    path.write_bytes(path.read_bytes()[:2000])
    (told,) = worker()(shard_portion(path)).outcomes
    assert told.status == "failed" and "photos.tar: this shard cannot be read to its end" in told.line
    assert list(Path("packs").iterdir()) == []


def test_a_picture_of_any_format_is_saved_as_it_would_be_by_itself(tasks: list[Task]) -> None:
    for suffix in (".jpg", ".webp", ".tif", ".bmp"):
        save_image(picture(40, 36), f"one{suffix}")
        (task,) = plan([Path("0.png")], [("s", Path("s.png"))], f"out/r{suffix}", PALETTE)
        run([task], worker())
        save_image(worker().painter.painter_of(PALETTE)("0.png", "s.png", settings=PALETTE), f"alone{suffix}")
        assert task.output.read_bytes() == Path(f"alone{suffix}").read_bytes()
