"""The KL first stage: its halves, its latent, its checkpoints, and the losses that train it."""

from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from builders import CHANNELS, FIRST_STAGE, HALVES, assert_same, fit
from golden_rules import apply_rule, rnd
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchvision.models import vgg

from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import lpips
from ldm.modules.losses.contperceptual import (
    LPIPSWithDiscriminator,
    gradient_l1,
    hinge_d_loss,
    vanilla_d_loss,
)
from ldm.modules.losses.lpips import LPIPS, VGG_CHANNELS, ScalingLayer, vgg16
from ldm.modules.losses.style_transfer import FeatureLoss
from ldm.modules.vae.light import LightDecoder, LightEncoder
from ldm.modules.vae.model import AttnBlock, Decoder, Downsample, Encoder, ResnetBlock, Upsample, group_norm
from ldm.util import instantiate_from_config

DUMMY = {"target": "ldm.modules.losses.contperceptual.DummyLoss"}
LIGHT = {
    "encoder_target": "ldm.modules.vae.light.LightEncoder",
    "decoder_target": "ldm.modules.vae.light.LightDecoder",
    "params": {"z_channels": CHANNELS},
    "encoder_params": {"widths": [8, 16], "num_res_blocks": [1, 1]},
    "decoder_params": {"widths": [8, 8, 16, 8], "num_res_blocks": [1, 0, 1, 2]},
}


def autoencoder(**changes) -> AutoencoderKL:
    return apply_rule(
        instantiate_from_config({**FIRST_STAGE, "params": {**FIRST_STAGE["params"], **changes}})
    ).eval()


def pictures(tag: str = "pictures", n: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return rnd(tag, n, 3, height, width).tanh()


# Layers


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


@pytest.mark.parametrize("channels, groups", [(32, 32), (96, 32), (8, 1), (48, 1)])
def test_norms_have_32_groups_or_one(channels, groups):
    norm = group_norm(channels)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


@pytest.mark.parametrize("out_channels, conv_shortcut", [(8, False), (12, False), (12, True)])
def test_res_block(out_channels, conv_shortcut):
    block, x = apply_rule(ResnetBlock(8, out_channels, conv_shortcut=conv_shortcut)), rnd("x", 2, 8, 4, 6)
    h = conv(block.conv1, swish(block.norm1(x)))
    h = conv(block.conv2, swish(block.norm2(h)))
    shortcut = None if out_channels == 8 else block.conv_shortcut if conv_shortcut else block.nin_shortcut
    assert_same(block(x), h + (x if shortcut is None else conv(shortcut, x)))


def test_attention_is_of_one_head_over_all_positions():
    block, x = apply_rule(AttnBlock(8)), rnd("x", 2, 8, 3, 4)
    q, k, v = (conv(layer, block.norm(x)).flatten(2) for layer in (block.q, block.k, block.v))
    weights = (torch.einsum("ncl,ncm->nlm", q, k) / 8**0.5).softmax(dim=-1)
    attended = torch.einsum("nlm,ncm->ncl", weights, v).reshape(x.shape)
    assert_same(block(x), x + conv(block.proj_out, attended))


def test_downsampling_pads_right_and_bottom_only():
    layer, x = apply_rule(Downsample(4)), rnd("x", 2, 4, 6, 8)
    padded = torch.zeros(2, 4, 7, 9)
    padded[:, :, :6, :8] = x
    assert layer(x).shape == (2, 4, 3, 4)
    assert_same(layer(x), F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2))


