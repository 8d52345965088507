"""Pictures that come as arrays and tensors. Nothing here imports torch: a tensor's maker has."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import UserError
from ldm.media.images import check_pixels

TAKEN = (
    "numpy arrays are uint8, (H, W), (H, W, 3) or (H, W, 4); torch tensors uint8, or floats from 0 to 1, "
    "(H, W), (1, H, W), (3, H, W) or (4, H, W)"
)


def image_of(array: Any) -> Image.Image | None:
    """The picture in a numpy array or a torch tensor of one, grey, RGB or RGBA (see TAKEN); None for
    what is neither. Raises UserError for other shapes, types and ranges."""
    if _is_tensor(array):
        what = f"a tensor of shape {tuple(array.shape)} and {array.dtype}"
        _check_shape(
            what, array.ndim == 2 or (array.ndim == 3 and array.shape[0] in (1, 3, 4)), array.shape[-2:]
        )
        return _of_array(_pixels_last(array), what)
    if isinstance(array, np.ndarray):
        what = f"an array of shape {array.shape} and {array.dtype}"
        _check_shape(what, array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)), array.shape[:2])
        return _of_array(array, what)
    return None


def _check_shape(what: str, is_picture: bool, size: Sequence[int]) -> None:
    """Raises UserError, before anything is copied, for what is no picture, or has too large a size (H,
    W): a view may have more pixels than there is memory."""
    if not is_picture or 0 in size:
        raise UserError(f"{what} is no picture: {TAKEN}")
    try:
        check_pixels((size[1], size[0]))
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _of_array(array: NDArray[Any], what: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise UserError(f"{what} is no picture: {TAKEN}")
    return Image.fromarray(np.ascontiguousarray(array))


def _pixels_last(tensor: Any) -> NDArray[Any]:
    """(H, W) or (H, W, C), as uint8 where the tensor has shares of white."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.numel():
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # of NaN neither is true
            raise UserError(
                f"a tensor of floats goes from 0 to 1, and this one from {low:g} to {high:g}: give (x + 1) / 2 "
                "where it goes from -1 to 1, x.clamp(0, 1) where it overshoots"
            )
        values = values.float().mul(255).round().byte()
    if values.ndim == 3:
        values = values[0] if len(values) == 1 else values.permute(1, 2, 0)
    array: NDArray[Any] = values.numpy()
    return array
