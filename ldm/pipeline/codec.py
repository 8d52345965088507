"""A model's first stage for pictures of any size: edges repeated where sides do not divide, tiles
where a picture is large.

Shapes: pictures (N, 3, H, W) in [-1, 1]; scaled latents (N, C, h, w), h and w those of the picture
over `factor`, rounded up to `multiple`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.tiles import Tile, Tiling, blend, cut

# Above this many pixels a side the first stage works in tiles: a full-size decoder takes about 3 GB
# for one such tile.
TILE = 768


class Codec:
    """Pictures to latents and back.

    factor: pixels a side to one position of the latent. multiple: pixels by which the sides divide
    that the U-Net takes.
    """

    def __init__(self, model: DualCondModel):
        self.model = model
        self.factor: int = model.first_stage_model.encoder.factor
        self.multiple: int = self.factor * model.model.diffusion_model.min_multiple

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent of a picture of this (height, width)."""
        height, width = (-(-side // self.multiple) * self.multiple // self.factor for side in size)
        return height, width

    def encode(self, pictures: Tensor) -> Tensor:
        """Scaled latents of pictures."""
        padded = self._padded(pictures)

        def latent(tiles: Sequence[Tile]) -> Tensor:
            at_pixels = [(self._pixels(rows), self._pixels(columns)) for rows, columns in tiles]
            posterior = self.model.encode_first_stage(cut(padded, at_pixels))
            return self.model.get_first_stage_encoding(posterior).float()

        return blend(latent, self._tiling(*self.latent_size((pictures.shape[2], pictures.shape[3]))))

    def decode(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """Pictures of this (height, width) from scaled latents."""
        pictures = blend(
            lambda tiles: self.model.decode_first_stage(cut(z, tiles)).float(),
            self._tiling(*z.shape[2:]),
            scale=self.factor,
        )
        return pictures[:, :, : size[0], : size[1]]

    def shares(self, masks: Tensor) -> Tensor:
        """(..., h, w) shares at the latent's positions from (..., H, W) at the pixels."""
        flat = masks.reshape(-1, 1, *masks.shape[-2:])
        small = F.avg_pool2d(self._padded(flat), self.factor)
        return small.reshape(*masks.shape[:-2], *small.shape[-2:])

    def _padded(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) with its edges repeated at right and bottom until the sides divide by
        `multiple`."""
        height, width = x.shape[2:]
        return F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")

    def _pixels(self, positions: slice) -> slice:
        return slice(positions.start * self.factor, positions.stop * self.factor)

    def _tiling(self, height: int, width: int) -> Tiling:
        return Tiling(height, width, max(1, TILE // self.factor))
