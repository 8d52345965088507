"""Steady clips: flow, what the past says about a frame, what is painted of it; and pictures to begin with in the pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pipeline_builders import (
    assert_refused,
    largest_difference,
    mean_difference,
    picture,
    pixels,
    run_program,
    script,
    tiny_model,
    write_model,
)

from ldm.errors import UserError
from ldm.evaluation.steadiness import warping_error
from ldm.media.clips import Frame
from ldm.media.flow import beyond_edges, carried, entering, flow_between, unmatched
from ldm.media.images import load_image
from ldm.media.motion import DEFAULT_SMOOTH, ClipPainter, change, link_between, linked, share_of
from ldm.media.recolouring import recoloured
from ldm.modules.losses.lpips import vgg16
from ldm.pipeline.clip import painted_clip
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

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


def scene(seed: int, width: int = 160, height: int = 96) -> Image.Image:
    """Something with forms of several sizes, of which a flow can be seen."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fine, coarse = (Image.fromarray(noise).filter(ImageFilter.GaussianBlur(radius)) for radius in (2, 6))
    mixed = (pixels(fine).astype(float) - 128) * 2 + (pixels(coarse).astype(float) - 128) * 6 + 128
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def panned(seed: int, count: int, step: int = 2, side: int = 96) -> list[Image.Image]:
    """A view that wanders to the right over a scene."""
    wide = scene(seed)
    return [wide.crop((step * i, 0, step * i + side, side)) for i in range(count)]


def with_disc(back: Image.Image, left: int) -> Image.Image:
    """A round piece of another scene before this one."""
    mask = Image.radial_gradient("L").resize((40, 40)).point(lambda level: 255 * (level < 120))
    changed = back.copy()
    changed.paste(scene(99).crop((0, 0, 40, 40)), (left, 28), mask)
    return changed


def frames_of(pictures: list[Image.Image]) -> Iterator[Frame]:
    return iter([Frame(each, number, number, f"{number}.png") for number, each in enumerate(pictures)])


# Flow


def test_flow_tells_where_a_pixel_was() -> None:
    before, now = panned(1, 2, step=3)
    flow = flow_between(now, before)
    assert flow.shape == (96, 96, 2) and flow.dtype == np.float32
    assert np.abs(flow[10:-10, 10:-10] - (3, 0)).max() < 0.5
    inside = (10, 10, 86, 86)
    assert mean_difference(carried(before, flow).crop(inside), now.crop(inside)) < 1
    assert mean_difference(before.crop(inside), now.crop(inside)) > 5


def test_no_flow_changes_no_bit() -> None:
    still = np.zeros((32, 40, 2), np.float32)
    assert carried(picture(40, 32), still) == picture(40, 32)


def test_what_comes_in_at_the_edge_or_from_behind_something_was_not_there() -> None:
    before, now = panned(1, 2, step=8)
    out = beyond_edges(flow_between(now, before))
    assert out[:, -6:].mean() > 0.8 and not out[:, :-12].any()
    back = scene(1, 96)
    before, now = (with_disc(back, left) for left in (16, 28))
    lost = unmatched(flow_between(now, before), flow_between(before, now))
    assert lost[40:56, 22:30].mean() > 0.5  # what the disc has left
    assert lost[:, 76:].mean() < 0.02


# What the past says about a frame


def test_noise_is_no_change() -> None:
    assert change(noisy(picture(72, 64), 1), noisy(picture(72, 64), 2)).getextrema() == (0, 0)


def test_what_changes_is_white_with_a_soft_border() -> None:
    before = Image.new("RGB", (300, 200), "gray")
    now = before.copy()
    now.paste((200, 100, 128), (100, 50, 200, 150))
    mask = change(now, before)
    assert mask.size == (300, 200) and mask.mode == "L"
    assert [mask.getpixel(place) for place in ((150, 100), (20, 20), (280, 180))] == [255, 0, 0]
    assert 1 / 6 < share_of(mask) < 0.2 and any(0 < level < 255 for _, level in mask.getcolors())


@pytest.mark.parametrize("levels, share", [(8, 0), (16, 0.5), (24, 1), (-24, 1)])
def test_a_change_of_one_colour_counts(levels: int, share: float) -> None:
    now, before = (Image.new("RGB", (40, 40), (100, 100, blue)) for blue in (100 + levels, 100))
    assert share_of(change(now, before)) == pytest.approx(share, abs=0.01)