def test_upsampling_repeats_pixels_then_convolves():
    layer, x = apply_rule(Upsample(4)), rnd("x", 2, 4, 3, 5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_same(layer(x), conv(layer.conv, repeated))
    assert torch.equal(Upsample(4, with_conv=False)(x), repeated)


def test_downsampling_without_conv_averages():
    x = rnd("x", 2, 4, 6, 8)
    assert_same(Downsample(4, with_conv=False)(x), x.reshape(2, 4, 3, 2, 4, 2).mean(dim=(3, 5)))


# Halves


@pytest.mark.parametrize("height, width", [(32, 32), (16, 24), (4, 36)])
@pytest.mark.parametrize("mult", [[1], [1, 2], [1, 1, 2]])
@torch.no_grad()
def test_published_halves(mult, height, width):
    factor, params = 2 ** (len(mult) - 1), {**HALVES, "ch_mult": mult}
    encoder, decoder = Encoder(**params), Decoder(**params)
    assert encoder.factor == factor
    moments = encoder(torch.zeros(2, 3, height, width))
    assert moments.shape == (2, 2 * CHANNELS, height // factor, width // factor)
    assert decoder(moments[:, :CHANNELS]).shape == (2, 3, height, width)


def test_single_z_for_latents_without_variance():
    assert Encoder(**HALVES, double_z=False)(pictures()).shape == (2, CHANNELS, 4, 6)


@pytest.mark.parametrize("sides, levels", [([8], [2]), ([16], [1]), ([32, 8], [0, 2]), ([], [])])
def test_attention_stands_at_the_picture_sides_asked_for(sides, levels):
    for half in (Encoder, Decoder):
        net = half(**{**HALVES, "attn_resolutions": sides})
        stages = net.down if half is Encoder else net.up
        assert [i for i, level in enumerate(stages) if len(level.attn)] == levels
        assert isinstance(net.mid.attn_1, AttnBlock)


@torch.no_grad()
def test_decoder_may_end_in_tanh():
    z = 100 * rnd("z", 2, CHANNELS, 4, 6)
    plain, bounded = (apply_rule(Decoder(**HALVES, tanh_out=tanh)) for tanh in (False, True))
    assert_same(bounded(z), plain(z).tanh())


@pytest.mark.parametrize("widths, factor", [([8], 4), ([8, 16], 8), ([8, 8, 16], 16)])
@torch.no_grad()
def test_light_halves(widths, factor):
    blocks = [1] * len(widths)
    encoder = LightEncoder(z_channels=CHANNELS, widths=widths, num_res_blocks=blocks)
    decoder = LightDecoder(z_channels=CHANNELS, widths=[8, 8, *widths], num_res_blocks=[0, 0, *blocks])
    moments = encoder(torch.zeros(2, 3, 2 * factor, 3 * factor))
    assert encoder.factor == factor
    assert moments.shape == (2, 2 * CHANNELS, 2, 3)
    assert decoder(moments[:, :CHANNELS]).shape == (2, 3, 2 * factor, 3 * factor)


def test_light_halves_need_as_many_widths_as_block_counts():
    with pytest.raises(ValueError, match="zip"):
        LightEncoder(z_channels=4, widths=[8, 8], num_res_blocks=[1])


def test_the_light_decoder_has_its_finest_blocks_at_full_resolution():
    decoder = LightDecoder(z_channels=CHANNELS, widths=[8, 8, 16], num_res_blocks=[1, 0, 2])
    sizes = []
    for module in decoder.modules():
        if isinstance(module, ResnetBlock):
            module.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[1:])))
    decoder(torch.zeros(1, CHANNELS, 3, 5))
    assert sizes == [(16, 3, 5), (16, 3, 5), (8, 12, 20)]


@pytest.mark.parametrize("ddconfig", [HALVES, LIGHT], ids=["published", "light"])
def test_every_parameter_of_the_autoencoder_takes_part(ddconfig):
    model, x = autoencoder(ddconfig=ddconfig), pictures()
    torch.manual_seed(0)
    reconstruction, _ = model(x)
    (reconstruction * rnd("direction", *x.shape)).sum().backward()
    assert reconstruction.shape == x.shape
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# Latent


def test_moments_are_mean_and_clipped_log_variance():
    moments = 40 * rnd("moments", 2, 6, 3, 3)
    posterior = DiagonalGaussianDistribution(moments)
    mean, logvar = moments[:, :3], moments[:, 3:].clamp(-30, 20)
    assert logvar.min() == -30 and logvar.max() == 20, "both limits are reached"
    assert torch.equal(posterior.mode(), mean) and torch.equal(posterior.logvar, logvar)
    assert_same(posterior.std, (logvar / 2).exp())
    torch.manual_seed(0)
    drawn = posterior.sample()
    torch.manual_seed(0)
    assert_same(drawn, mean + (logvar / 2).exp() * torch.randn(mean.shape))


