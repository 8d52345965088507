"""Latent diffusion: tables, losses, ancestral sampling, moving averages, and the two conditions."""

import math

import numpy as np
import pytest
import torch
from builders import (
    CHANNELS,
    SIDE,
    STYLE_DIM,
    VGG,
    assert_same,
    conditions,
    fit,
    half_mask,
    latents,
    tiny_ldm,
    unconditional_ldm,
)
from golden_rules import apply_rule, rnd
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.diffusionmodules.schedule import diffusion_tables, make_beta_schedule
from ldm.modules.diffusionmodules.util import spatial_std_mean
from ldm.modules.ema import LitEma

STEPS = 12
SHORT = {"timesteps": STEPS, "linear_start": 0.01, "linear_end": 0.4}
BETAS = np.linspace(SHORT["linear_start"] ** 0.5, SHORT["linear_end"] ** 0.5, STEPS) ** 2
ABAR = np.array([np.prod(1 - BETAS[: i + 1]) for i in range(STEPS)])
ABAR_PREV = np.array([np.prod(1 - BETAS[:i]) for i in range(STEPS)])
T = torch.tensor([0, 5, STEPS - 1])


@pytest.fixture(scope="module")
def dual() -> DualCondLDM:
    return tiny_ldm(**SHORT)


@pytest.fixture(scope="module")
def plain():
    return unconditional_ldm(**SHORT)


def at(table: np.ndarray, t: Tensor = T) -> Tensor:
    return torch.tensor(table, dtype=torch.float32)[t].reshape(-1, 1, 1, 1)


# Schedule


