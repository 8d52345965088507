"""The colours of one picture for another: as statistics, wherever they are."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.media.images import at_most

_SAMPLE_SIDE = 256  # shorter side at which colours are counted
_GREY_CHROMA = 4.0  # of 255: what JPEG leaves of a grey picture's colours stays below it
_TINY = 1e-3


def is_grey(image: Image.Image) -> bool:
    """Whether an RGB picture is black and white; a sepia one is not."""
    chroma = np.asarray(at_most(image, _SAMPLE_SIDE).convert("YCbCr"), dtype=np.float64)[..., 1:] - 128
    return bool(np.quantile(np.abs(chroma).max(axis=-1), 0.99) <= _GREY_CHROMA)


def with_palette_of(image: Image.Image, palette: Image.Image) -> Image.Image:
    """The RGB picture with the mean and the covariance of another's colours: the linear map between
    them that moves colours least (Pitié & Kokaram 2007)."""
    (mean, covariance), (wanted_mean, wanted) = (_moments(each) for each in (image, palette))
    root = _power(covariance, 0.5)
    back = _power(covariance, -0.5)
    transport = back @ _power(root @ wanted @ root, 0.5) @ back
    colours = (np.asarray(image, dtype=np.float64) - mean) @ transport + wanted_mean
    return Image.fromarray(np.clip(colours, 0, 255).round().astype(np.uint8))


def _moments(image: Image.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, covariance) of an RGB picture's colours."""
    colours = np.asarray(at_most(image, _SAMPLE_SIDE), dtype=np.float64).reshape(-1, 3)
    return colours.mean(axis=0), np.cov(colours, rowvar=False) + _TINY * np.eye(3)


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    powers: NDArray[np.float64] = (vectors * np.maximum(values, _TINY) ** exponent) @ vectors.T
    return powers
