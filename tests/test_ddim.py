"""DDIM against a plain loop, guidance against its formula, and noise that belongs to one picture."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import CHANNELS, SIDE, assert_same, conditions, half_mask, latents, tiny_ldm, unconditional_ldm
from golden_rules import rnd
from torch import Tensor

from ldm.errors import ConfigError
from ldm.models.diffusion.conditions import batch_size_of
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import PerPictureNoise, ddim_step, keep_region, step_noise
from ldm.modules.diffusionmodules.schedule import make_ddim_timesteps

SHAPE = (CHANNELS, SIDE, SIDE)
UNIFORM, QUAD, TRAILING = [1, 251, 501, 751], [1, 89, 356, 801], [249, 499, 749, 999]  # of 4 steps


def ddim(model, steps=4, cond=None, seed=0, n=2, **options) -> tuple[Tensor, dict[str, list[Tensor]]]:
    cond = conditions(n)[0] if cond is None else cond
    torch.manual_seed(seed)
    return DDIMSampler(model).sample(
        steps, n, SHAPE, cond, **{"x_T": latents("x_T", n), "verbose": False, **options}
    )


@torch.no_grad()
def naive_ddim(
    model,
    steps,
    predict=None,
    seed=0,
    eta=0.0,
    temperature=1.0,
    dropout=0.0,
    mask=None,
    x_0=None,
    clean=False,
) -> Tensor:
    """Equations 12 and 16 of Song et al. (2021); `clean`: the last step goes to no noise instead of time step 0."""
    predict = predict or (lambda x, t: model.apply_model(x, t, conditions(len(x))[0]))
    torch.manual_seed(seed)
    x, abar = latents("x_T"), [float(a) for a in model.alphas_cumprod]
    for i in reversed(range(len(steps))):
        a = abar[steps[i]]
        prev = abar[steps[i - 1]] if i > 0 else 1.0 if clean else abar[0]
        if mask is not None:
            known = math.sqrt(a) * x_0 + math.sqrt(1 - a) * torch.randn(x.shape)
            x = torch.where(mask.bool(), known, x)
        eps = predict(x, torch.full((len(x),), steps[i]))
        sigma = eta * math.sqrt((1 - prev) / (1 - a) * (1 - a / prev))
        noise = F.dropout(temperature * torch.randn(x.shape), dropout)
        pred_x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(prev) * pred_x0 + math.sqrt(1 - prev - sigma**2) * eps + sigma * noise
    return x


# The loop


@pytest.mark.parametrize(
    "spacing, steps",
    [("uniform", UNIFORM), ("quad", QUAD), ("trailing", TRAILING)],
    ids=["uniform", "quad", "trailing"],
)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sampling(model, spacing, steps, eta):
    actual, _ = ddim(model, ddim_discretize=spacing, eta=eta)
    assert_same(actual, naive_ddim(model, steps, eta=eta, clean=spacing == "trailing"), 1e-3)


@pytest.mark.parametrize(
    "options, naive",
    [
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"noise_dropout": 0.4}, {"dropout": 0.4}),
        ({"mask": half_mask(), "x0": latents("known")}, {"mask": half_mask(), "x_0": latents("known")}),
    ],
    ids=["temperature", "dropout", "mask"],
)
def test_options_of_the_noise(model, options, naive):
    actual, _ = ddim(model, eta=1.0, **options)
    assert_same(actual, naive_ddim(model, UNIFORM, eta=1.0, **naive), 1e-3)


def test_noise_dropout_drops_its_share_and_scales_up_the_rest():
    torch.manual_seed(0)
    noise = step_noise(torch.zeros(100, 100), torch.ones_like, temperature=3.0, dropout=0.25)
    kept = noise != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert_same(noise[kept], torch.full_like(noise[kept], 3.0 / 0.75))


def test_mask_may_be_soft():
    x, known, mask = latents("x"), latents("known"), torch.rand(2, 1, SIDE, SIDE)
    assert_same(keep_region(x, known, mask), mask * known + (1 - mask) * x)


def test_a_step_without_noise_at_either_end_gives_the_start():
    x_0, eps = latents("x0"), latents("eps")
    x, pred = ddim_step(math.sqrt(0.3) * x_0 + math.sqrt(0.7) * eps, eps, 0.3, 1.0, 0.0, latents("noise"))
    assert_same(x, x_0)
    assert_same(pred, x_0)


@pytest.mark.parametrize("spacing, reaches_it", [("trailing", True), ("uniform", False), ("quad", False)])
def test_only_trailing_steps_end_at_the_predicted_start(model, spacing, reaches_it):
    out, intermediates = ddim(model, ddim_discretize=spacing, eta=1.0)
    assert torch.equal(out, intermediates["pred_x0"][-1]) == reaches_it


def test_an_unconditional_model_samples_too():
    model = unconditional_ldm()
    torch.manual_seed(0)
    actual, _ = DDIMSampler(model).sample(4, 2, SHAPE, x_T=latents("x_T"), verbose=False)
    assert_same(actual, naive_ddim(model, UNIFORM, lambda x, t: model.apply_model(x, t)), 1e-3)


def test_starting_noise_is_gaussian(model):
    x_T = ddim(model, x_T=None, n=64, steps=1, timesteps=[500])[1]["x_inter"][0]
    assert x_T.shape == (64, *SHAPE)
    assert x_T.mean().item() == pytest.approx(0, abs=0.05) and x_T.std().item() == pytest.approx(1, abs=0.05)


def test_sampling_needs_no_gradients(model):
    assert not ddim(model)[0].requires_grad


def test_same_call_same_bits_and_other_seed_other_picture(model):
    first, again, other = (ddim(model, eta=1.0, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1


# Time steps


def test_trailing_gives_the_number_asked_for_and_ends_at_the_last():
    for count in range(1, 1001):
        steps = make_ddim_timesteps("trailing", count, 1000)
        assert len(set(steps.tolist())) == count
        assert steps[0] >= 0 and steps[-1] == 999 and (np.diff(steps) > 0).all()


def test_trailing_steps_are_even():
    for count in range(1, 1001):
        gaps = np.diff(make_ddim_timesteps("trailing", count, 1000), prepend=-1)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("spacing, expected", [("uniform", UNIFORM), ("quad", QUAD), ("trailing", TRAILING)])
def test_spacing(spacing, expected):
    assert make_ddim_timesteps(spacing, 4, 1000).tolist() == expected


@pytest.mark.parametrize(
    "count, expected", [(1000, range(1, 1000)), (333, [*range(1, 998, 3), 999])], ids=["1000", "333"]
)
def test_uniform_steps_that_run_past_the_end_are_cut_there(model, monkeypatch, count, expected):
    seen = []
    monkeypatch.setattr(model, "apply_model", lambda x, t, c: seen.append(int(t[0])) or torch.zeros_like(x))
    out, _ = ddim(model, count)
    assert sorted(seen) == list(expected)
    assert out.isfinite().all()


@pytest.mark.parametrize("spacing", ["uniform", "quad", "trailing"])
@pytest.mark.parametrize("count", [0, -1, 1001])
def test_steps_out_of_range(model, spacing, count):
    with pytest.raises(ConfigError, match=f"between 1 and 1000, got {count}"):
        ddim(model, count, ddim_discretize=spacing)


def test_unknown_spacing(model):
    with pytest.raises(ConfigError, match="uniform, quad, trailing, got 'linear'"):
        ddim(model, ddim_discretize="linear")


@pytest.mark.parametrize(
    "steps", [[10, 500, 900], (900, 10, 500), np.array([500, 10, 900]), torch.tensor([900, 500, 10])]
)
def test_time_steps_of_ones_own(model, steps):
    assert_same(ddim(model, timesteps=steps, eta=0.5)[0], naive_ddim(model, [10, 500, 900], eta=0.5), 1e-3)


@pytest.mark.parametrize("number, taken", [(3, UNIFORM[:2]), (np.int64(4), UNIFORM[:3]), (100, UNIFORM[:3])])
def test_a_number_of_time_steps_takes_one_less_from_the_clean_end(model, number, taken):
    assert_same(ddim(model, timesteps=number)[0], naive_ddim(model, taken), 1e-3)


@pytest.mark.parametrize("steps", [[], [5, 5], [-1, 5], [5, 1000], [1.5, 7.0], 1, 0])
def test_impossible_time_steps(model, steps):
    with pytest.raises(ValueError, match="timesteps"):
        ddim(model, timesteps=steps)


# Guidance


def linear_network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """Different for every sample, time step and condition."""
    return x * c + t[:, None]


SCALES = [(scale, with_null) for scale in (1.0, 0.6, 3.0, 0.0) for with_null in (True, False)]


@pytest.mark.parametrize("second", SCALES)
@pytest.mark.parametrize("first", SCALES)
def test_guidance_formula_and_size_of_its_one_batch(first, second):
    (s1, has_null_1), (s2, has_null_2) = first, second
    x, t = rnd("x", 2, 5), torch.tensor([3.0, 8.0])
    c, null_1, null_2 = (rnd(name, 2, 5) for name in ("c", "null 1", "null 2"))
    e, u1, u2 = (linear_network(x, t, condition) for condition in (c, null_1, null_2))
    active_1, active_2 = has_null_1 and s1 != 1, has_null_2 and s2 != 1
    expected = {
        (False, False): e,
        (True, False): u1 + s1 * (e - u1),
        (False, True): u2 + s2 * (e - u2),
        (True, True): u1 + s1 * (e - u1) + u2 + s2 * (e - u2) - e,
    }[active_1, active_2]
    calls = []

    def network(x, t, condition):
        calls.append(len(x))
        return linear_network(x, t, condition)

    nulls = (null_1 if has_null_1 else None, null_2 if has_null_2 else None)
    guided = Guidance.of(s1, s2).denoiser(network, c, *nulls)(x, t)
    assert_same(guided, expected)
    assert calls == [2 * (1 + active_1 + active_2)]


@pytest.mark.parametrize(
    "wrap", [lambda c: {"a": c, "b": {"c": c}}, lambda c: [c, (c, c)]], ids=["dict", "list"]
)
def test_guidance_joins_conditions_of_any_structure(wrap):
    leaves = []

    def network(x, t, c):
        nested = [c["a"], c["b"]["c"]] if isinstance(c, dict) else [c[0], *c[1]]
        leaves.extend(nested)
        return linear_network(x, t, nested[0])

    x, t, (c, null) = rnd("x", 2, 5), torch.zeros(2), (rnd("c", 2, 5), rnd("null", 2, 5))
    guided = Guidance.of(2.0, 1.0).denoiser(network, wrap(c), wrap(null))(x, t)
    assert all(torch.equal(leaf, torch.cat([c, null])) for leaf in leaves)
    assert_same(guided, x * null + 2.0 * (x * c - x * null))


def two_way(s1: float, s2: float, n: int = 2) -> dict:
    _, null_content, null_style = conditions(n)
    return {
        "unconditional_guidance_scale": s1, "unconditional_conditioning": null_content,
        "unconditional_guidance_scale_2": s2, "unconditional_conditioning_2": null_style,
    }  # fmt: skip


def guided_by_hand(model, s1: float, s2: float, x: Tensor, t: Tensor) -> Tensor:
    e, u1, u2 = (model.apply_model(x, t, c) for c in conditions(len(x)))
    return u1 + s1 * (e - u1) + u2 + s2 * (e - u2) - e


@pytest.mark.parametrize("s1, s2, branches", [(1.0, 1.0, 1), (0.6, 1.0, 2), (1.0, 2.0, 2), (0.6, 2.0, 3)])
def test_sampling_with_guidance(model, monkeypatch, s1, s2, branches):
    expected = naive_ddim(model, UNIFORM, lambda x, t: guided_by_hand(model, s1, s2, x, t))
    calls, apply_model = [], model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, c: calls.append(len(x)) or apply_model(x, t, c))
    assert_same(ddim(model, **two_way(s1, s2))[0], expected, 1e-3)
    assert calls == [2 * branches] * 4


@pytest.mark.parametrize("target", ["x0", "v"])
def test_network_that_predicts_something_else_equals_one_that_predicts_the_noise(target):
    others, noises = tiny_ldm(parameterization=target), tiny_ldm()
    abar = noises.alphas_cumprod

    def as_noise(x, t, c):
        a, prediction = abar[t][:, None, None, None], others.apply_model(x, t, c)
        return (
            (x - a.sqrt() * prediction) / (1 - a).sqrt()
            if target == "x0"
            else a.sqrt() * prediction + (1 - a).sqrt() * x
        )

    noises.apply_model = as_noise
    options = {"eta": 0.5, **two_way(0.6, 2.0)}
    assert_same(ddim(others, **options)[0], ddim(noises, **options)[0], 1e-3)


class HalfTheNoise:
    def __init__(self):
        self.calls = []

    def modify_score(self, model, eps, x, t, c, factor):
        self.calls.append((model, int(t[0]), c))
        return factor * eps


def test_score_corrector_changes_the_guided_noise(model):
    corrector, cond = HalfTheNoise(), conditions()[0]
    options = {"score_corrector": corrector, "corrector_kwargs": {"factor": 0.5}, **two_way(0.6, 2.0)}
    actual, _ = ddim(model, cond=cond, **options)
    assert_same(
        actual, naive_ddim(model, UNIFORM, lambda x, t: 0.5 * guided_by_hand(model, 0.6, 2.0, x, t)), 1e-3
    )
    assert [(t, c is cond, m is model) for m, t, c in corrector.calls] == [
        (t, True, True) for t in UNIFORM[::-1]
    ]


@pytest.mark.parametrize("target", ["x0", "v"])
def test_score_corrector_needs_a_network_that_predicts_noise(target):
    with pytest.raises(ValueError, match="parameterization 'eps'"):
        ddim(tiny_ldm(parameterization=target), score_corrector=HalfTheNoise())


# What goes in and comes out


def snapshot(value):
    if isinstance(value, dict):
        return {key: snapshot(v) for key, v in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_inputs_are_never_changed(model):
    given = {
        "cond": conditions()[0], "x_T": latents("x_T"), "mask": half_mask(), "x0": latents("known"), "eta": 1.0,
        **two_way(0.6, 2.0),
    }  # fmt: skip
    before, parts = snapshot(given), dict(given["cond"])
    ddim(model, **given)
    assert same(given, before)
    assert all(given["cond"][key] is part for key, part in parts.items())


@pytest.mark.parametrize("every, kept", [(100, [4, 0]), (2, [4, 2, 0]), (3, [4, 3, 0]), (1, [4, 3, 2, 1, 0])])
def test_intermediates(model, every, kept):
    starts = []
    out, intermediates = ddim(model, 5, log_every_t=every, img_callback=lambda start, i: starts.append(start))
    assert len(intermediates["x_inter"]) == 1 + len(kept)
    assert torch.equal(intermediates["x_inter"][0], latents("x_T")) and torch.equal(
        intermediates["x_inter"][-1], out
    )
    for start, index in zip(intermediates["pred_x0"], [None, *kept], strict=True):
        assert torch.equal(start, latents("x_T") if index is None else starts[4 - index])


def test_callbacks_count_steps_upwards(model):
    numbers, with_pictures = [], []
    ddim(model, callback=numbers.append, img_callback=lambda start, i: with_pictures.append((i, start.shape)))
    assert numbers == [0, 1, 2, 3]
    assert with_pictures == [(i, (2, *SHAPE)) for i in range(4)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cond": conditions(3)[0]}, "the batch is of 2, but a condition is for 3"),
        ({"unconditional_conditioning_2": conditions(4)[2]}, "the batch is of 2, but a condition is for 4"),
        ({"cond": {"c1": latents("c1", 2), "c2": latents("c2", 3)}}, r"different batches: \[2, 3\]"),
        ({"x_T": latents("x_T", 3)}, r"x_T has shape \(3, 4, 8, 8\), expected \(2, 4, 8, 8\)"),
        ({"x_T": latents("x_T", 2, side=4)}, r"x_T has shape \(2, 4, 4, 4\)"),
        ({"mask": half_mask()}, "a mask needs x0"),
    ],
)
def test_what_does_not_fit_together(model, options, message):
    with pytest.raises(ValueError, match=message):
        ddim(model, **options)


@pytest.mark.parametrize(
    "condition, size", [(None, None), ([], None), (torch.zeros(3, 1), 3), ([None, {"a": torch.zeros(2)}], 2)]
)
def test_batch_size_of_a_condition(condition, size):
    assert batch_size_of(condition) == size


# Noise that belongs to one picture


def test_noise_of_a_picture_is_independent_of_its_batch():
    batch, alone = PerPictureNoise([5, 7, 9]), PerPictureNoise([7])
    for shape in (SHAPE, (1, 2, 3)):
        assert torch.equal(batch(torch.empty(3, *shape))[1], alone(torch.empty(1, *shape))[0])


def test_noise_is_fresh_and_of_the_type_asked_for():
    source, like = PerPictureNoise([5, 7]), torch.empty(2, 100, 100, dtype=torch.float64)
    first, second = source(like), source(like)
    assert first.dtype == torch.float64
    for noise in (first, second):
        assert noise.mean().item() == pytest.approx(0, abs=0.03) and noise.std().item() == pytest.approx(
            1, abs=0.03
        )
    for a, b in itertools.combinations([*first, *second], 2):
        assert not torch.equal(a, b)


def test_equal_seeds_equal_noise():
    first, second = PerPictureNoise([5, 5])(torch.empty(2, *SHAPE))
    assert torch.equal(first, second)


def per_picture(model, seeds: list[int], rows: slice, global_seed: int = 0) -> Tensor:
    cond = {key: value[rows] for key, value in conditions(3)[0].items()}
    options = {"eta": 1.0, "noise_source": PerPictureNoise(seeds), "x_T": None}
    return ddim(model, cond=cond, n=len(seeds), seed=global_seed, **options)[0]


def test_picture_is_the_same_whatever_else_is_in_the_batch(model):
    assert_same(per_picture(model, [5, 7, 9], slice(0, 3))[1:2], per_picture(model, [7], slice(1, 2)), 1e-3)


def test_two_equal_calls_give_the_same_bits_whatever_the_global_seed(model):
    first, again = (per_picture(model, [5, 7], slice(0, 2), global_seed) for global_seed in (1, 2))
    assert torch.equal(first, again)


# Other doors to the sampler


def test_sample_log_chooses_the_sampler(model):
    cond, _, _ = conditions()
    options = {"x_T": latents("x_T"), "verbose": False}
    by_ddim, _ = model.sample_log(cond, 2, ddim=True, ddim_steps=4, **options)
    assert torch.equal(by_ddim, ddim(model)[0])
    torch.manual_seed(1)
    ancestral, _ = model.sample_log(cond, 2, ddim=False, timesteps=3, **options)
    torch.manual_seed(1)
    assert torch.equal(ancestral, model.sample(cond, timesteps=3, **options))


def test_unknown_options_are_errors(model):
    with pytest.raises(TypeError, match="temprature"):
        ddim(model, temprature=1.0)


def test_every_published_option_is_there():
    published = {
        "callback", "img_callback", "eta", "mask", "x0", "temperature", "noise_dropout", "score_corrector",
        "corrector_kwargs", "verbose", "x_T", "log_every_t", "unconditional_guidance_scale", "unconditional_conditioning",
        "unconditional_guidance_scale_2", "unconditional_conditioning_2", "timesteps",
    }  # fmt: skip
    own = {
        *inspect.signature(DDIMSampler.sample).parameters,
        *inspect.signature(DDIMSampler.ddim_sampling).parameters,
    }
    assert published <= own
