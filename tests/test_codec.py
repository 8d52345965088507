"""Pictures to latents and back, whatever their size: what is padded, cropped, and cut into tiles."""

import pytest
import torch
import torch.nn.functional as F
from golden_rules import rnd
from torch import Tensor

from ldm.pipeline import codec as codecs
from ldm.pipeline.codec import Codec


class FirstStage:
    """Takes the mean of 8x8 pixels, and half as much is the scaled latent; each position acts alone."""

    factor = 8
    min_multiple = 2  # of the U-Net's

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []  # (height, width) of what was encoded and decoded

    # Codec asks for model.first_stage_model.encoder and model.model.diffusion_model
    first_stage_model = encoder = model = diffusion_model = property(lambda self: self)

    def encode_first_stage(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape[2:]))
        return F.avg_pool2d(x, 8)

    def get_first_stage_encoding(self, posterior: Tensor) -> Tensor:
        return posterior / 2

    def decode_first_stage(self, z: Tensor) -> Tensor:
        self.seen.append(tuple(z.shape[2:]))
        return 2 * z.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


@pytest.fixture
def codec() -> Codec:
    return Codec(FirstStage())


# Sizes that do not divide


def test_a_picture_is_padded_by_its_edges(codec: Codec) -> None:
    x = rnd("picture", 2, 3, 21, 35)
    z = codec.encode(x)
    assert z.shape == (2, 3, 4, 6) == (2, 3, *codec.latent_size((21, 35)))
    assert codec.model.seen == [(32, 48)]
    torch.testing.assert_close(z[:, :, :2, :4], F.avg_pool2d(x[:, :, :16, :32], 8) / 2)
    torch.testing.assert_close(z[:, :, 3, 5], x[:, :, -1, -1] / 2)  # nothing but the corner, repeated
    torch.testing.assert_close(z[:, :, 0, 5], x[:, :, :8, -1].mean(dim=2) / 2)


@pytest.mark.parametrize("height, width", [(21, 35), (32, 48), (17, 33)])
def test_a_result_is_cropped_to_its_size(codec: Codec, height: int, width: int) -> None:
    z = rnd("latent", 2, 3, 4, 6)
    x = codec.decode(z, (height, width))
    whole = codec.model.decode_first_stage(z)
    assert x.shape == (2, 3, height, width) and torch.equal(x, whole[:, :, :height, :width])


def test_results_are_of_full_precision(codec: Codec) -> None:
    x = rnd("picture", 1, 3, 16, 16).bfloat16()
    assert codec.encode(x).dtype == codec.decode(x[..., :2, :2], (16, 16)).dtype == torch.float32


# Tiles


@pytest.mark.parametrize("height, width", [(64, 96), (61, 90)])
def test_large_pictures_go_through_in_tiles_and_come_out_the_same(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    x = rnd("picture", 2, 3, height, width)
    z = codec.encode(x)
    back = codec.decode(z, (height, width))
    assert codec.model.seen == [(64, 96), (8, 12)]
    codec.model.seen.clear()
    monkeypatch.setattr(codecs, "TILE", 32)
    torch.testing.assert_close(codec.encode(x), z)
    torch.testing.assert_close(codec.decode(z, (height, width)), back)
    assert set(codec.model.seen) == {(32, 32), (4, 4)}


# Masks


@pytest.mark.parametrize(
    "height, width, expected", [(32, 64, (4, 8)), (33, 64, (6, 8)), (1, 31, (2, 4)), (16, 17, (2, 4))]
)
def test_a_latent_has_the_size_of_the_padded_picture(
    codec: Codec, height: int, width: int, expected: tuple
) -> None:
    assert codec.latent_size((height, width)) == expected
    assert codec.shares(torch.zeros(1, 1, height, width)).shape[2:] == expected


def test_a_position_of_the_latent_has_the_mean_of_its_pixels(codec: Codec) -> None:
    x = rnd("mask", 2, 3, 32, 64)
    expected = x.unflatten(3, (8, 8)).unflatten(2, (4, 8)).mean(dim=(3, 5))
    torch.testing.assert_close(codec.shares(x), expected)


@pytest.mark.parametrize(
    "height, width, expected", [(33, 64, (6, 8)), (32, 50, (4, 8)), (37, 50, (6, 8)), (32, 64, (4, 8))]
)
def test_masks_are_padded_as_the_pictures_are(
    codec: Codec, height: int, width: int, expected: tuple[int, int]
) -> None:
    x = rnd("mask", 1, 2, height, width)
    small = codec.shares(x)
    assert small.shape == (1, 2, *expected)
    if height == 33:  # the padding repeats the edge
        torch.testing.assert_close(small[0, 0, 4:, 0], x[0, 0, 32, :8].mean().expand(2))


def test_shares_still_sum_to_1_at_the_latents_positions(codec: Codec) -> None:
    masks = rnd("masks", 2, 3, 37, 50).softmax(dim=1)
    assert torch.allclose(codec.shares(masks).sum(dim=1), torch.ones(()))
