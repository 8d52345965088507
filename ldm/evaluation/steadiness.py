"""How steady a painted clip is."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ldm.media.flow import at_motion_edges, beyond_edges, flow_between, moved, unmatched

SEEN = 0.3  # share of a frame that must have been in the one before; else a scene begins


def warping_error(clip: Sequence[Image.Image], results: Sequence[Image.Image]) -> float:
    """Mean squared difference, of values in [0, 1], of each result and the one before it brought
    there by the clip's optical flow, where the clip shows the same in both (Lai et al. 2018); nan
    without such frames. All of one size."""
    errors = []
    for now, before, result, last in zip(clip[1:], clip, results[1:], results):
        flow = flow_between(now, before)
        hidden = unmatched(flow, flow_between(before, now)) | beyond_edges(flow)
        seen = ~(hidden | at_motion_edges(flow))
        if seen.mean() >= SEEN:
            one, other = (np.asarray(picture, dtype=np.float32) / 255 for picture in (result, last))
            errors.append(float(((one - moved(other, flow)) ** 2).mean(-1)[seen].mean()))
    return float(np.mean(errors)) if errors else float("nan")
