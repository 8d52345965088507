"""Pictures and masks, as tensors, at other sizes."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resized(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures or masks (N, C, H, W) at another (height, width)."""
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures
    smaller = size[0] < pictures.shape[2]
    return F.interpolate(
        pictures, size, mode="bilinear" if smaller else "bicubic", antialias=smaller, align_corners=False
    )


def enlarged(picture: Tensor, reference: Tensor, detail: float) -> Tensor:
    """The picture at the size of `reference`, with this share of the detail there that the smaller
    size cannot hold."""
    lost = reference - resized(resized(reference, picture.shape[2:]), reference.shape[2:])
    return resized(picture, reference.shape[2:]) + detail * lost


def shares_up(ratio: float, most: float) -> list[float]:
    """Shares of a full size, from that which is `ratio` times smaller up to 1, each at most `most`
    times the one before and all by the same factor."""
    count = math.ceil(math.log(ratio) / math.log(most))
    return [ratio ** (i / count - 1) for i in range(count)] + [1.0]
