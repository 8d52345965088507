"""ldm.modules.losses.energy: what it measures, its gradient, and that windows change neither."""

import math

import pytest
import torch
import torch.nn.functional as F
from pipeline_builders import picture
from torch import Tensor

from ldm.media.tensors import image_to_tensor
from ldm.modules.losses import windows as windows_module
from ldm.modules.losses.energy import (
    CONTENT_LAYERS,
    LIKENESS,
    energy_of,
    gradient,
    photo_features,
)
from ldm.modules.losses.lpips import ScalingLayer, vgg16
from ldm.modules.losses.paint import MOST_PLACES, PLACE_LAYERS, Nearest, Paint, mixed, paint_of
from ldm.modules.losses.paint_features import STYLE_LAYERS, PaintFeatures, gram_sum, mean_gram
from ldm.modules.losses.windows import windows


@pytest.fixture(scope="module")
def features(net: vgg16) -> PaintFeatures:
    return PaintFeatures(net)


def tensor(width: int, height: int, seed: int) -> Tensor:
    return image_to_tensor(picture(width, height, seed))[None]


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return tensor(96, 80, 1)


@pytest.fixture(scope="module")
def painting() -> Tensor:
    return tensor(70, 90, 2)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# Features


def test_features_are_vgg16s_with_average_pooling(net: vgg16, features: PaintFeatures, photo: Tensor) -> None:
    """By the plain layers, but for the border of the first convolution, whose edges are repeated."""
    x, expected = ScalingLayer()(photo), {}
    for number, layers in enumerate(net.slices, start=1):
        for index, layer in enumerate(layers):
            if isinstance(layer, torch.nn.MaxPool2d):
                x = F.avg_pool2d(x, 2)
            elif isinstance(layer, torch.nn.Conv2d) and number == 1 and index == 0:
                x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), layer.weight, layer.bias)
            else:
                x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                expected.setdefault(f"relu{number}_1", x)
    maps = features(photo)
    assert list(maps) == list(STYLE_LAYERS) == list(expected)
    for name, value in maps.items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_the_gradient_is_autograds_own(features: PaintFeatures, net: vgg16, photo: Tensor) -> None:
    """Of the hand-written backward passes of convolution and Gram matrix."""

    def plain(x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, net.slice1[2].weight, net.slice1[2].bias, padding=1))
        return (x.flatten(2) @ x.flatten(2).mT).square().sum()

    def ours(x: Tensor) -> Tensor:
        return gram_sum(features._convolved("1_2", x)).square().sum()

    x = torch.randn(2, 4, 16, 20, generator=torch.Generator().manual_seed(0))
    assert relative(gradient(ours, x), gradient(plain, x)) < 1e-5


