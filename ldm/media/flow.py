"""Where the pixels of one frame were in another: optical flow by OpenCV's DIS (Kroeger et al. 2016),
which needs no weights.

Flows are (H, W, 2) float32: how many pixels right and down of its own place each pixel of a frame
was.
"""

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import UserError

Flow: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]


def opencv() -> ModuleType:
    """The package cv2. Raises UserError where it is not installed."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise UserError(
            "steady video needs OpenCV; install it with: pip install -e '.[video]', or use --smooth 0, each frame for itself"
        ) from error
    return cv2


def flow_between(now: Image.Image, before: Image.Image) -> Flow:
    """Where each pixel of `now` was in `before`, both of one size."""
    cv2 = opencv()
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: Flow = method.calc(*(np.array(frame.convert("L")) for frame in (now, before)), None)
    return flow


def moved(array: NDArray[Any], flow: Flow) -> NDArray[Any]:
    """(H, W, ...) of before, as bytes or floats, brought to where it is now: cubic between pixels,
    since a linear one would blur more with every frame; beyond the edges as at them. A flow of 0
    changes nothing."""
    cv2 = opencv()
    places = _grid(flow) + flow
    there: NDArray[Any] = cv2.remap(
        array, places[..., 0], places[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return there


def carried(picture: Image.Image, flow: Flow) -> Image.Image:
    """A picture of before where it is now."""
    return Image.fromarray(moved(np.asarray(picture), flow))


def unmatched(forth: Flow, back: Flow) -> Mask:
    """(H, W) where a pixel was hidden before: where the flow `back`, from before to now, does not
    lead home from where `forth`, from now to before, led (Sundaram et al. 2010)."""
    returned = moved(back, forth)
    lengths = (forth**2).sum(-1) + (returned**2).sum(-1)
    lost: Mask = ((forth + returned) ** 2).sum(-1) > 0.01 * lengths + 0.5
    return lost


def beyond_edges(flow: Flow) -> Mask:
    """(H, W) where a pixel was out of sight before."""
    height, width = flow.shape[:2]
    places = _grid(flow) + flow
    out: Mask = np.any((places < -0.5) | (places > (width - 0.5, height - 0.5)), axis=-1)
    return out


def entering(flow: Flow, width: float, least: float) -> NDArray[np.float32]:
    """(H, W) in [0, 1] how lately what moves away from an edge, by `least` pixels or more, has come
    in there: 1 for what was out of sight before, falling to 0 at `width` pixels from that edge."""
    places, size = _grid(flow) + flow, np.array(flow.shape[1::-1])
    from_first = np.where(flow <= -least, places, np.inf)  # from the left and the top
    from_last = np.where(flow >= least, size - 1 - places, np.inf)
    distances = np.minimum(from_first, from_last).min(axis=-1)
    lately: NDArray[np.float32] = np.clip(1 - distances / width, 0, 1).astype(np.float32)
    return lately


def at_motion_edges(flow: Flow) -> Mask:
    """(H, W) where the flow itself changes from pixel to pixel, and so cannot be sure (Sundaram et
    al. 2010)."""
    slopes = sum((slope**2).sum(-1) for slope in np.gradient(flow, axis=(0, 1)))
    edges: Mask = slopes > 0.01 * (flow**2).sum(-1) + 0.002
    return edges


def _grid(flow: Flow) -> Flow:
    """(H, W, 2) each pixel's own place."""
    height, width = flow.shape[:2]
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
