"""The vector-quantised first stage: the quantiser, the model, its loss, its training."""

import math
from typing import Any

import pytest
import torch
from builders import HALVES, assert_same, fit
from golden_rules import apply_rule, rnd
from torch import Tensor, nn

from ldm.errors import CheckpointError, ConfigError
from ldm.models.autoencoder import IdentityFirstStage, VQModel, VQModelInterface
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator, codebook_usage
from ldm.modules.vqvae import quantize
from ldm.modules.vqvae.quantize import VectorQuantizer

CODES, WIDTH = 7, 4
PARAMS = {
    "ddconfig": {**HALVES, "double_z": False},
    "lossconfig": {"target": "torch.nn.Identity"},
    "n_embed": CODES,
    "embed_dim": WIDTH,
}
LOSS = {
    "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 2, "perceptual_weight": 0.0, "disc_num_layers": 1},
}


def vq_model(kind: type[VQModel] = VQModel, **changes: Any) -> VQModel:
    return apply_rule(kind(**{**PARAMS, **changes})).eval()


def quantizer(**changes: Any) -> VectorQuantizer:
    return apply_rule(VectorQuantizer(CODES, WIDTH, **changes))


def latent() -> Tensor:
    return rnd("z", 2, WIDTH, 3, 5).requires_grad_()


def pictures(n: int = 2) -> Tensor:
    return rnd("pictures", n, 3, 16, 24).tanh()


# The quantiser


