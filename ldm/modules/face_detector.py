"""Where faces are: the cascade of Zhang et al. 2016 (MTCNN), with the weights that the package
`mtcnn` brings. Its code, which needs TensorFlow, is not run.

The first network looks at the picture at many sizes and proposes boxes. The second and the third
look at each box, at 24 and at 48 pixels, move it, and say how likely it is a face; the third says
where eyes, nose and mouth are, too. Boxes are (N, 4): left, top, right, bottom, in pixels.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from ldm.checks import check_face_detector

CELL, STRIDE = 12, 2  # of the first network: the side of the faces that it knows, and its step
SHRINK = 0.709  # from one size to the next: half the area
LEAST_FACE = 20  # pixels
# How likely a face has to be to get past each network. The last number is high: a patch of photo
# somewhere in a painting is worse than one small face that is painted like everything else.
SURE = (0.6, 0.7, 0.95)
# of boxes that are of one face: intersection over union, within one size, and at last
OVERLAP, CROWDED = 0.7, 0.5


@dataclass(frozen=True)
class Faces:
    """boxes: (N, 4). points: (N, 5, 2), as one sees them: left eye, right eye, nose, left and right
    corner of the mouth, each as (x, y)."""

    boxes: Tensor
    points: Tensor


class Proposer(nn.Module):
    """The first network."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk((10, 3, 2), (16, 3, 0), (32, 3, 0))
        self.heads = nn.ModuleList(nn.Conv2d(32, width, 1) for width in (4, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(moves (4, h, w), how likely (h, w)) at every place of a picture (1, 3, H, W)."""
        x = self.trunk(x)
        moves, kinds = (head(x)[0] for head in self.heads)
        return moves, kinds.softmax(0)[1]


class Judge(nn.Module):
    """The second or third network, for patches of `side` pixels, of which its trunk leaves `flat`
    features. heads: how many numbers each of its answers has."""

    def __init__(self, side: int, trunk: nn.Module, flat: int, hidden: int, heads: tuple[int, ...]):
        super().__init__()
        self.side, self.trunk = side, trunk
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.PReLU(hidden))
        self.heads = nn.ModuleList(nn.Linear(hidden, width) for width in heads)

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Of (N, 3, side, side): moves (N, 4), of the third points (N, 10), how likely (N,)."""
        columns_first = self.trunk(patches).permute(0, 3, 2, 1)
        x = self.hidden(columns_first.flatten(1))
        *answers, kinds = (head(x) for head in self.heads)
        return [*answers, kinds.softmax(1)[:, 1]]


class FaceDetector(nn.Module):
    """The three networks. `face_detector` has one with its weights."""

    def __init__(self) -> None:
        super().__init__()
        middle = _trunk((28, 3, 3), (48, 3, 3), (64, 2, 0))
        last = _trunk((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0))
        self.proposer = Proposer()
        self.refiner = Judge(24, middle, 576, 128, (4, 2))
        self.finisher = Judge(48, last, 1152, 256, (4, 10, 2))

    @torch.no_grad()
    def forward(self, picture: Tensor) -> Faces:
        """The faces of a picture (3, H, W) in [-1, 1], both sides from LEAST_FACE on."""
        picture = picture[None]
        boxes = squares(self._proposed(picture))
        moves, likely = self.refiner(patches(picture, boxes, self.refiner.side))
        boxes = moved(boxes, moves)
        boxes = squares(boxes[_best(boxes, likely, SURE[1], OVERLAP)])
        moves, points, likely = self.finisher(patches(picture, boxes, self.finisher.side))
        corners, sizes = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
        points = corners + sizes * points.reshape(-1, 2, 5).mT
        boxes = moved(boxes, moves)
        chosen = _best(boxes, likely, SURE[2], CROWDED)
        return Faces(boxes[chosen], points[chosen])

    def _proposed(self, picture: Tensor) -> Tensor:
        """Boxes that the first network finds at any size of the picture."""
        sides = picture.shape[-2:]
        scale, found = CELL / LEAST_FACE, []
        while round(min(sides) * scale) >= CELL:
            size = [round(side * scale) for side in sides]
            smaller = F.interpolate(picture, size, mode="bilinear", antialias=True)
            found.append(self._proposed_at(smaller, scale))
            scale *= SHRINK
        boxes, likely = (torch.cat(parts) for parts in zip(*found))
        return boxes[nms(boxes, likely, OVERLAP)]

    def _proposed_at(self, picture: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(boxes, how likely each is) at one size, `scale` times the picture's."""
        moves, likely = self.proposer(picture)
        rows, columns = torch.where(likely > SURE[0])
        corners = STRIDE * torch.stack([columns, rows], dim=1).float()
        cells = torch.cat([corners, corners + CELL], dim=1)
        boxes, likely = moved(cells, moves[:, rows, columns].T) / scale, likely[rows, columns]
        chosen = nms(boxes, likely, CROWDED)
        return boxes[chosen], likely[chosen]


def _trunk(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of (width, kernel, pixels of the maximum that follows, 0 for none)."""
    widths = [3, *(width for width, _, _ in layers)]
    parts: list[nn.Module] = []
    for before, (width, kernel, pool) in zip(widths, layers):
        parts += [nn.Conv2d(before, width, kernel), nn.PReLU(width)]
        parts += [nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else []
    return nn.Sequential(*parts)


def _best(boxes: Tensor, likely: Tensor, sure: float, overlap: float) -> Tensor:
    """The places of the boxes that are likely enough, each face's once."""
    places = (likely > sure).nonzero()[:, 0]
    return places[nms(boxes[places], likely[places], overlap)]


def moved(boxes: Tensor, moves: Tensor) -> Tensor:
    """Boxes with each side moved by a share (N, 4) of the box's width or height."""
    return boxes + moves * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def squares(boxes: Tensor) -> Tensor:
    """The squares around boxes."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half], dim=1)


def patches(picture: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(N, 3, side, side) cut from a picture (1, 3, H, W); grey where a box is beyond its edges."""
    cut = [
        F.interpolate(_cut(picture, *box), (side, side), mode="bilinear", antialias=True)
        for box in boxes.round().int().tolist()
    ]
    return torch.cat(cut) if cut else picture.new_empty(0, 3, side, side)


def _cut(picture: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    height, width = picture.shape[-2:]
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    inside = picture[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return F.pad(inside, (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)))


@lru_cache(maxsize=1)
def face_detector() -> FaceDetector:
    """A detector with its weights, read once. Raises UserError without the package that has
    them."""
    check_face_detector()
    import joblib

    detector = FaceDetector().requires_grad_(False).eval()
    networks = {"pnet": detector.proposer, "rnet": detector.refiner, "onet": detector.finisher}
    for name, network in networks.items():
        arrays = joblib.load(_weights_folder() / f"{name}.lz4")
        for parameter, array in zip(network.parameters(), arrays, strict=True):
            parameter.copy_(_in_torch_order(torch.as_tensor(array)).reshape(parameter.shape))
    return detector


def _weights_folder() -> Path:
    spec = find_spec("mtcnn")  # which imports nothing
    assert spec is not None and spec.origin is not None  # it has been looked for
    return Path(spec.origin).parent / "assets" / "weights"


def _in_torch_order(weights: Tensor) -> Tensor:
    """TensorFlow's weights of a convolution (height, width, in, out) or a matrix (in, out) with the
    outputs first; slopes and biases as they are."""
    return weights.permute(3, 2, 0, 1) if weights.ndim == 4 else weights.T if weights.ndim == 2 else weights
