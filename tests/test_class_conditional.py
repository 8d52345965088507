"""Latent diffusion under a condition stage: labels, texts, pictures; cross-attention; the numbers of the published code."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CHANNELS, LATENT, SIDE, assert_same, latents
from golden_rules import GOLDEN, apply_rule, assert_close, rnd
from omegaconf import OmegaConf
from pipeline_builders import assert_refused, picture, picture_folder, run_program, script
from torch import Tensor, nn
from training_builders import data_module, logged, logger_node, recipe, train

from ldm.data.classes import ClassFolders
from ldm.errors import ConfigError, UserError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel
from ldm.models.inference import load_for_inference
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.pipeline.classes import sample_classes
from ldm.util import instantiate_from_config

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES, WIDTH = 5, 12  # four and the null class; width of a class's vector
UNET = {
    "image_size": SIDE, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
CROSS = {**UNET, "use_spatial_transformer": True, "context_dim": WIDTH}
EMBEDDER = {
    "target": "ldm.modules.encoders.modules.ClassEmbedder",
    "params": {"n_classes": CLASSES, "embed_dim": WIDTH, "key": "class_label"},
}
T = torch.tensor([3, 900])


def unet(**changes: Any) -> UNetModel:
    """One in which every layer acts."""
    return apply_rule(UNetModel(**{**UNET, **changes})).eval()


def options(**changes: Any) -> dict[str, Any]:
    network = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": CROSS}
    defaults = {
        "unet_config": network,
        "cond_stage_config": EMBEDDER,
        "cond_stage_key": "class_label",
        "cond_stage_trainable": True,
        "conditioning_key": "crossattn",
    }
    return {**LATENT, **defaults, **changes}


def class_ldm(**changes: Any) -> LatentDiffusion:
    return apply_rule(LatentDiffusion(**options(**changes))).eval()


def batch(labels: list[int]) -> dict[str, Any]:
    side = SIDE * 4
    return {"image": rnd("pictures", len(labels), side, side, 3).tanh(), "class_label": torch.tensor(labels)}


# The published numbers


@pytest.fixture(scope="module")
def golden() -> tuple[LatentDiffusion, dict[str, np.ndarray]]:
    model = instantiate_from_config(OmegaConf.load(GOLDEN / "class_cond_ldm.yaml").model)
    return apply_rule(model).eval(), dict(np.load(GOLDEN / "class_cond_ldm.npz"))


def test_state_dict_is_the_published_layout(golden) -> None:
    expected = json.loads((GOLDEN / "class_cond_ldm_state_dict.json").read_text())
    actual = {
        key: [str(v.dtype).removeprefix("torch."), list(v.shape)] for key, v in golden[0].state_dict().items()
    }
    assert len(actual) == 767 and actual == expected


@torch.no_grad()
def test_published_numbers(golden) -> None:
    model, data = golden
    of = {name: torch.from_numpy(value) for name, value in data.items()}
    c = model.get_learned_conditioning({"class_label": of["class_label"]})
    assert_close(c, data["c"], name="c")
    assert_close(model.null_condition(3), data["uc"], name="uc")
    assert_close(model.apply_model(of["x"], of["t"], c), data["unet_out"], name="unet_out")
    posterior = model.encode_first_stage(of["image"])
    assert_close(posterior.parameters, data["moments"], name="moments")
    loss, parts = model.p_losses(model.get_first_stage_encoding(posterior.mode()), c, of["t"], of["noise"])
    assert_close(loss, data["loss"], name="loss")
    assert_close(parts["val/loss_vlb"], data["loss_vlb"], name="loss_vlb")


def test_published_sampling_run(golden) -> None:
    model, data = golden
    c, uc, x = (torch.from_numpy(data[name]) for name in ("c", "uc", "x"))
    guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": uc}
    samples, _ = DDIMSampler(model).sample(5, 3, x.shape[1:], c, x_T=x, eta=0.0, verbose=False, **guidance)
    assert_close(samples, data["ddim5_scale3"], 1e-3)
    assert_close(model.decode_first_stage(samples), data["decoded"], 1e-3)


# The network


def by_hand(block: nn.Module, x: Tensor, emb: Tensor, scale_shift: bool) -> Tensor:
    """The residual block as in the paper's code, without resampling."""
    h = block.in_layers(x)
    vector = block.emb_layers(emb)[..., None, None]
    if not scale_shift:
        return block.skip_connection(x) + block.out_layers(h + vector)
    scale, shift = vector.chunk(2, dim=1)
    norm, *rest = block.out_layers
    return block.skip_connection(x) + nn.Sequential(*rest)(norm(h) * (1 + scale) + shift)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_residual_block(scale_shift: bool) -> None:
    block = unet(use_scale_shift_norm=scale_shift).input_blocks[3][0]  # where the width changes
    x, emb = rnd("x", 2, 32, 4, 4), rnd("emb", 2, 128)
    assert_same(block(x, emb), by_hand(block, x, emb, scale_shift))


