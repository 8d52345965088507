"""Steady clips in the fine look: what moves, what a frame begins with, and pictures to begin with in the pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import (
    assert_refused,
    mean_difference,
    picture,
    pixels,
    run_program,
    script,
    tiny_model,
    write_model,
)

from ldm.errors import UserError
from ldm.media.clips import Frame
from ldm.media.images import load_image
from ldm.media.motion import Past, movement, next_frame, share_of, steadily_painted
from ldm.modules.losses.lpips import vgg16
from ldm.pipeline.pipeline import StyleTransferPipeline

FINE = {"size": 64, "steps": 1, "effort": 0.2}


def noisy(image: Image.Image, seed: int, levels: int = 2) -> Image.Image:
    """The picture as a camera sees it again."""
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, pixels(image).shape)
    return Image.fromarray(np.clip(pixels(image) + noise, 0, 255).astype(np.uint8))


def with_block(image: Image.Image, left: int) -> Image.Image:
    """The picture with a bright block in it."""
    changed = image.copy()
    changed.paste((250, 250, 120), (left, 20, left + 16, 44))
    return changed


# Movement


def test_noise_is_no_movement() -> None:
    assert movement(noisy(picture(72, 64), 1), noisy(picture(72, 64), 2)).getextrema() == (0, 0)


def test_what_moves_is_white_with_a_soft_border() -> None:
    before = Image.new("RGB", (300, 200), "gray")
    now = before.copy()
    now.paste((200, 100, 128), (100, 50, 200, 150))
    mask = movement(now, before)
    assert mask.size == (300, 200) and mask.mode == "L"
    assert [mask.getpixel(place) for place in ((150, 100), (20, 20), (280, 180))] == [255, 0, 0]
    assert 1 / 6 < share_of(mask) < 0.2 and any(0 < level < 255 for _, level in mask.getcolors())


@pytest.mark.parametrize("levels, share", [(8, 0), (16, 0.5), (24, 1), (-24, 1)])
def test_a_change_of_one_colour_counts(levels: int, share: float) -> None:
    now, before = (Image.new("RGB", (40, 40), (100, 100, blue)) for blue in (100 + levels, 100))
    assert share_of(movement(now, before)) == pytest.approx(share, abs=0.01)


# What is painted of a frame


class Recorder:
    """A painter that tells what it was asked for: each call gives a plain picture, of a grey that rises from call to call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, content: Image.Image, **options: Any) -> Image.Image:
        self.calls.append(options)
        return Image.new("RGB", (36, 32), (len(self.calls),) * 3)


def past(painted: Image.Image, of: Image.Image | None = None) -> Past:
    scene = of or picture(72, 64)
    return Past(scene.size, scene.resize(painted.size, Image.Resampling.BILINEAR), painted)


def test_the_first_frame_is_painted_in_full() -> None:
    paint = Recorder()
    assert next_frame(picture(72, 64), None, paint).painted == Image.new(
        "RGB", (36, 32), (1, 1, 1)
    ) and paint.calls == [{}]


def test_a_still_frame_is_the_one_before() -> None:
    paint, before = Recorder(), picture(36, 32, 5)
    assert next_frame(noisy(picture(72, 64), 1), past(before), paint).painted == before and paint.calls == []


def test_where_it_moves_a_frame_begins_with_a_fresh_picture_and_is_painted() -> None:
    paint, before = Recorder(), Image.new("RGB", (36, 32), "red")
    result = next_frame(with_block(picture(72, 64), 40), past(before), paint)
    fresh, full = paint.calls
    assert fresh == {"look": "fast", "effort": 1.0} and list(full) == ["start"]
    moving, still = (24, 16), (4, 4)
    assert full["start"].getpixel(moving) == (1, 1, 1) and result.painted.getpixel(moving) == (2, 2, 2)
    assert full["start"].getpixel(still) == result.painted.getpixel(still) == (255, 0, 0)


@pytest.mark.parametrize("other", [picture(72, 64, 7), picture(64, 64)])
def test_a_cut_and_another_size_begin_afresh(other: Image.Image) -> None:
    paint = Recorder()
    next_frame(other, past(Image.new("RGB", (36, 32))), paint)
    assert paint.calls == [{}]


def test_what_changes_slowly_is_painted_in_time() -> None:
    """By 2 levels from frame to frame, less than noise; each painted pixel is compared with what it was painted from."""
    paint, last = Recorder(), None
    for level in range(100, 180, 2):
        scene = Image.new("RGB", (72, 64), "gray")
        scene.paste((level, level, 100), (30, 20, 60, 50))
        last = next_frame(scene, last, paint)
        assert np.abs(pixels(last.seen) - pixels(scene.resize(last.seen.size))).max() < 24
    assert len(paint.calls) > 8


def frames_of(pictures: list[Image.Image]) -> Iterator[Frame]:
    return iter([Frame(each, number, number, f"{number}.png") for number, each in enumerate(pictures)])


def nothing(name: str) -> None:
    return None


