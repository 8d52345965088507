"""The denoiser of a sampling run against the model itself: guidance, tiles, and what is computed only once."""

from collections.abc import Sequence

import pytest
import torch
from builders import CHANNELS, SIDE, STYLE_DIM, assert_same, latents, tiny_ldm
from golden_rules import rnd
from torch import Tensor

from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.pipeline import denoiser
from ldm.pipeline.denoiser import PREPARED_STEPS, PreparedDenoiser
from ldm.pipeline.tiles import Tiling, blend, cut

T = 500
SCALES = [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (0.5, 3.0)]


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def style(n: int = 2) -> Tensor:
    return rnd("style", n, STYLE_DIM)


def wide(tag: str, n: int = 2, height: int = SIDE, width: int = 2 * SIDE) -> Tensor:
    return rnd(tag, n, CHANNELS, height, width)


def run_denoiser(
    model: DualCondModel,
    content: Tensor | None,
    style: Tensor,
    x: Tensor,
    timestep: int = T,
    scales: tuple = (1.0, 1.0),
    interval: tuple = (0.0, 1.0),
    tile: int = 99,
) -> Tensor:
    """One prediction; a scale is a number for all pictures or a list."""
    lists = [scale if isinstance(scale, list) else [scale] * len(x) for scale in scales]
    return PreparedDenoiser(model, content, style, Guidance.of(*lists, interval), [timestep], tile)(
        x, timestep
    )