def test_plain_attention_block() -> None:
    model = unet()
    block = next(m for m in model.modules() if isinstance(m, AttentionBlock))
    x = rnd("x", 2, 64, 4, 4)
    q, k, v = block.qkv(block.norm(x.flatten(2))).reshape(2, 4, 3, 16, 16).unbind(2)
    weights = (torch.einsum("nhcl,nhcm->nhlm", q, k) / 4).softmax(-1)
    attended = torch.einsum("nhlm,nhcm->nhcl", weights, v).reshape(2, 64, 16)
    assert_same(block(x), x + block.proj_out(attended).reshape(x.shape))


def test_spatial_transformer_attends_to_itself_then_to_the_context() -> None:
    block = unet(use_spatial_transformer=True, context_dim=WIDTH).middle_block[1]
    inner = block.transformer_blocks[0]
    x, context = rnd("x", 2, 64, 4, 4), rnd("context", 2, 3, WIDTH)

    def attention(layer: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(2, -1, 4, 16).transpose(1, 2)
            for part in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
        )
        return layer.to_out(((q @ k.transpose(2, 3) / 4).softmax(-1) @ v).transpose(1, 2).reshape(2, -1, 64))

    h = block.proj_in(block.norm(x)).flatten(2).transpose(1, 2)
    h = h + attention(inner.attn1, inner.norm1(h), inner.norm1(h))
    h = h + attention(inner.attn2, inner.norm2(h), context)
    values, gate = inner.ff.net[0].proj(inner.norm3(h)).chunk(2, dim=-1)
    h = h + inner.ff.net[2](values * nn.functional.gelu(gate))
    assert block.norm.eps == 1e-6
    assert_same(block(x, context), x + block.proj_out(h.transpose(1, 2).reshape(x.shape)), 1e-4)


def test_labels_join_the_time_embedding() -> None:
    model, x, y = unet(num_classes=7), latents("x"), torch.tensor([6, 2])
    emb = model.time_embed(timestep_embedding(T, 32)) + model.label_emb(y)
    assert_same(model(x, T, y=y), model.out(model.through_tree(x, emb)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock_updown": True},
        {"conv_resample": False},
        {"num_heads": 4, "num_head_channels": -1},
        {"use_new_attention_order": True},
        CROSS | {"transformer_depth": 2},
    ],
    ids=["plain", "updown", "no conv", "heads", "new order", "deep"],
)
def test_every_parameter_takes_part_and_checkpointing_changes_nothing(changes: dict[str, Any]) -> None:
    context = rnd("context", 2, 3, WIDTH) if "context_dim" in changes else None
    results = []
    for recompute in (False, True):
        model = unet(**changes, use_checkpoint=recompute).train()
        out = model(latents("x"), T, context)
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        results.append((out, model.input_blocks[0][0].weight.grad))
    assert out.shape == (2, CHANNELS, SIDE, SIDE)
    for plain, recomputed in zip(*results):
        assert_same(recomputed, plain)


def test_an_untrained_network_gives_zero() -> None:
    assert not UNetModel(**CROSS)(latents("x"), T, rnd("context", 2, 3, WIDTH)).any()