def direct_tables(v: float) -> dict[str, np.ndarray]:
    variance = (1 - v) * BETAS * (1 - ABAR_PREV) / (1 - ABAR) + v * BETAS
    return {
        "betas": BETAS,
        "alphas_cumprod": ABAR,
        "alphas_cumprod_prev": ABAR_PREV,
        "sqrt_alphas_cumprod": ABAR**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - ABAR) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - ABAR),
        "sqrt_recip_alphas_cumprod": ABAR**-0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / ABAR - 1) ** 0.5,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(variance.clip(1e-20)),
        "posterior_mean_coef1": BETAS * ABAR_PREV**0.5 / (1 - ABAR),
        "posterior_mean_coef2": (1 - ABAR_PREV) * (1 - BETAS) ** 0.5 / (1 - ABAR),
    }


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_tables(v):
    tables, expected = diffusion_tables(BETAS, v), direct_tables(v)
    assert set(tables) == {*expected, "lvlb_weights"}
    for name, table in expected.items():
        assert tables[name].dtype == torch.float32
        np.testing.assert_allclose(tables[name], table, rtol=1e-5, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("v", [0.0, 0.3])
def test_vlb_weights_of_noise_prediction(v):
    variance = direct_tables(v)["posterior_variance"][1:]
    expected = BETAS[1:] ** 2 / (2 * variance * (1 - BETAS[1:]) * (1 - ABAR[1:]))
    weights = diffusion_tables(BETAS, v)["lvlb_weights"]
    np.testing.assert_allclose(weights[1:], expected, rtol=1e-5)
    assert weights[0] == weights[1], "the first is infinite"


def test_vlb_weights_of_start_prediction():
    weights = diffusion_tables(BETAS, parameterization="x0")["lvlb_weights"]
    np.testing.assert_allclose(weights[1:], (0.5 * ABAR**0.5 / (2 - ABAR))[1:], rtol=1e-5)
    assert weights[0] == weights[1]


def test_vlb_weights_of_velocity_prediction():
    """An error d of v makes one of sqrt(abar) d in the noise that it stands for."""
    weights, of_noise = (
        diffusion_tables(BETAS, parameterization=target)["lvlb_weights"] for target in ("v", "eps")
    )
    np.testing.assert_allclose(weights[1:], (np.asarray(of_noise) * ABAR)[1:], rtol=1e-5)
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", ["linear", "cosine", "sqrt_linear", "sqrt"])
def test_schedule_of_a_model_is_the_one_asked_for(kind):
    model = unconditional_ldm(
        beta_schedule=kind, timesteps=7, linear_start=0.01, linear_end=0.3, cosine_s=0.02
    )
    np.testing.assert_allclose(model.betas, make_beta_schedule(kind, 7, 0.01, 0.3, 0.02), rtol=1e-6)


def test_betas_of_ones_own():
    model = unconditional_ldm(given_betas=[0.1, 0.2, 0.5], timesteps=1000)
    assert model.num_timesteps == 3
    np.testing.assert_allclose(model.alphas_cumprod, [0.9, 0.72, 0.36], rtol=1e-6)


def test_cosine_betas_follow_the_cosine_up_to_their_cap():
    betas = make_beta_schedule("cosine", 10, cosine_s=0.01)
    bar = [math.cos((i / 10 + 0.01) / 1.01 * math.pi / 2) ** 2 for i in range(11)]
    assert betas[:-1] == pytest.approx([1 - bar[i + 1] / bar[i] for i in range(9)])
    assert betas[-1] == 0.999


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta_schedule": "linera"},
        {"parameterization": "score"},
        {"loss_type": "huber"},
        {"cond_stage_config": "__is_frozen__"},
        {"conditioning_key": "cross"},
        {"num_timesteps_cond": 2},
        {"cond_stage_trainable": True},
        {"cond_stage_forward": "encode"},
        {"cond_drop": 0.1},
    ],
)
def test_options_that_do_not_exist(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        unconditional_ldm(**wrong)


# Noising and its inverses


def test_noising_mixes_start_and_noise(plain):
    x_0, noise = latents("x0", 3), latents("noise", 3)
    assert_same(plain.q_sample(x_0, T, noise), at(ABAR**0.5) * x_0 + at((1 - ABAR) ** 0.5) * noise)


def test_noise_is_drawn_if_not_given(plain):
    x_0 = latents("x0", 3)
    torch.manual_seed(3)
    noised = plain.q_sample(x_0, T)
    torch.manual_seed(3)
    assert_same(noised, plain.q_sample(x_0, T, torch.randn(x_0.shape)))


def test_start_and_noise_are_recovered_from_each_other(plain):
    x_0, noise = latents("x0", 3), latents("noise", 3)
    x_t = plain.q_sample(x_0, T, noise)
    assert_same(plain.predict_start_from_noise(x_t, T, noise), x_0, 1e-4)
    assert_same(plain.predict_noise_from_start(x_t, T, x_0), noise, 1e-4)


def bayes_posterior(x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) from the product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0), for t > 0."""
    beta, prev = at(BETAS, t), at(ABAR_PREV, t)
    variance = 1 / ((1 - beta) / beta + 1 / (1 - prev))
    return variance * ((1 - beta).sqrt() / beta * x_t + prev.sqrt() / (1 - prev) * x_0), variance


def test_posterior_is_what_bayes_rule_gives(plain):
    t, x_0, x_t = torch.tensor([1, 5, STEPS - 1]), latents("x0", 3), latents("xt", 3)
    mean, variance, log_variance = plain.q_posterior(x_0, x_t, t)
    expected_mean, expected_variance = bayes_posterior(x_0, x_t, t)
    assert_same(mean, expected_mean, 1e-4)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_variance, expected_variance.log(), rtol=1e-4, atol=1e-5)


def test_posterior_of_the_first_step_is_the_start(plain):
    x_0, t = latents("x0", 1), torch.tensor([0])
    mean, variance, log_variance = plain.q_posterior(x_0, latents("xt", 1), t)
    assert_same(mean, x_0)
    assert variance.item() == 0 and log_variance.item() == pytest.approx(math.log(1e-20))


# Losses


def direct_loss(
    model, cond, x_0: Tensor, noise: Tensor, power: int, target: str, elbo=0.0, simple=1.0, gamma=None
) -> Tensor:
    out = model.apply_model(at(ABAR**0.5) * x_0 + at((1 - ABAR) ** 0.5) * noise, T, cond)
    wanted = {"eps": noise, "x0": x_0, "v": at(ABAR**0.5) * noise - at((1 - ABAR) ** 0.5) * x_0}[target]
    error = (out - wanted).abs().pow(power).mean(dim=(1, 2, 3))
    snr = ABAR / (1 - ABAR)
    weight = (
        1.0
        if gamma is None
        else at(np.minimum(snr, gamma) / {"eps": snr, "x0": 1, "v": snr + 1}[target]).flatten()
    )
    logvar = model.logvar[T]
    vlb = diffusion_tables(BETAS, parameterization=target)["lvlb_weights"][T] * error
    return simple * (weight * error / logvar.exp() + logvar).mean() + elbo * vlb.mean()


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(
    "options, terms",
    [
        ({}, {}),
        ({"logvar_init": 0.7}, {}),
        ({"original_elbo_weight": 0.5, "l_simple_weight": 2.0}, {"elbo": 0.5, "simple": 2.0}),
        ({"min_snr_gamma": 1.5, "logvar_init": -0.3}, {"gamma": 1.5}),
    ],
    ids=["simple", "logvar", "elbo", "min-SNR"],
)
def test_loss(target, power, options, terms):
    model = tiny_ldm(**SHORT, parameterization=target, loss_type=f"l{power}", **options)
    x_0, noise, (cond, _, _) = latents("x0", 3), latents("noise", 3), conditions(3)
    with torch.no_grad():
        loss, parts = model.p_losses(x_0, cond, T, noise)
        expected = direct_loss(model, cond, x_0, noise, power, target, **terms)
    assert_same(loss, expected)
    assert_same(parts["val/loss"], expected)


def test_learned_logvar_gets_its_own_gradient():
    model = tiny_ldm(**SHORT, learn_logvar=True, logvar_init=0.4)
    x_0, noise, (cond, _, _) = latents("x0", 3), latents("noise", 3), conditions(3)
    loss, parts = model.p_losses(x_0, cond, T, noise)
    loss.backward()
    with torch.no_grad():
        error = (
            (model.apply_model(model.q_sample(x_0, T, noise), T, cond) - noise).square().mean(dim=(1, 2, 3))
        )
    expected = torch.zeros(STEPS).index_put((T,), (1 - error / math.exp(0.4)) / 3)
    assert_same(model.logvar.grad, expected)
    assert parts["val/logvar"].item() == pytest.approx(0.4)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_the_right_prediction_leads_back_to_the_start(target):
    model, x_0, noise = tiny_ldm(**SHORT, parameterization=target), latents("x0", 3), latents("noise", 3)
    assert_same(model.start_from(model.target_of(x_0, noise, T), model.q_sample(x_0, T, noise), T), x_0, 1e-4)


@pytest.mark.parametrize("learned", [True, False])
def test_what_is_trained(learned):
    model = tiny_ldm(**SHORT, learn_logvar=learned)
    (group,) = model.configure_optimizers().param_groups
    trained = {id(p) for p in group["params"]}
    names = {name.partition(".")[0] for name, p in model.named_parameters() if id(p) in trained}
    assert names == {"model", "null_style_vector", *(["logvar"] if learned else [])}
    assert not any(p.requires_grad for p in [*model.first_stage_model.parameters(), *model.vgg.parameters()])


def test_training_draws_every_time_step(plain, monkeypatch):
    drawn = []
    monkeypatch.setattr(plain, "p_losses", lambda x, c, t: drawn.extend(t.tolist()))
    torch.manual_seed(0)
    plain(torch.zeros(300, 1))
    assert set(drawn) == set(range(STEPS))


def test_losses_are_logged_by_mode(plain):
    x_0 = latents("x0", 3)
    assert all(name.startswith("train/") for name in plain.train().p_losses(x_0, None, T)[1])
    assert all(name.startswith("val/") for name in plain.eval().p_losses(x_0, None, T)[1])


def test_the_first_stage_never_trains(plain):
    plain.train()
    assert plain.model.training and not plain.first_stage_model.training
    plain.eval()


# Ancestral sampling


@torch.no_grad()
def naive_ancestral(
    model, cond, x: Tensor, seed: int, steps=STEPS, temperature=1.0, mask=None, x_0=None, target="eps", v=0.0
) -> Tensor:
    torch.manual_seed(seed)
    for i in reversed(range(steps)):
        t = torch.full((len(x),), i)
        start = model.apply_model(x, t, cond)
        if target == "eps":
            start = (x - math.sqrt(1 - ABAR[i]) * start) / math.sqrt(ABAR[i])
        elif target == "v":
            start = math.sqrt(ABAR[i]) * x - math.sqrt(1 - ABAR[i]) * start
        noise = temperature * torch.randn(x.shape)
        if i > 0:
            mean, variance = bayes_posterior(start, x, t)
            x = mean + ((1 - v) * variance + v * BETAS[i]).sqrt() * noise
        else:
            x = start
        if mask is not None:
            known = math.sqrt(ABAR[i]) * x_0 + math.sqrt(1 - ABAR[i]) * torch.randn(x.shape)
            x = torch.where(mask.bool(), known, x)
    return x


@pytest.mark.parametrize(
    "options, naive",
    [
        ({}, {}),
        ({"timesteps": 5}, {"steps": 5}),
        ({"timesteps": 1}, {"steps": 1}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"mask": half_mask(), "x0": latents("known")}, {"mask": half_mask(), "x_0": latents("known")}),
    ],
    ids=["all steps", "five steps", "one step", "temperature", "mask"],
)
def test_ancestral_sampling(dual, options, naive):
    cond, _, _ = conditions()
    torch.manual_seed(2)
    actual = dual.sample(cond, x_T=latents("x_T"), verbose=False, **options)
    assert_same(actual, naive_ancestral(dual, cond, latents("x_T"), seed=2, **naive), 1e-3)


def test_ancestral_sampling_without_a_condition(plain):
    torch.manual_seed(2)
    actual = plain.sample(None, x_T=latents("x_T"), verbose=False)
    assert_same(actual, naive_ancestral(plain, None, latents("x_T"), seed=2), 1e-3)


@pytest.mark.parametrize("target", ["x0", "v"])
def test_ancestral_sampling_of_a_network_that_predicts_something_else(target):
    model, (cond, _, _) = tiny_ldm(**SHORT, parameterization=target), conditions()
    torch.manual_seed(2)
    actual = model.sample(cond, x_T=latents("x_T"), verbose=False)
    assert_same(actual, naive_ancestral(model, cond, latents("x_T"), seed=2, target=target), 1e-3)


def test_ancestral_sampling_with_a_wider_posterior_still_ends_without_noise():
    model, (cond, _, _) = tiny_ldm(**SHORT, v_posterior=0.8), conditions()
    torch.manual_seed(2)
    actual = model.sample(cond, x_T=latents("x_T"), verbose=False)
    assert_same(actual, naive_ancestral(model, cond, latents("x_T"), seed=2, v=0.8), 1e-3)


def test_ancestral_sampling_starts_from_noise_of_the_latents_shape(plain):
    torch.manual_seed(2)
    _, intermediates = plain.sample(None, batch_size=3, timesteps=1, return_intermediates=True, verbose=False)
    torch.manual_seed(2)
    assert torch.equal(intermediates[0], torch.randn(3, CHANNELS, SIDE, SIDE))


def test_ancestral_sampling_reports_its_steps(plain):
    numbers, pictures = [], []
    out, intermediates = plain.sample(
        None, x_T=latents("x_T"), return_intermediates=True, log_every_t=5, verbose=False, callback=numbers.append,
        img_callback=lambda x, i: pictures.append(x),
    )  # fmt: skip
    assert numbers == list(reversed(range(STEPS)))
    kept = [pictures[numbers.index(i)] for i in (STEPS - 1, 10, 5, 0)]
    assert all(torch.equal(a, b) for a, b in zip(intermediates, [latents("x_T"), *kept], strict=True))
    assert torch.equal(out, pictures[-1])


@pytest.mark.parametrize("steps", [0, -1, STEPS + 1])
def test_ancestral_sampling_refuses_steps_out_of_range(plain, steps):
    with pytest.raises(ConfigError, match=f"between 1 and {STEPS}"):
        plain.sample(None, timesteps=steps, verbose=False)


def test_a_mask_needs_what_to_keep(plain):
    with pytest.raises(ValueError, match="a mask needs x0"):
        plain.sample(None, mask=half_mask(), verbose=False)


# Moving averages


def live_weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_average_follows_the_decay_formula():
    layer = apply_rule(nn.Linear(3, 2))
    average, expected = LitEma(layer), layer.weight.detach().double().clone()
    for n in range(1, 20):
        with torch.no_grad():
            layer.weight.add_(rnd(f"step {n}", 2, 3))
        average(layer)
        decay = min(0.9999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
    assert_same(average.weight, expected)
    assert average.num_updates == 19


@pytest.mark.parametrize("limit, decay", [(0.9999, 0.9999), (0.5, 0.5)])
def test_decay_has_a_limit(limit, decay):
    layer = apply_rule(nn.Linear(3, 2))
    average = LitEma(layer, decay=limit)
    average.weight.zero_()
    average.num_updates.fill_(10**6)
    average(layer)
    assert_same(average.weight, (1 - decay) * layer.weight, 1e-3)


def test_averages_have_names_without_dots_and_none_for_frozen_weights():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False).requires_grad_(False))
    assert set(LitEma(net).state_dict()) == {"decay", "num_updates", "0weight", "0bias"}


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_impossible_decay(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        LitEma(nn.Linear(1, 1), decay)


def test_restore_needs_a_store():
    layer = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="without store"):
        LitEma(layer).restore(layer)


def trained(model: DualCondLDM) -> list[Tensor]:
    return live_weights(model.model) + live_weights(model.null_style_vector)


def test_averaged_weights_are_in_place_within_the_scope_only(dual):
    live = trained(dual)
    with dual.ema_scope():
        assert all_equal(trained(dual), [0.9 * p for p in live])
    assert all_equal(trained(dual), live)


def test_live_weights_come_back_when_the_body_raises(dual):
    live = trained(dual)
    with pytest.raises(KeyError), dual.ema_scope():
        raise KeyError
    assert all_equal(trained(dual), live)


def test_scopes_may_be_nested(dual):
    live = trained(dual)
    with dual.ema_scope():
        with dual.ema_scope():
            pass
        assert all_equal(trained(dual), [0.9 * p for p in live])
    assert all_equal(trained(dual), live)


def test_without_averages_the_scope_changes_nothing():
    model = tiny_ldm(**SHORT, use_ema=False)
    live = trained(model)
    with model.ema_scope():
        assert all_equal(trained(model), live)
    assert not [name for name in model.state_dict() if "_ema" in name]


def test_average_moves_once_per_optimiser_step(tmp_path):
    model, pictures = unconditional_ldm(**SHORT), rnd("pictures", 6, 32, 32, 3).tanh()
    fit(model, pictures, tmp_path, accumulate_grad_batches=2)
    assert model.model_ema.num_updates == 3
    fit(model, pictures[:4], tmp_path, accumulate_grad_batches=2)
    assert model.model_ema.num_updates == 3 + 2, "also where training goes on"


# Validation


def validated(model: DualCondLDM, batch_idx: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What validation logs for a batch in which the style of every other picture is off."""
    batch = {"image": rnd("pictures", 4, 32, 32, 3).tanh(), "content_flag": torch.ones(4, dtype=torch.bool)}
    logged = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **options: logged.update(values))
    model.validation_step({**batch, "style_flag": torch.tensor([True, False, True, False])}, batch_idx)
    return {name: float(value) for name, value in logged.items()}


