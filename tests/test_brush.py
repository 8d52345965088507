"""ldm.pipeline.brush and the fine look: what leads where, step by step, and what stays as it is."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps
from pipeline_builders import narrow_vgg16, picture, pixels, tiny_model
from torch import Tensor

from ldm.errors import UserError
from ldm.media.tensors import image_to_tensor
from ldm.modules.losses import lpips
from ldm.modules.losses.lpips import vgg16
from ldm.modules.losses.paint import Paint
from ldm.pipeline import brush as brushes
from ldm.pipeline.brush import (
    Brush,
    Level,
    Order,
    Stopped,
    descend,
    enlarged,
    led_away,
    levels,
    resized,
    weights,
)
from ldm.pipeline.engine import Batch
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.jobs import PaintingStopped
from ldm.pipeline.looks import LOOKS, Look
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.progress import Progress
from ldm.pipeline.settings import Settings

FINE = {"size": 64, "steps": 1, "effort": 0.2}
SAMPLED = {"look": "sampled", "size": 64, "steps": 1}


@pytest.fixture
def brush(net: vgg16) -> Brush:
    return Brush(net, torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return picture(72, 64, seed=1)


def tensor(image: Image.Image) -> Tensor:
    return image_to_tensor(image)[None]


def all_steps(level: Level, picture: Callable[[], Tensor]) -> range:
    return range(level.steps)


LOOK = Look("", gradient_steps=4, detail=0.5)


# Levels


@pytest.mark.parametrize(
    "size, expected",
    [
        ((256, 256), [(128, 128), (256, 256)]),
        ((512, 768), [(128, 192), (256, 384), (512, 768)]),
        ((333, 500), [(166, 250), (333, 500)]),
        ((64, 64), [(64, 64)]),
        ((2048, 2048), [(128, 128), (256, 256), (512, 512), (1024, 1024), (2048, 2048)]),
    ],
)
def test_sizes_double_from_small_to_full(size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    assert [level.size for level in levels(size, LOOKS["fine"])] == expected


@pytest.mark.parametrize(
    "side, expected",
    [
        (128, [(128, 12)]),
        (264, [(264, 6)]),
        (520, [(260, 6), (520, 3)]),
        (640, [(320, 5), (640, 2)]),
        (641, [(320, 5), (640, 2), (641, 0)]),
        (1032, [(320, 5), (640, 2), (1032, 0)]),
        (2056, [(320, 5), (640, 2), (1147, 0), (2056, 0)]),
    ],
)
def test_the_fast_look_paints_no_forms_of_the_smallest_size_and_enlarges_at_last(
    side: int, expected: list[tuple[int, int]]
) -> None:
    path = levels((side, side), LOOKS["fast"])
    assert [(level.size[0], level.steps) for level in path] == expected
    painted = [level for level in path if level.steps]
    assert levels((side, side), LOOKS["fast"], only_last=True) == path[len(painted) - 1 :]


def test_a_size_without_steps_is_enlarged_with_the_photos_detail(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    order = Order((248, 264), [[(painting, 1.0)]], tensor(photo.resize((264, 248))), detail=0.5)
    seen, enlargements = [], []

    def watch(level: Level, picture: Callable[[], Tensor]) -> Iterator[int]:
        seen.append(level.size)
        yield from range(level.steps)
        enlargements.append(picture())

    painted = brush.finish(
        torch.zeros(1, 3, 100, 106), order, Look("", gradient_steps=1, detail=None, largest=200), watch
    )
    assert seen == [(200, 212)]
    wide = order.mirrored_out().content
    detail = 0.5 * (wide - resized(resized(wide, (200, 212)), (256, 272)))[:, :, 4:-4, 4:-4]
    assert float(detail.abs().max()) > 0.02
    assert torch.allclose(painted, enlargements[0] + detail, atol=1e-5)


def test_larger_pictures_get_fewer_steps_but_some() -> None:
    steps = [level.steps for level in levels((4096, 4096), LOOKS["fine"])]
    assert (
        steps == sorted(steps, reverse=True) and steps[1] == LOOKS["fine"].gradient_steps and steps[-1] >= 2
    )
    # a panorama is not small
    assert LOOKS["fine"].steps_at(40) == LOOKS["fine"].steps_at(128) == 2 * LOOKS["fine"].gradient_steps


def test_enlarging_gives_back_the_references_detail() -> None:
    reference = tensor(picture(64, 64, 3))
    small = resized(reference, (32, 32))
    assert torch.allclose(enlarged(small, reference, 1.0), reference, atol=1e-5)
    assert torch.allclose(enlarged(small, reference, 0.0), resized(small, (64, 64)))


# Descending


class Parabola:
    """An energy with its least at 0.25 everywhere."""

    def gradient(self, x: Tensor) -> Tensor:
        return 2 * (x - 0.25)


def test_descending_goes_down_and_stays_within_range() -> None:
    x = torch.full((1, 3, 4, 4), 2.0)
    descend(Parabola(), x, range(40), 40, 0.05)
    assert bool((x <= 1).all()) and float((x - 0.25).abs().max()) < 0.1


def test_a_pixel_moves_by_its_share() -> None:
    x, free = torch.zeros(1, 3, 1, 3), torch.tensor([[[[0.0, 0.5, 1.0]]]])
    descend(Parabola(), x, range(1), 1, 0.05, free)
    assert torch.allclose(x[0, 0, 0], torch.tensor([0.0, 0.025, 0.05]), atol=1e-4)


def test_the_brush_brings_the_paint_nearer_and_keeps_the_layout(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    order = Order((64, 72), [[(painting, 1.0)]], tensor(photo))
    start = tensor(photo)
    energy = brush.energy(levels(order.size, LOOK)[-1], order)
    painted = brush.finish(start, order, Look("", 1, 10, None), all_steps)
    assert painted.shape == (1, 3, 64, 72) and float(painted.abs().max()) <= 1
    assert float(energy(painted)) < 0.7 * float(energy(start))


def test_a_pixel_moves_by_the_looks_rate_at_most(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    order, start = Order((64, 72), [[(painting, 1.0)]], tensor(photo)), tensor(photo)
    for rate in (0.01, 0.04):
        look = Look("", gradient_steps=1, detail=None, rate=rate)  # two steps at so small a size
        moved = (brush.finish(start, order, look, all_steps) - start).abs()
        assert 0.5 * rate < float(moved.max()) <= 2 * rate + 1e-5


def test_every_step_is_counted(brush: Brush, photo: Image.Image, painting: Image.Image) -> None:
    seen = []

    def watch(level: Level, picture: Callable[[], Tensor]) -> Iterator[int]:
        for i in range(level.steps):
            seen.append((level.size, i))
            yield i

    order = Order((240, 256), [[(painting, 1.0)]], tensor(ImageOps.fit(photo, (256, 240))))
    brush.finish(order.content, order, Look("", 1, 1, None), watch)
    assert seen == [
        (level.size, i) for level in levels((248, 264), Look("", 1, 1, None)) for i in range(level.steps)
    ]


@pytest.mark.parametrize("size", [(240, 256), (250, 333)])
def test_the_margin_is_cut_off_where_it_was_put_on(
    brush: Brush, painting: Image.Image, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(brushes, "descend", lambda *args: None)
    photo = tensor(picture(*size[::-1]))
    order = Order(size, [[(painting, 1.0)]], photo, detail=1.0)
    assert torch.allclose(brush.finish(photo, order, Look("", 1, 1, None), all_steps), photo, atol=1e-5)


def test_a_paintings_paint_is_taken_once(
    brush: Brush, photo: Image.Image, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real = brushes.paint_of
    monkeypatch.setattr(
        brushes, "paint_of", lambda features, x, *more: taken.append(x.shape) or real(features, x, *more)
    )
    order = Order((64, 72), [[(painting, 1.0)]], tensor(photo))
    for _ in range(2):
        brush.finish(order.content, order, LOOK, all_steps)
    brush.finish(order.content, Order((64, 72), [[(painting.copy(), 1.0)]], tensor(photo)), LOOK, all_steps)
    assert len(taken) == 1
    brush.finish(
        order.content, Order((64, 72), [[(painting.rotate(180), 1.0)]], tensor(photo)), LOOK, all_steps
    )
    assert len(taken) == 2


def test_the_paints_kept_are_bounded(brush: Brush, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brushes, "KEPT_PAINTS", 2)
    for seed in range(5):
        brush._paint_of(picture(32, 32, seed), 32, False)
    assert len(brush._paints) == 2


def test_only_the_ratio_of_the_scales_counts_and_none_is_too_large(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    pictures = [
        painted_with(brush, photo, painting, style_scale=s, content_scale=c)
        for s, c in ((1.0, 0.5), (2e30, 1e30), (1e-30, 5e-31))
    ]
    assert all(torch.allclose(one, pictures[0], atol=0.02) for one in pictures)
    assert not torch.allclose(painted_with(brush, photo, painting, style_scale=0.2), pictures[0], atol=0.02)


def test_scales_weigh_by_their_squares() -> None:
    assert weights(1, 1) == [1, 1] and weights(2, 1) == [1, 0.25] and weights(0.5, 2) == [1 / 16, 1]
    assert weights(0, 2) == [0, 1] and weights(0, 0) == [0, 0]


def test_scales_of_0_ask_for_nothing(brush: Brush, photo: Image.Image, painting: Image.Image) -> None:
    still = painted_with(brush, photo, painting, style_scale=0.0, content_scale=0.0)
    assert torch.equal(still, tensor(photo))


# What is asked for


def painted_with(brush: Brush, photo: Image.Image, painting: Image.Image, **options: object) -> Tensor:
    order = Order((64, 72), **{"styles": [[(painting, 1.0)]], "content": tensor(photo), **options})
    return brush.finish(tensor(photo), order, Look("", 1, 6, None), all_steps)


def test_a_mix_of_one_painting_with_itself_is_that_painting(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    mix = painted_with(brush, photo, painting, styles=[[(painting, 0.3), (painting, 0.7)]])
    assert torch.allclose(mix, painted_with(brush, photo, painting), atol=0.02)


def test_strength_goes_from_the_photos_paint_to_the_paintings(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    moved = [
        float((painted_with(brush, photo, painting, strength=s) - tensor(photo)).abs().mean())
        for s in (0.05, 0.5, 1.0)
    ]
    assert moved == sorted(moved) and moved[0] < 0.6 * moved[2]


def test_kept_pixels_stay_the_photo(brush: Brush, photo: Image.Image, painting: Image.Image) -> None:
    keep = torch.zeros(1, 1, 64, 72)
    keep[..., :30] = 1
    painted = painted_with(brush, photo, painting, keep=keep)
    assert torch.equal(painted[..., :30], tensor(photo)[..., :30])
    assert not torch.allclose(painted[..., 34:], tensor(photo)[..., 34:], atol=0.01)


def test_what_is_kept_has_no_share_in_the_paint(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    keep = torch.zeros(1, 1, 64, 72)
    keep[..., :36] = 1
    order = Order((64, 72), [[(painting, 1.0)]], tensor(photo), keep=keep)
    energy = brush.energy(levels(order.size, LOOK)[-1], order)
    assert torch.equal(energy.masks, 1 - keep[0])
    masked = brush.energy(
        levels(order.size, LOOK)[-1],
        Order((64, 72), order.styles, order.content, torch.ones(1, 64, 72), keep),
    )
    assert torch.equal(masked.masks, energy.masks)


def test_a_picture_that_is_kept_whole_is_the_photo(
    brush: Brush, photo: Image.Image, painting: Image.Image
) -> None:
    assert torch.equal(painted_with(brush, photo, painting, keep=torch.ones(1, 1, 64, 72)), tensor(photo))


def test_style_size_changes_what_is_looked_at(brush: Brush, painting: Image.Image) -> None:
    level = Level((64, 72), 2)

    def side(style_size: int | None, size: tuple[int, int] = (64, 72)) -> int:
        return brush._side(painting, level, Order(size, [], style_size=style_size))

    assert side(None) == 64 and side(40) == 40 and side(96) == 96
    # the painting has 80 pixels, and is looked at half as large at half the size
    assert side(None, (128, 144)) == 40
    assert side(96, (128, 144)) == 48


# The pipeline


def test_looks_differ_and_fine_is_the_default(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    default = pipeline(photo, painting, **FINE)
    assert default == pipeline(photo, painting, look="fine", **FINE)
    assert default != pipeline(photo, painting, **SAMPLED) and default.size == (72, 64)


def test_a_picture_with_gradient_steps_is_the_same_alone_and_in_company(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    other = picture(72, 64, seed=5)
    for look in ("fine", "fast"):
        together = pipeline([other, photo, other], painting, seed=[3, 4, 5], look=look, **FINE)
        assert together[1] == pipeline(photo, painting, seed=4, look=look, **FINE)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_every_sampler_can_begin(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, sampler: str
) -> None:
    assert pipeline(photo, painting, sampler=sampler, **FINE).size == (72, 64)


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({}, (1.0, 1.0)),
        ({"style_scale": 1.5, "content_scale": 0.5}, (1.0, 1.5)),
        ({"look": "fast"}, (1.25, 1.75)),
        ({"look": "fast", "style_scale": 2.0}, (1.25, 2.0)),
        ({"look": "fast", "strength": 0.5}, (1.125, 1.375)),
    ],
)
def test_what_the_steps_begin_with_is_mildly_guided(
    pipeline: StyleTransferPipeline,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    scales: tuple[float, float],
) -> None:
    sampled, paint = [], pipeline.painter.paint

    def noted(batch: Batch, *args: object) -> Tensor:
        sampled.append((*batch.content_scales, *batch.style_scales))
        return paint(batch, *args)

    monkeypatch.setattr(pipeline.painter, "paint", noted)
    pipeline(photo, painting, **{**FINE, **options})
    assert sampled == [scales]


def test_a_style_alone_can_be_fine(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    fine = pipeline(None, painting, **FINE)
    assert fine.size == (64, 64) and fine != pipeline(None, painting, **SAMPLED)


def test_mixes_and_regions(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    other = picture(64, 64, seed=9)
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (0, 0, 36, 64))
    regions = pipeline(photo, StyleRegions([painting, other], [mask]), **FINE)
    mix = pipeline(photo, StyleMix([painting, other]), **FINE)
    single = pipeline(photo, painting, **FINE)
    assert len({image.tobytes() for image in (regions, mix, single)}) == 3


def test_grams_are_led_away_from_others_and_stay_possible() -> None:
    random = torch.Generator().manual_seed(0)
    wanted, avoided = (Paint({"relu1_1": x @ x.T}) for x in torch.randn(2, 6, 9, generator=random))
    gram, other = wanted.grams["relu1_1"], avoided.grams["relu1_1"]
    alike = []
    for scale in (1.0, 1.5, 2.0, 9.0):
        led = led_away(wanted, avoided, scale).grams["relu1_1"]
        assert float(torch.linalg.eigvalsh(led).min()) > -1e-4  # as of a picture
        assert torch.allclose(led.trace(), gram.trace())  # no less paint, only other paint
        alike.append(float((led * other).sum() / (led.norm() * other.norm())))
    assert alike[0] > alike[1] > alike[2] == pytest.approx(alike[3])  # no further than at 2
    assert torch.allclose(led_away(wanted, avoided, 1.0).grams["relu1_1"], gram, atol=1e-4)
    stronger = Paint({"relu1_1": 5 * gram})  # of the same kind
    assert torch.allclose(led_away(wanted, stronger, 1.5).grams["relu1_1"], gram, atol=1e-4)


def test_fine_pictures_are_led_away_from_a_style(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    other = picture(64, 64, seed=9)
    given = {"style_scale": 1.5, **FINE}
    away = pipeline(photo, painting, not_style=other, **given)
    assert away != pipeline(photo, painting, **given)
    assert away == pipeline(photo, painting, not_style=other, **given)
    with pytest.raises(UserError, match="give a larger one, such as 1.5, or the look free"):
        pipeline(photo, painting, not_style=other, **FINE)


def test_what_is_transparent_of_a_painting_does_not_count(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    half, painting = Image.new("L", painting.size), painting.copy()
    half.paste(255, (0, 0, painting.width // 2, painting.height))
    other = Image.composite(painting, picture(*painting.size, seed=9), half)
    for each in (painting, other):
        each.putalpha(half)
    ours = pipeline(photo, painting, **FINE)
    assert ours == pipeline(photo, other, **FINE) != pipeline(photo, painting.convert("RGB"), **FINE)
    half.paste(0, (0, 0, *half.size))
    painting.putalpha(half)
    with pytest.raises(UserError, match="all of it is transparent"):
        pipeline(photo, painting, **FINE)


def test_preserve_color_keeps_the_photos_chroma(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    painted = pipeline(photo, painting, preserve_color=True, **FINE)
    for channel in ("Cb", "Cr"):
        ours, photos = (
            image.convert("YCbCr").getchannel(channel).resize((9, 8), Image.Resampling.BOX)
            for image in (painted, photo)
        )
        assert abs(pixels(ours.convert("RGB")) - pixels(photos.convert("RGB"))).mean() < 6


def test_keep_is_the_photo_to_the_pixel(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (0, 0, 72, 30))
    painted = pipeline(photo, painting, keep=mask, **FINE)
    assert (pixels(painted)[:30] == pixels(photo)[:30]).all() and (
        pixels(painted)[40:] != pixels(photo)[40:]
    ).any()


def test_the_same_call_gives_the_same_picture(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    assert pipeline(photo, painting, **FINE) == pipeline(photo, painting, **FINE)


def test_sampling_is_guided_mildly_whatever_the_dials(
    pipeline: StyleTransferPipeline,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    real = pipeline.painter.paint
    monkeypatch.setattr(
        pipeline.painter,
        "paint",
        lambda batch, *more: seen.append((batch.content_scales, batch.style_scales)) or real(batch, *more),
    )
    orders = []
    finish = pipeline.brush.finish
    monkeypatch.setattr(
        pipeline.brush,
        "finish",
        lambda start, order, *more, **named: orders.append(order) or finish(start, order, *more, **named),
    )
    pipeline(photo, painting, content_scale=0.25, style_scale=5, **FINE)
    pipeline(photo, painting, content_scale=1.5, style_scale=1, **FINE)
    assert seen == [([1.0], [2.0]), ([1.5], [1])]
    assert [(order.content_scale, order.style_scale) for order in orders] == [(0.25, 5.0), (1.5, 1.0)]


def test_sampling_happens_at_a_size_the_model_knows(pipeline: StyleTransferPipeline) -> None:
    """The tiny model was trained at 32 pixels, and paints up to half as much more in one piece."""
    assert pipeline._start_size((64, 80), Settings()) == (64, 80)  # the only level there is
    pipeline_256 = SimpleNamespace(painter=SimpleNamespace(native_size=256))
    start = partial(StyleTransferPipeline._start_size, pipeline_256)
    assert start((512, 700), Settings()) == (256, 350)
    assert start((384, 400), Settings()) == (384, 400)
    assert start((2048, 2048), Settings()) == (256, 256)


def test_stopping_gives_the_picture_as_far_as_it_came(
    pipeline: StyleTransferPipeline,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = iter(range(100))
    real = brushes.Energy.gradient

    def stops(self: object, x: Tensor) -> Tensor:
        if next(count) == 2:
            raise KeyboardInterrupt
        return real(self, x)

    monkeypatch.setattr(brushes.Energy, "gradient", stops)
    with pytest.raises(PaintingStopped) as stopped:
        pipeline(photo, painting, **FINE)
    assert stopped.value.picture.size == (72, 64)
    assert stopped.value.picture != pipeline(photo, painting, **SAMPLED)


def test_stopped_at_a_small_size_it_is_enlarged(brush: Brush, painting: Image.Image) -> None:
    def watch(level: Level, picture: Callable[[], Tensor]) -> Iterator[int]:
        raise KeyboardInterrupt
        yield

    content = tensor(picture(256, 240))
    with pytest.raises(Stopped) as stopped:
        brush.finish(content, Order((240, 256), [[(painting, 1.0)]], content), LOOK, watch)
    assert stopped.value.picture.shape == (1, 3, 240, 256)


def test_whoever_watches_sees_the_picture_come(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    """All of the work is counted, and the last preview is the result."""
    shares, previews = [], []

    def watch(progress: Progress) -> None:
        shares.append(progress.done)
        previews.extend(progress.preview())

    painted = pipeline(photo, painting, **FINE, watch=watch)
    gradient_steps = Settings(**FINE).effective_look.steps_at(64)
    sampling_steps = 2  # small, then over it at the size
    assert len(shares) == len(previews) == sampling_steps + gradient_steps
    assert shares == sorted(shares) and 0 < shares[0] < 0.5 and shares[-1] == pytest.approx(1)
    assert [preview.size for preview in previews] == [(36, 32)] + [(72, 64)] * (1 + gradient_steps)
    assert previews[-1] == painted != previews[-2]


@pytest.mark.parametrize("after", [1, 3])
def test_what_a_watcher_raises_ends_the_painting(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, after: int
) -> None:
    """While it samples, and while it is led to the brush work."""
    calls = []

    def watch(progress: Progress) -> None:
        calls.append(progress.done)
        if len(calls) == after:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        pipeline(photo, painting, **FINE, watch=watch)
    assert len(calls) == after


# Which VGG16 leads


def test_a_models_own_vgg16_leads_it_if_it_is_one(net: vgg16, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = narrow_vgg16(seed=3)
    monkeypatch.setattr("ldm.pipeline.pipeline.bundled_vgg16", lambda: bundled)
    model = tiny_model(use_ema=False)
    first = "weight1_1"
    assert torch.equal(
        StyleTransferPipeline(model).brush.features.get_buffer(first), bundled.slice1[0].weight
    )
    model.vgg.has_weights = True
    monkeypatch.setattr("ldm.pipeline.pipeline.VGG_CHANNELS", model.vgg.channels)
    assert torch.equal(
        StyleTransferPipeline(model).brush.features.get_buffer(first), model.vgg.slice1[0].weight
    )


def test_a_missing_vgg16_is_told(
    photo: Image.Image, painting: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lpips, "BUNDLED_VGG16", tmp_path / "gone.safetensors")
    pipeline = StyleTransferPipeline(tiny_model(use_ema=False))
    with pytest.raises(UserError, match="git checkout checkpoints/vgg16"):
        pipeline(photo, painting, **FINE)
    assert pipeline(photo, painting, **SAMPLED).size == (72, 64)
