"""The notebook's code cells run from top to bottom on the bundled model; so do those of the published one, as they are."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from builders import SIDE
from PIL import Image
from pipeline_builders import model_config, picture, save_config, tiny_model
from published.notebook import BLOCKS, CLASSES
from test_class_conditional import class_ldm

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.pipeline.looks import LOOKS, SAMPLERS

NOTEBOOK = Path(__file__).parents[1] / "notebooks/style_transfer.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text())


def test_every_code_cell_runs_and_shows_what_it_should(notebook, monkeypatch):
    for name, brush in (("fast", 1), ("fine", 1)):  # few steps suffice to see that it runs
        monkeypatch.setitem(LOOKS, name, replace(LOOKS[name], gradient_steps=brush))
    monkeypatch.setitem(SAMPLERS, "dpm-solver++", replace(SAMPLERS["dpm-solver++"], steps=2))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    settings = "SIZE, SMALL, SEED = 512, 256, 0"
    assert settings in cells[0]
    cells[0] = cells[0].replace(settings, "SIZE, SMALL, SEED = 64, 64, 0")
    names: dict = {}
    sheets = 0
    for cell in cells:
        *body, last = cell.rsplit("\n", 1)
        if not last.startswith("labelled_sheet("):
            exec(cell, names)
            continue
        exec("\n".join(body), names)
        sheet = eval(last, names)
        assert isinstance(sheet, Image.Image) and len(sheet.getcolors(2**24)) > 1000
        sheets += 1
    assert sheets == 5


def test_no_outputs_are_stored(notebook):
    assert not any(cell.get("outputs") for cell in notebook["cells"])


# The published notebook

SIZE = 32


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace in which the blocks run, with paths and sizes of a tiny model; `shown` gets the pictures."""
    for name in ("cv2", "albumentations"):  # imported there, never used
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys, "path", [*sys.path])
    matplotlib.use("agg")
    shown: list[Image.Image] = []
    monkeypatch.setattr("matplotlib.pyplot.imshow", shown.append)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    model = tiny_model()
    for name, buffer in model.named_buffers():
        if "_ema." in name and buffer.is_floating_point():
            buffer.mul_(0.9)
    torch.save(
        {"state_dict": model.state_dict(), "pytorch-lightning_version": "1.6.5", "global_step": 317673},
        tmp_path / "model.ckpt",
    )
    save_config({"model": model_config()}, tmp_path / "model.yaml")
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        picture(50, 40, seed=i).convert("RGBA" if i == 1 else "RGB").save(path)
    settings = {
        "CFG_PATH": str(tmp_path / "model.yaml"),
        "CKPT_PATH": str(tmp_path / "model.ckpt"),
        "STYLES": paths[:3],
        "CONTENT": paths[3],
    }
    return {
        **settings,
        "H": SIZE,
        "W": SIZE,
        "DDIM_STEPS": 4,
        "ETA": 1.0,
        "SEED": 2023,
        "DEVICE": "cpu",
        "shown": shown,
    }


def test_the_published_blocks_run_as_they_are(published: dict[str, Any]) -> None:
    for block in BLOCKS:
        exec(block, published)
    assert [picture.size for picture in published["shown"]] == [
        (3 * SIZE, SIZE),
        (3 * SIZE, SIZE),
        (2 * SIZE, SIZE),
        (SIZE, SIZE),
    ]
    assert all(np.asarray(picture).std() > 1 for picture in published["shown"])


def test_the_published_functions_take_other_sizes_scales_and_steps(published: dict[str, Any]) -> None:
    for block in BLOCKS:
        exec(block, published)
    style_transfer, content, style = published["style_transfer"], published["CONTENT"], published["STYLES"][1]

    def painted(**options: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return style_transfer(content, style, **options)

    wide = painted(h=32, w=64)
    assert wide.shape == (1, 3, 32, 64) and 0 <= wide.min() < wide.max() <= 1
    assert torch.equal(painted(content_s=0.5, style_s=2.0), painted(content_s=0.5, style_s=2.0))
    results = [
        painted(),
        painted(content_s=0.5),
        painted(style_s=2.0),
        painted(content_s=0.5, style_s=2.0),
        painted(ddim_steps=5),
        painted(eta=0.0),
    ]
    assert all(not torch.equal(one, other) for i, one in enumerate(results) for other in results[:i])


def by_hand(names: dict[str, Any], content_s: float, style_s: float) -> torch.Tensor:
    """The published arithmetic of one transfer, its noise drawn in the published order."""
    model, steps = names["model"], names["DDIM_STEPS"]
    both, no_style, no_content = names["get_content_style_features"](names["CONTENT"], names["STYLES"][0])
    times = torch.arange(0, 1000, 1000 // steps) + 1
    alphas = model.alphas_cumprod[times]
    before = torch.cat([model.alphas_cumprod[:1], alphas[:-1]])
    x = torch.rand_like(both["c1"])
    for t, a, a_before in reversed(list(zip(times, alphas, before))):
        e, u1, u2 = (model.apply_model(x, t[None], condition) for condition in (both, no_content, no_style))
        e = u1 + content_s * (e - u1) + u2 + style_s * (e - u2) - e
        sigma = ((1 - a_before) / (1 - a) * (1 - a / a_before)).sqrt()
        x_0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = a_before.sqrt() * x_0 + (1 - a_before - sigma**2).sqrt() * e + sigma * torch.randn(x.shape)
    return names["tensor_to_rgb"](model.decode_first_stage(x))


@torch.no_grad()
def test_a_seed_gives_the_published_picture(published: dict[str, Any]) -> None:
    for block in BLOCKS:
        exec(block, published)
    torch.manual_seed(5)
    painted = published["style_transfer"](
        published["CONTENT"], published["STYLES"][0], content_s=0.5, style_s=2.0
    )
    torch.manual_seed(5)
    with published["model"].ema_scope():
        expected = by_hand(published, content_s=0.5, style_s=2.0)
    assert (painted - expected).abs().max() < 2e-5 * expected.std() + 1e-6


def test_the_class_conditional_loop_runs_as_it_is() -> None:
    names = {
        "model": class_ldm(),
        "DDIMSampler": DDIMSampler,
        "torch": torch,
        "classes": [0, 3],
        "null_class": 4,
        "n": 2,
        "shape": [4, SIDE, SIDE],
    }
    names |= {"scale": 3.0, "steps": 2, "eta": 0.0}
    exec(CLASSES, names)
    assert [samples.shape for samples in names["all_samples"]] == [(2, 3, 4 * SIDE, 4 * SIDE)] * 2
    assert not torch.equal(*names["all_samples"])
