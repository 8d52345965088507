"""Pictures as tensors: float32, channels first, in [-1, 1]."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1] from an RGB picture."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """A picture from (3, H, W) in [-1, 1]; values beyond are clipped."""
    array = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