def test_of_a_still_frame_the_past_says_all() -> None:
    for still in (scene(1), Image.new("RGB", (72, 64), "gray")):  # on plain ground noise has a flow
        link = link_between(noisy(still, 1), noisy(still, 2), DEFAULT_SMOOTH)
        assert link is not None and link.says_all and not link.flow.any()


def test_what_moves_keeps_its_paint_and_what_comes_into_sight_does_not() -> None:
    before, now = panned(1, 2, step=4)
    for smooth, share in ((1.0, 255), (0.5, 191)):
        link = link_between(now, before, smooth)
        assert link is not None and not link.says_all
        keep = pixels(link.keep)
        assert np.median(keep) == share and keep.max() == share and keep[:, -3:].mean() < 30


def test_beside_something_that_moves_the_rest_stands_still() -> None:
    back = scene(1)
    link = link_between(with_disc(back, 44), with_disc(back, 40), DEFAULT_SMOOTH)
    assert link is not None
    assert (pixels(link.keep)[:, 100:] == 255).all() and not link.flow[:, 100:].any()
    assert link.flow[44:52, 60:68, 0].mean() == pytest.approx(-4, abs=0.3)


@pytest.mark.parametrize("other", [scene(7), scene(1).crop((0, 0, 96, 96))])
def test_a_cut_and_another_size_break_with_the_past(other: Image.Image) -> None:
    assert link_between(other, scene(1), DEFAULT_SMOOTH) is None


def test_what_changes_slowly_is_noticed_in_time() -> None:
    """By 2 levels from frame to frame, less than noise; each pixel is compared with what it was painted from."""
    clip = []
    for level in range(100, 180, 2):
        clip.append(Image.new("RGB", (72, 64), "gray"))
        clip[-1].paste((level, level, 100), (30, 20, 60, 50))
    links = [one.link for one in linked(frames_of(clip), DEFAULT_SMOOTH)]
    assert links[0] is None and None not in links[1:]
    assert sum(not link.says_all for link in links if link) > 8


# What is painted of a frame


