"""The denoiser of one sampling run: guided prediction, with all that does not depend on the noisy
latent computed once.

Shapes: N pictures, B branches of guidance, T tiles; x, content (N, C, h, w), style (N, style_dim).
Rows of the network are B * T * N, in that order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import start_of
from ldm.modules.diffusionmodules.adaln import Modulations
from ldm.pipeline.tiles import Tile, Tiling, blend, cut

# tiles of all pictures that go through the network together, times the branches of guidance
ROWS_AT_ONCE = 16
# time steps whose modulations are held at once: some 10 MB of the full-size model per picture
PREPARED_STEPS = 32


class PreparedDenoiser:
    """(x, time step) -> predicted x_0, under both conditions and guidance, in tiles where the
    latent is larger than one.

    content: None for nothing in particular, so that the style shows what it is by itself.
    timesteps: those of the run, in their order. tile: side of the latents that the network sees at
    once. not_style: (1, style_dim) that stands for no style, None for the model's null style.
    """

    def __init__(
        self,
        model: DualCondModel,
        content: Tensor | None,
        style: Tensor,
        guidance: Guidance,
        timesteps: Sequence[int],
        tile: int,
        not_style: Tensor | None = None,
    ):
        self.model, self.network = model, model.model.diffusion_model
        self.content, self.tile = content, tile
        self.guidance = guidance.only(content=content is not None)
        self.timesteps = {t: i for i, t in enumerate(timesteps)}
        self.alphas = model.alphas_cumprod.tolist()
        self.count = len(style)
        null = model.null_style(1) if not_style is None else not_style
        self.style = torch.cat([style, null]) if guidance.needed[1] else style
        self._prepared_from: int | None = None

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        """Predicted x_0 at a time step of the run."""
        guidance = self.guidance.at(timestep, self.model.num_timesteps)
        content = torch.zeros_like(x) if self.content is None else self.content
        content_vectors, modulations = self._prepared(timestep, guidance)

        def predict(tiles: Sequence[Tile]) -> Tensor:
            noisy, given = cut(x, tiles), cut(content, tiles)
            prediction = self.network.predict(
                guidance.repeat(noisy),
                guidance.join(given, torch.zeros_like(given), given),
                content_vectors,
                [_for_tiles(vectors, guidance.branches, len(tiles)) for vectors in modulations],
            )
            return guidance.combine(prediction.float())

        prediction = blend(
            predict, Tiling(x.shape[2], x.shape[3], self.tile), at_once=max(1, ROWS_AT_ONCE // len(x))
        )
        return start_of(x, prediction, self.alphas[timestep], self.model.parameterization)

    # What depends on the time step and the style alone

    def _prepared(self, timestep: int, guidance: Guidance) -> tuple[Tensor | None, Modulations]:
        """(content vectors (1, ...), every block's modulations (B * N, ...)) of a time step."""
        index = self.timesteps[timestep]
        first = index - index % PREPARED_STEPS
        if self._prepared_from != first:
            self._prepare(list(self.timesteps)[first : first + PREPARED_STEPS])
            self._prepared_from = first
        place = index - first
        content_vectors = None if self._content_vectors is None else self._content_vectors[place][None]
        return content_vectors, [self._rows(vectors[place], guidance) for vectors in self._modulations]

    def _rows(self, vectors: Tensor, guidance: Guidance) -> Tensor:
        """(B * N, ...) from a row for each style. The branch without content has the styles too;
        the null style is the last row."""
        full, null = vectors[: self.count], vectors[self.count :]
        rows: Tensor = guidance.join(full, full, null.expand(self.count, -1) if guidance.needed[1] else None)
        return rows

    def _prepare(self, timesteps: Sequence[int]) -> None:
        """Content vectors (S, ...) and, for each block, modulations (S, styles, ...) of S time
        steps."""
        # Made on the device: a copy from the CPU cannot be part of a CUDA graph.
        time = self.network.time_embed(
            torch.stack([torch.full((), t, device=self.style.device) for t in timesteps])
        )
        emb = time[:, None] + self.network.embed_context(self.style)[None]
        self._content_vectors = self.network.content_vectors(time)
        self._modulations = [
            vectors.unflatten(0, emb.shape[:2]) for vectors in self.network.modulations(emb.flatten(0, 1))
        ]


def _for_tiles(vectors: Tensor, branches: int, tiles: int) -> Tensor:
    """(B * T * N, ...) from (B * N, ...)."""
    return (
        vectors if tiles == 1 else torch.cat([branch.repeat(tiles, 1) for branch in vectors.chunk(branches)])
    )