def test_what_stands_still_does_not_flicker(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    """Each frame from a seed of its own: afresh they would differ by as much as two seeds do."""
    seeds = iter(range(100))

    def paint(content: Image.Image, **options: Any) -> Image.Image:
        return pipeline(content, painting, seed=next(seeds), **{**FINE, **options})

    clip = [with_block(noisy(picture(72, 64), i), 44 + 3 * i) for i in range(3)]
    results = [frame.picture for frame in steadily_painted(frames_of(clip), paint, nothing)]
    afresh = [paint(frame) for frame in clip]

    def apart(pictures: list[Image.Image], left: int, right: int) -> list[float]:
        parts = [each.crop((left, 0, right, 64)) for each in pictures]
        return list(map(mean_difference, parts[1:], parts[:-1]))

    assert max(apart(results, 0, 36)) == 0 and min(apart(afresh, 0, 36)) > 5
    assert min(apart(results, 44, 66)) > 5  # the block moves


def test_a_cut_is_painted_as_if_it_were_the_first(
    pipeline: StyleTransferPipeline, painting: Image.Image
) -> None:
    def paint(content: Image.Image, **options: Any) -> Image.Image:
        return pipeline(content, painting, **{**FINE, **options})

    one, other = picture(72, 64, 1), picture(72, 64, 7)
    results = [frame.picture for frame in steadily_painted(frames_of([one, one, other]), paint, nothing)]
    assert results == [paint(one), paint(one), paint(other)]


def test_known_frames_are_left_out_and_gone_on_from() -> None:
    paint, blue = Recorder(), Image.new("RGB", (36, 32), "blue")
    frames = frames_of([picture(72, 64), noisy(picture(72, 64), 1), with_block(picture(72, 64), 40)])
    results = list(steadily_painted(frames, paint, lambda name: blue if name == "1.png" else None))
    assert [frame.number for frame in results] == [0, 2] and [list(call) for call in paint.calls] == [
        [],
        ["look", "effort"],
        ["start"],
    ]
    assert results[1].picture.getpixel((4, 4)) == (0, 0, 255)


# A picture to begin with


def test_only_the_last_size_is_painted_from_a_start(
    net: vgg16, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = StyleTransferPipeline(tiny_model(use_ema=False), brush_network=net)
    seen = []
    real = pipeline.brush.energy
    monkeypatch.setattr(
        pipeline.brush, "energy", lambda level, order: seen.append(level.size) or real(level, order)
    )
    monkeypatch.setattr(pipeline.painter, "paint", lambda *args: pytest.fail("sampled"))
    photo = picture(256, 240)
    painted = pipeline(photo, painting, start=photo, size=240, effort=0.1)
    assert seen == [(248, 264)] and painted.size == (256, 240) and painted != photo


def test_starts_pair_up_with_contents(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    photo, starts = picture(72, 64, 1), [picture(72, 64, 3), picture(36, 32, 4)]
    several = pipeline(photo, painting, start=starts, **FINE)
    assert several == [pipeline(photo, painting, start=start, **FINE) for start in starts]
    assert several[0] != several[1] and {image.size for image in several} == {(72, 64)}
    assert pipeline([photo, photo], painting, start=starts[0], **FINE) == [several[0]] * 2


def test_the_way_is_counted_from_a_start(
    pipeline: StyleTransferPipeline, painting: Image.Image, capsys: pytest.CaptureFixture
) -> None:
    pipeline(picture(256, 240), painting, start=picture(256, 240), size=240, effort=0.1, progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"look": "fast", "effort": 1.0, "start": picture(72, 64)}, "start is for the look fine"),
        ({"start": picture(64, 64)}, "does not have the result's aspect"),
        ({"start": []}, "start is an empty list"),
        ({"start": [picture(72, 64)] * 3}, "2 contents and 3 starts do not pair up"),
        ({"start": "nowhere.png"}, "nowhere.png: no such file"),
    ],
)
def test_starts_that_cannot_be(
    pipeline: StyleTransferPipeline, painting: Image.Image, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        pipeline([picture(72, 64)] * 2, painting, **{**FINE, **options})


# The program


@pytest.fixture
def run(net: vgg16, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the program on a folder of six frames, a block on its way through noise, then another scene; gives its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.pipeline.pipeline.bundled_vgg16", lambda: net)
    scene = picture(72, 64)
    frames = [with_block(noisy(scene, i), max(8, 12 * i - 16)) for i in range(5)] + [picture(72, 64, 7)]
    Path("frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(f"frames/{number}.png")
    picture(40, 40, 2).save("painting.png")
    options = [
        *write_model(tmp_path),
        "--content",
        "frames",
        "--style",
        "painting.png",
        "--size",
        "64",
        "--steps",
        "1",
    ]
    program = script("stylize_video")
    return lambda *more: run_program(program.main, [*options, *more], monkeypatch)


def results(folder: str) -> list[Image.Image]:
    return [load_image(path) for path in sorted(Path(folder).glob("*.png"))]


def test_a_fine_clip_that_goes_on_is_the_same(run: Any) -> None:
    fine = ["--look", "fine", "--effort", "0.2"]
    assert run(*fine, "--output", "whole") == run(*fine, "--output", "parts", "--frames", "3") == 0
    Path("parts/1.png").unlink()
    assert run(*fine, "--output", "parts") == 0
    assert results("parts") == results("whole") and len(results("whole")) == 6


def test_a_clip_is_fast_and_small_unless_asked_otherwise(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        "ldm.pipeline.brush.Brush.finish", lambda *args, **options: pytest.fail("painted in the fine look")
    )
    assert run("--output", "fast", "--frames", "2") == 0
    args = script("stylize_video").parse_args
    monkeypatch.setattr("sys.argv", ["program", "--content", "a", "--style", "b", "--output", "c"])
    assert (args().look, args().size) == ("fast", 256)
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "in a fraction of the time (default: fast)" in text
        and "cropped (default: 256)" in text
        and "hours for a whole clip" in text
    )


def test_a_bad_look_is_refused(run: Any, capsys: pytest.CaptureFixture) -> None:
    assert_refused(run("--look", "fien", "--output", "out"), capsys.readouterr(), "--look")