class Recorder:
    """A painter that tells what it was asked for: each call gives plain pictures, of a grey that rises from call to call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.scenes: list[Image.Image] = []

    def __call__(
        self, contents: list[Image.Image], scene: list[Image.Image], **options: Any
    ) -> list[Image.Image]:
        self.scenes += scene
        self.calls.append({"count": len(contents), **options})
        return [Image.new("RGB", content.size, (len(self.calls),) * 3) for content in contents]


def steadily(
    clip: list[Image.Image], paint: Any, begins: bool = False, smooth: float = DEFAULT_SMOOTH, **options: Any
) -> list[Image.Image]:
    return [frame.picture for frame in ClipPainter(paint, begins, smooth, **options)(frames_of(clip))]


def test_a_still_frame_is_the_one_before_and_costs_nothing() -> None:
    for begins in (False, True):
        paint = Recorder()
        results = steadily([noisy(scene(1), i) for i in range(4)], paint, begins)
        assert results == [results[0]] * 4 and paint.calls == [{"count": 1}]


def test_what_comes_in_at_an_edge_is_painted_anew_until_it_is_inside() -> None:
    flow = np.zeros((20, 40, 2), np.float32)
    flow[..., 0] = 4  # all moves to the left: in from the right
    lately = entering(flow, 8, 1.0)
    assert lately[:, :28].max() == 0 and lately[:, 36:].min() == 1
    assert (np.diff(lately[0, 27:36]) > 0).all()
    assert not entering(flow / 8, 8, 1.0).any()  # too slow to be sure of
    assert not entering(-flow, 8, 1.0)[:, 12:].any() and entering(-flow, 8, 1.0)[:, :3].min() == 1


def test_frames_are_sampled_in_batches() -> None:
    paint = Recorder()
    results = steadily([*panned(1, 5), *panned(7, 2)], paint, batch_size=3)
    assert [call["count"] for call in paint.calls] == [3, 3, 1] and len(results) == 7


def test_paint_goes_with_what_it_is_on(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    def paint(contents: list[Image.Image], **options: Any) -> Any:
        return pipeline(contents, painting, look="sampled", size=96, steps=1, detail=0.0, **options)

    clip = panned(1, 6)
    results, afresh = steadily(clip, paint), paint(clip)
    assert results[0] == afresh[0]
    assert warping_error(clip, results) < warping_error(clip, afresh) / 3
    assert mean_difference(results[5].crop((4, 10, 60, 86)), results[0].crop((14, 10, 70, 86))) < 4


def test_in_the_fine_look_what_is_new_is_sampled_and_led_on_from_the_frame_before() -> None:
    paint = Recorder()
    clip = panned(1, 2, step=8)
    results = steadily(clip, paint, begins=True, smooth=1)
    first, sampled, full = paint.calls
    assert first == {"count": 1} and sampled == {"count": 1, "look": "sampled", "effort": 1.0}
    (start,) = full["start"]
    old, new = (20, 48), (95, 48)
    assert start.getpixel(old) == results[1].getpixel(old) == (1, 1, 1)
    assert start.getpixel(new) == (2, 2, 2) and results[1].getpixel(new) == (3, 3, 3)


def test_what_stands_still_does_not_flicker(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    """Each painting from a seed of its own: afresh they would differ by as much as two seeds do."""
    seeds = iter(range(100))

    def paint(contents: list[Image.Image], **options: Any) -> Any:
        return [pipeline(each, painting, seed=next(seeds), **{**FINE, **options}) for each in contents]

    def painted_on(contents: list[Image.Image], scene: Any, start: Any = None, **options: Any) -> Any:
        starts = {"start": start[0]} if start else {}
        return paint(contents, **starts, **options)

    clip = [with_disc(noisy(scene(1, 96, 96), i), 30 + 3 * i) for i in range(3)]
    results = steadily(clip, painted_on, begins=True)
    assert (
        max(
            mean_difference(a.crop((0, 0, 12, 64)), b.crop((0, 0, 12, 64)))
            for a, b in zip(results, results[1:])
        )
        == 0
    )
    assert results[0] != results[1] != results[2]


def test_a_cut_is_painted_as_if_it_were_the_first(
    pipeline: StyleTransferPipeline, painting: Image.Image
) -> None:
    def paint(contents: list[Image.Image], **options: Any) -> Any:
        return pipeline(contents, painting, **{**FINE, **options})

    one, other = picture(72, 64, 1), picture(72, 64, 7)
    assert steadily([one, one, other], paint, begins=True) == paint([one, one, other])


def test_known_frames_are_left_out_and_gone_on_from() -> None:
    paint, blue = Recorder(), Image.new("RGB", (96, 96), "blue")
    results = steadily(panned(1, 3), paint, known=lambda name: blue if name == "1.png" else None)
    assert len(results) == 2 and results[1].getpixel((40, 40)) == (0, 0, 252)
    assert paint.calls == [{"count": 2}]


def test_the_frame_is_cropped_as_its_painting_is() -> None:
    """To a size of another aspect: flow and paint are of the same pixels."""
    paint = Recorder()
    settings = Settings(look="sampled", size=(64, 96))
    clip = [scene(1).crop((4 * i, 0, 4 * i + 96, 96)) for i in range(2)]
    results = [frame.picture for frame in painted_clip(frames_of(clip), paint, settings, 1.0, 8)]
    assert [each.size for each in results] == [(64, 96)] * 2
    assert results[1].getpixel((30, 48)) == results[0].getpixel((30, 48))


def test_each_frame_for_itself_is_painted_whatever_was_before() -> None:
    paint, settings = Recorder(), Settings(look="sampled", size=64)
    blue = Image.new("RGB", (107, 64), "blue")
    known = {"1.png": blue}.get
    results = list(painted_clip(frames_of([scene(1)] * 4), paint, settings, 0.0, 2, known))
    assert paint.calls == [{"count": 1}, {"count": 2}]
    assert [each.name for each in results] == ["0.png", "2.png", "3.png"] and results[0].picture.size == (
        107,
        64,
    )


@pytest.mark.parametrize("smooth", [0.0, DEFAULT_SMOOTH])
@pytest.mark.parametrize("begins", [False, True])
def test_with_each_frame_goes_what_its_scene_has_shown(smooth: float, begins: bool) -> None:
    paint, first = Recorder(), panned(1, 4)
    second = [each.point(lambda level: level // 2) for each in panned(7, 3)]
    steadily([*first, *second], paint, begins, smooth)
    small = [[each.resize((32, 32)) for each in part] for part in (first, second)]
    rows = [
        np.concatenate([pixels(each) for each in part[: i + 1]], axis=1)
        for part in small
        for i in range(len(part))
    ]
    assert all(any(np.array_equal(pixels(each), row) for row in rows) for each in paint.scenes)
    assert np.array_equal(pixels(paint.scenes[0]), rows[0]) and np.array_equal(
        pixels(paint.scenes[-1]), rows[-1]
    )


@pytest.mark.parametrize("smooth", [0.0, DEFAULT_SMOOTH])
def test_when_the_light_goes_up_colours_follow_without_a_jump(smooth: float) -> None:
    """By maps of the first frame all would burn out; made anew at once they would snap back."""
    back, painting = scene(1), scene(7).filter(ImageFilter.GaussianBlur(1))
    clip = [Image.blend(Image.new("RGB", back.size), back, 0.4 + 0.02 * i) for i in range(31)]
    coloured = [
        pixels(recoloured(one.frame.picture, [(painting, 1.0)], scene=one.scene)).mean()
        for one in linked(frames_of(clip), smooth)
    ]
    assert np.abs(np.diff(coloured)).max() < 4 and abs(coloured[-1] - coloured[0]) < 25


# How steady it is


def test_the_warping_error_is_that_of_what_does_not_go_along() -> None:
    clip = panned(1, 5)
    plain = [Image.new("RGB", (96, 96), (128, 128, 128))] * 5
    assert warping_error(clip, clip) < 1e-3 and warping_error(clip, plain) < 1e-12
    flickering = [Image.new("RGB", (96, 96), (level,) * 3) for level in (100, 151) * 2 + (100,)]
    assert warping_error(clip, flickering) == pytest.approx(0.04, rel=1e-3)
    assert warping_error(clip, [scene(5, 96, 96)] * 5) > 20 * warping_error(clip, clip)  # stuck to the screen


def test_a_cut_is_no_error() -> None:
    clip = [scene(1, 96, 96)] * 2 + [scene(7, 96, 96)] * 2
    assert warping_error(clip, clip) == 0 and np.isnan(warping_error(clip[:1], clip[:1]))


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
        (
            {"look": "sampled", "effort": 1.0, "start": picture(72, 64)},
            "start is for looks with gradient steps",
        ),
        ({"start": picture(64, 64)}, "does not have the result's aspect"),
        ({"start": []}, "start or scene is an empty list"),
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


def test_a_clip_is_sampled_and_small_unless_asked_otherwise(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        "ldm.pipeline.brush.Brush.finish", lambda *args, **options: pytest.fail("painted in the fine look")
    )
    assert run("--output", "clip", "--frames", "2") == 0
    args = script("stylize_video").parse_args
    monkeypatch.setattr("sys.argv", ["program", "--content", "a", "--style", "b", "--output", "c"])
    assert (args().look, args().size) == ("sampled", 256)
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "nothing is painted (default: sampled)" in text
        and "cropped (default: 256)" in text
        and "hours for a whole clip" in text
    )


def test_frames_of_another_smoothness_are_painted_again(run: Any) -> None:
    assert run("--output", "out") == run("--output", "other", "--smooth", "0.5") == 0
    assert run("--output", "out", "--smooth", "0.5") == 0 and results("out") == results("other")


def test_a_fast_clip_that_goes_on_is_the_same(run: Any) -> None:
    assert run("--output", "whole") == run("--output", "parts", "--frames", "3") == 0
    Path("parts/1.png").unlink()
    assert run("--output", "parts") == 0
    assert len(results("whole")) == len(results("parts")) == 6
    for one, other in zip(results("parts"), results("whole"), strict=True):
        assert largest_difference(one, other) <= 8  # batches of other sizes, in bfloat16


def test_other_frames_and_other_styles_are_noticed(run: Any, capsys: pytest.CaptureFixture) -> None:
    def changed(name: str) -> list[int]:
        before = [path.read_bytes() for path in sorted(Path("out").iterdir())]
        assert run("--output", "out") == 0
        after = [path.read_bytes() for path in sorted(Path("out").iterdir())]
        return [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]

    assert run("--output", "out") == 0
    assert changed("nothing") == []
    picture(72, 64, 9).save("frames/3.png")
    assert changed("a frame, on which later ones depend")[0] == 3
    picture(48, 40, 10).save("painting.png")
    assert changed("the style") == [0, 1, 2, 3, 4, 5]


def test_a_bad_look_is_refused(run: Any, capsys: pytest.CaptureFixture) -> None:
    assert_refused(run("--look", "fien", "--output", "out"), capsys.readouterr(), "--look")
