"""Fine-tuning on pairs of different pictures: the losses by VGG16 features, the estimates that they judge, training."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CHANNELS, LATENT, SIDE, STYLE_DIM, UNET, VGG, assert_same, conditions, tiny_ldm
from golden_rules import rnd
from PIL import Image
from pipeline_builders import model_config, paintings_and_photos, picture, run_program, script
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from training_builders import data_module, last, logged, logger_node, recipe, train

from ldm.data.order import Draw, SeededSamples
from ldm.data.wikiart import CrossPairs
from ldm.errors import ConfigError
from ldm.media.recolouring import recoloured
from ldm.models.diffusion import cross_pairs as cross_pairs_module
from ldm.models.diffusion.cross_pairs import CrossPairLDM, Encoded, Kept, Scales
from ldm.models.diffusion.guidance import Guidance
from ldm.models.options import LossWeights
from ldm.modules.losses.energy import CONTENT_LAYERS, energy_of
from ldm.modules.losses.lpips import vgg16
from ldm.modules.losses.paint import Nearest, Paint, paint_of, some_places, unlikeness
from ldm.modules.losses.paint_features import STYLE_LAYERS, PaintFeatures
from ldm.modules.losses.style_transfer import (
    PLACES,
    StyleTransferLoss,
    as_matrices,
    as_vector,
    gram_distance,
    layout_loss,
    palette_distance,
    pattern_loss,
    regularity,
    share_of,
)
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.util import instantiate_from_config

FACTOR = 4  # of the tiny first stage


def pictures(tag: str, n: int = 3, side: int = SIDE * FACTOR) -> Tensor:
    return rnd(tag, n, 3, side, side).tanh()


@pytest.fixture(scope="module")
def loss() -> StyleTransferLoss:
    return with_features(StyleTransferLoss())


def with_features(loss: StyleTransferLoss) -> StyleTransferLoss:
    """The loss by a VGG16 of any weights."""
    torch.manual_seed(0)
    net = vgg16()
    for parameter in net.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.uniform_(parameter)
    loss.features = PaintFeatures(net)
    return loss


# The losses


def loss_of(maps: dict[str, Tensor]) -> StyleTransferLoss:
    """The loss of pictures with these features."""
    loss = StyleTransferLoss()
    loss.features = torch.nn.Identity()
    loss.features.forward = lambda pictures: maps
    return loss


def test_a_picture_is_its_own_content_and_style(loss: StyleTransferLoss) -> None:
    x, others = pictures("a"), pictures("b")
    content, _, unlike = loss(x, loss.content_of(x), loss.style_of(others))
    _, style, places = loss(x, loss.content_of(others), loss.style_of(x))
    # of nearly flat channels little counts
    assert content.shape == style.shape == (3,) and content.max() < 5e-3 and style.max() < 1e-5
    assert places.abs().max() < 1e-3 < unlike.min()


def test_each_picture_is_judged_by_givens_of_its_own_as_the_brush_judges_it(loss: StyleTransferLoss) -> None:
    x, photos, paintings = (pictures(tag) for tag in "abc")
    content, style, _ = loss(x, loss.content_of(photos), loss.style_of(paintings))
    for i in range(3):
        wanted = paint_of(loss.features, paintings[i : i + 1]).grams
        _, expected = energy_of(loss.features, [Paint(wanted)], photos[i : i + 1]).terms(x[i : i + 1])
        got = paint_of(loss.features, x[i : i + 1]).grams
        shares = [
            (got[name] - wanted[name]).square().sum() / (got[name].square() + wanted[name].square()).sum()
            for name in STYLE_LAYERS
        ]
        assert_same(content[i], expected[0], 1e-4)
        assert_same(style[i], sum(shares) / len(shares), 1e-4)
    assert content.unique().numel() == style.unique().numel() == 3


def test_places_are_compared_as_the_brush_compares_them(loss: StyleTransferLoss) -> None:
    x, paintings = pictures("a"), pictures("b")
    wanted, maps = loss.style_of(paintings), loss.features(x)
    places = loss(x, loss.content_of(x), wanted)[2]
    for i in range(3):
        each = [Nearest(wanted[name][i])(maps[layer][i : i + 1]).mean() for name, layer in PLACES.items()]
        assert_same(places[i], sum(each) / 2, 1e-4)
    without = {name: value for name, value in wanted.items() if name not in PLACES}
    assert torch.equal(loss(x, loss.content_of(x), without)[2], torch.zeros(3))


def test_a_texture_that_the_painting_has_nowhere_is_unlike_all_of_its_places() -> None:
    """Two halves with a feature each, or both everywhere at half the strength: the same in the mean, not in places."""
    halves = torch.zeros(1, 4, 8, 8)
    halves[:, 0, :, :4] = halves[:, 1, :, 4:] = 1
    blurred = halves.mean(dim=(2, 3), keepdim=True) + 0 * halves + 0.1 * torch.eye(4)[2][:, None, None]
    places = some_places(halves, 64)
    assert unlikeness(halves, places) < 1e-5 and unlikeness(halves.flip(3), places) < 1e-5
    assert unlikeness(blurred, places) > 0.5
    assert some_places(halves, 10).shape == (1, 10, 4)
    assert torch.equal(some_places(halves, 10), some_places(halves, 64)[:, :10])


def test_layers_can_be_weighed(loss: StyleTransferLoss) -> None:
    x, wanted, contents = pictures("a"), loss.style_of(pictures("b")), loss.content_of(pictures("b"))
    one, other = (
        with_features(StyleTransferLoss(layer_weights={name: 3.0}))(x, contents, wanted)[1]
        for name in ("relu1_1", "relu4_1")
    )
    both = with_features(StyleTransferLoss(layer_weights={"relu1_1": 1.0, "relu4_1": 3.0}))(
        x, contents, wanted
    )[1]
    assert_same(both, (one + 3 * other) / 4, 1e-4)


def test_grams_as_vectors_keep_their_distances() -> None:
    a, b = (rnd(tag, 2, 5, 9) @ rnd(tag, 2, 5, 9).mT for tag in "ab")
    assert as_vector(a).shape == (2, 15)
    assert_same((as_vector(a) - as_vector(b)).square().sum(dim=1), (a - b).square().sum(dim=(1, 2)))
    assert_same(as_matrices(as_vector(a)), a)
    assert gram_distance(a, a).eq(0).all() and gram_distance(a, 1e6 * b).le(1).all()
    assert gram_distance(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)) == 0


def test_grams_do_not_see_places_and_content_does() -> None:
    maps = {name: rnd(name, 2, 5, 8, 8) for name in STYLE_LAYERS}
    moved = loss_of({name: value.roll(3, dims=2) for name, value in maps.items()})
    contents = {name: torch.nn.functional.instance_norm(maps[name]) for name in CONTENT_LAYERS}
    content, style, _ = moved(pictures("a", 2), contents, loss_of(maps).style_of(pictures("a", 2)))
    assert style.max() < 1e-5 and content.min() > 0.5


def test_the_content_loss_does_not_see_contrast_and_brightness_of_a_channel() -> None:
    maps = {name: rnd(name, 2, 5, 8, 8) for name in STYLE_LAYERS}
    scaled = {
        name: value * torch.tensor([1, 2, 3, 4, 5.0])[:, None, None] + 7 for name, value in maps.items()
    }
    contents = {name: torch.nn.functional.instance_norm(maps[name]) for name in CONTENT_LAYERS}
    assert (
        loss_of(scaled)(pictures("a", 2), contents, loss_of(maps).style_of(pictures("a", 2)))[0].max() < 1e-4
    )


def uniform(red: float, green: float, blue: float, size: int = 8) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32)[None, :, None, None].expand(1, 3, size, size)


def test_a_palette_is_how_often_colours_occur_wherever_they_are() -> None:
    torch.manual_seed(0)
    a = torch.cat([uniform(1, 0, -1), uniform(-1, 0.5, 0)], dim=3)
    elsewhere, seldom = (
        torch.cat([uniform(-1, 0.5, 0, 32), uniform(1, 0, -1, 32)], dim=2),
        torch.cat([a, uniform(1, 0, -1)], dim=3),
    )
    assert 10 * palette_distance(a, elsewhere, colors=100_000) < palette_distance(a, seldom, colors=100_000)


def test_a_wrong_hue_is_further_than_a_wrong_brightness() -> None:
    torch.manual_seed(0)
    grey = uniform(0, 0, 0)
    brighter, yellow = (
        palette_distance(grey, other, directions=2000).item()
        for other in (uniform(0.5, 0.5, 0.5), uniform(0.25, 0.25, -0.5))
    )
    # luma alone, a third of whose square lies along each direction
    assert brighter == pytest.approx(0.5**2 / 3, rel=0.1)
    luma, cb, cr = 0.16453, 3 * 0.564 * (-0.5 - 0.16453), 3 * 0.713 * (0.25 - 0.16453)
    assert yellow == pytest.approx((luma**2 + cb**2 + cr**2) / 3, rel=0.1) and yellow > 5 * brighter


def test_shares_are_of_what_is_between_the_pairs_own_and_the_average() -> None:
    assert share_of(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 3.5, 2.0])).tolist() == pytest.approx(
        [1 / 1.25, 1 / 2.75, 0]
    )


def weave(period: float = 8.0, side: int = 64, contrast: float = 0.5) -> Tensor:
    """(1, 3, side, side) grey diagonal stripes crossed by others."""
    along = 2 * torch.pi * torch.arange(side) / period
    return contrast * ((along + along[:, None]).sin() * (along - along[:, None]).sin()).expand(
        1, 3, side, side
    )


def rough(tag: str, side: int = 64) -> Tensor:
    """(1, 3, side, side) random blots of all sizes."""
    return (
        sum(
            torch.nn.functional.interpolate(rnd(f"{tag}{s}", 1, 3, s, s), (side, side), mode="bicubic")
            for s in (8, 16, 32, 64)
        )
        / 8
    )


def test_a_regular_pattern_is_found_whatever_its_phase_and_contrast() -> None:
    patterned = [
        pattern_loss(rough("a") + move, rough("b"), rough("c")).item()
        for move in (weave(), weave().roll(3, dims=2), weave(contrast=0.25), weave(12.0))
    ]
    clean = [pattern_loss(rough(tag), rough("b"), rough("c")).item() for tag in ("a", "d", "e")]
    assert min(patterned) > 10 * max(clean) and patterned[0] == pytest.approx(patterned[1], rel=0.3)


def test_brush_work_in_all_directions_is_no_regular_pattern() -> None:
    dabs = torch.nn.functional.interpolate(rnd("dabs", 1, 3, 8, 8), (64, 64), mode="bicubic")
    assert pattern_loss(rough("a") + 2 * dabs, rough("b"), rough("c")) < 0.1 * pattern_loss(
        rough("a") + weave(), rough("b"), rough("c")
    )


@pytest.mark.parametrize("striped", ["photo", "painting"])
def test_a_pattern_that_the_photo_or_the_painting_has_may_stay(striped: str) -> None:
    own = {"photo": rough("b"), "painting": rough("c", 128)}
    shown = rough("a") + weave()
    before = pattern_loss(shown, own["photo"], own["painting"])
    # at the same period in pixels, also in a larger picture
    own[striped] = own[striped] + weave(side=own[striped].shape[2])
    assert pattern_loss(shown, own["photo"], own["painting"]) < 0.1 * before


def test_regularity_is_as_exact_under_autocast_and_styles_may_be_smaller() -> None:
    expected = pattern_loss(rough("a") + weave(), rough("b"), rough("c"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pattern_loss(rough("a") + weave(), rough("b"), rough("c")), expected)
    large = (rough("a") + weave()).repeat(1, 1, 1, 2), rough("b").repeat(1, 1, 1, 2)
    assert_same(pattern_loss(*large, rough("c")), expected, 1e-3)
    assert pattern_loss(rough("a") + weave(), rough("b"), rough("c", 32)) > 0.1 * expected


def test_regularity_is_of_windows_and_of_nothing_where_there_is_nothing() -> None:
    tiled = rough("a").repeat(1, 1, 2, 2)
    assert_same(regularity(tiled, 64), regularity(rough("a"), 64), 1e-3)
    flat = torch.zeros(2, 3, 64, 64, requires_grad=True)
    loss = pattern_loss(flat, flat, flat)
    loss.sum().backward()
    assert loss.shape == (2,) and not loss.any() and not flat.grad.any()


def layouts(*tags: str) -> Tensor:
    """(N, 3, 64, 64) arrangements of large patches."""
    coarse = torch.cat([rnd(tag, 1, 3, 8, 8) for tag in tags])
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")


def test_one_layout_over_different_photos_is_found_in_whatever_colours() -> None:
    photos = torch.cat([rough(tag) for tag in "abcd"])
    same = layouts("one").repeat(4, 1, 1, 1)
    recoloured = torch.einsum("ncd,ndhw->nchw", rnd("colours", 4, 3, 3), same)
    own = layouts(*"efgh")
    found = [layout_loss(photos + change, photos, 4) for change in (same, recoloured, own)]
    assert found[0].min() > 0.95 and found[1].min() > 0.3 and found[2].max() < 0.1


def test_a_change_of_contrast_and_colour_is_no_layout() -> None:
    photos = rough("a").repeat(3, 1, 1, 1) + 0.2 * layouts(*"efg")
    plain = 0.5 * photos + rnd("tint", 3, 3, 1, 1)
    assert layout_loss(plain + 0.2 * layouts(*"uvw"), photos, 3).max() < 0.1


def test_what_paintings_of_one_photo_share_may_stay() -> None:
    photos = torch.cat([rough(tag) for tag in "ab"]).repeat(2, 1, 1, 1)
    of_each_photo = layouts("c", "d", "c", "d")
    assert layout_loss(photos + of_each_photo, photos, 2).max() < 0.1
    assert layout_loss(photos + layouts(*"ccdd"), photos, 2).min() > 0.4  # shared by turns of both photos
    assert not layout_loss(photos + layouts(*"cccc"), photos, 1).any()


def test_the_layout_loss_is_as_exact_under_autocast_and_zero_without_a_change() -> None:
    photos = torch.cat([rough(tag) for tag in "abc"])
    painted = photos + layouts("d", "d", "e")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layout_loss(painted, photos, 3)
    assert torch.equal(rounded, layout_loss(painted, photos, 3))
    still = photos.clone().requires_grad_()
    loss = layout_loss(still, photos, 3)
    loss.sum().backward()
    assert not loss.any() and still.grad.isfinite().all()


# The model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    torch.save(tiny_ldm().state_dict(), path)
    return path


def cross_pairs(trained: Path, **changes: Any) -> CrossPairLDM:
    unet_config = {"target": "ldm.modules.diffusionmodules.model.StyleUNetModel", "params": UNET}
    options = {
        "style_dim": STYLE_DIM,
        "vgg_channels": VGG,
        "cond_stage_config": "__is_adaptive__",
        "ckpt_path": str(trained),
        **LATENT,
    }
    model = CrossPairLDM(unet_config=unet_config, **{**options, **changes})
    with_features(model.loss)
    return model


def unguided(n: int) -> Scales:
    return Scales(torch.ones(n), torch.ones(n), plain=n)


def batch(n: int = 3) -> dict[str, Tensor]:
    return {kind: pictures(kind, n).permute(0, 2, 3, 1) for kind in ("photo", "painting")}


def test_it_goes_on_from_a_trained_model(trained: Path) -> None:
    with pytest.raises(ConfigError, match="give the trained model to go on from as ckpt_path"):
        cross_pairs(trained, ckpt_path=None).on_fit_start()
    weights, expected = cross_pairs(trained).state_dict(), tiny_ldm().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("n", [5, 6])
def test_half_of_the_estimates_start_from_noise_and_half_from_estimates(
    trained: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    model = cross_pairs(trained)
    condition = model.condition(rnd("content", n, CHANNELS, SIDE, SIDE), rnd("style", n, STYLE_DIM))
    calls: list[tuple[Tensor, Tensor, dict[str, Tensor], Tensor]] = []
    apply_model = model.apply_model

    def remembered(x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        calls.append((x.clone(), t.clone(), cond, apply_model(x, t, cond)))
        return calls[-1][-1]

    monkeypatch.setattr(model, "apply_model", remembered)
    torch.manual_seed(1)
    noise = torch.randn(n, CHANNELS, SIDE, SIDE)
    torch.manual_seed(1)
    result = model.paint(condition, unguided(n))
    (x_T, t_T, first_condition, predicted), (x, t, full_condition, prediction) = (
        calls  # scales of 1 need no null branches
    )
    last_step = model.num_timesteps - 1
    later = t.lt(last_step)
    assert later.sum() == n // 2 and t_T.eq(last_step).all() and len(t[later].unique()) > 1
    places = [int((noise == row).flatten(1).all(dim=1).nonzero()) for row in x_T]
    assert sorted(places) == later.nonzero()[:, 0].tolist()
    assert torch.equal(first_condition["c2"], condition["c2"][places])
    assert all(torch.equal(full_condition[key], condition[key]) for key in condition)
    assert_same(x[~later], noise[~later])
    # The others lie where the noise's own way to the first estimate passes.
    start = model.predict_start_from_noise(x_T, t_T, predicted)
    assert_same(x[places], model.q_sample(start, t[places], predicted), 1e-3)
    assert_same(result, model.predict_start_from_noise(x, t, prediction))
    assert result.requires_grad and not predicted.requires_grad


def test_some_go_on_again_and_always_downwards(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = cross_pairs(trained, later=0.67, hops=2), []
    go_on = model.go_on

    def remembered(x: Tensor, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        steps.append((t.clone(), *go_on(x, t, *rest)))
        return steps[-1][1:]

    monkeypatch.setattr(model, "go_on", remembered)
    torch.manual_seed(0)
    condition = model.condition(rnd("content", 6, CHANNELS, SIDE, SIDE), rnd("style", 6, STYLE_DIM))
    assert model.paint(condition, unguided(6)).isfinite().all()
    (first, _, middle), (again, _, last) = steps
    assert len(first) == 4 and len(again) == 2 and set(again.tolist()) <= set(middle.tolist())
    assert (middle < first).all() and (last < again).all()


def test_a_number_of_hops_below_1_is_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="hops must be at least 1, got 0"):
        cross_pairs(trained, hops=0)


@pytest.mark.parametrize("target", ["eps", "v"])
def test_estimates_are_guided_and_all_predictions_learn(trained: Path, target: str) -> None:
    model = cross_pairs(trained, parameterization=target)
    x, t = rnd("x", 3, CHANNELS, SIDE, SIDE), torch.tensor([900, 500, 20])
    cond, no_content, no_style = conditions(3)
    no_style["c2"] = model.null_style(3).detach()
    scales = Scales(torch.tensor([2.0, 0.5, 1.0]), torch.tensor([3.0, 1.0, 0.5]), plain=0)
    actual = model.estimate(x, t, cond, scales)
    for i in range(3):
        rows = [
            {key: value[i : i + 1] for key, value in part.items()} for part in (cond, no_content, no_style)
        ]
        guidance = Guidance.of(float(scales.content[i]), float(scales.style[i])).denoiser(
            model.apply_model, *rows
        )
        assert_same(
            actual[i : i + 1],
            model.start_from(guidance(x[i : i + 1], t[i : i + 1]), x[i : i + 1], t[i : i + 1]),
            1e-4,
        )
    actual[:1].sum().backward()
    assert (
        model.null_style_vector.weight.grad.any() and model.model.diffusion_model.out.conv.weight.grad.any()
    )


def test_only_guided_paintings_have_null_branches(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = cross_pairs(trained), []
    apply_model = model.apply_model
    monkeypatch.setattr(
        model, "apply_model", lambda x, t, cond: rows.append(len(x)) or apply_model(x, t, cond)
    )
    x, t, cond = rnd("x", 3, CHANNELS, SIDE, SIDE), torch.tensor([900, 500, 20]), conditions(3)[0]
    scales = Scales(torch.tensor([1.0, 1.0, 0.5]), torch.ones(3), plain=1)
    mixed = model.estimate(x, t, cond, scales)
    assert rows == [3 + 2 * 2]
    plain = model.estimate(x, t, cond, unguided(3))
    assert rows == [3 + 2 * 2, 3]
    assert_same(mixed[:2], plain[:2])
    assert not torch.allclose(mixed[2], plain[2])


def test_every_share_of_the_estimates_has_as_many_under_guidance(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = cross_pairs(trained, later=0.5, hops=2, guided=0.5), []
    apply_model = model.apply_model
    monkeypatch.setattr(
        model, "apply_model", lambda x, t, cond: sizes.append(len(x)) or apply_model(x, t, cond)
    )
    condition = model.condition(rnd("content", 16, CHANNELS, SIDE, SIDE), rnd("style", 16, STYLE_DIM))
    for _ in range(3):
        model.paint(condition, model.draw_scales(16))
    assert sizes == [8 + 2 * 4, 4 + 2 * 2, 16 + 2 * 8] * 3


def test_none_starts_later_if_none_is_asked_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = cross_pairs(trained, later=0.0), []
    apply_model = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: steps.append(t) or apply_model(x, t, cond))
    model.paint(
        model.condition(rnd("content", 3, CHANNELS, SIDE, SIDE), rnd("style", 3, STYLE_DIM)),
        unguided(3),
    )
    assert len(steps) == 1 and steps[0].eq(model.num_timesteps - 1).all()
    with pytest.raises(ConfigError, match="later must be between 0 and 1"):
        cross_pairs(trained, later=1.5)


def test_some_paintings_go_without_guidance(trained: Path) -> None:
    torch.manual_seed(0)
    none = cross_pairs(trained, guided=0.0).draw_scales(20)
    assert none.plain == 20 and none.content.eq(1).all() and none.style.eq(1).all()
    some = cross_pairs(trained, guided=0.3).draw_scales(1000)
    assert some.plain == 700
    for scales in (some.content, some.style):
        assert scales[:700].eq(1).all() and scales[700:].ne(1).all()


def test_scales_stay_with_their_paintings_where_some_are_chosen() -> None:
    scales = Scales(torch.tensor([1.0, 1, 3, 4, 5, 6]), torch.tensor([1.0, 1, 30, 40, 50, 60]), plain=2)
    chosen = scales.spread(3)
    assert (chosen.content.tolist(), chosen.style.tolist(), chosen.plain) == ([1, 4, 6], [1, 40, 60], 1)
    behind = scales.behind(2)
    assert behind.content.tolist() == [1, 1, 1, 1, 3, 4, 5, 6] and behind.plain == 4
    assert [value.tolist() for value in behind.guided] == [[3, 4, 5, 6], [30, 40, 50, 60]]


def test_scales_are_drawn_evenly_by_their_logarithm(trained: Path) -> None:
    torch.manual_seed(0)
    for scales, (low, high) in zip(
        cross_pairs(trained, content_scales=(0.5, 2.0), style_scales=(1.0, 9.0)).draw_scales(500).guided,
        [(0.5, 2.0), (1.0, 9.0)],
    ):
        assert (
            scales.shape == (500,) and low <= scales.min() < 1.05 * low and 0.95 * high < scales.max() <= high
        )
        assert scales.median().item() == pytest.approx((low * high) ** 0.5, rel=0.15)


def test_each_photo_meets_different_paintings(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, seen = cross_pairs(trained, styles_per_content=2, places_weight=1.0), batch(3), {}
    painted = rnd("painted", 6, CHANNELS, SIDE, SIDE)
    monkeypatch.setattr(model, "paint", lambda condition, scales: seen.update(condition) or painted)
    monkeypatch.setattr(
        model,
        "decode_first_stage",
        lambda z: z[:, :3].repeat_interleave(FACTOR, dim=2).repeat_interleave(FACTOR, dim=3),
    )
    monkeypatch.setattr(
        model.loss, "forward", lambda *args: seen.update(judged=args) or (torch.zeros(6),) * 3
    )
    model.shared_step(data)
    photos, paintings = (data[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    z, style = model.encode_batch({"image": data["photo"]})[0], model.get_style_statistics(paintings)
    assert_same(seen["c1"], model.get_content_features(z).repeat(2, 1, 1, 1), 1e-4)
    assert_same(seen["c2"], torch.cat([style, style.roll(1, dims=0)]), 1e-4)
    shown, contents, styles = seen["judged"]
    assert torch.equal(shown, model.decode_first_stage(painted))
    for got, expected in (
        (contents, model.loss.content_of(photos)),
        (styles, model.loss.style_of(paintings)),
    ):
        assert got.keys() == expected.keys()
    for name, value in model.loss.content_of(photos).items():
        assert_same(contents[name].float(), value.repeat(2, 1, 1, 1), 1e-2)
    for name, value in model.loss.style_of(paintings).items():
        assert_same(styles[name].float(), torch.cat([value, value.roll(1, dims=0)]), 1e-2)


def test_each_painting_is_of_the_photo_in_its_own_colours(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, seen = cross_pairs(trained, styles_per_content=2), batch(3), []
    monkeypatch.setattr(model, "paint", lambda condition, scales: seen.append(condition) or condition["c1"])
    data["recolored"] = torch.stack([data["photo"].roll(1, dims=0), data["painting"]], dim=1)
    photos, paintings = model.encoded(data)
    assert photos.made["recolored"].shape[:2] == (3, 2)
    model.cross_losses(photos, paintings, (photos.made["latent"], photos.made["style"]))
    of = [
        model.get_content_features(model.encode_batch({"image": data["recolored"][:, turn]})[0])
        for turn in range(2)
    ]
    assert_same(seen[0]["c1"][-6:], torch.cat(of), 1e-4)
    data["recolored"] = data["recolored"][:, :1]
    with pytest.raises(ConfigError, match="in the colours of 1 paintings .* for 2 styles of each"):
        model.encoded(data)


@pytest.mark.parametrize("recolored", [False, True])
def test_previews_are_painted_as_results_are(
    trained: Path, monkeypatch: pytest.MonkeyPatch, recolored: bool
) -> None:
    """What would be painted as the content itself becomes the content when all detail is back."""
    model, data = cross_pairs(trained, detail=1.0), batch(3)
    content = data["painting"] if recolored else data["photo"]
    if recolored:
        data["recolored"] = content[:, None]
    z, _ = model.encode_batch({"image": content})
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(
        model, "sample_log", lambda condition, *args, **options: (seen.update(condition) or z, None)
    )
    shown = model.preview(data)
    assert_same(seen["c1"], model.get_content_features(z), 1e-4)
    assert (shown["painted"] - content.permute(0, 3, 1, 2)).abs().max() < 1e-4
    assert torch.equal(shown["photos"], data["photo"].permute(0, 3, 1, 2))


@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_what_is_judged_has_the_photos_detail_put_back(
    trained: Path, monkeypatch: pytest.MonkeyPatch, detail: float
) -> None:
    """Paintings that are the photos' own latents become the photos when all detail is back."""
    model, data, seen = cross_pairs(trained, detail=detail), batch(3), {}
    photos, paintings = (data[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    of_photos = Encoded(photos, model.of_photos(photos))
    of_paintings = Encoded(paintings.roll(1, dims=0), model.of_paintings(paintings, photos.shape[2:]))
    monkeypatch.setattr(
        model.loss, "forward", lambda pictures, *args: seen.update(pictures=pictures) or (0, 0, 0)
    )
    monkeypatch.setattr(
        cross_pairs_module,
        "palette_distance",
        lambda a, b: (a.mean(dim=(1, 2, 3)) - b.mean(dim=(1, 2, 3))).square(),
    )
    palette = model.judge(of_photos.made["latent"], of_photos, of_paintings)["palette"]
    error = (seen["pictures"] - photos).abs().max()
    assert error < 0.02 if detail else error > 0.1
    if detail:  # then the colours are the photos' too
        untouched = cross_pairs_module.palette_distance(photos, paintings.roll(1, dims=0))
        torch.testing.assert_close(palette, share_of(untouched, untouched), rtol=0.02, atol=1e-3)


def test_the_losses_are_weighed_and_added_to_the_diffusion_loss(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cross_pairs(
        trained,
        content_weight=3.0,
        style_weight=5.0,
        palette_weight=2.0,
        pattern_weight=4.0,
        places_weight=1.5,
        layout_weight=6.0,
        diffusion_weight=0.7,
    ).train()
    given = {
        "content": [1.0, 2, 3, 4, 5, 6],
        "style": [6.0, 5, 4, 3, 2, 1],
        "palette": [1.0, 0, 0, 0, 2, 0],
        "pattern": [0, 0, 0, 0, 0, 3.0],
        "places": [0, 2.0, 0, 0, 0, 1.0],
        "layout": [0, 0, 1.0, 0, 0, 0.5],
    }
    scales = Scales(torch.tensor([1.0, 1, 1, 1, 1, 2]), torch.tensor([1.0, 1, 1, 1, 3, 0.5]), plain=4)
    monkeypatch.setattr(
        model, "judge", lambda *args: {name: torch.tensor(values) for name, values in given.items()}
    )
    monkeypatch.setattr(model, "draw_scales", lambda n: scales)
    loss, parts = model.shared_step(batch(3))
    assert [parts[f"train/{name}"] for name in (*given, "loss")] == [3.5, 3.5, 0.5, 0.5, 0.5, 0.25, loss]
    style = (
        [6, 5, 4, 3, 1.5 * 2, 0.4 * 1],
        [1, 0, 0, 0, 1.5 * 2, 0],
        [0, 0, 0, 0, 0, 0.4 * 3],
        [0, 2, 0, 0, 0, 0.4 * 1],
        [0, 0, 1, 0, 0, 0.4 * 0.5],
    )
    weighed = 3 * (1 + 2 + 3 + 4 + 0.5 * 5 + 1.6 * 6) + sum(
        weight * sum(values) for weight, values in zip((5, 2, 4, 1.5, 6), style)
    )
    assert loss.item() == pytest.approx(0.7 * parts["train/loss_simple"].item() + weighed / 6, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_picture_in_its_own_style_is_to_be_itself(
    trained: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    model = cross_pairs(
        trained, identity_weight=weight, diffusion_weight=0.0, content_weight=0.0, style_weight=0.0
    ).train()
    given = batch(4)
    photos, paintings = (given[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    shown = torch.cat([photos[2:], paintings[:2]])
    z, style = (
        model.get_first_stage_encoding(model.encode_first_stage(shown)),
        model.get_style_statistics(shown),
    )
    painted, paint = [], model.paint

    def spy(condition: dict[str, Tensor], scales: Scales) -> Tensor:
        painted.append((condition, scales, paint(condition, scales)))
        return painted[-1][2]

    monkeypatch.setattr(model, "paint", spy)
    loss, parts = model.shared_step(given)
    assert ("train/identity" in parts) == bool(weight)
    [(condition, scales, paintings)] = painted
    n = 4 * model.styles_per_content
    assert len(paintings) == n + (4 if weight else 0)
    if weight:
        for key, expected in model.condition(model.get_content_features(z), style).items():
            assert_same(condition[key][:4], expected)
        assert scales.plain >= 4 and scales.content[:4].eq(1).all() and scales.style[:4].eq(1).all()
        error = (paintings[:4] - z).square().mean()
        torch.testing.assert_close((parts["train/identity"], loss), (error.detach(), weight * error))
        loss.backward()
        assert model.model.diffusion_model.out.conv.weight.grad.abs().max() > 0


def test_only_the_network_and_the_null_style_learn_and_both_do(trained: Path) -> None:
    model = cross_pairs(trained, style_drop=0.5).train()
    torch.manual_seed(0)
    model.shared_step(batch(3))[0].backward()
    moved = {
        name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert moved == {"model", "null_style_vector"}
    assert not list(model.loss.parameters()) and not {id(p) for p in model.trained_parameters()} & {
        id(p) for p in model.first_stage_model.parameters()
    }


def test_what_is_judged_teaches_the_network_through_the_decoder(trained: Path) -> None:
    model = cross_pairs(trained).train()
    condition = model.condition(rnd("content", 2, CHANNELS, SIDE, SIDE), rnd("style", 2, STYLE_DIM))
    model.decode_first_stage(model.paint(condition, model.draw_scales(2))).square().mean().backward()
    assert model.model.diffusion_model.out.conv.weight.grad.abs().max() > 0


def test_validation_uses_the_same_draws_every_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = cross_pairs(trained).eval(), []
    monkeypatch.setattr(model, "log_dict", lambda values, **options: rows.append(values))
    torch.manual_seed(5)
    model.validation_step(batch(), 0)
    after = torch.rand(())
    model.validation_step(batch(), 0)
    torch.manual_seed(5)
    assert torch.rand(()) == after
    assert rows[0] == rows[1] and {"val/content", "val/style", "val/loss"} <= rows[0].keys()


# What is kept


def test_what_is_computed_of_a_row_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, asked = Kept(), []

    def squares(places: list[int]) -> dict[str, Tensor]:
        asked.append(places)
        return {"square": values[places] ** 2}

    for rows, expected in (([7, 8, 7], [0, 1, 2]), ([9, 8, 7], [0]), ([7, 7, 9], None)):
        values = torch.tensor(rows)
        assert kept(torch.tensor(rows), squares, 3)["square"].tolist() == [row**2 for row in rows]
        assert asked.pop() == expected if expected else not asked
    values = torch.tensor([2, 3])
    for _ in range(2):
        assert kept(None, squares, 2)["square"].tolist() == [4, 9] and asked.pop() == [0, 1]


def test_what_is_kept_changes_no_loss(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, losses, encoded = cross_pairs(trained).train(), batch(3), [], []
    encode = model.encode_first_stage
    monkeypatch.setattr(model, "encode_first_stage", lambda x: encoded.append(len(x)) or encode(x))
    for rows in (
        {},
        {kind + "_row": torch.arange(3) for kind in data},
        {kind + "_row": torch.arange(3) for kind in data},
    ):
        torch.manual_seed(2)
        losses.append(model.shared_step({**data, **rows})[0].item())
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3 and encoded == [3, 3, 3, 3]


# The data, and the whole recipe


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pictures = paintings_and_photos(tmp_path_factory.mktemp("pictures"))
    return {"style_root": str(pictures["paintings"]), "content_root": str(pictures["photos"])}


def test_in_a_batch_photos_come_in_the_colours_of_their_paintings(roots: dict[str, str]) -> None:
    plain = CrossPairs(**roots, size=32, split="all")
    samples = [plain[i] for i in range(4)]
    assert plain.together(samples) == samples
    data = CrossPairs(**roots, size=32, split="all", recolored=2)
    together = next(iter(DataLoader(SeededSamples(data), 4, sampler=[Draw(i, 0) for i in range(4)])))
    assert together["recolored"].shape == (4, 2, 32, 32, 3)
    for i in range(4):
        for turn in range(2):
            photo, painting = (
                as_picture(samples[j][kind]) for j, kind in ((i, "photo"), (i - turn, "painting"))
            )
            expected = np.asarray(recoloured(photo, [(painting, 1.0)])) / 127.5 - 1
            np.testing.assert_allclose(together["recolored"][i, turn], expected, atol=1e-6)
    assert len(data.together(samples[:1])[0]["recolored"]) == 2  # the same painting twice
    with pytest.raises(ConfigError, match="recolored must be a whole number from 0 on, got -1"):
        CrossPairs(**roots, recolored=-1)


def as_picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray((127.5 * array + 127.5).round().astype(np.uint8))


def test_photos_can_be_whole_scenes_at_a_smaller_size(roots: dict[str, str]) -> None:
    large, small = (
        CrossPairs(**roots, size=16, short_side=20, photo_size=size, split="all") for size in (None, 8)
    )
    for a, b in zip(map(large.__getitem__, range(4)), map(small.__getitem__, range(4))):
        assert a["painting"].shape == a["photo"].shape == (16, 16, 3) and b["photo"].shape == (8, 8, 3)
        halved = torch.nn.functional.avg_pool2d(torch.from_numpy(a["photo"]).permute(2, 0, 1), 2)
        assert (halved - torch.from_numpy(b["photo"]).permute(2, 0, 1)).abs().mean() < 0.15
    assert small.photos.short_side == 10


def test_a_step_takes_photos_smaller_than_the_paintings(trained: Path) -> None:
    model, data = cross_pairs(trained).train(), batch(3)
    data["photo"] = data["photo"][:, ::2, ::2]
    loss, parts = model.shared_step(data)
    assert loss.isfinite() and parts["train/style"] > 0


def test_pairs_are_a_painting_and_any_photo(roots: dict[str, str]) -> None:
    data = CrossPairs(**roots, size=16, validation_share=0.0)
    assert len(data) == 5 and data.pictures == 9
    assert [data[0][kind].shape for kind in ("painting", "photo")] == 2 * [(16, 16, 3)] and data[0][
        "unreadable"
    ] == ""
    torch.manual_seed(0)
    assert len({data[0]["photo"].mean().round(2) for _ in range(20)}) > 2


def test_variants_are_few_crops_that_are_always_the_same(roots: dict[str, str]) -> None:
    data = CrossPairs(**roots, size=16, short_side=24, variants=2, validation_share=0.0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops: dict[tuple[str, int], set[bytes]] = {}
    for i in range(60):
        sample = data[i % 5]
        for kind in ("painting", "photo"):
            crops.setdefault((kind, sample[f"{kind}_row"]), set()).add(sample[kind].tobytes())
    assert sorted(row for kind, row in crops if kind == "painting") == list(range(10)) and len(crops) == 18
    assert (
        all(len(same) == 1 for same in crops.values())
        and len({crop for same in crops.values() for crop in same}) == 18
    )
    # what is drawn for a crop does not repeat the draws outside it
    assert not torch.equal(before, torch.get_rng_state())
    assert "photo_row" not in CrossPairs(**roots, size=16, validation_share=0.0)[0]
    with pytest.raises(ConfigError, match="variants must be a whole number from 0 on, got -1"):
        CrossPairs(**roots, variants=-1)


def test_an_epoch_may_go_over_the_paintings_several_times(roots: dict[str, str]) -> None:
    once = CrossPairs(**roots, size=16, split="all")
    data = CrossPairs(**roots, size=16, split="all", passes=3)
    assert len(data) == 3 * len(once) == 15
    assert (data[7]["painting"] == once[2]["painting"]).all()
    with pytest.raises(ConfigError, match="passes must be a whole number from 1 on, got 0"):
        CrossPairs(**roots, passes=0)


def test_pairs_for_validation_are_always_the_same(roots: dict[str, str]) -> None:
    data = CrossPairs(**roots, size=16, split="all")
    first, second = data[4], data[4]
    assert all((first[kind] == second[kind]).all() for kind in ("painting", "photo"))
    assert (data[4]["photo"] == data[0]["photo"]).all() and not (
        data[4]["painting"] == data[0]["painting"]
    ).all()


def test_pairs_tell_of_pictures_that_could_not_be_read(roots: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(roots["style_root"], tmp_path / "paintings")
    broken = sorted((tmp_path / "paintings").rglob("*.*"))[1]
    broken.write_bytes(b"no picture")
    data = CrossPairs(str(tmp_path / "paintings"), roots["content_root"], size=16, split="all")
    assert (
        broken.name in data[1]["unreadable"]
        and data[0]["unreadable"] == ""
        and data[1]["painting"].shape == (16, 16, 3)
    )


def test_the_recipe_trains_and_the_pipeline_loads_what_it_wrote(
    roots: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model_config()
    torch.manual_seed(0)
    torch.save(instantiate_from_config(base).state_dict(), tmp_path / "trained.pt")
    params = {"ckpt_path": str(tmp_path / "trained.pt")}
    model = {
        **base,
        "target": "ldm.models.diffusion.cross_pairs.CrossPairLDM",
        "params": {**base["params"], **params},
    }
    data = {
        "target": "ldm.data.wikiart.CrossPairs",
        "params": {**roots, "size": 32, "variants": 1, "validation_share": 0.5},
    }
    run = train(
        recipe(
            tmp_path / "cross.yaml",
            model,
            data_module(data, data),
            callbacks=logger_node(batch_frequency=2),
            val_check_interval=1,
        )
    )
    # the judge is no part of the model
    assert not [name for name in last(run)["state_dict"] if name.startswith("loss.")]
    assert (
        last(run)["global_step"] == 2
        and len(logged(run, "train/style")) == 2
        and len(logged(run, "val/style")) == 2
    )
    assert {path.name.split("_")[0] for path in (run / "images").iterdir()} == {
        "photos",
        "paintings",
        "painted",
    }
    call = [run / "checkpoints/last.ckpt", tmp_path / "small.safetensors"]
    assert run_program(script("convert_checkpoint").main, call, monkeypatch) == 0
    config = recipe(tmp_path / "plain.yaml", base, data_module(data, data))
    pipeline = StyleTransferPipeline.from_pretrained(tmp_path / "small.safetensors", config, device="cpu")
    assert pipeline(picture(48, 32), picture(32, 32, 1), look="sampled", size=32, steps=2).size == (48, 32)


# Recorded steps


WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "lift_fresh", "randperm"}


class NothingWaits(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: what asks for values or has sizes that depend on them, and
    what comes from Python."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0].lstrip("_")
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert name not in {each.lstrip("_") for each in WAITS}, func
        assert all(index is None or index.dtype != torch.bool for index in chosen), func
        return func(*args, **(kwargs or {}))


def recorded_on_the_cpu(run: Any) -> tuple[Any, Any]:
    """As `cuda_graph`: every replay computes into the same tensors."""
    with torch.random.fork_rng([]):
        run()
        with NothingWaits():
            result = run()

    def replay() -> None:
        loss, values, gradients = run()
        result[0].copy_(loss)
        for name, value in values.items():
            result[1][name].copy_(value)
        for kept, gradient in zip(result[2], gradients):
            if kept is not None:
                kept.copy_(gradient)

    return result, replay


def test_a_recorded_step_waits_for_nothing_and_has_the_same_losses_and_gradients(trained: Path) -> None:
    model = cross_pairs(
        trained,
        identity_weight=1.0,
        pattern_weight=1.0,
        places_weight=1.0,
        layout_weight=1.0,
        palette_weight=1.0,
        margin=1,
    ).train()
    weights = model.trained_parameters()

    def step(given: dict[str, Tensor], seed: int) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        torch.manual_seed(seed)
        for weight in weights:
            weight.grad = None
        loss, values = model.shared_step(given)
        model.backward(loss)
        return loss.detach(), values, [None if w.grad is None else w.grad.clone() for w in weights]

    batches = [batch(4), {name: value.flip(0) for name, value in batch(4).items()}, batch(3), batch(4)]
    expected = [step(given, seed) for seed, given in enumerate(batches)]
    model._recorded = model.recorded(recorded_on_the_cpu)
    for seed, given in enumerate(batches):
        loss, values, gradients = step(given, seed)
        assert_same(loss, expected[seed][0])
        assert values.keys() == expected[seed][1].keys()
        for got, wanted in zip(gradients, expected[seed][2], strict=True):
            assert (got is None) == (wanted is None)
            if got is not None:
                assert_same(got, wanted)
    assert model._recorded._replay is not None


def test_validation_is_not_recorded(trained: Path) -> None:
    model = cross_pairs(trained)
    model._recorded = model.recorded(lambda run: pytest.fail("recorded"))
    for _ in range(3):
        with torch.no_grad():
            assert not model.eval().shared_step(batch(3))[0].requires_grad
    assert model._recorded._sizes is None  # none of them came there


@pytest.mark.parametrize("wrong", ["abc", None, -1, float("nan")])
def test_a_weight_that_cannot_be_is_told_by_its_name(wrong: object) -> None:
    with pytest.raises(ConfigError, match="places_weight must be a number from 0 on"):
        LossWeights(places_weight=wrong)