def test_kl_is_the_divergence_from_the_standard_normal():
    posterior = DiagonalGaussianDistribution(rnd("moments", 2, 6, 3, 4))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert_same(posterior.kl(), expected)


def test_deterministic_posterior_has_no_spread():
    posterior = DiagonalGaussianDistribution(rnd("moments", 2, 6, 3, 4), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mode())
    assert torch.equal(posterior.kl(), torch.zeros(2))


@torch.no_grad()
def test_two_1x1_convs_stand_between_halves_and_latent():
    model, x, z = autoencoder(embed_dim=3), pictures(), rnd("z", 2, 3, 4, 6)
    assert_same(model.encode(x).parameters, conv(model.quant_conv, model.encoder(x)))
    assert_same(model.decode(z), model.decoder(conv(model.post_quant_conv, z)))
    assert model.encode(x).mode().shape == z.shape


@torch.no_grad()
def test_reconstruction_by_mode_or_by_a_draw():
    model, x = autoencoder(), pictures()
    assert_same(model(x, sample_posterior=False)[0], model.decode(model.encode(x).mode()))
    torch.manual_seed(0)
    drawn, _ = model(x)
    torch.manual_seed(0)
    assert_same(drawn, model.decode(model.encode(x).sample()))


def test_batches_have_their_channels_last():
    x = pictures()
    assert torch.equal(autoencoder(image_key="photo").get_input({"photo": x.permute(0, 2, 3, 1)}), x)


# Checkpoints and configs


def save(path, state: dict[str, Tensor]) -> str:
    torch.save({"state_dict": state, "global_step": 1}, path)
    return str(path)


LOSS_NAMES = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}


@pytest.mark.parametrize("extra", [{}, LOSS_NAMES], ids=["alone", "with its loss"])
def test_loads_a_first_stage(tmp_path, extra):
    state = autoencoder().state_dict()
    path = save(tmp_path / "kl.ckpt", {name: 2 * value for name, value in state.items()} | extra)
    model = instantiate_from_config({**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "ckpt_path": path}})
    assert state and all(torch.equal(model.state_dict()[name], 2 * value) for name, value in state.items())


def test_loads_the_first_stage_of_a_whole_model(tmp_path):
    state = autoencoder().state_dict()
    whole = {f"first_stage_model.{name}": 2 * value for name, value in (state | LOSS_NAMES).items()}
    path = save(
        tmp_path / "whole.ckpt", whole | {"betas": torch.ones(3), "encoder.conv_in.weight": torch.zeros(1)}
    )
    model = AutoencoderKL(**{**FIRST_STAGE["params"], "ckpt_path": path})
    assert all(torch.equal(model.state_dict()[name], 2 * value) for name, value in state.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("quant_conv.bias"), r"1 missing \(quant_conv.bias\)"),
        (lambda state: state.update({"encoder.extra": torch.zeros(1)}), r"1 unexpected \(encoder.extra\)"),
        (
            lambda state: state.update({"decoder.conv_in.bias": torch.zeros(1)}),
            "1 misshapen .decoder.conv_in.bias",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_loading_is_strict(tmp_path, change, message):
    state = autoencoder().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        AutoencoderKL(**{**FIRST_STAGE["params"], "ckpt_path": save(tmp_path / "bad.ckpt", state)})


def test_trainable_decoder_freezes_the_encoder_and_the_latent():
    model = autoencoder(trainable="decoder", lossconfig=loss_config())
    frozen = {name.partition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert frozen == {"encoder", "quant_conv"}
    assert trained == {"decoder", "post_quant_conv", "loss"}


@pytest.mark.parametrize("trainable, count", [("all", 4), ("decoder", 2)])
def test_what_the_optimisers_train(trainable, count):
    model = autoencoder(trainable=trainable, lossconfig=loss_config())
    autoencoder_weights, discriminator_weights = (
        {id(p) for p in o.param_groups[0]["params"]} for o in model.configure_optimizers()
    )
    halves = [model.decoder, model.post_quant_conv, model.encoder, model.quant_conv][:count]
    assert autoencoder_weights == {id(p) for half in halves for p in half.parameters()}
    assert discriminator_weights == {id(p) for p in model.loss.discriminator.parameters()}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trainable": "encoder"}, "trainable must be one of all, decoder, got 'encoder'"),
        ({"learning_rate": -1}, "learning_rate must be a number from 0 on, got -1"),
        ({"ddconfig": {"ch": 8}}, "needs `z_channels`"),
        ({"ddconfig": {**HALVES, "chanels": 3}}, "chanels"),
        (
            {"ddconfig": {**LIGHT, "encoder_target": "ldm.modules.vae.model.Encoder"}},
            "Encoder has no parameter 'widths'",
        ),
    ],
)
def test_wrong_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        autoencoder(**changes)