def by_hand(codes: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(z_q, indices): for every position, the code at the smallest distance."""
    z_q, indices = torch.empty_like(z), []
    for n in range(z.shape[0]):
        for y in range(z.shape[2]):
            for x in range(z.shape[3]):
                distances = [float((z[n, :, y, x] - code).square().sum()) for code in codes]
                indices.append(distances.index(min(distances)))
                z_q[n, :, y, x] = codes[indices[-1]]
    return z_q, torch.tensor(indices)


@pytest.mark.parametrize("rows", [4096, 4])
@torch.no_grad()
def test_every_position_becomes_its_nearest_code(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "ROWS", rows)
    q, z = quantizer(), latent()
    expected, indices = by_hand(q.embedding.weight, z)
    z_q, _, (perplexity, encodings, found) = q(z)
    assert len(indices.unique()) > 2 and torch.equal(found, indices) and perplexity is encodings is None
    assert_same(z_q, expected)
    assert torch.equal(q.embed_code(found.reshape(2, 3, 5)), expected)
    assert torch.equal(q.get_codebook_entry(found, (2, 3, 5, WIDTH)), expected)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_codebook_loss_and_where_its_gradients_go(legacy: bool) -> None:
    q, z = quantizer(beta=0.25, legacy=legacy), latent()
    z_q, _ = by_hand(q.embedding.weight.detach(), z.detach())
    _, loss, (_, _, indices) = q(z)
    loss.backward()
    distance = z.detach() - z_q
    assert_same(loss, 1.25 * distance.square().mean())
    of_latents, of_codes = (1.0, 0.25) if legacy else (0.25, 1.0)
    assert_same(z.grad, of_latents * 2 * distance / distance.numel())
    pulls = torch.zeros(CODES, WIDTH).index_add_(0, indices, distance.permute(0, 2, 3, 1).reshape(-1, WIDTH))
    assert_same(q.embedding.weight.grad, -of_codes * 2 * pulls / distance.numel())


def test_the_gradient_passes_the_quantiser_unchanged() -> None:
    q, z, direction = quantizer(), latent(), rnd("direction", 2, WIDTH, 3, 5)
    (q(z)[0] * direction).sum().backward()
    assert torch.equal(z.grad, direction) and q.embedding.weight.grad is None


def test_half_precision_chooses_the_same_codes() -> None:
    q, z = VectorQuantizer(512, WIDTH), rnd("z", 2, WIDTH, 16, 16) / 512
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_q, loss, (_, _, indices) = q(z)
    assert torch.equal(indices, q(z)[2][2]) and loss.dtype == torch.float32
    assert q(z.bfloat16())[0].dtype == torch.bfloat16


def test_new_codes_are_uniform_and_small() -> None:
    weight = VectorQuantizer(100, 50).embedding.weight.detach()
    assert weight.abs().max() <= 0.01 and abs(float(weight.std()) * 100 - 1 / math.sqrt(3)) < 0.02


# The model


@torch.no_grad()
def test_encoding_quantises_and_decoding_does_not() -> None:
    model, x = vq_model(), pictures()
    h = model.encode_to_prequant(x)
    assert_same(h, model.quant_conv(model.encoder(x)))
    quantised, loss, (_, _, indices) = model.encode(x)
    assert_same(quantised, by_hand(model.quantize.embedding.weight, h)[0])
    assert_same(model.decode(quantised), model.decoder(model.post_quant_conv(quantised)))
    assert_same(model.decode_code(indices.reshape(2, *h.shape[2:])), model.decode(quantised))
    recon, own_loss, own_indices = model(x, return_pred_indices=True)
    assert_same(recon, model.decode(quantised))
    assert torch.equal(own_loss, loss) and torch.equal(own_indices, indices)
    assert len(model(x)) == 2 and torch.equal(model(x)[0], recon)


@torch.no_grad()
def test_the_interface_quantises_in_decoding() -> None:
    plain, model, x = vq_model(), vq_model(VQModelInterface), pictures()
    h = model.encode(x)
    assert torch.equal(h, plain.encode_to_prequant(x))
    assert_same(model.decode(h), plain.decode(plain.encode(x)[0]))
    assert_same(model.decode(h, force_not_quantize=True), plain.decode(h))
    assert (model.decode(h) - plain.decode(h)).abs().max() > 0.1
    assert_same(model(x)[0], plain(x)[0])


def test_every_parameter_takes_part() -> None:
    model, x = vq_model(), pictures()
    recon, loss = model(x)
    ((recon * rnd("direction", *x.shape)).sum() + loss).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_layout_is_the_published_one() -> None:
    shapes = {name: tuple(value.shape) for name, value in vq_model().state_dict().items()}
    assert {name.partition(".")[0] for name in shapes} == {
        "encoder",
        "decoder",
        "quantize",
        "quant_conv",
        "post_quant_conv",
    }
    assert shapes["quantize.embedding.weight"] == (CODES, WIDTH) and shapes["encoder.conv_out.weight"] == (
        WIDTH,
        16,
        3,
        3,
    )
    assert shapes["quant_conv.weight"] == shapes["post_quant_conv.weight"] == (WIDTH, WIDTH, 1, 1)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_loads_a_published_file(tmp_path, prefix: str) -> None:
    state = {f"{prefix}{name}": 2 * value for name, value in vq_model().state_dict().items()}
    torch.save(
        {"state_dict": state | {f"{prefix}loss.discriminator.main.0.weight": torch.zeros(4)}},
        tmp_path / "vq.ckpt",
    )
    model = VQModelInterface(**{**PARAMS, "ckpt_path": str(tmp_path / "vq.ckpt")})
    assert model.has_weights and all(
        torch.equal(model.state_dict()[name.removeprefix(prefix)], value) for name, value in state.items()
    )
    del state[f"{prefix}quantize.embedding.weight"]
    torch.save({"state_dict": state}, tmp_path / "vq.ckpt")
    with pytest.raises(CheckpointError, match="1 missing .quantize.embedding.weight"):
        VQModel(**{**PARAMS, "ckpt_path": str(tmp_path / "vq.ckpt")})


@pytest.mark.parametrize("ddconfig", [HALVES, {**HALVES, "double_z": True}])
def test_a_doubled_latent_is_refused(ddconfig: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs `double_z: false` for a vector-quantised"):
        vq_model(ddconfig=ddconfig)


def test_a_first_stage_that_does_nothing() -> None:
    model, x = IdentityFirstStage(), pictures()
    assert model.encode(x) is model.decode(x, force_not_quantize=True) is model.quantize(x) is model(x) is x
    assert IdentityFirstStage(vq_interface=True).quantize(x)[0] is x


# The loss


def vq_loss(**changes: Any) -> VQLPIPSWithDiscriminator:
    return apply_rule(VQLPIPSWithDiscriminator(**{**LOSS["params"], **changes}))


def test_the_loss_is_a_mean_and_the_weighed_codebook_loss() -> None:
    x, recon, codebook = pictures(), rnd("recon", 2, 3, 16, 24), torch.tensor(0.7)
    latent = (codebook, torch.tensor([0, 1]))
    value, parts = vq_loss(codebook_weight=0.5).autoencoder_loss(
        x, recon, latent, 1, nn.Parameter(torch.ones(1))
    )
    assert_same(value, (x - recon).abs().mean() + 0.35)
    assert (
        parts.keys() == {"total_loss", "rec_loss", "nll_loss", "quant_loss"}
        and parts["quant_loss"] == codebook
    )


def test_the_discriminator_joins_in_at_its_step() -> None:
    loss, last, x = vq_loss(disc_weight=0.75), nn.Parameter(torch.ones(1)), pictures()
    recon = last * rnd("recon", 2, 3, 16, 24)
    value, parts = loss.autoencoder_loss(x, recon, (torch.tensor(0.7), torch.tensor([0])), 2, last)
    norms = [
        torch.autograd.grad(part, last, retain_graph=True)[0].norm()
        for part in ((x - recon).abs().mean(), loss.discriminator(recon).mean())
    ]
    assert_same(parts["d_weight"], 0.75 * norms[0] / (norms[1] + 1e-4))
    assert_same(value, (x - recon).abs().mean() + 0.7 - parts["d_weight"] * loss.discriminator(recon).mean())


def test_how_much_of_the_codebook_is_used() -> None:
    usage = codebook_usage(torch.tensor([0, 3, 0, 3, 0, 3]), 8)
    assert usage["cluster_usage"] == 2
    assert_same(usage["perplexity"], torch.tensor(2.0))
    _, parts = vq_loss(n_classes=8).autoencoder_loss(
        pictures(), pictures(), (torch.tensor(0.0), torch.arange(8)), 0, nn.Parameter(torch.ones(1))
    )
    assert_same(parts["perplexity"], torch.tensor(8.0))


# Training


def test_all_of_it_trains(tmp_path) -> None:
    model = vq_model(
        lossconfig={**LOSS, "params": {**LOSS["params"], "n_classes": CODES, "disc_loss": "vanilla"}}
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, pictures(n=4).permute(0, 2, 3, 1), tmp_path)
    assert (
        model.global_step == 4
        and {"train/quant_loss", "train/cluster_usage", "train/disc_loss"}
        <= model.trainer.callback_metrics.keys()
    )
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_what_the_optimisers_train_in_the_published_order() -> None:
    model = vq_model(lossconfig=LOSS)
    weights, discriminator = (
        optimizer.param_groups[0]["params"] for optimizer in model.configure_optimizers()
    )
    halves = (model.encoder, model.decoder, model.quantize, model.quant_conv, model.post_quant_conv)
    assert [id(p) for p in weights] == [id(p) for part in halves for p in part.parameters()]
    assert len(discriminator) == len(list(model.loss.discriminator.parameters()))


def test_trainable_decoder_freezes_the_codebook_too() -> None:
    trained = {
        name.partition(".")[0]
        for name, p in vq_model(trainable="decoder", lossconfig=LOSS).named_parameters()
        if p.requires_grad
    }
    assert trained == {"decoder", "post_quant_conv", "loss"}


@torch.no_grad()
def test_pictures_for_the_logger() -> None:
    model, x = vq_model(), pictures()
    logged = model.log_images({"image": x.permute(0, 2, 3, 1)}, max_images=1)
    assert torch.equal(logged["inputs"], x[:1]) and torch.equal(logged["reconstructions"], model(x[:1])[0])


def test_training_needs_its_own_loss(tmp_path) -> None:
    of_kl = {
        "target": "ldm.modules.losses.LPIPSWithDiscriminator",
        "params": {"disc_start": 0, "perceptual_weight": 0.0},
    }
    with pytest.raises(ConfigError, match="must be ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"):
        fit(vq_model(lossconfig=of_kl), pictures().permute(0, 2, 3, 1), tmp_path)