STABLE_DIFFUSION_1 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768, "legacy": False,
}  # fmt: skip
IMAGENET_256 = {
    "image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 192, "attention_resolutions": [8, 4, 2], "num_res_blocks": 2,
    "channel_mult": [1, 2, 3, 5], "num_heads": 1, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    "config, parameters",
    [(STABLE_DIFFUSION_1, 859_520_964), (IMAGENET_256, 400_920_579)],
    ids=["Stable Diffusion 1", "ImageNet 256"],
)
def test_published_networks_have_their_published_sizes(config: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in UNetModel(**config).parameters()) == parameters


@pytest.mark.parametrize(
    "changes, call, problem",
    [
        ({"use_spatial_transformer": True}, {}, "use_spatial_transformer and context_dim"),
        ({"context_dim": 8}, {}, "use_spatial_transformer and context_dim"),
        (CROSS | {"dims": 3}, {}, "2 dimensions"),
        ({"num_heads": -1, "num_head_channels": -1}, {}, "num_heads or num_head_channels"),
        (CROSS, {"context": torch.zeros(2, 3, WIDTH + 1)}, rf"\(2, 3, {WIDTH + 1}\).*\(N, L, {WIDTH}\)"),
        (CROSS, {"context": torch.zeros(2, WIDTH)}, r"\(N, L"),
        ({}, {"context": torch.zeros(2, 3, WIDTH)}, "takes none"),
        ({}, {"y": torch.zeros(2, dtype=torch.long)}, "no label"),
        ({"num_classes": 3}, {}, "a label y"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], call: dict[str, Tensor], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        UNetModel(**{**UNET, **changes})(latents("x"), T, **call)


# Conditions


class Seen(nn.Module):
    """A network that tells what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.got = {"x": x, **condition}
        return x[:, :CHANNELS]


def with_seen(key: str | None) -> LatentDiffusion:
    model = LatentDiffusion(**options(conditioning_key=key))
    model.model.diffusion_model = Seen()
    return model


@pytest.mark.parametrize("given", ["tensor", "list", "dict"])
@pytest.mark.parametrize("key", ["concat", "crossattn", "adm"])
def test_one_condition_goes_where_the_key_says(key: str, given: str) -> None:
    model, x = with_seen(key), latents("x")
    c = {"concat": latents("c"), "crossattn": rnd("c", 2, 3, WIDTH), "adm": torch.tensor([1, 2])}[key]
    name = "c_concat" if key == "concat" else "c_crossattn"
    model.apply_model(x, T, {"tensor": c, "list": [c], "dict": {name: [c]}}[given])
    got = model.model.diffusion_model.got
    expected = (
        {"x": torch.cat([x, c], 1)}
        if key == "concat"
        else {"x": x, {"crossattn": "context", "adm": "y"}[key]: c}
    )
    assert got.keys() == expected.keys() and all(
        torch.equal(got[name], value) for name, value in expected.items()
    )


def test_hybrid_takes_both_and_sequences_are_joined() -> None:
    model, x, a, b = with_seen("hybrid"), latents("x"), rnd("a", 2, 3, WIDTH), rnd("b", 2, 1, WIDTH)
    model.apply_model(x, T, {"c_concat": [latents("c")], "c_crossattn": [a, b]})
    got = model.model.diffusion_model.got
    assert torch.equal(got["x"], torch.cat([x, latents("c")], 1)) and torch.equal(
        got["context"], torch.cat([a, b], 1)
    )
    for missing in ({"c_concat": [latents("c")]}, {"c_crossattn": [a]}, None):
        with pytest.raises(ValueError, match="c_concat and c_crossattn"):
            model.apply_model(x, T, missing)


@pytest.mark.parametrize("concat_mode, expected", [(True, "concat"), (False, "crossattn")])
def test_the_published_default_of_the_key(concat_mode: bool, expected: str) -> None:
    assert (
        LatentDiffusion(**options(conditioning_key=None, concat_mode=concat_mode)).model.conditioning_key
        == expected
    )
    unconditional = LatentDiffusion(
        **options(conditioning_key=None, cond_stage_config="__is_unconditional__", cond_stage_trainable=False)
    )
    assert (
        unconditional.model.conditioning_key is None and unconditional.condition_of({}, latents("x")) is None
    )


def test_the_first_stage_as_condition_stage() -> None:
    network = {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {**UNET, "in_channels": 2 * CHANNELS},
    }
    model = class_ldm(
        unet_config=network,
        cond_stage_config="__is_first_stage__",
        cond_stage_key="sketch",
        conditioning_key="concat",
        cond_stage_trainable=False,
    )
    sketch = rnd("sketch", 2, 32, 32, 3).tanh()
    _, c = model.get_input({**batch([0, 1]), "sketch": sketch}, "image")
    assert_same(c, model.first_stage_model.encode(sketch.permute(0, 3, 1, 2)).mode())
    assert model.apply_model(latents("x"), T, c).shape == (2, CHANNELS, SIDE, SIDE)
    assert not {id(p) for p in model.trained_parameters()} & {
        id(p) for p in model.first_stage_model.parameters()
    }


@pytest.mark.parametrize("trainable", [True, False])
def test_a_frozen_condition_stage_stays_in_eval_mode_and_learns_nothing(trainable: bool) -> None:
    model = class_ldm(cond_stage_trainable=trainable).train()
    assert model.cond_stage_model.training == trainable
    model.shared_step(batch([0, 3]))[0].backward()
    embedding = model.cond_stage_model.embedding.weight
    assert (embedding.grad is not None) == embedding.requires_grad == trainable
    assert any(p is embedding for p in model.trained_parameters()) == trainable


class Recoder(nn.Module):
    def encode(self, c: Tensor) -> Tensor:
        return c[:, None, None].expand(-1, 1, WIDTH) + 1.0

    def by_another_name(self, c: Tensor) -> Tensor:
        return self.encode(c) + 1.0


def test_encode_is_preferred_and_another_method_can_be_named() -> None:
    model = LatentDiffusion(
        **options(cond_stage_config={"target": "torch.nn.Identity"}, cond_stage_trainable=False)
    )
    labels = torch.tensor([1, 2])
    assert torch.equal(model.get_learned_conditioning(labels), labels)
    model.cond_stage_model = Recoder()
    assert model.get_learned_conditioning(labels)[1, 0, 0] == 3
    model.cond_stage_forward = "by_another_name"
    assert model.get_learned_conditioning(labels)[1, 0, 0] == 4


def test_some_training_samples_go_without_their_class() -> None:
    model, seen = class_ldm(cond_drop=0.25), []
    model.cond_stage_model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.manual_seed(0)
    labels = [0, 1, 2, 3] * 100
    data = {"class_label": torch.tensor(labels)}
    model.train().get_learned_conditioning(model.condition_input(data))
    dropped = seen[0] == CLASSES - 1
    assert 0.15 < dropped.float().mean() < 0.35 and torch.equal(
        seen[0][~dropped], data["class_label"][~dropped]
    )
    model.eval().get_learned_conditioning(model.condition_input(data))
    assert torch.equal(seen[1], data["class_label"])


def test_texts_and_pictures_can_be_dropped_too() -> None:
    model = class_ldm(cond_drop=0.5).train()
    torch.manual_seed(1)
    model.cond_stage_model.null_input = lambda n: [""] * n
    given = model.condition_input({"class_label": ["a boat"] * 50})
    assert set(given) == {"", "a boat"}
    model.cond_stage_model.null_input = lambda n: torch.zeros(n, 3, 1, 1)
    given = model.condition_input({"class_label": torch.ones(50, 5, 4, 3)})
    assert given.shape == (50, 3, 5, 4) and 5 < given[:, 0, 0, 0].sum() < 45


def test_bad_conditions_are_named() -> None:
    model = class_ldm()
    with pytest.raises(ValueError, match="label 5 is not one of 0 to 4"):
        model.get_learned_conditioning({"class_label": torch.tensor([0, 5])})
    with pytest.raises(ConfigError, match="no 'class_label' .*only image, path"):
        model.get_input({"image": batch([0])["image"], "path": ["x"]}, "image")
    with pytest.raises(ConfigError, match="no condition stage"):
        LatentDiffusion(
            **options(
                cond_stage_config="__is_unconditional__", cond_stage_trainable=False, conditioning_key=None
            )
        ).get_learned_conditioning(1)


@pytest.mark.parametrize("drop", [-0.1, 2.0])
def test_the_share_without_condition_is_a_probability(drop: float) -> None:
    with pytest.raises(ConfigError, match="cond_drop must be between 0 and 1"):
        LatentDiffusion(**options(cond_drop=drop))


def test_what_is_no_map_cannot_be_joined() -> None:
    with pytest.raises(ConfigError, match=r"takes maps of the latent's size, \(8, 8\), not \[\(2, 1, 12\)\]"):
        with_seen("concat").apply_model(latents("x"), T, rnd("c", 2, 1, WIDTH))


# CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random CLIP: text network, its tokenizer of a few letters, picture network."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 12,
    }
    text = transformers.CLIPTextConfig(
        vocab_size=20, max_position_embeddings=10, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
    transformers.CLIPTextModel(text).save_pretrained(folder / "text")
    transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(image_size=16, patch_size=8, **sizes)
    ).save_pretrained(folder / "pictures")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghi", *(f"{letter}</w>" for letter in "abcdefghi")]
    (folder / "text/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "text/merges.txt").write_text("#version: 0.2\n")
    (folder / "text/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 10})
    )
    return folder


def clip_stage(kind: str, folder: Path, **params: Any) -> dict[str, Any]:
    return {"target": f"ldm.modules.encoders.modules.{kind}", "params": {"version": str(folder), **params}}


def test_clip_of_texts(clip: Path) -> None:
    import transformers

    model = LatentDiffusion(
        **options(
            cond_stage_config=clip_stage("FrozenCLIPEmbedder", clip / "text", max_length=10),
            cond_stage_trainable=False,
        )
    )
    c = model.get_learned_conditioning(["abc de", "f"])
    tokens = torch.tensor([[0, 2, 3, 13, 5, 15, 1, 1, 1, 1], [0, 16, 1, 1, 1, 1, 1, 1, 1, 1]])
    expected = transformers.CLIPTextModel.from_pretrained(clip / "text")(input_ids=tokens).last_hidden_state
    assert_same(c, expected)
    assert_same(model.null_condition(2), model.get_learned_conditioning(["", ""]))
    names = [name for name in model.state_dict() if name.startswith("cond_stage_model.")]
    # as in Stable Diffusion 1
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in names
    assert "cond_stage_model.transformer.text_model.embeddings.position_ids" in model.optional_keys({})


def test_clip_of_pictures(clip: Path) -> None:
    import transformers

    stage = instantiate_from_config(clip_stage("FrozenCLIPImageEmbedder", clip / "pictures")).eval()
    x = rnd("x", 2, 3, 16, 16).tanh()
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(clip / "pictures")
    assert_same(stage(x), network(pixel_values=((x + 1) / 2 - mean) / std).image_embeds[:, None], 1e-4)
    assert stage(rnd("large", 1, 3, 40, 24)).shape == (1, 1, 12) and stage(stage.null_input(3)).shape == (
        3,
        1,
        12,
    )


def test_clip_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="give a folder with its files"):
        instantiate_from_config(clip_stage("FrozenCLIPEmbedder", tmp_path / "nothing"))
    monkeypatch.setattr("ldm.modules.encoders.modules.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"artfusion\[clip\]"):
        instantiate_from_config(clip_stage("FrozenCLIPEmbedder", tmp_path))


# Data, training, sampling


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for i, name in enumerate(["oak", "ash", "elm", "fir"]):
        picture_folder(root / name, 3, seed=10 * i)
    return root


def test_labels_are_the_folders_in_order_for_every_split(folders: Path) -> None:
    for split in ("all", "train", "validation"):
        data = ClassFolders(str(folders), size=16, split=split, validation_share=0.3, seed=3)
        assert data.classes == ["ash", "elm", "fir", "oak"]
        for sample in map(data.__getitem__, range(len(data))):
            assert Path(sample["path"]).parts[-3] == data.classes[sample["class_label"]]


def test_a_picture_in_no_class(folders: Path, tmp_path: Path) -> None:
    picture_folder(tmp_path / "a", 1)
    picture(20, 20).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match="belongs to no class; move it into a folder"):
        ClassFolders(str(tmp_path))


def test_the_label_is_that_of_the_picture_that_stands_in(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/broken.png").write_bytes(b"no picture")
    picture_folder(tmp_path / "b", 1)
    sample = ClassFolders(str(tmp_path), size=16, split="all")[0]
    assert sample["class_label"] == 1 and "broken" in sample["unreadable"]


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of three steps."""
    folder = tmp_path_factory.mktemp("run")
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": options(cond_drop=0.2)}
    node = {
        "target": "ldm.data.classes.ClassFolders",
        "params": {"root": str(folders), "size": 32, "split": "all"},
    }
    config = recipe(
        folder / "classes.yaml",
        model,
        data_module(node, node),
        steps=3,
        callbacks=logger_node(batch_frequency=1),
    )
    return train(config)


def test_a_run_validates_and_draws_samples(run: Path) -> None:
    assert len(logged(run, "val/loss_ema")) >= 1
    kinds = {path.name.split("_0")[0] for path in (run / "images").iterdir()}
    assert kinds == {"reconstructions", "samples", "guidance_3"}


def test_without_dropped_classes_there_need_be_no_null_class() -> None:
    stage = ClassEmbedder(8, n_classes=2)
    stage.check_classes(["a", "b"], with_null=False)
    with pytest.raises(ConfigError, match="n_classes must be 3"):
        stage.check_classes(["a", "b"], with_null=True)


@pytest.mark.parametrize("n_classes, drop", [(3, 0.0), (4, 0.1), (6, 0.0)])
def test_a_number_of_classes_that_is_not_the_datas_is_refused_before_training(
    folders: Path, tmp_path: Path, n_classes: int, drop: float
) -> None:
    stage = {**EMBEDDER, "params": {**EMBEDDER["params"], "n_classes": n_classes}}
    model = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": options(cond_stage_config=stage, cond_drop=drop),
    }
    node = {
        "target": "ldm.data.classes.ClassFolders",
        "params": {"root": str(folders), "size": 32, "split": "all"},
    }
    with pytest.raises(ConfigError, match=f"4 classes of pictures.*n_classes must be 5 .*not {n_classes}"):
        train(recipe(tmp_path / "classes.yaml", model, data_module(node, node)))


def test_a_first_stage_without_weights_is_told(
    run: Path, folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": options()}
    node = {
        "target": "ldm.data.classes.ClassFolders",
        "params": {"root": str(folders), "size": 32, "split": "all"},
    }
    train(recipe(tmp_path / "classes.yaml", model, data_module(node, node), steps=1))
    assert "the first stage has random weights: give its file" in caplog.text


def test_samples_are_guided_away_from_the_null_class_each_from_its_own_seed(run: Path) -> None:
    model = load_for_inference(
        run / "checkpoints/last.ckpt", run.parents[1] / "classes.yaml", LatentDiffusionModel
    ).eval()
    apply_rule(model)
    pictures = sample_classes(model, [0, 3, 3], [5, 6, 5], scale=2.0, steps=3)
    assert_same(sample_classes(model, [3], [5], scale=2.0, steps=3), pictures[2:], 1e-4)
    assert (pictures[1] - pictures[2]).abs().max() > 0.01 and (pictures[0] - pictures[2]).abs().max() > 1e-4
    x_T = torch.randn(CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(6))[None]
    c, uc = model.get_learned_conditioning(torch.tensor([3])), model.null_condition(1)
    guidance = {"unconditional_guidance_scale": 2.0, "unconditional_conditioning": uc}
    z, _ = DDIMSampler(model).sample(
        3, 1, x_T.shape[1:], c, x_T=x_T, ddim_discretize="trailing", verbose=False, **guidance
    )
    assert_same(pictures[1:2], model.decode_first_stage(z), 1e-4)


def sheet(run: Path, output: Path, *more: str) -> list[str | Path]:
    files = [
        "--checkpoint",
        run / "checkpoints/last.ckpt",
        "--config",
        run.parents[1] / "classes.yaml",
        "--output",
        output,
    ]
    return [*files, "--steps", "2", "--n", "2", "--classes", *more]


def test_the_program_writes_a_sheet(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script("sample_classes")
    for name in ("a.png", "b.png"):
        assert run_program(program.main, sheet(run, tmp_path / name, "0", "3"), monkeypatch) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "more, problem",
    [
        (["4"], "class 4 is not one of this model's, 0 to 3"),
        (["-1"], "class -1"),
        (["1", "--n", "0"], "--n: expected a whole number between 1 and"),
        (["1", "--scale", "nan"], "scale must be a finite number"),
        (["1", "--eta", "50"], "eta between 0 and 1, got 3.0 and 50.0"),
        (["1", "--seed", "-1"], "seeds must be between 0"),
        (["1", "--seed", "99999999999999999999"], "seeds must be between 0"),
        (["1", "--steps", "2000"], "number of sampling steps must be between 1 and 1000"),
        (["1", "--config", "configs/mini.yaml"], "is configs/mini.yaml its config?"),
    ],
)
def test_the_program_refuses(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, more: list[str], problem: str
) -> None:
    code = run_program(script("sample_classes").main, sheet(run, tmp_path / "sheet.png", *more), monkeypatch)
    assert_refused(code, capsys.readouterr(), problem)
    assert not (tmp_path / "sheet.png").exists()


def test_a_style_transfer_model_knows_no_classes(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = [
        "--checkpoint",
        "checkpoints/mini/model.safetensors",
        "--config",
        "configs/mini.yaml",
        "--classes",
        "1",
        "--output",
        tmp_path / "sheet.png",
    ]
    assert_refused(
        run_program(script("sample_classes").main, arguments, monkeypatch),
        capsys.readouterr(),
        "knows no classes",
    )


def test_a_checkpoint_is_recognised(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    arguments = [run / "checkpoints/last.ckpt", "--config", run.parents[1] / "classes.yaml"]
    assert run_program(script("verify_checkpoint").main, arguments, monkeypatch) == 0
    assert (
        "latent diffusion" in (printed := capsys.readouterr().out) and "every name and shape fits" in printed
    )


# The recipe of the documentation, shortened


@pytest.mark.slow
def test_digits_are_recognised_after_a_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    program = script("digits")
    assert run_program(program.main, ["--write", tmp_path / "digits"], monkeypatch) == 0
    assert len(list((tmp_path / "digits/7").iterdir())) > 150
    capsys.readouterr()
    assert_refused(
        run_program(program.main, ["--write", tmp_path / "digits"], monkeypatch),
        capsys.readouterr(),
        "exists already",
    )
    quiet = [
        "lightning.trainer.enable_progress_bar=false",
        "lightning.trainer.accelerator=cpu",
        "lightning.trainer.num_sanity_val_steps=0",
    ]

    def trained(name: str, steps: int, *more: str) -> Path:
        config = Path(shutil.copy(CONFIGS / f"{name}.yaml", tmp_path))
        decay = f"model.params.scheduler_config.params.max_decay_steps={steps}"
        return (
            train(config, f"lightning.trainer.max_steps={steps}", decay, *more, *quiet)
            / "checkpoints/last.ckpt"
        )

    first = trained(
        "class_first_stage",
        100,
        "data.params.batch_size=16",
        f"data.params.train.params.roots=[{tmp_path / 'digits'}]",
    )
    of_first = f"model.params.first_stage_config.params.ckpt_path={first}"
    model = trained(
        "class_conditional",
        250,
        "data.params.batch_size=32",
        f"data.params.train.params.root={tmp_path / 'digits'}",
        of_first,
    )
    capsys.readouterr()
    assert run_program(program.main, ["--recognise", model, "--n", "8", "--steps", "20"], monkeypatch) == 0
    words = capsys.readouterr().out.splitlines()[-1].split()
    # chance is 10; the whole recipe reaches 95
    assert words[0] == "all:" and float(words[1].rstrip("%")) >= 45