def by_the_model(
    model: DualCondModel,
    x: Tensor,
    content: Tensor,
    style: Tensor,
    timestep: int = T,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """x_0 by the whole model, nothing prepared. style (N, style_dim)."""
    null = model.condition(content, model.null_style(len(x)))
    guided = Guidance.of(*scales).denoiser(
        model.apply_model,
        model.condition(content, style),
        model.condition(torch.zeros_like(content), style),
        null,
    )
    prediction = guided(x, torch.full((len(x),), timestep))
    return model.start_from(prediction, x, torch.full((len(x),), timestep))


@pytest.fixture
def rows(model: DualCondModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the network had."""
    network, counts = model.model.diffusion_model, []
    predict = network.predict
    monkeypatch.setattr(network, "predict", lambda x, *rest: counts.append(len(x)) or predict(x, *rest))
    return counts


# Guidance


@pytest.mark.parametrize("timestep", [0, T, 999])
@pytest.mark.parametrize("scales", SCALES)
def test_it_is_the_guided_prediction_of_the_model(model: DualCondModel, scales: tuple, timestep: int) -> None:
    x, content = wide("x"), wide("content")
    actual = run_denoiser(model, content, style(), x, timestep, scales)
    assert_same(actual, by_the_model(model, x, content, style(), timestep, scales))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("target", ["x0", "v"])
def test_a_network_may_predict_something_else_than_noise(scales: tuple, target: str) -> None:
    model = tiny_ldm(parameterization=target)
    x, content = latents("x"), latents("content")
    assert_same(
        run_denoiser(model, content, style(), x, scales=scales),
        by_the_model(model, x, content, style(), scales=scales),
    )


def test_content_that_is_not_refined_is_taken_as_it_is() -> None:
    model = tiny_ldm(unet={"content_refined_dim": CHANNELS})
    x, content = latents("x"), latents("content")
    assert_same(
        run_denoiser(model, content, style(), x, scales=(2.0, 3.0)),
        by_the_model(model, x, content, style(), scales=(2.0, 3.0)),
    )


def test_every_picture_may_have_scales_of_its_own(model: DualCondModel) -> None:
    x, content, scales = latents("x", 3), latents("content", 3), ([1.0, 2.0, 0.5], [3.0, 1.0, 0.0])
    actual = run_denoiser(model, content, style(3), x, scales=scales)
    for i, own in enumerate(zip(*scales)):
        assert_same(
            actual[i : i + 1],
            by_the_model(model, x[i : i + 1], content[i : i + 1], style(3)[i : i + 1], scales=own),
        )


def test_more_time_steps_than_are_prepared_at_once(model: DualCondModel) -> None:
    steps = list(range(990, 0, -13))
    assert len(steps) > 2 * PREPARED_STEPS
    x, content = latents("x"), latents("content")
    denoise = PreparedDenoiser(model, content, style(), Guidance.of([2.0] * 2, [3.0] * 2), steps, tile=99)
    at = [0, 1, PREPARED_STEPS - 1, PREPARED_STEPS, PREPARED_STEPS + 1, 2 * PREPARED_STEPS, len(steps) - 1, 0]
    for t in (steps[i] for i in at):
        assert_same(denoise(x, t), by_the_model(model, x, content, style(), t, (2.0, 3.0)))


@pytest.mark.parametrize(
    "scales, branches",
    [
        ((1.0, 1.0), 1),
        ((2.0, 1.0), 2),
        ((1.0, 0.0), 2),
        ((0.5, 3.0), 3),
        (([1.0, 2.0], 1.0), 2),
        (([1.0, 1.0], [1.0, 1.0]), 1),
    ],
)
def test_the_network_sees_only_the_branches_that_act(
    model: DualCondModel, rows: list[int], scales: tuple, branches: int
) -> None:
    run_denoiser(model, latents("content"), style(), latents("x"), scales=scales)
    assert rows == [2 * branches]


def test_outside_its_interval_guidance_costs_and_does_nothing(model: DualCondModel, rows: list[int]) -> None:
    x, content, steps = latents("x"), latents("content"), [999, 700, 699, 500, 300, 299, 0]
    denoise = PreparedDenoiser(
        model, content, style(), Guidance.of([2.0] * 2, [3.0] * 2, (300 / 999, 0.7)), steps, tile=99
    )
    results = [denoise(x, t) for t in steps]
    assert rows == [2, 2, 6, 6, 6, 2, 2]
    for t, result in zip(steps, results):
        assert_same(
            result, by_the_model(model, x, content, style(), t, (2.0, 3.0) if 300 <= t <= 699 else (1.0, 1.0))
        )


@pytest.mark.parametrize("scales, branches", [((1.0, 1.0), 1), ((3.0, 1.0), 1), ((3.0, 2.0), 2)])
def test_without_content_its_scale_means_nothing(
    model: DualCondModel, rows: list[int], scales: tuple, branches: int
) -> None:
    x = latents("x")
    actual = run_denoiser(model, None, style(), x, scales=scales)
    assert rows == [2 * branches]
    assert_same(actual, by_the_model(model, x, torch.zeros_like(x), style(), scales=(1.0, scales[1])))


def test_inputs_are_never_changed(model: DualCondModel) -> None:
    given = x, content, styles = latents("x"), latents("content"), style(2)
    before = [tensor.clone() for tensor in given]
    run_denoiser(model, content, styles, x, scales=(2.0, 3.0), tile=4)
    assert all(torch.equal(a, b) for a, b in zip(given, before))


# Tiles


@pytest.mark.parametrize("tile, calls", [(12, 1), (11, 1), (10, 2)])
def test_a_latent_of_up_to_a_tile_and_a_half_goes_through_whole(
    model: DualCondModel, rows: list[int], tile: int, calls: int
) -> None:
    run_denoiser(model, wide("content", 1, 4, 16), style(1), wide("x", 1, 4, 16), tile=tile)
    assert sum(rows) == calls


@pytest.mark.parametrize("at_once", [1, 16, 1000])
def test_larger_latents_are_blended_of_what_the_tiles_give(
    model: DualCondModel, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(denoiser, "ROWS_AT_ONCE", at_once)
    x, content, scales = wide("x"), wide("content"), ([2.0, 0.5], [1.0, 3.0])
    actual = run_denoiser(model, content, style(), x, scales=scales, tile=4)
    for i in range(2):

        def predict(tiles: Sequence) -> Tensor:
            parts = cut(x[i : i + 1], tiles), cut(content[i : i + 1], tiles)
            return by_the_model(model, *parts, style()[i : i + 1], scales=(scales[0][i], scales[1][i]))

        assert_same(actual[i : i + 1], blend(predict, Tiling(SIDE, 2 * SIDE, 4)))


def test_no_more_rows_than_agreed_go_through_at_once(
    model: DualCondModel, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "ROWS_AT_ONCE", 6)
    run_denoiser(model, wide("content"), style(2), wide("x"), scales=(1.0, 2.0), tile=4)
    tiles = len(Tiling(SIDE, 2 * SIDE, 4).tiles)
    assert max(rows) == 2 * 6 and sum(rows) == 2 * 2 * tiles


def test_a_network_that_acts_on_each_position_alone_is_the_same_in_tiles(
    model: DualCondModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(x: Tensor, content: Tensor, content_vectors: Tensor, modulations: list[Tensor]) -> Tensor:
        return torch.tanh(x * modulations[0][:, :1, None, None] + content)

    monkeypatch.setattr(model.model.diffusion_model, "predict", predict)
    x, content = wide("x", 2, 12, 20), wide("content", 2, 12, 20)
    whole, tiled = (
        run_denoiser(model, content, style(), x, scales=([2.0, 3.0], 0.5), tile=tile) for tile in (99, 4)
    )
    assert_same(tiled, whole)


# Once a run


@pytest.mark.parametrize("count, times", [(1, 1), (PREPARED_STEPS, 1), (PREPARED_STEPS + 1, 2), (70, 3)])
def test_time_and_style_are_embedded_once_for_many_steps(
    model: DualCondModel, monkeypatch: pytest.MonkeyPatch, count: int, times: int
) -> None:
    network, calls = model.model.diffusion_model, []
    embed, modulations = network.embed_context, network.modulations
    monkeypatch.setattr(
        network, "embed_context", lambda context: calls.append(("style", len(context))) or embed(context)
    )
    monkeypatch.setattr(
        network, "modulations", lambda emb: calls.append(("blocks", len(emb))) or modulations(emb)
    )
    steps = list(range(count - 1, -1, -1))
    denoise = PreparedDenoiser(
        model, latents("content"), style(), Guidance.of([1.0] * 2, [2.0] * 2), steps, tile=99
    )
    for t in steps:
        denoise(latents("x"), t)
    assert [size for name, size in calls if name == "style"] == [3] * times  # two pictures and the null style
    assert sum(size for name, size in calls if name == "blocks") == 3 * count
    assert len(calls) == 2 * times
