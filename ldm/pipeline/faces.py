"""Faces as masks with soft edges, to be kept or painted with less of the style."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.media.images import at_most

if TYPE_CHECKING:
    from ldm.modules.face_detector import Faces

log = logging.getLogger(__name__)

SEARCH_SIDE = 1024  # shorter side of the picture that is searched: larger ones take seconds
# Of the ellipse in a face's box: to where the mask is white, and from where it is black. A wide
# edge, since a sharp one shows where the strokes end.
INNER, OUTER = 0.8, 1.4


def face_mask(picture: Image.Image) -> Image.Image | None:
    """A grey picture of an RGB picture's size, white in every face, black beyond its hair and chin;
    None where no face is found. Raises UserError without the extra for faces."""
    from ldm.media.tensors import image_to_tensor  # as late as the command can do without torch
    from ldm.modules.face_detector import face_detector

    seen = at_most(picture, SEARCH_SIDE)
    faces = face_detector()(image_to_tensor(seen))
    if not len(faces.boxes):
        return None
    mask = np.max([_soft_ellipse(seen.size, *face) for face in _ellipses(faces)], axis=0)
    return Image.fromarray(np.uint8(255 * mask)).resize(picture.size, Image.Resampling.BICUBIC)


def find_faces(picture: Image.Image, name: str = "") -> Image.Image | None:
    """`face_mask`, with a warning, which calls the picture by its file `name`, where there is none."""
    # a photo is painted in many styles, one after the other
    return _remembered(picture.size, picture.tobytes(), name or "the picture")


@lru_cache(maxsize=1)
def _remembered(size: tuple[int, int], pixels: bytes, name: str) -> Image.Image | None:
    mask = face_mask(Image.frombytes("RGB", size, pixels))
    if mask is None:
        log.warning("%s: no face is found, so all of it is painted", name)
    return mask


def _ellipses(faces: "Faces") -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """(middle, half axes, turn in radians) of every face."""
    boxes, points = faces.boxes.double().numpy(), faces.points.double().numpy()
    turns = np.arctan2(*(points[:, 1] - points[:, 0]).T[::-1])
    return [((box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2, turn) for box, turn in zip(boxes, turns)]


def _soft_ellipse(
    size: tuple[int, int], middle: NDArray[np.float64], axes: NDArray[np.float64], turn: float
) -> NDArray[np.float64]:
    """(H, W) in [0, 1], falling smoothly from INNER to OUTER."""
    x = np.arange(size[0])[None] + 0.5 - middle[0]
    y = np.arange(size[1])[:, None] + 0.5 - middle[1]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    left = np.clip((OUTER - np.hypot(along / axes[0], across / axes[1])) / (OUTER - INNER), 0, 1)
    smooth: NDArray[np.float64] = left * left * (3 - 2 * left)
    return smooth