# Losses


def loss_config(**changes) -> dict:
    params = {"disc_start": 2, "perceptual_weight": 0.0, "disc_num_layers": 1, **changes}
    return {"target": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator", "params": params}


def make_loss(**changes) -> LPIPSWithDiscriminator:
    return instantiate_from_config(loss_config(**changes))


class TinyDecoder(nn.Module):
    """A last layer and the reconstruction that it makes of a latent."""

    def __init__(self):
        super().__init__()
        self.last = apply_rule(nn.Conv2d(4, 3, 3, padding=1))

    def forward(self) -> tuple[Tensor, Tensor, DiagonalGaussianDistribution]:
        """(pictures, reconstructions, posterior)."""
        x = pictures(height=16, width=16)
        return x, self.last(rnd("z", 2, 4, 16, 16)), DiagonalGaussianDistribution(rnd("moments", 2, 8, 4, 4))

    def loss(self, loss: LPIPSWithDiscriminator, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        x, recon, posterior = self()
        return loss.autoencoder_loss(x, recon, posterior, step, self.last.weight)


@pytest.mark.parametrize("logvar", [0.0, 0.8])
def test_loss_before_the_discriminator_starts(logvar):
    loss, model = make_loss(logvar_init=logvar, kl_weight=0.3, pixelloss_weight=2.0), TinyDecoder()
    x, recon, posterior = model()
    nll = (2.0 * (x - recon).abs() / torch.tensor(logvar).exp() + logvar).sum() / 2
    value, parts = model.loss(loss, step=1)
    assert_same(value, nll + 0.3 * posterior.kl().mean())
    assert_same(parts["nll_loss"], nll)
    assert "g_loss" not in parts


def direct_difference(x: Tensor, y: Tensor) -> Tensor:
    d = x - y
    across, down = (d[..., 1:] - d[..., :-1]).abs(), (d[..., 1:, :] - d[..., :-1, :]).abs()
    return across.mean(dim=(2, 3), keepdim=True) + down.mean(dim=(2, 3), keepdim=True)


def test_gradient_part_compares_neighbouring_pixels():
    x, recon, _ = TinyDecoder()()
    assert_same(gradient_l1(x, recon), direct_difference(x, recon))
    expected = (x - recon).abs() + 0.5 * direct_difference(x, recon)
    assert_same(make_loss(gradient_weight=0.5).reconstruction(x, recon), expected)


def gradient_norm(value: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(value, weight, retain_graph=True)[0].square().sum().sqrt()


def test_adversarial_part_gets_a_gradient_as_large_as_the_reconstructions():
    loss, model = make_loss(disc_weight=0.5, disc_factor=0.7, kl_weight=0.0).eval(), TinyDecoder()
    x, recon, _ = model()
    nll, g_loss = (x - recon).abs().sum() / 2, -loss.discriminator(recon).mean()
    weight = 0.5 * gradient_norm(nll, model.last.weight) / (gradient_norm(g_loss, model.last.weight) + 1e-4)
    value, parts = model.loss(loss, step=2)
    assert_same(parts["d_weight"], weight, 1e-3)
    assert_same(value, nll + weight * 0.7 * g_loss, 1e-4)


def test_adaptive_weight_is_at_most_ten_thousand():
    loss, last = make_loss(disc_weight=3.0), torch.ones(2, requires_grad=True)
    assert loss.adaptive_weight(1e6 * last.sum(), 0 * last.sum(), last) == 3e4


@torch.no_grad()
def test_validation_has_no_gradients_to_compare():
    value, parts = TinyDecoder().loss(make_loss(), step=5)
    assert parts["d_weight"] == 0 and value.isfinite()


def test_hinge_and_vanilla_losses():
    real, fake = rnd("real", 50), rnd("fake", 50)
    assert_same(
        hinge_d_loss(real, fake), ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    )
    by_hand = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()) / 2
    assert_same(vanilla_d_loss(real, fake), by_hand)


@pytest.mark.parametrize("name, function", [("hinge", hinge_d_loss), ("vanilla", vanilla_d_loss)])
def test_discriminator_loss_reaches_the_discriminator_only(name, function):
    loss, model = make_loss(disc_loss=name, disc_factor=0.7).eval(), TinyDecoder()
    x, recon, _ = model()
    value, _ = loss.discriminator_loss(x, recon)
    assert_same(value, 0.7 * function(loss.discriminator(x), loss.discriminator(recon)))
    value.backward()
    assert model.last.weight.grad is None
    assert all(
        layer.weight.grad.abs().sum() > 0 for layer in loss.discriminator.main if isinstance(layer, nn.Conv2d)
    )


@pytest.mark.parametrize("step, acts", [(0, False), (1, False), (2, True), (9, True)])
def test_discriminator_starts_at_its_step(step, acts):
    loss = make_loss(disc_start=2)
    assert loss.discriminates(step) == acts
    assert ("g_loss" in TinyDecoder().loss(loss, step)[1]) == acts


def test_no_discriminator_at_factor_zero():
    loss = make_loss(disc_factor=0.0)
    assert loss.discriminator is None and not loss.discriminates(10**6)


def test_unknown_discriminator_loss():
    with pytest.raises(ValueError, match="hinge, vanilla, got 'wasserstein'"):
        make_loss(disc_loss="wasserstein")


@pytest.mark.parametrize(
    "limit, expected", [({}, 5), ({"max_steps": 4}, 4)], ids=["whole epoch", "max_steps"]
)
def test_training_counts_the_autoencoders_steps_alone(tmp_path, monkeypatch, limit, expected):
    model, steps = autoencoder(lossconfig=loss_config(disc_start=2, disc_loss="vanilla")), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = LPIPSWithDiscriminator.autoencoder_loss
    monkeypatch.setattr(
        LPIPSWithDiscriminator, "autoencoder_loss", lambda *args: steps.append(args[4]) or own(*args)
    )
    fit(model, pictures(n=5).permute(0, 2, 3, 1), tmp_path, **limit)
    assert steps == list(range(expected)) and model.global_step == expected
    optimizers = [optimizer.optimizer for optimizer in model.optimizers()]
    assert [{int(state["step"]) for state in optimizer.state.values()} for optimizer in optimizers] == [
        {expected},
        {expected - 2},
    ]
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == ["loss.logvar"]


@pytest.mark.parametrize("n, steps", [(4, 2), (5, 3)], ids=["whole", "a rest"])
def test_gradients_of_several_batches_make_a_step(tmp_path, monkeypatch, n, steps):
    monkeypatch.setattr(
        AutoencoderKL, "reconstruct", lambda self, x, draw=True: self(x, sample_posterior=False)
    )
    models = [autoencoder(lossconfig=loss_config(disc_factor=0.0), learning_rate=1e-3) for _ in range(2)]
    data = pictures(n=n).permute(0, 2, 3, 1)
    models[0].own_options = {**models[0].own_options, "accumulate_grad_batches": 2}
    for model, batch_size in zip(models, (1, 2)):
        before = model.decoder.conv_out.weight.detach().clone()
        fit(model, data[: 2 * (n // 2)] if batch_size == 2 else data, tmp_path, batch_size)
        assert not torch.equal(model.decoder.conv_out.weight, before)
    assert models[0].global_step == steps
    if n % 2 == 0:
        assert_same(models[0].decoder.conv_out.weight, models[1].decoder.conv_out.weight, 1e-6)


def test_both_optimisers_wait_for_as_many_batches(tmp_path):
    model = autoencoder(lossconfig=loss_config(disc_start=1))
    model.own_options = {**model.own_options, "accumulate_grad_batches": 2}
    fit(model, pictures(n=6).permute(0, 2, 3, 1), tmp_path)
    assert [
        {int(state["step"]) for state in optimizer.optimizer.state.values()}
        for optimizer in model.optimizers()
    ] == [{3}, {2}]


@pytest.mark.parametrize("limit, moves", [(None, True), (1e-14, False)])
def test_gradients_are_clipped_before_a_step(tmp_path, limit, moves):
    model = autoencoder(lossconfig=loss_config(disc_factor=0.0), learning_rate=1e-2)
    before = model.decoder.conv_out.weight.detach().clone()
    model.own_options = {**model.own_options, "gradient_clip_val": limit}
    fit(model, pictures(n=2).permute(0, 2, 3, 1), tmp_path)
    assert ((model.decoder.conv_out.weight - before).abs().max() > 1e-3) == moves


def test_the_autoencoders_loss_leaves_the_discriminator_alone():
    loss, model = make_loss(disc_start=0).eval(), TinyDecoder()
    with loss.discriminator_fixed():
        value, parts = model.loss(loss)
        value.backward()
    assert "g_loss" in parts and model.last.weight.grad.any()
    assert all(p.grad is None and p.requires_grad for p in loss.discriminator.parameters())


def test_training_needs_a_loss(tmp_path):
    with pytest.raises(ConfigError, match="LPIPSWithDiscriminator"):
        fit(autoencoder(lossconfig=DUMMY), pictures().permute(0, 2, 3, 1), tmp_path)


# VGG16 and LPIPS


@pytest.fixture(scope="module")
def perceptual() -> LPIPS:
    """With random VGG16 weights and positive channel weights."""
    torch.manual_seed(0)
    distance = LPIPS().eval()
    for i in range(5):
        getattr(distance, f"lin{i}").model[-1].weight.data.uniform_()
    return distance


@pytest.fixture(scope="module")
def torchvision_features() -> nn.Sequential:
    """The convolutional part of torchvision's VGG16, without its 120 million other weights."""
    torch.manual_seed(1)
    return vgg.make_layers(vgg.cfgs["D"])


def torchvision_names(features: nn.Sequential) -> dict[str, Tensor]:
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


@torch.no_grad()
def test_vgg_slices_are_torchvisions_layers(torchvision_features, monkeypatch):
    monkeypatch.setattr(lpips, "read_state_dict", lambda path: torchvision_names(torchvision_features))
    net, x = vgg16(), pictures(height=16, width=32)
    net.load_weights("vgg16.pth")
    assert net.has_weights and not any(p.requires_grad for p in net.parameters())
    for features, last in zip(net(x), (3, 8, 15, 22, 29), strict=True):
        assert_same(features, torchvision_features[: last + 1](x))


def test_vgg_names():
    names = {name.rpartition(".")[0] for name in vgg16(channels=[1] * 5).state_dict()}
    layers = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    assert names == {f"slice{number}.{layer}" for number, numbers in layers.items() for layer in numbers}
    assert vgg16(channels=[1] * 5)(pictures())._fields == (
        "relu1_2",
        "relu2_2",
        "relu3_3",
        "relu4_3",
        "relu5_3",
    )


def test_vgg_widths_and_sides():
    features = vgg16(channels=(2, 3, 4, 5, 6))(pictures(height=16, width=48))
    assert [f.shape[1:] for f in features] == [(2, 16, 48), (3, 8, 24), (4, 4, 12), (5, 2, 6), (6, 1, 3)]


def narrow() -> vgg16:
    return vgg16(channels=(1, 1, 2, 1, 1))


@pytest.mark.parametrize("prefix", ["", "vgg.", "student."])
def test_vgg_weights_of_our_own_checkpoints(tmp_path, prefix):
    state = apply_rule(narrow()).state_dict()
    other = {"betas": torch.ones(3)} if prefix else {}
    net = narrow()
    assert not net.has_weights
    net.load_weights(
        save(tmp_path / "ours.ckpt", {f"{prefix}{name}": value for name, value in state.items()} | other)
    )
    assert net.has_weights and all(
        torch.equal(net.state_dict()[name], value) for name, value in state.items()
    )


def test_vgg_weights_of_another_width(tmp_path):
    path = save(tmp_path / "narrow.ckpt", narrow().state_dict())
    with pytest.raises(CheckpointError, match="misshapen"):
        vgg16(channels=(1, 1, 1, 1, 1)).load_weights(path)


@pytest.mark.parametrize(
    "error", [URLError("no network"), RuntimeError('invalid hash value (expected "397923af")')]
)
def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match="could not be downloaded.*vgg16-397923af.pth.*vgg_ckpt_path"):
        vgg16().load_weights()


def test_building_needs_neither_weights_nor_network(monkeypatch):
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("went to the network")
    )
    assert not LPIPS().net.has_weights


def test_training_needs_the_perceptual_weights(tmp_path):
    lossconfig = loss_config(
        perceptual_weight=1.0, lin_ckpt_path="uniform", vgg_ckpt_path=str(tmp_path / "absent.pth")
    )
    with pytest.raises(UserError, match="absent.pth: no such file"):
        AutoencoderKL(**{**FIRST_STAGE["params"], "lossconfig": lossconfig}).on_fit_start()


FEATURES = {"target": "ldm.modules.losses.style_transfer.FeatureLoss"}


@pytest.mark.parametrize("config", [None, FEATURES], ids=["LPIPS", "features"])
def test_perceptual_weights_that_a_checkpoint_brought_are_not_read_again(monkeypatch, config):
    read, loss = [], make_loss(perceptual_weight=1.0, lin_ckpt_path="uniform", perceptual_config=config)
    monkeypatch.setattr(vgg16, "load_weights", lambda self, path: read.append(self))
    loss.load_weights()
    assert read == [module for module in loss.modules() if isinstance(module, vgg16)]
    loss.load_state_dict(loss.state_dict())
    loss.load_weights()
    assert len(read) == 1


# FeatureLoss


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    loss = FeatureLoss(style_weight=0.7)
    for parameter in loss.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.uniform_(parameter)
    return loss


@torch.no_grad()
def test_feature_loss_is_the_distance_of_activations_and_of_their_statistics(features):
    x, y = pictures("x", 3, 16, 16), pictures("y", 3, 16, 16)
    expected = []
    scales = {name: maps.mean() for name, maps in features.features(x).items()}
    for i in range(3):
        one, other = (features.features(p[i : i + 1]) for p in (x, y))
        total = 0.0
        for name in one:
            a, b = one[name][0], other[name][0]
            places = (a - b).abs().mean()
            means = (a.mean((1, 2)) - b.mean((1, 2))).abs().mean()
            stds = (a.flatten(1).std(1, correction=0) - b.flatten(1).std(1, correction=0)).abs().mean()
            total += (places + 0.7 * (means + stds)) / scales[name] / 4
        expected.append(total)
    actual = features(x, y)
    assert actual.shape == (3, 1, 1, 1)
    assert_same(actual.flatten(), torch.stack(expected))
    assert not features(x, x).any()


def test_feature_loss_teaches_the_reconstruction_alone(features):
    x, y = pictures("x").requires_grad_(), pictures("y").requires_grad_()
    features(x.detach(), y).sum().backward()
    assert y.grad.abs().min(dim=0).values.max() > 0 and not any(
        p.requires_grad for p in features.parameters()
    )


@torch.no_grad()
def test_feature_loss_takes_lpips_place_with_its_weight():
    loss = make_loss(perceptual_weight=0.5, perceptual_config={**FEATURES, "params": {"style_weight": 0.0}})
    assert isinstance(loss.perceptual_loss, FeatureLoss) and loss.perceptual_loss.style_weight == 0
    x, y = pictures("x"), pictures("y")
    assert_same(loss.reconstruction(x, y), (x - y).abs() + 0.5 * loss.perceptual_loss(x, y))


@torch.no_grad()
def test_scaling_layer():
    x, layer = pictures(), ScalingLayer()
    expected = [
        (x[:, i] - shift) / scale
        for i, (shift, scale) in enumerate([(-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450)])
    ]
    assert_same(layer(x), torch.stack(expected, dim=1))


@torch.no_grad()
def test_perceptual_distance_formula(perceptual):
    x, y = pictures("x", height=16, width=32), pictures("y", height=16, width=32)
    expected = 0
    for i, (a, b) in enumerate(zip(perceptual.net(ScalingLayer()(x)), perceptual.net(ScalingLayer()(y)))):
        weights = getattr(perceptual, f"lin{i}").model[-1].weight.reshape(1, -1, 1, 1)
        a, b = (f / f.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-10) for f in (a, b))
        expected = expected + (weights * (a - b).square()).sum(dim=1).mean(dim=(1, 2))
    assert perceptual(x, y).shape == (2, 1, 1, 1)
    assert_same(perceptual(x, y).flatten(), expected, 1e-3)


@torch.no_grad()
def test_perceptual_distance_is_zero_for_equal_pictures_and_symmetric(perceptual):
    x, y = pictures("x", height=16, width=16), pictures("y", height=16, width=16)
    assert torch.equal(perceptual(x, x), torch.zeros(2, 1, 1, 1))
    assert (perceptual(x, y) > 0).all()
    assert torch.equal(perceptual(x, y), perceptual(y, x))


@pytest.mark.parametrize("factor, bias", [(1.0, -1e6), (1e-30, 0.0)], ids=["dead", "all but dead"])
def test_perceptual_gradient_is_finite_where_channels_are(factor, bias):
    torch.manual_seed(0)
    distance = LPIPS().eval()
    last = distance.net.slice5[-2]
    last.weight.data.mul_(factor)
    last.bias.data.fill_(bias)
    x = pictures("x", height=16, width=16).requires_grad_()
    assert distance.net(distance.scaling_layer(x))[-1].max() < 1e-20
    distance(x, pictures("y", height=16, width=16)).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@torch.no_grad()
def test_perceptual_part_is_spread_over_every_pixel(perceptual):
    loss, (x, recon, _) = make_loss(), TinyDecoder()()
    loss.perceptual_weight, loss.perceptual_loss = 0.5, perceptual
    assert_same(loss.reconstruction(x, recon), (x - recon).abs() + 0.5 * perceptual(x, recon))


def test_perceptual_part_is_a_fixed_measure():
    loss = make_loss(perceptual_weight=1.0).train()
    assert not loss.perceptual_loss.training
    assert not any(p.requires_grad for p in loss.perceptual_loss.parameters())


def lin_names(form: str) -> dict[str, Tensor]:
    return {form.format(i): rnd(f"lin{i}", 1, width, 1, 1) for i, width in enumerate(VGG_CHANNELS)}


@pytest.mark.parametrize("form", ["lin{}.model.1.weight", "vgg.lin{}", "vgg.lin{}.model.1.weight"])
def test_linear_weights_of_lpips(tmp_path, monkeypatch, form):
    monkeypatch.setattr(vgg16, "load_weights", lambda self, path: None)
    distance = LPIPS(lin_ckpt_path=save(tmp_path / "lin.pth", lin_names(form)))
    distance.load_weights()
    for i, width in enumerate(VGG_CHANNELS):
        assert torch.equal(getattr(distance, f"lin{i}").model[-1].weight, rnd(f"lin{i}", 1, width, 1, 1))


def test_uniform_linear_weights(monkeypatch):
    monkeypatch.setattr(vgg16, "load_weights", lambda self, path: None)
    distance = LPIPS(lin_ckpt_path="uniform")
    distance.load_weights()
    assert all((getattr(distance, f"lin{i}").model[-1].weight == 1 / 5).all() for i in range(5))


def test_missing_linear_weights_are_told_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setattr(vgg16, "load_weights", lambda self, path: pytest.fail("read VGG16"))
    with pytest.raises(UserError, match="or uniform .* model.params.lossconfig.params.lin_ckpt_path=FILE"):
        LPIPS().load_weights()
    incomplete = {
        name: value for name, value in lin_names("lin{}.model.1.weight").items() if "lin3" not in name
    }
    with pytest.raises(UserError, match="no weights of LPIPS layer lin3"):
        LPIPS(lin_ckpt_path=save(tmp_path / "lin.pth", incomplete)).load_weights()
