"""The colours of one picture for another: as statistics, wherever they are."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.media.images import sampled, without_alpha

_SAMPLE_SIDE = 256  # shorter side at which colours are counted
_GREY_CHROMA = 4.0  # of 255: what JPEG leaves of a grey picture's colours stays below it
_TINY = 1e-3


def is_grey(image: Image.Image) -> bool:
    """Whether a picture, RGB or RGBA, is black and white where it can be seen; a sepia one is not."""
    chroma = np.abs(sample_of(image, "YCbCr")[0][:, 1:] - 128)
    return bool(np.quantile(chroma.max(axis=-1), 0.99) <= _GREY_CHROMA)


def sample_of(
    image: Image.Image, mode: str = "RGB", side: int = _SAMPLE_SIDE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(colours (n, 3), shares (n,)) of the pixels of a picture shrunk to this shorter side; those
    that cannot be seen are left out, others count by their share."""
    opaque, alpha = without_alpha(sampled(image, side))
    colours = np.asarray(opaque.convert(mode), dtype=np.float64).reshape(-1, 3)
    if alpha is None:
        return colours, np.ones(len(colours))
    shares = np.asarray(alpha, dtype=np.float64).reshape(-1) / 255
    return colours[shares > 0], shares[shares > 0]


def with_palette_of(image: Image.Image, palette: Image.Image) -> Image.Image:
    """The picture, RGB or RGBA, with the mean and the covariance of another's colours: the linear map
    between them that moves colours least (Pitié & Kokaram 2007). What is transparent does not
    count, and stays so."""
    (mean, covariance), (wanted_mean, wanted) = (moments_of(*sample_of(each)) for each in (image, palette))
    transport = transport_between(covariance + _TINY * np.eye(3), wanted + _TINY * np.eye(3))
    opaque, alpha = without_alpha(image)
    colours = (np.asarray(opaque, dtype=np.float64) - mean) @ transport + wanted_mean
    result = Image.fromarray(np.clip(colours, 0, 255).round().astype(np.uint8))
    if alpha is not None:
        result.putalpha(alpha)
    return result


def moments_of(
    colours: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean (3,), covariance (3, 3)) of colours (n, 3) that count by their shares (n,)."""
    mean = np.average(colours, axis=0, weights=shares)
    return mean, np.cov(colours, rowvar=False, aweights=shares, ddof=0)  # of a single colour, 0


def transport_between(covariance: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3), for rows from the right: makes one covariance of the other and moves least."""
    root, back = _power(covariance, 0.5), _power(covariance, -0.5)
    return back @ _power(root @ wanted @ root, 0.5) @ back


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    powers: NDArray[np.float64] = (vectors * np.maximum(values, _TINY) ** exponent) @ vectors.T
    return powers
