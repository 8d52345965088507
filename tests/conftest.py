"""Fixtures of several test files; one that defines its own of the same name uses that.

What lasts for the whole session is never changed by a test, unless by `monkeypatch`.
"""

import os
from collections.abc import Callable

import pytest
import torch
from builders import STEPS, class_ldm, tiny_ldm
from PIL import Image
from pipeline_builders import forbid_network, narrow_vgg16, picture, tiny_model, write_model

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.losses.lpips import vgg16
from ldm.pipeline.pipeline import StyleTransferPipeline

# Else programs would choose their number of threads by how busy the machine is, and pictures differ by it.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the bundled model's pictures is marked so: `pytest -m weights` judges new weights."""
    for item in items:
        if "bundled" in getattr(item, "fixturenames", ()):
            item.add_marker("weights")


# Models of `builders`


@pytest.fixture(scope="session")
def model() -> DualCondLDM:
    """The dual-conditional model, of the published number of time steps."""
    return tiny_ldm(linear_start=0.0015, linear_end=0.0195)


@pytest.fixture(scope="session")
def dual() -> DualCondLDM:
    """The dual-conditional model, of few time steps."""
    return tiny_ldm(timesteps=STEPS, log_every_t=5, linear_start=0.01, linear_end=0.3)


@pytest.fixture(scope="session")
def classes() -> LatentDiffusion:
    """The class-conditional model."""
    return class_ldm()


# Pipelines


@pytest.fixture(scope="session")
def net() -> vgg16:
    """A VGG16 that leads the fine look, narrow and untrained."""
    return narrow_vgg16()


@pytest.fixture(scope="session")
def pipeline(net: vgg16) -> StyleTransferPipeline:
    """A tiny model, and a network that leads its fine look."""
    return StyleTransferPipeline(tiny_model(use_ema=False), brush_network=net)


@pytest.fixture(scope="session")
def tiny() -> StyleTransferPipeline:
    """A tiny model alone, for the fast look."""
    return StyleTransferPipeline(tiny_model(use_ema=False))


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a tiny model's files."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def small_pipeline(model_files: list[str]) -> Callable[..., Image.Image]:
    """Paints with the model of these files, as small as `SMALL` says."""
    loaded = StyleTransferPipeline.from_pretrained(model_files[1], model_files[3], "cpu", "fp32")
    return lambda *inputs, **options: loaded(
        *inputs, **{"look": "sampled", "size": 32, "steps": 2, **options}
    )


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> StyleTransferPipeline:
    """The bundled model, loaded as on a fresh machine: an empty home, another current folder, no network."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        forbid_network(monkeypatch)
        for name in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(tmp_path_factory.mktemp("empty")))
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return StyleTransferPipeline.from_pretrained(device="cpu", precision="fp32")


# Pictures


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return picture(48, 32, seed=1)


@pytest.fixture(scope="session")
def painting() -> Image.Image:
    return picture(80, 104, seed=2)
