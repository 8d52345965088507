"""What the tests of the pipeline, the programs, the data and the training share: tiny models and made-up pictures.

The tiny model has the shape of the bundled one (16x smaller latents, a style network of its own) with a few thousand
random weights, so that it is built and run in no time and every part of it acts on the result.
"""

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from ldm.checkpoint import save_safetensors
from ldm.commands import COMMANDS
from ldm.modules.losses.lpips import vgg16
from ldm.program import run
from ldm.util import instantiate_from_config

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--device cpu --precision fp32 --look sampled --size 32 --steps 2".split()  # of the painting commands

FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "encoder_target": "ldm.modules.vae.light.LightEncoder",
            "decoder_target": "ldm.modules.vae.light.LightDecoder",
            "params": {"z_channels": 4},
            "encoder_params": {"widths": [8, 8, 8], "num_res_blocks": [1, 1, 1]},
            "decoder_params": {"widths": [8] * 5, "num_res_blocks": [0, 0, 1, 1, 1]},
        },
        "lossconfig": {"target": "ldm.modules.losses.contperceptual.DummyLoss"},
    },
}

MODEL = {
    "target": "ldm.models.diffusion.dual_cond_ddpm.DualCondLDM",
    "params": {
        "style_dim": 40,
        "vgg_channels": [4, 4, 4, 4, 4],
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "image_size": 2,
        "channels": 4,
        "cond_stage_config": "__is_adaptive__",
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.model.StyleUNetModel",
            "params": {
                "image_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "content_in_dim": 4,
                "content_refined_dim": 3,
                "model_channels": 8,
                "hidden_time_embed_dim": 8,
                "time_embed_dim": 16,
                "num_norm_groups": 4,
                "attention_resolutions": [1, 2],
                "num_res_blocks": 1,
                "channel_mult": [1, 2],
                "num_head_channels": 4,
                "context_dim": 40,
            },
        },
        "first_stage_config": FIRST_STAGE,
    },
}


def model_config(**params: Any) -> dict[str, Any]:
    """The tiny model's `model` node, with these parameters changed."""
    config = copy.deepcopy(MODEL)
    config["params"] |= params
    return config


def save_config(config: dict[str, Any], path: Path) -> Path:
    OmegaConf.save(OmegaConf.create(config), path)
    return path


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, those that start at zero included, of a size that keeps signals about as they are."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            weight.copy_(noise / math.sqrt(weight[0].numel()))
        else:
            weight.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model


def tiny_model(seed: int = 0, **params: Any) -> nn.Module:
    """The tiny model with random weights; averages, where it keeps any, equal to them."""
    model = randomise(instantiate_from_config(model_config(**params)), seed)
    for average, module in model.averaged():
        for name, shadow in average.shadow_names.items():
            getattr(average, shadow).copy_(module.get_parameter(name).detach())
    return model


def narrow_vgg16(seed: int = 0) -> vgg16:
    """A VGG16 of the true shape with random weights, for what is led by one."""
    return randomise(vgg16(channels=(4, 6, 6, 8, 8)), seed)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful picture: a slope from one random colour to another with random blocks in it."""
    random = np.random.default_rng(seed)
    ends = random.integers(0, 256, (2, 3))
    slope = np.linspace(0, 1, width)[None, :, None] * np.ones((height, 1, 1))
    pixels = ends[0] * (1 - slope) + ends[1] * slope
    blocks = random.integers(-60, 61, (8, 8, 3)).repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)
    return Image.fromarray(np.clip(pixels + blocks[:height, :width], 0, 255).astype(np.uint8))


def left_half(width: int, height: int) -> Image.Image:
    """White in the left half, black in the right."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    return Image.fromarray(mask)


def picture_folder(folder: Path, count: int, size: tuple[int, int] = (40, 36), seed: int = 0) -> Path:
    """A folder of `count` different pictures, in two sub-folders."""
    for i in range(count):
        path = folder / f"part{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(*size, seed=seed + i).save(path)
    return folder


def paintings_and_photos(folder: Path, paintings: int = 5, photos: int = 4) -> dict[str, Path]:
    """The folders of that many pictures each, by what is in them."""
    return {
        "paintings": picture_folder(folder / "paintings", paintings),
        "photos": picture_folder(folder / "photos", photos, seed=50),
    }


def script(name: str) -> ModuleType:
    """What a file of scripts/ runs, as a module of its own."""
    module = next(
        (command.module for command in COMMANDS.values() if command.script == f"scripts/{name}.py"), None
    )
    return program_file(ROOT / "scripts" / f"{name}.py" if module is None else Path(find_spec(module).origin))


def program_file(path: Path) -> ModuleType:
    """A program as a module, its `main` not run."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_model(folder: Path) -> list[str]:
    """Writes a tiny model's checkpoint and config; the options that name them."""
    save_safetensors(tiny_model(use_ema=False).state_dict(), folder / "tiny.safetensors")
    save_config({"model": model_config()}, folder / "tiny.yaml")
    return ["--checkpoint", str(folder / "tiny.safetensors"), "--config", str(folder / "tiny.yaml")]


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    """The content of every file, to see that nothing was written."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(code: int, captured: Any, problem: str) -> None:
    """A program ended with exit code 2 and one line that tells the problem."""
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert problem in captured.err


def run_program(
    main: Callable[[], Any], arguments: Sequence[str | Path], monkeypatch: pytest.MonkeyPatch
) -> int:
    """The exit code of a program's `main` with these command-line arguments, run as the command does."""
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    return stopped.value.code


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to open a connection or look up a name fail as it does on a machine without a network."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Network is unreachable")

    for name in (
        "socket.socket.connect",
        "socket.socket.connect_ex",
        "socket.getaddrinfo",
        "socket.create_connection",
    ):
        monkeypatch.setattr(name, refuse)


def pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) int64, so that differences do not wrap."""
    return np.asarray(image.convert("RGB"), dtype=np.int64)


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    """Of any pixel's channel."""
    return int(np.abs(pixels(a) - pixels(b)).max())


def mean_difference(a: Image.Image, b: Image.Image, columns: slice = slice(None)) -> float:
    """Absolute, of all channels of the pixels in some columns."""
    return float(np.abs(pixels(a) - pixels(b))[:, columns].mean())


def shares(samples: list[dict], is_photo: Callable[[dict], bool]) -> tuple[float, float, float]:
    """How often (style is off, content is off, the picture is a photo though style is on)."""
    style_off = np.mean([not s["style_flag"] for s in samples])
    content_off = np.mean([not s["content_flag"] for s in samples])
    return style_off, content_off, np.mean([bool(s["style_flag"]) and is_photo(s) for s in samples])