def test_validation_draws_the_same_noise_every_time_and_none_from_training(dual, monkeypatch):
    torch.manual_seed(1)
    first, after = validated(dual, 0, monkeypatch), torch.rand(3)
    torch.manual_seed(2)
    assert validated(dual, 0, monkeypatch) == first != validated(dual, 1, monkeypatch)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


def test_averages_are_validated_with_their_own_null_style(dual, monkeypatch):
    first = validated(dual, 0, monkeypatch)
    with torch.no_grad():
        dual.null_style_vector.weight.add_(1)
    second = validated(dual, 0, monkeypatch)
    with torch.no_grad():
        dual.null_style_vector.weight.sub_(1)
    assert second["val/loss"] != first["val/loss"] and second["val/loss_ema"] == first["val/loss_ema"]


# Conditions and the scaled latent


def test_style_is_std_and_mean_of_every_channel_layer_by_layer(dual):
    features = [rnd(f"layer {i}", 2, width, 6 - i, 5) for i, width in enumerate(VGG)]
    columns = []
    for f in features:
        flat = f.reshape(2, f.shape[1], -1)
        mean = flat.mean(-1)
        columns += [((flat - mean[..., None]).square().sum(-1) / (flat.shape[-1] - 1)).sqrt(), mean]
    style = dual.get_style_features(features)
    assert style.shape == (2, STYLE_DIM)
    assert_same(style, torch.cat(columns, dim=1))


