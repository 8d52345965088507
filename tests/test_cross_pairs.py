"""Fine-tuning on pairs of different pictures: the losses by VGG16 features, the estimates that they judge, training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CHANNELS, LATENT, SIDE, STYLE_DIM, UNET, VGG, assert_same, conditions, tiny_ldm
from golden_rules import apply_rule, rnd
from pipeline_builders import model_config, picture, picture_folder, run_program, script
from torch import Tensor
from training_builders import data_module, last, logged, logger_node, recipe, train

from ldm.data.wikiart import CrossPairs
from ldm.errors import ConfigError
from ldm.models.diffusion import cross_pairs as cross_pairs_module
from ldm.models.diffusion.cross_pairs import CrossPairLDM
from ldm.models.diffusion.guidance import TwoWayGuidance
from ldm.modules.losses.lpips import BUNDLED_VGG16, vgg16
from ldm.modules.losses.style_transfer import (
    CONTENT_LAYERS,
    LAYERS,
    StyleTransferLoss,
    Traits,
    VggFeatures,
    mean_and_std,
    palette_distance,
    pattern_loss,
    regularity,
    share_of,
    statistics_distance,
)
from ldm.pipeline import StyleTransferPipeline
from ldm.util import instantiate_from_config

FACTOR = 4  # of the tiny first stage


def pictures(tag: str, n: int = 3, side: int = SIDE * FACTOR) -> Tensor:
    return rnd(tag, n, 3, side, side).tanh()


@pytest.fixture(scope="module")
def loss() -> StyleTransferLoss:
    torch.manual_seed(0)
    loss = StyleTransferLoss()
    for parameter in loss.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.uniform_(parameter)
    return loss


# The losses


def traits(maps: dict[str, Tensor]) -> Traits:
    return Traits({name: maps[name] for name in CONTENT_LAYERS}, {name: mean_and_std(value) for name, value in maps.items()})


def loss_of(maps: dict[str, Tensor]) -> StyleTransferLoss:
    """The loss of pictures with these features."""
    loss = StyleTransferLoss.__new__(StyleTransferLoss)
    torch.nn.Module.__init__(loss)
    loss.features = lambda pictures: traits(maps)
    return loss


def test_traits_are_what_the_features_hold(loss: StyleTransferLoss) -> None:
    maps = VggFeatures(loss.features.net)(pictures("a"))
    assert set(maps) == set(LAYERS)
    got, expected = loss.features(pictures("a")), traits(maps)
    for name in LAYERS:
        for value, wanted in zip(got.moments[name], expected.moments[name], strict=True):
            assert torch.equal(value, wanted) and value.shape == maps[name].shape[:2]
    assert all(torch.equal(got.maps[name], maps[name]) for name in CONTENT_LAYERS) and set(got.maps) == set(CONTENT_LAYERS)
    last = got.rows(torch.tensor([2, 2]))
    assert torch.equal(last.maps["relu4_1"][1], maps["relu4_1"][2]) and torch.equal(last.moments["relu1_1"][1][0], expected.moments["relu1_1"][1][2])


def test_traits_are_float32_under_autocast(loss: StyleTransferLoss) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        got = loss.features(pictures("a"))
    assert {value.dtype for value in (*got.maps.values(), *(part for moments in got.moments.values() for part in moments))} == {torch.float32}
    # Averaged in float32, too: sums of many bfloat16 numbers would be several per cent off.
    for name, (mean, _) in loss.features(pictures("a")).moments.items():
        assert_same(got.moments[name][0], mean, 0.02)


def test_a_picture_is_its_own_content_and_style(loss: StyleTransferLoss) -> None:
    own, others = loss.features(pictures("a")), loss.features(pictures("b"))
    content, _ = loss(pictures("a"), own, others)
    _, style = loss(pictures("a"), others, own)
    assert content.shape == style.shape == (3,)
    assert content.max() < 1e-5 and style.max() < 1e-5


def test_the_style_loss_is_a_share_of_what_the_content_would_have(loss: StyleTransferLoss) -> None:
    pair = pictures("a"), pictures("b") * torch.tensor([0.1, 0.5, 1.0])[:, None, None, None]
    contents, styles = map(loss.features, pair)
    distances = statistics_distance(contents.moments, styles.moments)
    assert distances.max() > 1.5 * distances.min()
    assert_same(loss(pair[0], contents, styles)[1], distances / (0.5 * distances + 0.5 * distances.mean()))
    first = torch.tensor([0])
    assert loss(pair[0][:1], contents.rows(first), styles.rows(first))[1].item() == pytest.approx(1.0)


def test_statistics_do_not_see_places_and_content_does() -> None:
    maps = {name: rnd(name, 2, 5, 8, 8) for name in LAYERS}
    moved = {name: value.roll(3, dims=2) for name, value in maps.items()}
    assert statistics_distance(traits(maps).moments, traits(moved).moments).max() < 1e-5
    content, style = loss_of(moved)(pictures("a", 2), traits(maps), traits({name: value + 1 for name, value in maps.items()}))
    assert content.min() > 0.5 and style.min() > 0.9


def test_the_content_loss_does_not_see_contrast_and_brightness_of_a_channel() -> None:
    maps = {name: rnd(name, 2, 5, 8, 8) for name in LAYERS}
    scaled = {name: value * torch.tensor([1, 2, 3, 4, 5.0])[:, None, None] + 7 for name, value in maps.items()}
    assert loss_of(scaled)(pictures("a", 2), traits(maps), traits(maps))[0].max() < 1e-4


def uniform(red: float, green: float, blue: float, size: int = 8) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32)[None, :, None, None].expand(1, 3, size, size)


def test_a_palette_is_how_often_colours_occur_wherever_they_are() -> None:
    torch.manual_seed(0)
    a = torch.cat([uniform(1, 0, -1), uniform(-1, 0.5, 0)], dim=3)
    elsewhere, seldom = torch.cat([uniform(-1, 0.5, 0, 32), uniform(1, 0, -1, 32)], dim=2), torch.cat([a, uniform(1, 0, -1)], dim=3)
    assert 10 * palette_distance(a, elsewhere, colors=100_000) < palette_distance(a, seldom, colors=100_000)


def test_a_wrong_hue_is_further_than_a_wrong_brightness() -> None:
    torch.manual_seed(0)
    grey = uniform(0, 0, 0)
    brighter, yellow = (palette_distance(grey, other, directions=2000).item() for other in (uniform(0.5, 0.5, 0.5), uniform(0.25, 0.25, -0.5)))
    assert brighter == pytest.approx(0.5**2 / 3, rel=0.1)  # luma alone, a third of whose square lies along each direction
    luma, cb, cr = 0.16453, 3 * 0.564 * (-0.5 - 0.16453), 3 * 0.713 * (0.25 - 0.16453)
    assert yellow == pytest.approx((luma**2 + cb**2 + cr**2) / 3, rel=0.1) and yellow > 5 * brighter


def test_shares_are_of_what_is_between_the_pairs_own_and_the_average() -> None:
    assert share_of(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 3.5, 2.0])).tolist() == pytest.approx([1 / 1.25, 1 / 2.75, 0])


def weave(period: float = 8.0, side: int = 64, contrast: float = 0.5) -> Tensor:
    """(1, 3, side, side) grey diagonal stripes crossed by others."""
    along = 2 * torch.pi * torch.arange(side) / period
    return contrast * ((along + along[:, None]).sin() * (along - along[:, None]).sin()).expand(1, 3, side, side)


def rough(tag: str, side: int = 64) -> Tensor:
    """(1, 3, side, side) random blots of all sizes."""
    return sum(torch.nn.functional.interpolate(rnd(f"{tag}{s}", 1, 3, s, s), (side, side), mode="bicubic") for s in (8, 16, 32, 64)) / 8


def test_a_regular_pattern_is_found_whatever_its_phase_and_contrast() -> None:
    patterned = [pattern_loss(rough("a") + move, rough("b"), rough("c")).item() for move in (weave(), weave().roll(3, dims=2), weave(contrast=0.25), weave(12.0))]
    clean = [pattern_loss(rough(tag), rough("b"), rough("c")).item() for tag in ("a", "d", "e")]
    assert min(patterned) > 10 * max(clean) and patterned[0] == pytest.approx(patterned[1], rel=0.3)


def test_brush_work_in_all_directions_is_no_regular_pattern() -> None:
    dabs = torch.nn.functional.interpolate(rnd("dabs", 1, 3, 8, 8), (64, 64), mode="bicubic")
    assert pattern_loss(rough("a") + 2 * dabs, rough("b"), rough("c")) < 0.1 * pattern_loss(rough("a") + weave(), rough("b"), rough("c"))


@pytest.mark.parametrize("striped", ["photo", "painting"])
def test_a_pattern_that_the_photo_or_the_painting_has_may_stay(striped: str) -> None:
    own = {"photo": rough("b"), "painting": rough("c", 128)}
    shown = rough("a") + weave()
    before = pattern_loss(shown, own["photo"], own["painting"])
    own[striped] = own[striped] + weave(side=own[striped].shape[2])  # at the same period in pixels, also in a larger picture
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


# The model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    torch.save(tiny_ldm().state_dict(), path)
    return path


def cross_pairs(trained: Path, **changes: Any) -> CrossPairLDM:
    unet_config = {"target": "ldm.modules.diffusionmodules.model.StyleUNetModel", "params": UNET}
    options = {"style_dim": STYLE_DIM, "vgg_channels": VGG, "cond_stage_config": "__is_adaptive__", "ckpt_path": str(trained), **LATENT}
    model = CrossPairLDM(unet_config=unet_config, **{**options, "window": 4, **changes})
    torch.manual_seed(0)
    apply_rule(model.loss)
    return model


def batch(n: int = 3) -> dict[str, Tensor]:
    return {kind: pictures(kind, n).permute(0, 2, 3, 1) for kind in ("photo", "painting")}


def test_it_goes_on_from_a_trained_model(trained: Path) -> None:
    with pytest.raises(ConfigError, match="give the trained model to go on from as ckpt_path"):
        cross_pairs(trained, ckpt_path=None).on_fit_start()
    weights, expected = cross_pairs(trained).state_dict(), tiny_ldm().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("n", [5, 6])
def test_half_of_the_estimates_start_from_noise_and_half_from_estimates(trained: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
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
    result = model.paint(condition, (torch.ones(n), torch.ones(n)))
    (x_T, t_T, first_condition, predicted), (x, t, full_condition, prediction) = calls  # scales of 1 need no null branches
    half, last_step = (n + 1) // 2, model.num_timesteps - 1
    assert_same(x_T, noise[half:])
    assert torch.equal(first_condition["c2"], condition["c2"][half:]) and full_condition["c1"] is condition["c1"]
    assert t_T.eq(last_step).all() and t[:half].eq(last_step).all() and t[half:].lt(last_step).all() and len(t[half:].unique()) > 1
    assert_same(x[:half], noise[:half])
    # The others lie where the noise's own way to the first estimate passes.
    start = model.predict_start_from_noise(x_T, t_T, predicted)
    assert_same(x[half:], model.q_sample(start, t[half:], predicted), 1e-3)
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
    assert model.paint(condition, (torch.ones(6), torch.ones(6))).isfinite().all()
    (first, _, middle), (again, _, last) = steps
    assert len(first) == 4 and len(again) == 2 and torch.equal(again, middle[2:])
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
    scales = (torch.tensor([2.0, 0.5, 1.0]), torch.tensor([3.0, 1.0, 0.5]))
    actual = model.estimate(x, t, cond, scales)
    for i in range(3):
        rows = [{key: value[i : i + 1] for key, value in part.items()} for part in (cond, no_content, no_style)]
        guidance = TwoWayGuidance(model.apply_model, rows[0], float(scales[0][i]), rows[1], float(scales[1][i]), rows[2])
        assert_same(actual[i : i + 1], model.start_from(guidance(x[i : i + 1], t[i : i + 1]), x[i : i + 1], t[i : i + 1]), 1e-4)
    actual[:1].sum().backward()
    assert model.null_style_vector.weight.grad.any() and model.model.diffusion_model.out.conv.weight.grad.any()


def test_only_guided_paintings_have_null_branches(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = cross_pairs(trained), []
    apply_model = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: rows.append(len(x)) or apply_model(x, t, cond))
    x, t, cond = rnd("x", 3, CHANNELS, SIDE, SIDE), torch.tensor([900, 500, 20]), conditions(3)[0]
    scales = (torch.tensor([1.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, 1.0]))
    mixed = model.estimate(x, t, cond, scales)
    assert rows == [3, 2]
    plain = model.estimate(x, t, cond, [torch.ones(3)] * 2)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and not torch.allclose(mixed[1], plain[1])


def test_none_starts_later_if_none_is_asked_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = cross_pairs(trained, later=0.0), []
    apply_model = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: steps.append(t) or apply_model(x, t, cond))
    model.paint(model.condition(rnd("content", 3, CHANNELS, SIDE, SIDE), rnd("style", 3, STYLE_DIM)), [torch.ones(3)] * 2)
    assert len(steps) == 1 and steps[0].eq(model.num_timesteps - 1).all()
    with pytest.raises(ConfigError, match="later must be between 0 and 1"):
        cross_pairs(trained, later=1.5)


def test_some_paintings_go_without_guidance(trained: Path) -> None:
    torch.manual_seed(0)
    plain = [scale.eq(1).all() for scale in cross_pairs(trained, guided=0.0).draw_scales(20)]
    content, style = cross_pairs(trained, guided=0.3).draw_scales(1000)
    assert all(plain) and torch.equal(content == 1, style == 1) and 0.25 < (content != 1).float().mean() < 0.35


def test_scales_are_drawn_evenly_by_their_logarithm(trained: Path) -> None:
    torch.manual_seed(0)
    for scales, (low, high) in zip(cross_pairs(trained, content_scales=(0.5, 2.0), style_scales=(1.0, 9.0)).draw_scales(500), [(0.5, 2.0), (1.0, 9.0)]):
        assert scales.shape == (500,) and low <= scales.min() < 1.05 * low and 0.95 * high < scales.max() <= high
        assert scales.median().item() == pytest.approx((low * high) ** 0.5, rel=0.15)


def test_each_photo_meets_different_paintings_and_the_window_is_the_same_everywhere(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, seen = cross_pairs(trained, styles_per_content=2), batch(3), {}
    features, painted = [], rnd("painted", 6, CHANNELS, SIDE, SIDE)
    monkeypatch.setattr(model, "paint", lambda condition, scales: seen.update(condition) or painted)
    monkeypatch.setattr(model, "decode_first_stage", lambda z: seen.update(window=z) or z[:, :3])
    monkeypatch.setattr(model.loss, "forward", lambda *args: seen.update(judged=args) or (torch.zeros(6), torch.zeros(6)))
    monkeypatch.setattr(model.loss, "features", torch.nn.Identity())
    monkeypatch.setattr(model.loss.features, "forward", lambda x: features.append(x) or Traits({"pictures": x}, {"pictures": (x, x)}))
    torch.manual_seed(3)
    model.shared_step(data)
    photos, paintings = (data[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    z, style = model.encode_batch({"image": data["photo"]})[0], model.get_style_statistics(paintings)
    assert_same(seen["c1"], model.get_content_features(z).repeat(2, 1, 1, 1), 1e-4)
    assert_same(seen["c2"], torch.cat([style, style.roll(1, dims=0)]), 1e-4)
    window, contents, styles = seen["window"], *seen["judged"][1:]
    assert torch.equal(seen["judged"][0], window[:, :3])
    assert torch.equal(styles.maps["pictures"], torch.cat([paintings, paintings.roll(1, dims=0)]))
    places = [(top, left) for top in range(SIDE - 3) for left in range(SIDE - 3) if torch.equal(painted[..., top : top + 4, left : left + 4], window)]
    assert len(places) == 1 and contents.maps["pictures"].shape == (6, 3, 4 * FACTOR, 4 * FACTOR)
    top, left = (FACTOR * place for place in places[0])
    crop = photos[..., top : top + 4 * FACTOR, left : left + 4 * FACTOR]
    assert torch.equal(contents.maps["pictures"], crop.repeat(2, 1, 1, 1)) and len(features) == 2


@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_what_is_judged_has_the_photos_detail_put_back(trained: Path, monkeypatch: pytest.MonkeyPatch, detail: float) -> None:
    """Paintings that are the photos' own latents become the photos when all detail is back."""
    model, data, seen = cross_pairs(trained, detail=detail), batch(3), {}
    photos, paintings = (data[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    z, contents = model.encode_batch({"image": data["photo"]})[0], torch.tensor([0, 1, 2, 0, 1, 2])
    monkeypatch.setattr(model.loss, "forward", lambda pictures, *args: seen.update(pictures=pictures) or (0, 0))
    monkeypatch.setattr(model.loss, "features", torch.nn.Identity())
    monkeypatch.setattr(model.loss.features, "forward", lambda x: seen.setdefault("photos", x) is None or Traits({"pictures": x}, {"pictures": (x, x)}))
    monkeypatch.setattr(cross_pairs_module, "palette_distance", lambda a, b: (a.mean(dim=(1, 2, 3)) - b.mean(dim=(1, 2, 3))).square())
    palette = model.judge(z[contents], z, photos, paintings, contents, contents.roll(1))["palette"]
    error = (seen["pictures"] - seen["photos"][contents]).abs().max()
    assert error < 1e-5 if detail else error > 0.1
    if detail:  # then the colours are the photos' too
        untouched = cross_pairs_module.palette_distance(seen["photos"][contents], paintings[contents.roll(1)])
        torch.testing.assert_close(palette, share_of(untouched, untouched), rtol=1e-3, atol=0)


def test_the_losses_are_weighed_and_added_to_the_diffusion_loss(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cross_pairs(trained, content_weight=3.0, style_weight=5.0, palette_weight=2.0, pattern_weight=4.0, diffusion_weight=0.7).train()
    given = {"content": [1.0, 2, 3, 4, 5, 6], "style": [6.0, 5, 4, 3, 2, 1], "palette": [1.0, 0, 0, 0, 2, 0], "pattern": [0, 0, 0, 0, 0, 3.0]}
    scales = torch.tensor([1.0, 1, 1, 1, 1, 2]), torch.tensor([1.0, 1, 1, 1, 3, 0.5])
    monkeypatch.setattr(model, "judge", lambda *args: {name: torch.tensor(values) for name, values in given.items()})
    monkeypatch.setattr(model, "draw_scales", lambda n: scales)
    loss, parts, n = model.shared_step(batch(3))
    assert n == 3 and [parts[f"train/{name}"] for name in (*given, "loss")] == [3.5, 3.5, 0.5, 0.5, loss]
    style = [6, 5, 4, 3, 1.5 * 2, 0.4 * 1], [1, 0, 0, 0, 1.5 * 2, 0], [0, 0, 0, 0, 0, 0.4 * 3]
    weighed = 3 * (1 + 2 + 3 + 4 + 0.5 * 5 + 1.6 * 6) + sum(weight * sum(values) for weight, values in zip((5, 2, 4), style))
    assert loss.item() == pytest.approx(0.7 * parts["train/loss_simple"].item() + weighed / 6, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_picture_in_its_own_style_is_to_be_itself(trained: Path, monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    model = cross_pairs(trained, identity_weight=weight, diffusion_weight=0.0, content_weight=0.0, style_weight=0.0).train()
    given = batch(4)
    photos, paintings = (given[kind].permute(0, 3, 1, 2) for kind in ("photo", "painting"))
    shown = torch.cat([photos[2:], paintings[:2]])
    z, style = model.get_first_stage_encoding(model.encode_first_stage(shown)), model.get_style_statistics(shown)
    painted, paint = [], model.paint

    def spy(condition: dict[str, Tensor], scales: tuple[Tensor, Tensor]) -> Tensor:
        painted.append((condition, scales, paint(condition, scales)))
        return painted[-1][2]

    monkeypatch.setattr(model, "paint", spy)
    loss, parts, _ = model.shared_step(given)
    assert len(painted) == (2 if weight else 1) and ("train/identity" in parts) == bool(weight)
    if weight:
        condition, scales, own = painted[1]
        for key, expected in model.condition(model.get_content_features(z), style).items():
            assert_same(condition[key], expected)
        assert torch.equal(torch.stack(list(scales)), torch.ones(2, 4))
        error = (own - z).square().mean()
        torch.testing.assert_close((parts["train/identity"], loss), (error.detach(), weight * error))
        loss.backward()
        assert model.model.diffusion_model.out.conv.weight.grad.abs().max() > 0


def test_only_the_network_and_the_null_style_learn_and_both_do(trained: Path) -> None:
    model = cross_pairs(trained, style_drop=0.5).train()
    torch.manual_seed(0)
    model.shared_step(batch(3))[0].backward()
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"model", "null_style_vector"}
    assert not {id(p) for p in model.trained_parameters()} & {id(p) for p in [*model.loss.parameters(), *model.first_stage_model.parameters()]}


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


# The data, and the whole recipe


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pictures")
    return {"style_root": str(picture_folder(root / "paintings", 5)), "content_root": str(picture_folder(root / "photos", 4, seed=50))}


def test_photos_can_be_whole_scenes_at_a_smaller_size(roots: dict[str, str]) -> None:
    large, small = (CrossPairs(**roots, size=16, short_side=20, photo_size=size, split="all") for size in (None, 8))
    for a, b in zip(map(large.__getitem__, range(4)), map(small.__getitem__, range(4))):
        assert a["painting"].shape == a["photo"].shape == (16, 16, 3) and b["photo"].shape == (8, 8, 3)
        halved = torch.nn.functional.avg_pool2d(torch.from_numpy(a["photo"]).permute(2, 0, 1), 2)
        assert (halved - torch.from_numpy(b["photo"]).permute(2, 0, 1)).abs().mean() < 0.15
    assert small.photos.short_side == 10


def test_a_step_takes_photos_smaller_than_the_paintings(trained: Path) -> None:
    model, data = cross_pairs(trained).train(), batch(3)
    data["photo"] = data["photo"][:, ::2, ::2]
    loss, parts, n = model.shared_step(data)
    assert n == 3 and loss.isfinite() and parts["train/style"] > 0


def test_pairs_are_a_painting_and_any_photo(roots: dict[str, str]) -> None:
    data = CrossPairs(**roots, size=16, validation_share=0.0)
    assert len(data) == 5 and data.pictures == 9
    assert [data[0][kind].shape for kind in ("painting", "photo")] == 2 * [(16, 16, 3)] and data[0]["unreadable"] == ""
    torch.manual_seed(0)
    assert len({data[0]["photo"].mean().round(2) for _ in range(20)}) > 2


def test_pairs_for_validation_are_always_the_same(roots: dict[str, str]) -> None:
    data = CrossPairs(**roots, size=16, split="all")
    first, second = data[4], data[4]
    assert all((first[kind] == second[kind]).all() for kind in ("painting", "photo"))
    assert (data[4]["photo"] == data[0]["photo"]).all() and not (data[4]["painting"] == data[0]["painting"]).all()


def test_pairs_tell_of_pictures_that_could_not_be_read(roots: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(roots["style_root"], tmp_path / "paintings")
    broken = sorted((tmp_path / "paintings").rglob("*.*"))[1]
    broken.write_bytes(b"no picture")
    data = CrossPairs(str(tmp_path / "paintings"), roots["content_root"], size=16, split="all")
    assert broken.name in data[1]["unreadable"] and data[0]["unreadable"] == "" and data[1]["painting"].shape == (16, 16, 3)


def test_the_recipe_trains_and_the_pipeline_loads_what_it_wrote(roots: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model_config()
    torch.manual_seed(0)
    torch.save(instantiate_from_config(base).state_dict(), tmp_path / "trained.pt")
    params = {"ckpt_path": str(tmp_path / "trained.pt"), "window": 1}
    model = {**base, "target": "ldm.models.diffusion.cross_pairs.CrossPairLDM", "params": {**base["params"], **params}}
    data = {"target": "ldm.data.wikiart.CrossPairs", "params": {**roots, "size": 32, "split": "all"}}
    run = train(recipe(tmp_path / "cross.yaml", model, data_module(data, data), callbacks=logger_node(batch_frequency=2), val_check_interval=1))
    judge = vgg16()
    judge.load_weights(BUNDLED_VGG16)
    assert torch.equal(last(run)["state_dict"]["loss.features.net.slice5.28.weight"], judge.slice5[-2].weight)
    assert last(run)["global_step"] == 2 and len(logged(run, "train/style")) == 2 and len(logged(run, "val/style")) == 2
    assert {path.name.split("_")[0] for path in (run / "images").iterdir()} == {"photos", "paintings", "painted"}
    call = [run / "checkpoints/last.ckpt", tmp_path / "small.safetensors"]
    assert run_program(script("convert_checkpoint").main, call, monkeypatch) == 0
    config = recipe(tmp_path / "plain.yaml", base, data_module(data, data))
    pipeline = StyleTransferPipeline.from_pretrained(tmp_path / "small.safetensors", config, device="cpu")
    assert pipeline(picture(48, 32), picture(32, 32, 1), look="fast", size=32, steps=2).size == (48, 32)
