"""Pictures and masks, as tensors, at other sizes."""

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