def test_style_statistics_are_of_the_scaled_pictures_features(dual):
    x = rnd("picture", 2, 3, 32, 48).tanh()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    scaled = (x - shift[:, None, None]) / scale[:, None, None]
    assert_same(dual.get_style_statistics(x), dual.get_style_features(dual.vgg(scaled)))


def test_the_statistics_of_a_part_are_those_of_its_positions(dual):
    features = [rnd(f"features {n}", 2, 4, n, n) for n in (16, 8)]
    shares = torch.zeros(2, 1, 16, 16)
    shares[:, :, :8, 4:12] = 1
    parts = [f[..., : n // 2, n // 4 : 3 * n // 4] for f, n in zip(features, (16, 8))]
    wanted = dual.get_style_features(parts)
    assert torch.allclose(dual.get_style_features(features, shares=shares), wanted, atol=1e-5)
    one = torch.zeros(2, 1, 16, 16)
    one[..., 0, 0] = 1
    assert bool(dual.get_style_features(features, shares=one).isfinite().all())


def test_style_off_is_the_learned_null_vector(dual):
    flag, style = torch.tensor([True, False]), rnd("style", 2, STYLE_DIM)
    flagged = dual.null_where_off(style, flag)
    assert torch.equal(flagged, torch.stack([style[0], dual.null_style_vector.weight[0]]))
    assert torch.equal(dual.null_style(3), dual.null_style_vector.weight.repeat(3, 1))


def test_content_has_zero_mean_and_unit_std_per_picture_and_channel(dual):
    z = latents("z") * 3 + 5
    features = dual.get_content_features(z)
    assert_same(features, (z - z.mean((2, 3), keepdim=True)) / z.std((2, 3), keepdim=True), 1e-4)


def test_content_off_is_zero(dual):
    z = latents("z")
    flagged = dual.get_content_features(z, torch.tensor([False, True]))
    assert not flagged[0].any() and torch.equal(flagged[1], dual.get_content_features(z)[1])


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_content_of_a_flat_latent_is_zero(dual, value):
    features = dual.get_content_features(torch.full((2, CHANNELS, SIDE, SIDE), value))
    assert features.isfinite().all() and features.abs().max() < 0.02


def test_a_single_position_is_flat(dual):
    assert not dual.get_content_features(latents("z", side=1)).any()
    std, mean = spatial_std_mean(latents("z", side=1))
    assert not std.any() and torch.equal(mean, latents("z", side=1)[..., 0, 0])


def test_flat_and_smallest_pictures_give_finite_conditions_and_loss(dual):
    flags = {"style_flag": torch.ones(2, dtype=torch.bool), "content_flag": torch.ones(2, dtype=torch.bool)}
    flat = torch.stack([torch.full((32, 32, 3), 0.3), torch.full((32, 32, 3), -1.0)])
    with torch.no_grad():
        z, cond = dual.get_input({"image": flat, **flags}, "image")
        loss, _ = dual(z, cond)
    assert all(v.isfinite().all() for v in (z, cond["c1"], cond["c2"], loss))


def scaled_ldm() -> DualCondLDM:
    return tiny_ldm(scale_factors=[0.5, 2.0, 1.0, 4.0], shift_values=[1.0, -1.0, 0.0, 3.0])


def test_latent_is_the_mode_shifted_and_scaled_per_channel():
    model, x = scaled_ldm(), rnd("picture", 2, 3, 32, 32).tanh()
    posterior = model.encode_first_stage(x)
    scale, shift = torch.tensor([0.5, 2.0, 1.0, 4.0]), torch.tensor([1.0, -1.0, 0.0, 3.0])
    expected = (posterior.mean - shift[:, None, None]) * scale[:, None, None]
    assert_same(model.get_first_stage_encoding(posterior), expected)
    assert_same(model.get_first_stage_encoding(posterior.mean), expected)


@pytest.mark.parametrize(
    "build", [scaled_ldm, lambda: unconditional_ldm(scale_factor=0.25)], ids=["dual", "base"]
)
@torch.no_grad()
def test_decoding_inverts_the_scaling_and_leaves_its_input_alone(build):
    model, latent = build(), latents("unscaled")
    z = model.get_first_stage_encoding(latent)
    before = z.clone()
    assert_same(model.decode_first_stage(z), model.first_stage_model.decode(latent))
    assert torch.equal(z, before)


def test_base_latent_is_drawn_from_the_posterior_and_scaled():
    model, x = unconditional_ldm(scale_factor=0.25), rnd("picture", 2, 3, 32, 32).tanh()
    posterior = model.encode_first_stage(x)
    torch.manual_seed(1)
    z = model.get_first_stage_encoding(posterior)
    torch.manual_seed(1)
    assert_same(z, 0.25 * (posterior.mean + posterior.std * torch.randn(posterior.mean.shape)))


@pytest.mark.parametrize("factors", [[1.0, 2.0], [1.0] * 5])
def test_wrong_number_of_scale_factors(factors):
    with pytest.raises(ConfigError, match=f"{len(factors)} scale_factors for 4 channels"):
        tiny_ldm(scale_factors=factors)


@pytest.mark.parametrize(
    "name, value",
    [
        ("vgg_channels", 3), ("vgg_channels", "abcde"), ("vgg_channels", [1, 2]), ("vgg_channels", [2, 2, 3, 3, "a"]),
        ("style_dim", "wide"), ("detail", "abc"),
    ],
)  # fmt: skip
def test_widths_of_the_style_network_are_whole_numbers(name, value):
    with pytest.raises(ConfigError, match=name):
        tiny_ldm(**{name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("timesteps", 0), ("timesteps", 2.5), ("linear_start", -1), ("linear_end", "abc"), ("cosine_s", -1),
        ("v_posterior", 2), ("image_size", 0), ("channels", "four"), ("learning_rate", -1),
        ("learning_rate", float("nan")), ("learning_rate", True), ("min_snr_gamma", "abc"), ("min_snr_gamma", -1),
        ("min_snr_gamma", 0), ("l_simple_weight", "abc"), ("original_elbo_weight", -1), ("logvar_init", "abc"),
        ("use_ema", "maybe"), ("learn_logvar", 1), ("scale_by_std", "no"), ("concat_mode", None),
        ("cond_stage_trainable", "yes"), ("scale_factor", "abc"), ("scale_batches", 0), ("log_every_t", 0),
        ("cond_drop", "abc"), ("monitor_mode", "best"), ("load_only_unet", "yes"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        unconditional_ldm(**{name: value})


@pytest.mark.parametrize(
    "schedule",
    [
        {"given_betas": [2]}, {"given_betas": [0.1, 0]}, {"given_betas": []}, {"given_betas": "abc"},
        {"given_betas": [float("nan")]}, {"given_betas": 0.5}, {"linear_end": 2}, {"linear_start": 1},
    ],
    ids=str,
)  # fmt: skip
def test_betas_are_between_0_and_1(schedule):
    with pytest.raises(ConfigError, match="betas .* must be numbers above 0 and below 1"):
        unconditional_ldm(**schedule)


def test_the_networks_wrapper_is_a_class():
    with pytest.raises(ConfigError, match="model_class must be a class, got 'foo'"):
        unconditional_ldm(model_class="foo")


@pytest.mark.parametrize("option", [{"style_dim": 2944}, {"vgg_channels": (4, 4, 4, 4, 4)}])
def test_style_width_must_be_that_of_the_style_network(option):
    with pytest.raises(ConfigError, match="not twice the sum of vgg_channels"):
        tiny_ldm(**option)


@pytest.mark.parametrize("keys", [["other"], ["other", "crossattn"]])
def test_conditioning_keys(keys):
    with pytest.raises(ConfigError, match="two of concat and other"):
        tiny_ldm(conditioning_key=keys)


def test_a_condition_may_join_the_inputs_channels():
    model, x, (cond, _, _), seen = (
        tiny_ldm(conditioning_key=["concat", "other"]),
        latents("x"),
        conditions(),
        [],
    )
    model.model.diffusion_model.forward = lambda *args: seen.append(args)
    model.apply_model(x, T[:2], cond)
    ((joined, _, c1, c2),) = seen
    assert torch.equal(joined, torch.cat([x, cond["c1"]], dim=1)) and c1 is None and c2 is cond["c2"]
