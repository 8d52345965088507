"""The adaLN UNet: every block against its formula, every option of the whole network."""

import math

import pytest
import torch
import torch.nn.functional as F
from builders import (
    BACKBONE,
    CHANNELS,
    SIDE,
    STYLE_DIM,
    UNET,
    assert_same,
    latents,
    tiny_unet,
    untrained_unet,
)
from golden_rules import apply_rule, rnd
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.adaln import (
    AdaLNAttentionBlock,
    AdaLNResBlock,
    ChannelwiseTransformerBlock,
    FinalLayer,
    TimestepEmbedder,
    TransposedAttention,
)
from ldm.modules.diffusionmodules.blocks import Downsample, Upsample
from ldm.modules.diffusionmodules.model import StyleUNetModel, UNetModel
from ldm.modules.diffusionmodules.util import GroupNorm32, Whitening, modulate, timestep_embedding
from ldm.util import instantiate_from_config

EMB, GROUPS = 12, 4
OPTIONS = {
    "published": {},
    "without scale-shift": {"use_scale_shift_norm": False},
    "new attention order": {"use_new_attention_order": True},
    "number of heads": {"num_heads": 4, "num_head_channels": -1},
    "channel-wise": {"use_channelwise_transformer": True},
    "plain resampling": {"conv_resample": False},
    "resampling res blocks": {"resblock_updown": True},
    "content as it is": {"content_refined_dim": CHANNELS},
    "three levels": {"channel_mult": [1, 2, 2], "attention_resolutions": [1, 4], "num_res_blocks": 2},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def inputs(n: int = 2, height: int = SIDE, width: int = SIDE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, time steps, content, style."""
    x, content = rnd("x", n, CHANNELS, height, width), rnd("content", n, CHANNELS, height, width)
    return x, torch.arange(n) * 300 + 7, content, rnd("style", n, STYLE_DIM)


def faint(*shape: int) -> Tensor:
    """So faint that the norms' eps shows."""
    return 3e-3 * rnd("x", *shape)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def group_norm(x: Tensor, groups: int, eps: float = 1e-5, affine: nn.Module | None = None) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    deviation = grouped - grouped.mean(-1, keepdim=True)
    normed = (deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    return (
        normed if affine is None else normed * spread(affine.weight[None], x) + spread(affine.bias[None], x)
    )


def spread(vectors: Tensor, x: Tensor) -> Tensor:
    return vectors[(...,) + (None,) * (x.ndim - 2)].expand(-1, -1, *x.shape[2:])


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2, groups=layer.groups)


def chunks(block: nn.Module, emb: Tensor, x: Tensor, count: int) -> list[Tensor]:
    linear = block.adaLN_modulation[1]
    vectors = silu(emb) @ linear.weight.T + linear.bias
    return [spread(part, x) for part in vectors.split(vectors.shape[1] // count, dim=1)]


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def halve(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


# Blocks against their formulas


@pytest.mark.parametrize("width", [8, 9, 1, 2])
def test_time_embedding_is_cosines_then_sines_then_a_zero_column_if_odd(width):
    times = [0.0, 1.0, 250.5, 999.0]
    half = width // 2
    angles = [[t * math.exp(-math.log(10000) * i / half) for i in range(half)] for t in times]
    expected = [[*map(math.cos, row), *map(math.sin, row), *[0.0] * (width % 2)] for row in angles]
    torch.testing.assert_close(
        timestep_embedding(torch.tensor(times), width), torch.tensor(expected), rtol=0, atol=1e-4
    )


def test_time_embedder_is_a_linear_silu_linear_of_the_sinusoid():
    embedder = apply_rule(TimestepEmbedder(EMB, 9))
    first, _, last = embedder.mlp
    t = torch.tensor([3, 999])
    h = silu(timestep_embedding(t, 9) @ first.weight.T + first.bias)
    assert_same(embedder(t), h @ last.weight.T + last.bias)


def test_modulate_scales_around_one_and_shifts():
    x, shift, scale = rnd("x", 2, 3, 4, 5), rnd("shift", 2, 3), rnd("scale", 2, 3)
    assert_same(modulate(x, shift, scale), x * (1 + spread(scale, x)) + spread(shift, x))


def test_group_norm_works_in_float32_and_casts_back():
    x = rnd("x", 2, 8, 3, 3) + 100
    norm = apply_rule(GroupNorm32(GROUPS, 8)).bfloat16()
    normed = norm(x.bfloat16())
    assert normed.dtype == torch.bfloat16
    assert_same(normed.float(), group_norm(x.bfloat16().float(), GROUPS, affine=norm), 1e-2)


def reference_res_block(block: AdaLNResBlock, x: Tensor, emb: Tensor, scale_shift: bool, resample) -> Tensor:
    h = conv(block.in_layers[2], resample(silu(group_norm(x, GROUPS, affine=block.in_layers[0]))))
    norm, last = block.out_layers[0], block.out_layers[3]
    if scale_shift:
        gate, scale, shift = chunks(block, emb, h, 3)
        h = gate * conv(last, silu(group_norm(h, GROUPS) * (1 + scale) + shift))
    else:
        (added,) = chunks(block, emb, h, 1)
        h = conv(last, silu(group_norm(h + added, GROUPS, affine=norm)))
    skip = resample(x)
    return h + (skip if isinstance(block.skip_connection, nn.Identity) else conv(block.skip_connection, skip))


@pytest.mark.parametrize(
    "resample, direct",
    [(None, lambda x: x), ("up", double), ("down", halve)],
    ids=["same size", "up", "down"],
)
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("out_channels", [8, 16])
def test_res_block(out_channels, scale_shift, resample, direct):
    block = AdaLNResBlock(8, EMB, 0.0, out_channels, scale_shift, num_norm_groups=GROUPS, resample=resample)
    x, emb = faint(2, 8, 4, 6), rnd("emb", 2, EMB)
    assert_same(apply_rule(block)(x, emb), reference_res_block(block, x, emb, scale_shift, direct))


def test_res_block_drops_out_in_training_only():
    block = apply_rule(AdaLNResBlock(8, EMB, 0.5, num_norm_groups=GROUPS))
    x, emb = rnd("x", 2, 8, 4, 4), rnd("emb", 2, EMB)
    assert not torch.equal(block.train()(x, emb), block(x, emb))
    assert torch.equal(block.eval()(x, emb), block(x, emb))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, d, L) each."""
    weights = torch.einsum("ndl,ndm->nlm", q, k) / math.sqrt(q.shape[1])
    weights = weights.exp() / weights.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("nlm,ndm->ndl", weights, v)


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> list[tuple[Tensor, ...]]:
    """(q, k, v) of every head."""
    if new_order:
        return list(zip(*(part.chunk(heads, dim=1) for part in qkv.chunk(3, dim=1))))
    return [head.chunk(3, dim=1) for head in qkv.chunk(heads, dim=1)]


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_block(heads, new_order):
    block = apply_rule(AdaLNAttentionBlock(8, EMB, heads, GROUPS, new_attention_order=new_order))
    x, emb = faint(2, 8, 3, 4), rnd("emb", 2, EMB)
    flat = x.reshape(2, 8, 12)
    shift, scale, gate = chunks(block, emb, flat, 3)
    h = group_norm(flat, GROUPS) * (1 + scale) + shift
    qkv = block.qkv.weight[..., 0] @ h + block.qkv.bias[:, None]
    h = torch.cat([softmax_attention(*head) for head in split_heads(qkv, heads, new_order)], dim=1)
    h = block.proj_out.weight[..., 0] @ h + block.proj_out.bias[:, None]
    assert_same(block(x, emb), (flat + gate * h).reshape(x.shape))


def reference_transposed_attention(block: TransposedAttention, x: Tensor, heads: int) -> Tensor:
    q, k, v = conv(block.qkv_dwconv, conv(block.qkv, x)).flatten(2).chunk(3, dim=1)
    q, k = (part / part.square().sum(dim=-1, keepdim=True).sqrt() for part in (q, k))
    out = []
    for head, (a, b, c) in enumerate(zip(*(part.chunk(heads, dim=1) for part in (q, k, v)))):
        weights = (a @ b.transpose(1, 2) * block.temperature[head]).exp()
        out.append(weights / weights.sum(dim=-1, keepdim=True) @ c)
    return conv(block.project_out, torch.cat(out, dim=1).reshape(x.shape))


def test_channelwise_block_is_two_gated_branches():
    block = apply_rule(ChannelwiseTransformerBlock(8, EMB, num_heads=1))
    x, emb = faint(2, 8, 3, 4), rnd("emb", 2, EMB)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = chunks(block, emb, x, 6)
    h = group_norm(x, 8, eps=1e-6) * (1 + scale_1) + shift_1
    expected = x + gate_1 * reference_transposed_attention(block.attn, h, heads=1)
    h = group_norm(expected, 8, eps=1e-6) * (1 + scale_2) + shift_2
    expected = expected + gate_2 * reference_transposed_attention(block.ffn, h, heads=2)  # of width 4
    assert_same(block(x, emb), expected)


def test_final_layer_modulates_without_a_nonlinearity():
    layer = apply_rule(FinalLayer(8, EMB, 3, GROUPS))
    x, emb = faint(2, 8, 4, 6), rnd("emb", 2, EMB)
    shift, scale = chunks(layer, emb, x, 2)
    assert_same(
        layer(x, emb), conv(layer.conv, group_norm(x, GROUPS, affine=layer.norm_final) * (1 + scale) + shift)
    )


def test_content_refinement_follows_the_time_embedding_alone():
    model = tiny_unet()
    x, t, content, style = inputs()
    first, _, last = model.content_adaLN_modulation
    emb = model.time_embed(t)
    vectors = silu(emb @ first.weight.T + first.bias) @ last.weight.T + last.bias
    shift, scale = (spread(part, content) for part in vectors.chunk(2, dim=1))
    refined = conv(model.content_in[2], silu(conv(model.content_in[0], content * (1 + scale) + shift)))
    assert_same(model.content_vectors(emb), vectors)
    assert_same(
        model.predict(x, content, vectors, emb), UNetModel.forward(model, torch.cat([x, refined], dim=1), emb)
    )
    whole = UNetModel.forward(model, torch.cat([x, refined], dim=1), emb + model.context_emb(style))
    assert_same(model(x, t, content, style), whole)


def test_content_of_the_right_width_is_not_refined():
    model = tiny_unet(content_refined_dim=CHANNELS)
    assert not [name for name, _ in model.named_parameters() if name.startswith("content_")]
    x, t, content, style = inputs()
    whole = UNetModel.forward(model, torch.cat([x, content], dim=1), model.time_embed(t), style)
    assert torch.equal(model(x, t, content, style), whole)


def test_refined_width_is_the_contents_own_by_default():
    options = {key: value for key, value in UNET.items() if key != "content_refined_dim"}
    assert StyleUNetModel(**options).input_blocks[0][0].in_channels == 2 * CHANNELS


def test_style_embedding_is_a_linear_silu_linear():
    model, (_, _, _, style) = tiny_unet(), inputs()
    first, _, last = model.context_emb
    assert_same(
        model.embed_context(style), silu(style @ first.weight.T + first.bias) @ last.weight.T + last.bias
    )


def test_whitened_components_are_all_as_strong_and_apart_from_each_other():
    whitening = Whitening(6, 4)
    vectors = 3 + rnd("vectors", 500, 6) @ (
        rnd("mixing", 6, 6) * torch.tensor([30, 10, 3, 1, 0.1, 0.05])[:, None]
    )
    whitening.measure(vectors)
    components = whitening(vectors)
    assert_same(components.mean(0) + 1, torch.ones(4), 1e-3)
    torch.testing.assert_close(components.T @ components / 500, torch.eye(4), rtol=0, atol=1e-3)
    # The strongest directions of all, so nearly everything can be had back.
    back = components @ torch.linalg.pinv(whitening.basis) + whitening.mean
    assert (back - vectors).square().sum() < 1e-3 * (vectors - vectors.mean(0)).square().sum()


def test_components_that_hardly_vary_are_not_blown_up():
    whitening = Whitening(3, 3)
    vectors = rnd("vectors", 200, 3) * torch.tensor([100.0, 10.0, 1e-3])
    whitening.measure(vectors)
    spread = whitening(vectors).std(0)
    assert (
        spread[0] == pytest.approx(1, rel=0.01)
        and spread[1] == pytest.approx(1, rel=0.01)
        and spread[2] < 0.01
    )


def test_few_vectors_make_few_components():
    whitening = Whitening(6, 4)
    whitening.measure(rnd("vectors", 3, 6))
    assert whitening.basis[:, :2].any(0).all() and not whitening.basis[:, 2:].any()


def test_whitening_keeps_its_precision_under_autocast():
    whitening, vectors = Whitening(8, 8), 100 + rnd("vectors", 50, 8)
    whitening.measure(vectors)
    expected = (vectors - whitening.mean) @ whitening.basis
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(vectors), expected)


def test_the_network_embeds_the_whitened_style():
    model, (*_, style) = tiny_unet(context_components=5), inputs()
    assert model.context_emb[0].in_features == 5
    model.context_whitening.measure(rnd("styles", 50, STYLE_DIM))
    assert_same(model.embed_context(style), model.context_emb(model.context_whitening(style)))
    assert {name for name in model.state_dict() if "whitening" in name} == {
        "context_whitening.mean",
        "context_whitening.basis",
    }
    with pytest.raises(ValueError, match="components"):
        tiny_unet(context_components=STYLE_DIM + 1)


# The tree


def test_one_pass_through_the_tree_with_skips():
    model, emb = tiny_unet(), rnd("emb", 2, 32)
    x = rnd("x", 2, CHANNELS + 3, SIDE, SIDE)
    first = model.input_blocks[0](x, emb)
    fine = model.input_blocks[1](first, emb)
    down = model.input_blocks[2](fine, emb)
    coarse = model.input_blocks[3](down, emb)
    h = model.middle_block(coarse, emb)
    for block, skip in zip(model.output_blocks, (coarse, down, fine, first), strict=True):
        h = block(torch.cat([h, skip], dim=1), emb)
    assert_same(UNetModel.forward(model, x, emb), model.out(h, emb))


@pytest.mark.parametrize("factors, where", [([1], [1, 2]), ([2], [4, 5]), ([1, 2], [1, 2, 4, 5]), ([4], [])])
def test_attention_stands_at_the_downsampling_factors_asked_for(factors, where):
    model = untrained_unet(num_res_blocks=2, attention_resolutions=factors)
    has_attention = [any(isinstance(m, AdaLNAttentionBlock) for m in block) for block in model.input_blocks]
    assert [i for i, has in enumerate(has_attention) if has] == where
    assert isinstance(model.middle_block[1], AdaLNAttentionBlock)


@pytest.mark.parametrize("heads, head_width, expected", [(4, -1, 4), (-1, 8, 4), (1, 8, 4), (16, 32, 1)])
def test_head_width_wins_over_the_number_of_heads(heads, head_width, expected):
    assert untrained_unet(num_heads=heads, num_head_channels=head_width).middle_block[1].num_heads == expected


def test_channelwise_heads_are_of_the_width_asked_for_and_of_4():
    block = untrained_unet(use_channelwise_transformer=True).middle_block[1]
    assert (block.attn.num_heads, block.ffn.num_heads) == (32 // 8, 32 // 4)


@pytest.mark.parametrize("with_conv", [True, False])
def test_resampling(with_conv):
    x = rnd("x", 2, 8, 4, 6)
    down, up = apply_rule(Downsample(8, with_conv)), apply_rule(Upsample(8, with_conv))
    strided = (
        F.conv2d(F.pad(x, (1, 1, 1, 1)), down.op.weight, down.op.bias, stride=2) if with_conv else halve(x)
    )
    assert_same(down(x), strided)
    assert_same(up(x), conv(up.conv, double(x)) if with_conv else double(x))


def test_resampling_options_choose_the_layers():
    for options, kind, learned in (
        ({}, Downsample, True),
        ({"conv_resample": False}, Downsample, False),
        ({"resblock_updown": True}, AdaLNResBlock, True),
    ):
        (layer,) = untrained_unet(**options).input_blocks[2]
        assert type(layer) is kind and bool(list(layer.parameters())) == learned


# The whole network under every option


@every_option
def test_every_sample_is_independent_of_its_batch_and_need_not_be_square(options):
    model, (x, t, content, style) = tiny_unet(**options), inputs(3, 8, 12)
    with torch.no_grad():
        batch = model(x, t, content, style)
        single = model(x[1:2], t[1:2], content[1:2], style[1:2])
    assert batch.shape == x.shape
    assert_same(batch[1:2], single, 1e-4)


@every_option
def test_untrained_network_returns_exactly_zero(options):
    x, *conditions = inputs()
    assert torch.equal(untrained_unet(**options)(x, *conditions), torch.zeros_like(x))


@every_option
def test_every_parameter_takes_part(options):
    model, (x, *conditions) = tiny_unet(**options), inputs()
    (model(x, *conditions) * rnd("direction", *x.shape)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("part", range(4), ids=["x", "time", "content", "style"])
def test_every_input_matters(part):
    model, given = tiny_unet(), list(inputs())
    with torch.no_grad():
        before = model(*given)
        given[part] = given[part] + 1
        assert (model(*given) - before).abs().mean() > 1e-3


def gradients(use_checkpoint: bool, options: dict) -> tuple[Tensor, list[Tensor], int]:
    """(output, gradients, how often a block ran) in training."""
    model, (x, *conditions) = tiny_unet(use_checkpoint=use_checkpoint, **options).train(), inputs()
    runs = []
    model.middle_block[0].in_layers[2].register_forward_hook(lambda *_: runs.append(1))
    out = model(x, *conditions)
    out.square().sum().backward()
    return out, [p.grad for p in model.parameters()], len(runs)


@pytest.mark.parametrize("name", ["published", "without scale-shift", "channel-wise"])
def test_checkpointing_recomputes_and_changes_nothing(name):
    out, grads, runs = gradients(False, OPTIONS[name])
    again, same_grads, more_runs = gradients(True, OPTIONS[name])
    assert (runs, more_runs) == (1, 2)
    assert torch.equal(out, again)
    for grad, same in zip(grads, same_grads, strict=True):
        assert_same(same, grad)


@pytest.mark.parametrize("dims, sides", [(1, (12,)), (3, (3, 4, 8))])
@pytest.mark.parametrize("refined", [3, CHANNELS])
@pytest.mark.parametrize("name", ["published", "plain resampling", "resampling res blocks"])
def test_one_and_three_dimensions(name, refined, dims, sides):
    model = tiny_unet(dims=dims, **OPTIONS[name], content_refined_dim=refined)
    x, content = rnd("x", CHANNELS, CHANNELS, *sides), rnd("content", CHANNELS, CHANNELS, *sides)
    with torch.no_grad():
        out = model(x, torch.arange(CHANNELS), content, rnd("style", CHANNELS, STYLE_DIM))
    assert out.shape == x.shape and out.std() > 0.1


# Initialisation


def linears_by_kind(model: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
    """(the adaLN outputs, all other linear layers of the base network) by name."""
    named = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    zero = {
        name: m
        for name, m in named.items()
        if "adaLN_modulation" in name and not name.endswith("modulation.0")
    }
    return zero, {
        name: m for name, m in named.items() if name not in zero and not name.startswith("content_")
    }


@every_option
def test_what_ends_a_branch_starts_at_zero(options):
    model = untrained_unet(**options)
    adaln, _ = linears_by_kind(model)
    blocks = [
        m
        for m in model.modules()
        if isinstance(m, (AdaLNResBlock, AdaLNAttentionBlock, ChannelwiseTransformerBlock, FinalLayer))
    ]
    assert len(adaln) == len(blocks) + model.refines_content
    assert not any(p.any() for layer in adaln.values() for p in layer.parameters())
    assert model.out.conv.bias is None and not model.out.conv.weight.any()


def test_without_scale_shift_every_res_block_ends_in_a_zero_conv():
    blocks = [m for m in untrained_unet(use_scale_shift_norm=False).modules() if isinstance(m, AdaLNResBlock)]
    assert blocks and not any(p.any() for block in blocks for p in block.out_layers[-1].parameters())
    assert all(
        m.out_layers[-1].weight.any() for m in untrained_unet().modules() if isinstance(m, AdaLNResBlock)
    )


def test_linear_layers_start_xavier_uniform_and_the_time_embedding_normal():
    _, linears = linears_by_kind(untrained_unet(time_embed_dim=128, hidden_time_embed_dim=64))
    assert set(linears) == {"time_embed.mlp.0", "time_embed.mlp.2", "context_emb.0", "context_emb.2"}
    for name, layer in linears.items():
        std = 0.02 if name.startswith("time") else math.sqrt(2 / sum(layer.weight.shape))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1), name
        assert not layer.bias.any()
        if name.startswith("context"):
            assert layer.weight.abs().max() <= math.sqrt(6 / sum(layer.weight.shape))


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": -1, "num_head_channels": -1}, "give num_heads or num_head_channels"),
        ({"num_heads": 5, "num_head_channels": -1}, "32 channels cannot be shared by 5 heads"),
        ({"num_head_channels": 12}, "32 channels cannot be cut into heads of 12"),
        ({"num_head_channels": 64}, "32 channels cannot be cut into heads of 64"),
        ({"use_channelwise_transformer": True, "num_head_channels": 64}, "heads of 64"),
        ({"use_channelwise_transformer": True, "num_heads": 5, "num_head_channels": -1}, "shared by 5 heads"),
        ({"use_channelwise_transformer": True, "dims": 1}, "2 dimensions only"),
        ({"dims": 4}, "dims must be 1, 2 or 3"),
        ({"num_norm_groups": 5}, "divisible"),
    ],
)
def test_contradictory_options(options, message):
    with pytest.raises(ValueError, match=message):
        untrained_unet(**options)


@pytest.mark.parametrize("option", ["use_label_emb", "num_head_chanels"])
def test_unknown_options_are_named(option):
    with pytest.raises(TypeError, match=option):
        untrained_unet(**{option: 1})
    config = {"target": "ldm.modules.diffusionmodules.model.StyleUNetModel", "params": {**UNET, option: 1}}
    with pytest.raises(ConfigError, match=option):
        instantiate_from_config(config)


@pytest.mark.parametrize("height, width", [(7, 8), (8, 9)])
def test_sides_that_cannot_be_halved(height, width):
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny_unet()(*inputs(2, height, width))


def test_wrong_number_of_channels():
    x, t, content, style = inputs()
    with pytest.raises(ValueError, match="takes 7 channels"):
        tiny_unet()(x[:, 1:], t, content, style)


@pytest.mark.parametrize("context_dim", [None, STYLE_DIM + 1])
def test_style_of_another_width(context_dim):
    with pytest.raises(ValueError, match=f"context of width {STYLE_DIM}, but context_dim is {context_dim}"):
        tiny_unet(context_dim=context_dim)(*inputs())


def test_base_network_takes_an_embedding_instead_of_time_steps():
    model = apply_rule(UNetModel(**BACKBONE, in_channels=CHANNELS)).eval()
    out = model(latents("x"), model.embed(torch.tensor([3, 900])))
    assert out.shape == (2, CHANNELS, SIDE, SIDE) and out.std() > 0.1
