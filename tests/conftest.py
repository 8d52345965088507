"""Fixtures of several test files; one that defines its own of the same name uses that."""

import pytest
from PIL import Image
from pipeline_builders import narrow_vgg16, picture, tiny_model

from ldm.modules.losses.lpips import vgg16
from ldm.pipeline.pipeline import StyleTransferPipeline


@pytest.fixture(scope="module")
def net() -> vgg16:
    """A VGG16 that leads the fine look, narrow and untrained."""
    return narrow_vgg16()


@pytest.fixture(scope="module")
def pipeline(net: vgg16) -> StyleTransferPipeline:
    return StyleTransferPipeline(tiny_model(use_ema=False), brush_network=net)


@pytest.fixture(scope="module")
def painting() -> Image.Image:
    return picture(80, 104, seed=2)
