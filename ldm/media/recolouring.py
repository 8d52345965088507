"""A picture in the colours of others, its forms as they are: a smooth map of colours, the same
everywhere in the picture.

The picture's colours and the wanted ones are gathered in clusters, between which an entropic
optimal transport (Cuturi 2013) says where each is to go; the clusters' moves are blended to a map of all
colours, and a linear one after it makes up for what the blending dulls. Being smooth, it leaves no
steps in skies and makes no more of noise than of colours. All in OKLab (Ottosson 2020), where equal
distances look about equal. No randomness: the same pictures give the same map.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ldm.media.colours import moments_of, sample_of, transport_between

Array = NDArray[np.float64]
Sample = tuple[Array, Array]  # OKLab colours (n, 3), shares (n,)

CLUSTERS = 48
_SIDE = 64  # shorter side at which colours are gathered
_ROUNDS, _TRANSPORT_ROUNDS = 10, 100  # of clustering, of the transport
# Of OKLab times 255, so that black is as far from white as in other colours here:
_BLUR = 64.0  # entropy of the transport, in squared distances
_REACH = 10.0  # how far a cluster's move is felt
_MOST = 1.5  # by which the linear map stretches: where there is nothing but noise, there would be no end
_BINS = 32  # of each channel, 8 levels wide
_GRID = 17  # colours of the table by each channel
_ENOUGH = 0.25  # of a picture's contrast
_STRIP = 2**18  # pixels looked at together, so that large pictures take no more memory
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def recoloured(
    picture: Image.Image,
    palettes: Sequence[tuple[Image.Image, float]],
    strength: float = 1.0,
    keep_forms: bool = False,
    scene: Image.Image | None = None,
) -> Image.Image:
    """The picture, RGB or RGBA, in the colours of (picture, weight) pairs, or `strength` (0 to 1) of
    the way there. What is transparent has no colours, and stays so. keep_forms: less far where the
    palettes have next to no contrast, in which its forms would be lost. scene: whose colours the map
    is made for instead of the picture's own, so that all of a scene's pictures have the same."""
    theirs = _of(palettes)
    own = _sample(scene or picture)
    if keep_forms:
        strength *= _room(own, [(colours, shares) for colours, shares, _ in theirs])
    if not len(own[0]) or not strength:  # nothing of it is to be seen, or of them
        return picture
    wanted = [(colours, shares * weight / shares.sum()) for colours, shares, weight in theirs]
    opaque = picture.convert("RGB")
    table = _table(
        own, (np.concatenate([c for c, _ in wanted]), np.concatenate([s for _, s in wanted])), _met_by(opaque)
    )
    result = opaque.filter(_blended(table, strength))
    if picture.mode == "RGBA":
        result.putalpha(picture.getchannel("A"))
    return result


def _room(own: Sample, theirs: Sequence[Sample]) -> float:
    """How far (0 to 1) colours may go to others before no forms are to be seen: all of the way, but
    where all of these have next to no contrast."""
    there, wanted = _contrast(*own), max((_contrast(*sample) for sample in theirs), default=0.0)
    return round(min(1.0, wanted / (_ENOUGH * there)), 3) if there > 1 else 1.0


def _contrast(colours: Array, shares: Array) -> float:
    """Standard deviation of OKLab colours (n, 3)."""
    return float(np.trace(moments_of(colours, shares)[1]) ** 0.5) if len(colours) else 0.0


def _of(palettes: Sequence[tuple[Image.Image, float]]) -> list[tuple[Array, Array, float]]:
    return [(*_sample(picture), weight) for picture, weight in palettes if weight > 0]


def _sample(picture: Image.Image) -> Sample:
    """The picture's colours, those that are nearly the same as one: a fifth of them, and of the
    time."""
    colours, shares = sample_of(picture, side=_SIDE)
    bins = (colours.astype(np.intp) * _BINS // 256) @ (_BINS**2, _BINS, 1)
    _, bins = np.unique(bins, return_inverse=True)
    together = np.bincount(bins, shares).astype(np.float64)
    sums = [np.bincount(bins, shares * channel) for channel in _lab(colours).T]
    return np.stack(sums, axis=1) / together[:, None], together


def _table(own: Sample, wanted: Sample, met: NDArray[np.bool_]) -> Array:
    """(grid^3, 3) where each colour of a grid that is `met` goes, in sRGB, 0 to 255; red runs
    fastest."""
    centres, sizes = _clusters(*own)
    aims, aim_sizes = _clusters(*wanted)
    moves = _transported(centres, sizes, aims, aim_sizes) - centres

    def moved(colours: Array) -> Array:
        near = sizes * np.exp(_relative(-_squared(colours, centres) / (2 * _REACH**2)))
        come: Array = colours + near @ moves / near.sum(axis=1, keepdims=True)
        return come

    come_to, aimed_at = moments_of(moved(own[0]), own[1]), moments_of(*wanted)
    linear = _bounded(transport_between(come_to[1], aimed_at[1]))
    table = _grid()
    table[met] = _rgb((moved(_lab(table[met])) - come_to[0]) @ linear + aimed_at[0])
    return table


def _met_by(picture: Image.Image) -> NDArray[np.bool_]:
    """(grid^3,) which colours of the grid are around one of an RGB picture: most pictures meet a
    tenth."""
    met = np.zeros((_GRID,) * 3, dtype=bool)
    pixels = np.asarray(picture).reshape(-1, 3)
    for i in range(0, len(pixels), _STRIP):
        cells = np.minimum(pixels[i : i + _STRIP].astype(np.intp) * (_GRID - 1) // 255, _GRID - 2)
        met[cells[:, 2], cells[:, 1], cells[:, 0]] = True
    for axis in range(3):  # a colour lies between its cell's corners
        met |= np.roll(met, 1, axis=axis)
    return met.ravel()


def _bounded(linear: Array) -> Array:
    """A symmetric map that stretches nothing further than `_MOST`."""
    stretches, directions = np.linalg.eigh(linear)
    bounded: Array = directions * np.minimum(stretches, _MOST) @ directions.T
    return bounded


def _blended(table: Array, strength: float) -> ImageFilter.Color3DLUT:
    mixed = (1 - strength) * _grid() + strength * table
    return ImageFilter.Color3DLUT(_GRID, (mixed / 255).ravel().tolist())


def _grid() -> Array:
    """(grid^3, 3)"""
    steps = np.linspace(0, 255, _GRID)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    return np.stack([red, green, blue], axis=-1).reshape(-1, 3)


def _clusters(colours: Array, shares: Array) -> tuple[Array, Array]:
    """(centres (k, 3), shares (k,), summing to 1) of colours that count by their shares."""
    return _clusters_of(colours.tobytes(), shares.tobytes())


@lru_cache(64)  # a painting meets many photos, and takes half of the time
def _clusters_of(colour_bytes: bytes, share_bytes: bytes) -> tuple[Array, Array]:
    """By Lloyd (1982), begun as by Arthur & Vassilvitskii (2007)."""
    colours, shares = np.frombuffer(colour_bytes).reshape(-1, 3), np.frombuffer(share_bytes)
    random, shares = np.random.default_rng(0), shares / shares.sum()
    centres = colours[random.choice(len(colours), size=1, p=shares)]
    apart = _squared(colours, centres)[:, 0]
    while len(centres) < CLUSTERS and apart.max() > 1:  # else there are no more colours than these
        odds = shares * apart
        another = colours[random.choice(len(colours), size=1, p=odds / odds.sum())]
        centres = np.concatenate([centres, another])
        apart = np.minimum(apart, _squared(colours, another)[:, 0])
    for _ in range(_ROUNDS):
        nearest = _squared(colours, centres).argmin(axis=1)
        sizes = np.bincount(nearest, shares, len(centres)).astype(np.float64)
        sums = [np.bincount(nearest, shares * channel, len(centres)) for channel in colours.T]
        centres, sizes = (np.stack(sums, axis=1)[sizes > 0] / sizes[sizes > 0, None]), sizes[sizes > 0]
    return centres, sizes


def _transported(centres: Array, sizes: Array, aims: Array, aim_sizes: Array) -> Array:
    """(k, 3) the mean of the aims that each centre is sent to."""
    costs = _squared(centres, aims) / _BLUR
    at_aims = np.zeros(len(aims))
    for _ in range(_TRANSPORT_ROUNDS):
        at_centres = -_log_sum(at_aims + np.log(aim_sizes) - costs, axis=1)
        at_aims = -_log_sum(at_centres[:, None] + np.log(sizes)[:, None] - costs, axis=0)
    plan = aim_sizes * np.exp(_relative(at_aims - costs))
    means: Array = plan @ aims / plan.sum(axis=1, keepdims=True)
    return means


def _log_sum(logs: Array, axis: int) -> Array:
    highest = logs.max(axis=axis, keepdims=True)
    total: Array = np.log(np.exp(logs - highest).sum(axis=axis)) + highest.squeeze(axis)
    return total


def _relative(logs: Array) -> Array:
    """Without what all of a row have in common, so that none overflows and some stay above 0."""
    relative: Array = logs - logs.max(axis=1, keepdims=True)
    return relative


def _squared(some: Array, others: Array) -> Array:
    """(n, k) squared distances of (n, 3) and (k, 3)."""
    squared: Array = (some**2).sum(axis=1)[:, None] - 2 * some @ others.T + (others**2).sum(axis=1)
    return squared.clip(0)


def _lab(colours: Array) -> Array:
    """OKLab, times 255, of sRGB, 0 to 255, both (n, 3)."""
    shares = colours / 255
    light = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    lab: Array = 255 * np.cbrt(light @ _TO_CONES.T) @ _TO_LAB.T
    return lab


def _rgb(lab: Array) -> Array:
    """The other way round; what sRGB has no place for, at its edge."""
    light = np.clip((lab / 255 @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T, 0, 1)
    colours: Array = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return colours
