"""The published model's numbers, reproduced (see tests/golden/README.md)."""

import json

import numpy as np
import pytest
import torch
from golden_rules import GOLDEN, assert_close, conditions, full_model, rnd, sample, tiny_model
from torch import Tensor

from ldm.modules.diffusionmodules.schedule import (
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
)

ONE_PASS, WHOLE_RUN = 1e-4, 1e-3
FLAG = torch.tensor([True, False])


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(), np.load(GOLDEN / "tiny.npz")


@pytest.fixture(scope="module")
def full():
    return full_model(), np.load(GOLDEN / "kl16_content12_full.npz")


SAMPLING = {
    "ddim_plain": {},
    "ddim_content_0.5": {"scale_1": 0.5},
    "ddim_style_3": {"scale_2": 3.0},
    "ddim_two_way_0.6_2": {"scale_1": 0.6, "scale_2": 2.0},
    "ddim_two_way_eta1_seed2023": {"scale_1": 0.6, "scale_2": 2.0, "eta": 1.0, "seed": 2023},
}


@pytest.mark.parametrize("name", ["tiny", "kl16_content12"])
def test_state_dict_is_the_published_layout(name, request):
    model, _ = request.getfixturevalue("tiny" if name == "tiny" else "full")
    expected = json.loads((GOLDEN / f"{name}_state_dict.json").read_text())
    actual = {
        key: [str(v.dtype).removeprefix("torch."), list(v.shape)] for key, v in model.state_dict().items()
    }
    assert len(actual) == 797
    assert actual == expected


@pytest.mark.parametrize("name", ["linear_artfusion", "linear_default", "cosine", "sqrt_linear", "sqrt"])
def test_beta_schedules(name):
    options = {"linear_start": 0.0015, "linear_end": 0.0195} if name == "linear_artfusion" else {}
    kind = "linear" if name.startswith("linear") else name
    expected = np.load(GOLDEN / "schedules.npz")[f"betas/{name}"]
    np.testing.assert_allclose(make_beta_schedule(kind, 1000, **options), expected, rtol=1e-9)


def test_schedule_buffers(tiny):
    data = np.load(GOLDEN / "schedules.npz")
    buffers = dict(tiny[0].named_buffers())
    names = [key.removeprefix("buffer/") for key in data if key.startswith("buffer/")]
    assert len(names) == 16
    for name in names:
        np.testing.assert_allclose(
            buffers[name].numpy(), data[f"buffer/{name}"], rtol=1e-4, atol=1e-7, err_msg=name
        )


def test_ddim_steps_and_parameters(tiny):
    data = np.load(GOLDEN / "schedules.npz")
    keys = [key for key in data if key.startswith("ddim_timesteps/")]
    assert len(keys) == 14
    for key in keys:
        _, method, count = key.split("/")
        steps = make_ddim_timesteps(method, int(count), 1000)
        np.testing.assert_array_equal(steps, data[key])
        if f"ddim_alphas/{method}/{count}" in data:
            for eta in (0.0, 1.0):
                sigmas, alphas, prev = make_ddim_sampling_parameters(tiny[0].alphas_cumprod, steps, eta)
                np.testing.assert_allclose(
                    sigmas, data[f"ddim_sigmas/{method}/{count}/{eta}"], rtol=1e-4, atol=1e-6
                )
                np.testing.assert_allclose(alphas, data[f"ddim_alphas/{method}/{count}"], rtol=1e-6)
                np.testing.assert_allclose(prev, data[f"ddim_alphas_prev/{method}/{count}"], rtol=1e-6)


@torch.no_grad()
def check_conditions(model, data, content: Tensor, style: Tensor) -> None:
    z = model.get_first_stage_encoding(model.encode_first_stage(content))
    assert_close(z, data["z"], ONE_PASS, "z")
    features = model.vgg(model.vgg_scaling_layer(style))
    assert_close(model.get_style_features(features), data["style_features"], ONE_PASS, "style")
    assert_close(
        model.get_style_features(features, FLAG), data["style_features_flagged"], ONE_PASS, "null style"
    )
    assert_close(model.get_content_features(z), data["content_features"], ONE_PASS, "content")
    assert_close(
        model.get_content_features(z, FLAG), data["content_features_flagged"], ONE_PASS, "null content"
    )


