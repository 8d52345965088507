"""Small functions that the published code keeps in `ldm.util`, which hands them on from here:
unlike it, they need torch."""

import logging
from collections.abc import Callable, Sequence
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ldm.errors import UserError

log = logging.getLogger(__name__)


def exists(x: Any) -> bool:
    """Whether it is anything but None."""
    return x is not None


def default(val: Any, d: Any | Callable[[], Any]) -> Any:
    """`val`, or where that is None `d`, called if it is a function."""
    if val is not None:
        return val
    return d() if isfunction(d) else d


def count_params(model: nn.Module, verbose: bool = False) -> int:
    """The number of a model's parameters, logged if `verbose`."""
    count = sum(p.numel() for p in model.parameters())
    if verbose:
        log.info("%s has %.2f million parameters", type(model).__name__, count / 1e6)
    return count


def get_ckpt_path(name: str, root: str | Path, check: bool = False) -> Path:
    """The file of LPIPS's linear weights, `name` "vgg_lpips", in the folder `root`. differs:
    nothing is downloaded, and `check` has no effect. Raises UserError where it is not there."""
    path = Path(root) / "vgg.pth"
    if name != "vgg_lpips" or not path.is_file():
        raise UserError(
            f"{path}: no such file, which {name!r} is; it is lpips/weights/v0.1/vgg.pth of the package lpips"
        )
    return path


def mean_flat(tensor: Tensor) -> Tensor:
    """(N,) means over all axes but the first."""
    return tensor.mean(dim=tuple(range(1, tensor.ndim)))


def isimage(x: Any) -> bool:
    """Whether x is a batch of pictures, (N, 1 or 3, H, W)."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def ismap(x: Any) -> bool:
    """Whether x is a batch of maps, (N, more than 3, H, W)."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] > 3


def to_rgb(x: Tensor) -> Tensor:
    """Maps (N, C, h, w), such as segmentations, as pictures (N, 3, h, w) in [-1, 1]: every channel
    in a colour, the same each time."""
    colours = torch.randn(3, x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device)
    mixed = torch.einsum("rc,nchw->nrhw", colours, x.float())
    low, high = mixed.aminmax()
    return 2 * (mixed - low) / (high - low).clamp_min(1e-12) - 1


def log_txt_as_img(wh: tuple[int, int], xc: Sequence[str], size: int = 10) -> Tensor:
    """(N, 3, H, W) pictures in [-1, 1] of texts, black on white; `wh` is (W, H), and `size` the
    letters' in pixels."""
    pictures = []
    for text in xc:
        picture = Image.new("RGB", wh, "white")
        width = max(1, int(40 * wh[0] / 256))  # letters a line, as in the published code
        lines = [text[i : i + width] for i in range(0, len(text), width)]
        ImageDraw.Draw(picture).text((0, 0), "\n".join(lines), fill="black", font_size=size)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1.0)
    return torch.stack(pictures)