def test_gram_sums_of_bfloat16_are_added_up_in_float32() -> None:
    maps = torch.rand(1, 8, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = maps.double().flatten(2) @ maps.double().flatten(2).mT
    ours = gram_sum(maps)
    # a block's rounding, not their sum's
    assert ours.dtype == torch.float32 and float(((ours - exact) / exact).abs().max()) < 2**-9


# Terms


def test_a_painting_has_its_own_paint_and_a_photo_its_own_layout(
    features: PaintFeatures, photo: Tensor, painting: Tensor
) -> None:
    of_both = energy_of(features, [paint_of(features, painting)], photo)
    style, content = of_both.terms(photo)
    assert float(content) == pytest.approx(0, abs=0.01) and float(style) > 0.05
    alone = energy_of(features, [paint_of(features, painting)], None)
    assert float(alone(painting)) == pytest.approx(0, abs=1e-6)


def test_the_style_term_by_hand(features: PaintFeatures, photo: Tensor, painting: Tensor) -> None:
    def gram(x: Tensor) -> dict[str, Tensor]:
        return {name: (m := maps.flatten(2)[0]) @ m.T / m.shape[1] for name, maps in features(x).items()}

    ours, wanted = gram(photo), gram(painting)
    expected = sum(
        weight * float((ours[n] - wanted[n]).norm() ** 2 / wanted[n].norm() ** 2)
        for n, weight in STYLE_LAYERS.items()
    )
    alone = Paint(paint_of(features, painting).grams)
    assert float(energy_of(features, [alone], None)(photo)) == pytest.approx(expected, rel=1e-4)
    # and how unlike the painting's places the photo's are
    unlike = 0.0
    for name in PLACE_LAYERS:
        a, b = (features(x)[name][0].flatten(1).T for x in (photo, painting))
        directions = [F.normalize(rows - b.mean(0), dim=1) for rows in (a, b)]
        unlike += float((1 - (directions[0] @ directions[1].T).max(1).values).mean()) / len(PLACE_LAYERS)
    style, _ = energy_of(features, [paint_of(features, painting)], None).terms(photo)
    assert unlike > 0.01 and float(style) == pytest.approx(expected + LIKENESS * unlike, rel=1e-4)


def test_the_content_term_is_one_less_the_mean_correlation(features: PaintFeatures, photo: Tensor) -> None:
    other = tensor(96, 80, 3)
    (name,) = CONTENT_LAYERS
    a, b = (features(x)[name][0].flatten(1) for x in (other, photo))
    correlations = [
        float(torch.corrcoef(torch.stack([p, q]))[0, 1]) if p.std() > 0 else 0.0
        for p, q in zip(a, b)
        if q.std() > 0
    ]
    content = energy_of(features, [paint_of(features, photo)], photo).terms(other)[1]
    assert float(content) == pytest.approx(1 - sum(correlations) / len(correlations), abs=0.02)
    assert any(abs(c) > 0.05 for c in correlations)


def test_weights_weigh_the_terms(features: PaintFeatures, photo: Tensor, painting: Tensor) -> None:
    x, paints = tensor(96, 80, 3), [paint_of(features, painting)]
    style, content = energy_of(features, paints, photo).terms(x)
    for style_weight, content_weight in ((2, 0.5), (0, 1), (1, 0)):
        expected = style_weight * style + content_weight * content
        assert torch.allclose(energy_of(features, paints, photo, style_weight, content_weight)(x), expected)


def test_each_picture_of_a_batch_has_its_own_energy(
    features: PaintFeatures, photo: Tensor, painting: Tensor
) -> None:
    both = torch.cat([photo, tensor(96, 80, 3)])
    of_both = energy_of(features, [paint_of(features, painting)], photo)
    alone = torch.cat([of_both(one[None]) for one in both])
    assert torch.allclose(of_both(both), alone, rtol=1e-5)
    assert torch.allclose(of_both.gradient(both)[1:], of_both.gradient(both[1:]), rtol=1e-3, atol=1e-7)


def test_luminance_does_not_see_colours(features: PaintFeatures, photo: Tensor, painting: Tensor) -> None:
    paints = [paint_of(features, painting, luminance=True)]
    of_luma = energy_of(features, paints, photo, luminance=True)
    tinted = photo + torch.tensor([0.114, 0.0, -0.299])[:, None, None]  # of the same luma
    assert torch.allclose(of_luma(photo), of_luma(tinted), atol=1e-3)
    assert not torch.allclose(
        energy_of(features, paints, photo)(photo), energy_of(features, paints, photo)(tinted), atol=1e-2
    )


# Regions


def test_a_region_answers_for_its_own_part_only(
    features: PaintFeatures, photo: Tensor, painting: Tensor
) -> None:
    masks = torch.zeros(2, 80, 96)
    masks[0, :, :48], masks[1, :, 48:] = 1, 1
    paints = [paint_of(features, painting), paint_of(features, photo)]
    of_regions = energy_of(features, paints, None, masks=masks)
    changed = photo.clone()
    changed[..., :16] = 0  # far from the second region
    sums = [of_regions._sums(x) for x in (photo, changed)]
    for name in ("gram relu1_1", "unlike relu3_1"):
        before, after = (each[name] for each in sums)
        assert torch.equal(before[:, 1], after[:, 1]) and not torch.equal(before[:, 0], after[:, 0])


def test_equal_regions_are_as_one(features: PaintFeatures, photo: Tensor, painting: Tensor) -> None:
    paint = paint_of(features, painting)
    whole = energy_of(features, [paint], photo)
    one = energy_of(features, [paint], photo, masks=torch.ones(1, 80, 96))
    assert torch.allclose(whole(photo), one(photo), rtol=1e-5)


def test_a_style_without_a_place_asks_for_nothing(
    features: PaintFeatures, photo: Tensor, painting: Tensor
) -> None:
    masks = torch.stack([torch.ones(80, 96), torch.zeros(80, 96)])
    paint = paint_of(features, painting)
    of_two = energy_of(features, [paint, paint_of(features, photo)], photo, masks=masks)
    assert torch.allclose(of_two(photo), energy_of(features, [paint], photo)(photo), rtol=1e-5)
    assert bool(of_two.gradient(photo).isfinite().all())


def test_the_grams_of_a_part_are_those_of_its_positions(features: PaintFeatures, painting: Tensor) -> None:
    shares = torch.zeros_like(painting[:, :1])
    shares[..., :32, 16:64] = 1
    part = features(painting)["relu2_1"][..., :16, 8:32]
    grams = paint_of(features, painting, shares=shares).grams
    assert torch.allclose(grams["relu2_1"], mean_gram(part)[0], rtol=1e-4)
    halved = paint_of(features, painting, shares=shares / 2).grams
    for name, wanted in grams.items():
        assert torch.allclose(halved[name], wanted, rtol=1e-4)
        assert relative(paint_of(features, painting, shares=shares, window=32).grams[name], wanted) < 1e-4


# Places


def test_the_places_of_a_part_are_its_positions_in_whatever_windows(
    features: PaintFeatures, painting: Tensor
) -> None:
    shares = torch.zeros_like(painting[:, :1])
    shares[..., :32, 16:64] = 0.5
    part = features(painting)["relu3_1"][0, :, :8, 4:16].flatten(1).T
    for window in (32, 768):
        places = paint_of(features, painting, shares=shares, window=window).places["relu3_1"]
        assert places.shape == part.shape
        assert torch.cdist(places, part).min(1).values.max() < 1e-2 * part.norm(dim=1).mean()


def test_of_a_large_painting_some_places_are_drawn_evenly_and_always_the_same(
    features: PaintFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.modules.losses.paint.MOST_PLACES", 100)
    large = torch.zeros(1, 3, 128, 128)
    large[..., 64:] = 1
    places = paint_of(features, large).places["relu3_1"]
    assert torch.equal(places, paint_of(features, large).places["relu3_1"]) and len(places) == 100
    light = (places[:20] - features(large)["relu3_1"][0, :, 16, 24]).norm(dim=1) < 1e-3
    assert 4 <= int(light.sum()) <= 16  # also of the first of them


def test_a_mix_has_of_each_painting_as_many_places_as_it_weighs() -> None:
    grams = dict.fromkeys(STYLE_LAYERS, torch.eye(2))
    one, other = (
        Paint(
            {name: value * scale for name, value in grams.items()},
            dict.fromkeys(PLACE_LAYERS, torch.full((MOST_PLACES, 2), scale)),
        )
        for scale in (1.0, 3.0)
    )
    both = mixed([(one, 0.25), (other, 0.75)])
    assert torch.equal(both.grams["relu1_1"], 2.5 * torch.eye(2))
    for places in both.places.values():
        assert len(places) == MOST_PLACES and int((places == 1).all(1).sum()) == MOST_PLACES // 4


def test_what_is_like_a_place_is_so_whatever_its_strength_and_none_is_like_nothing() -> None:
    places = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    unlike = Nearest(places)
    maps = (places.mean(0) + 3 * (places[:6] - places.mean(0))).T.reshape(1, 8, 2, 3)
    assert torch.allclose(unlike(maps), torch.zeros(1, 2, 3), atol=1e-5)
    assert unlike(torch.randn(1, 8, 2, 3)).min() > 0.01
    assert torch.equal(Nearest(places[:0])(maps), torch.zeros(1, 2, 3))


# Windows


@pytest.mark.parametrize(
    "height, width, side", [(80, 96, 32), (83, 101, 32), (300, 40, 128), (16, 16, 768), (1000, 33, 96)]
)
def test_windows_count_every_position_once(height: int, width: int, side: int) -> None:
    for stride in (1, 2, 4, 8, 16):
        counts = torch.zeros(height // stride, width // stride)
        for window in windows(height, width, side):
            counts[window.place(stride)] += 1
            top, bottom, left, right = window.seen
            own = torch.zeros((bottom - top) // stride, (right - left) // stride)
            assert window.counted_of(own, stride).shape == counts[window.place(stride)].shape
        assert bool((counts == 1).all())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(208, 240), (203, 251)])
def test_windows_give_the_energy_and_gradient_of_the_whole(
    features: PaintFeatures, painting: Tensor, size: tuple[int, int], masked: bool
) -> None:
    photo, x = tensor(*size[::-1], 1), tensor(*size[::-1], 3)
    masks = torch.stack([x[0, 0] * 0.5 + 0.5, 0.5 - x[0, 0] * 0.5]).clamp(0, 1) if masked else None
    paints = [paint_of(features, painting)] * (2 if masked else 1)
    whole = energy_of(features, paints, photo, masks=masks)
    cut = energy_of(features, paints, photo, masks=masks, window=64)
    assert len(windows(*size, 64)) > 9
    with torch.no_grad():  # as painting calls it
        assert relative(cut.gradient(x), whole.gradient(x)) < 1e-3
    assert torch.allclose(cut.content["relu4_1"], whole.content["relu4_1"], atol=1e-3)
    by_windows = paint_of(features, x, window=64).grams
    for name, wanted in paint_of(features, x).grams.items():
        assert relative(by_windows[name], wanted) < 1e-4, name


def test_a_narrow_halo_would_be_seen(
    features: PaintFeatures, painting: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above can fail."""
    photo, x = tensor(240, 208, 1), tensor(240, 208, 3)
    whole = energy_of(features, [paint_of(features, painting)], photo).gradient(x)
    monkeypatch.setattr(windows_module, "HALO", 16)
    assert (
        relative(energy_of(features, [paint_of(features, painting)], photo, window=64).gradient(x), whole)
        > 1e-3
    )


def test_flat_pictures_have_an_energy_and_a_gradient(features: PaintFeatures, painting: Tensor) -> None:
    flat = torch.zeros(1, 3, 48, 48)
    of_flat = energy_of(features, [paint_of(features, painting)], flat)
    assert math.isfinite(float(of_flat(flat))) and bool(of_flat.gradient(flat).isfinite().all())
    assert all(bool(maps.isfinite().all()) for maps in photo_features(features, flat).values())
