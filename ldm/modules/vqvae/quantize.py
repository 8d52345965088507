"""Vector quantisation of latents (van den Oord et al. 2017, Esser et al. 2021).

Shapes: z (N, e_dim, h, w), z_q like it; indices (N * h * w,) int64, row by row and sample by
sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.published.configs import with_published_keys

CODEBOOK_KEYS = {
    "remap": (None, "a codebook is used whole"),
    "sane_index_shape": (False, "indices come in one row; `indices.reshape(n, h, w)` makes a map of them"),
}
ROWS = 4096  # positions compared with the codebook at once: 134 MB for 8192 codes


@with_published_keys(**CODEBOOK_KEYS, unknown_index=("random", "a codebook is used whole"))
class VectorQuantizer(nn.Module):
    """Latents to the nearest of `n_e` learned vectors ("codes").

    The loss draws latents to their codes and codes to their latents. `beta` weighs the latter as in
    published models (`legacy`), else the former as in the papers.
    """

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25, legacy: bool = True):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """(z_q, loss, (None, None, indices)); the gradient of z_q is passed to z as it is
        ("straight through")."""
        with torch.autocast(z.device.type, enabled=False):  # half precision would choose other codes
            latents = z.float()
            indices = self.nearest(latents)
            codes = self.get_codebook_entry(indices, (len(z), *z.shape[2:], self.e_dim))
            to_codes, to_latents = (
                (codes.detach() - latents).square().mean(),
                (codes - latents.detach()).square().mean(),
            )
            loss = to_codes + self.beta * to_latents if self.legacy else self.beta * to_codes + to_latents
            return (latents + (codes - latents).detach()).to(z.dtype), loss, (None, None, indices)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Indices of the codes nearest to the latents' positions."""
        codes, positions = self.embedding.weight.float(), z.permute(0, 2, 3, 1).reshape(-1, self.e_dim)
        squares = codes.square().sum(dim=1)  # a position's own square is the same for all codes
        return torch.cat(
            [torch.addmm(squares, rows, codes.T, alpha=-2).argmin(dim=1) for rows in positions.split(ROWS)]
        )

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Codes of indices of any shape, (..., e_dim); with `shape` (N, h, w, e_dim) as a latent
        (N, e_dim, h, w)."""
        codes = self.embedding(indices)
        return codes if shape is None else codes.reshape(*shape).permute(0, 3, 1, 2).contiguous()

    def embed_code(self, indices: Tensor) -> Tensor:
        """The latent (N, e_dim, h, w) of a map of indices (N, h, w)."""
        return self.get_codebook_entry(indices, (*indices.shape, self.e_dim))