@torch.no_grad()
def check_network(model, data) -> None:
    both, _, _ = conditions(model, data)
    x, t = torch.from_numpy(data["x_T"]), torch.from_numpy(data["t"])
    assert_close(model.apply_model(x, t, both), data["unet_out"], ONE_PASS, "unet")
    with model.ema_scope():
        assert_close(model.apply_model(x, t, both), data["unet_out_ema"], ONE_PASS, "unet, averaged weights")
    assert_close(model.apply_model(x, t, both), data["unet_out"], ONE_PASS, "unet, live weights again")


def training_loss(model, data) -> tuple[Tensor, dict[str, Tensor]]:
    z, t, noise = (torch.from_numpy(data[name]) for name in ("z", "t", "noise"))
    style = model.null_where_off(torch.from_numpy(data["style_features"]), FLAG)
    flagged = model.condition(model.get_content_features(z, FLAG), style)
    return model.p_losses(z, flagged, t, noise)


def check_losses(model, data) -> Tensor:
    loss, parts = training_loss(model, data)
    assert_close(loss, data["loss"], ONE_PASS, "loss")
    for name in ("loss_simple", "loss_vlb"):
        assert_close(parts[f"val/{name}"], data[name], ONE_PASS, name)
    return loss


def test_tiny_conditions(tiny):
    model, data = tiny
    check_conditions(
        model, data, torch.from_numpy(data["content_image"]), torch.from_numpy(data["style_image"])
    )
    posterior = model.encode_first_stage(torch.from_numpy(data["content_image"]))
    assert_close(posterior.parameters, data["vae_moments"], ONE_PASS)


def test_tiny_decoding_leaves_its_input_alone(tiny):
    model, data = tiny
    z = torch.from_numpy(data["z"].copy())
    with torch.no_grad():
        assert_close(model.decode_first_stage(z), data["reconstruction"], ONE_PASS)
    assert torch.equal(z, torch.from_numpy(data["z"]))


def test_tiny_network(tiny):
    check_network(*tiny)


@pytest.mark.parametrize("name", SAMPLING)
def test_tiny_sampling(tiny, name):
    model, data = tiny
    assert_close(sample(model, data, 6, **SAMPLING[name]), data[name], WHOLE_RUN)


def test_tiny_picture(tiny):
    model, data = tiny
    with torch.no_grad():
        picture = model.decode_first_stage(torch.from_numpy(data["ddim_two_way_0.6_2"]))
    assert_close(picture, data["image_two_way"], WHOLE_RUN)


def test_tiny_losses_and_gradients():
    model, data = tiny_model(), np.load(GOLDEN / "tiny.npz")
    check_losses(model, data).backward()
    names = [key.removeprefix("grad_norm/") for key in data if key.startswith("grad_norm/")]
    assert len(names) == 8
    parameters = dict(model.named_parameters())
    for name in names:
        assert_close(parameters[name].grad.norm(), data[f"grad_norm/{name}"], 1e-3, name)


def test_tiny_three_training_steps():
    model, data = tiny_model(), np.load(GOLDEN / "tiny.npz")
    model.learning_rate = 1e-4
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(3):
        loss, _ = training_loss(model, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for average, module in model.averaged():
            average(module)
        losses.append(loss.item())
    assert_close(np.array(losses), data["train_losses"], 1e-3)
    live, averages = dict(model.named_parameters()), dict(model.named_buffers())
    for key in (key for key in data if "_sum_after_3/" in key):
        kind, name = key.split("/", 1)
        part, _, rest = name.partition(".")
        value = live[name] if kind.startswith("param") else averages[f"{part}_ema.{rest.replace('.', '')}"]
        assert_close(value.double().sum(), data[key], 1e-3, key)


@pytest.mark.slow
def test_full_size_conditions_network_and_losses(full):
    model, data = full
    style = torch.tanh(rnd("full/style", 2, 3, 256, 256) + rnd("full/style_lo", 2, 3, 1, 1))
    check_conditions(model, data, torch.tanh(rnd("full/content", 2, 3, 256, 256)), style)
    check_network(model, data)
    with torch.no_grad():
        check_losses(model, data)


@pytest.mark.slow
def test_full_size_decoding(full):
    model, data = full
    for z, name in (("z", "reconstruction_8x8mean"), ("ddim_two_way_0.6_2", "image_two_way_8x8mean")):
        with torch.no_grad():
            picture = model.decode_first_stage(torch.from_numpy(data[z]))
        pooled = torch.nn.functional.avg_pool2d(picture, picture.shape[-1] // data[name].shape[-1])
        assert_close(pooled, data[name], WHOLE_RUN if "image" in name else ONE_PASS, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_full_size_sampling(full, name):
    model, data = full
    assert_close(sample(model, data, 4, **SAMPLING[name]), data[name], WHOLE_RUN)
