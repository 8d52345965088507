"""The denoiser of one sampling run: guided prediction, with all that does not depend on the noisy latent computed once.

Shapes: N pictures, B branches of guidance, T tiles; x, content (N, C, h, w), style (N, style_dim). Rows of the network are
B * T * N, in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import guided
from ldm.models.diffusion.samplers import start_of
from ldm.modules.diffusionmodules.adaln import Modulations
from ldm.pipeline.tiles import Tile, Tiling, blend, cut

ROWS_AT_ONCE = (
    16  # tiles of all pictures that go through the network together, times the branches of guidance
)
PREPARED_STEPS = (
    32  # time steps whose modulations are held at once: some 10 MB of the full-size model per picture
)


@dataclass(frozen=True)
class Guidance:
    """The two dials, a scale for each picture; make it with `of`. 1 everywhere needs no second branch.

    content_scales, style_scales: (N,) tensors, where the pictures are. needed: whether any of each is not 1.
    interval: the part of the run, as fractions (low, high) of the time steps, in which guidance acts at all
    (Kynkäänniemi et al. 2024); outside it the plain conditional prediction is used.
    """

    content_scales: Tensor
    style_scales: Tensor
    needed: tuple[bool, bool]
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(
        cls,
        content_scales: Sequence[float],
        style_scales: Sequence[float],
        interval: tuple[float, float] | None = None,
        device: torch.device | None = None,
    ) -> "Guidance":
        both = (content_scales, style_scales)
        tensors = (torch.tensor([*scales], dtype=torch.float32, device=device) for scales in both)
        return cls(
            *tensors, tuple(any(scale != 1 for scale in scales) for scales in both), interval or (0.0, 1.0)
        )

    def acts_at(self, timestep: int, num_timesteps: int) -> bool:
        return self.interval[0] <= timestep / (num_timesteps - 1) <= self.interval[1]


class GuidedDenoiser:
    """(x, time step) -> predicted x_0, under both conditions and guidance, in tiles where the latent is larger than one.

    content: None for nothing in particular, so that the style shows what it is by itself. timesteps: those of the run, in
    their order. tile: side of the latents that the network sees at once.
    """

    def __init__(
        self,
        model: DualCondModel,
        content: Tensor | None,
        style: Tensor,
        guidance: Guidance,
        timesteps: Sequence[int],
        tile: int,
    ):
        self.model, self.network = model, model.model.diffusion_model
        self.content, self.style, self.guidance, self.tile = content, style, guidance, tile
        self.timesteps = {t: i for i, t in enumerate(timesteps)}
        self.alphas = model.alphas_cumprod.tolist()
        self.count = len(style)
        self.needed = [guidance.needed[0] and content is not None, guidance.needed[1]]
        both = zip((guidance.content_scales, guidance.style_scales), self.needed)
        self.scales = [scales[:, None, None, None] for scales, is_needed in both if is_needed]
        if self.needed[1]:
            self.style = torch.cat([self.style, model.null_style(1)])
        self._prepared_from: int | None = None

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        """Predicted x_0 at a time step of the run."""
        needed = self.needed if self.guidance.acts_at(timestep, self.model.num_timesteps) else [False, False]
        content = torch.zeros_like(x) if self.content is None else self.content
        content_vectors, modulations = self._prepared(timestep, needed)

        def predict(tiles: Sequence[Tile]) -> Tensor:
            return self._guided(cut(x, tiles), cut(content, tiles), content_vectors, modulations, needed)

        prediction = blend(predict, Tiling(*x.shape[2:], self.tile), at_once=max(1, ROWS_AT_ONCE // len(x)))
        return start_of(x, prediction, self.alphas[timestep], self.model.parameterization)

    def _guided(
        self,
        x: Tensor,
        content: Tensor,
        content_vectors: Tensor | None,
        modulations: Modulations,
        needed: Sequence[bool],
    ) -> Tensor:
        """The guided prediction for some tiles of all rows, one below the other: the branches go through the network together."""
        contents = [
            content,
            *([torch.zeros_like(content)] if needed[0] else []),
            *([content] if needed[1] else []),
        ]
        tiles = len(x) // self.count
        vectors = (
            modulations if tiles == 1 else [_for_tiles(block, len(contents), tiles) for block in modulations]
        )
        prediction = self.network.predict(
            x.repeat(len(contents), 1, 1, 1), torch.cat(contents), content_vectors, vectors
        )
        conditioned, *nulls = prediction.float().chunk(len(contents))
        return guided(
            conditioned, nulls, [scales.repeat(tiles, 1, 1, 1) for scales in self.scales] if nulls else []
        )

    # What depends on the time step and the style alone

    def _prepared(self, timestep: int, needed: Sequence[bool]) -> tuple[Tensor | None, Modulations]:
        """(content vectors (1, ...), every block's modulations (rows, ...)) of a time step."""
        index = self.timesteps[timestep]
        first = index - index % PREPARED_STEPS
        if self._prepared_from != first:
            self._prepare(list(self.timesteps)[first : first + PREPARED_STEPS])
            self._prepared_from = first
        place = index - first
        content_vectors = None if self._content_vectors is None else self._content_vectors[place][None]
        # The content's null branch has the style of the full one; the null style is the last row.
        full, null = slice(0, self.count), slice(self.count, None)
        branches = [full] * (1 + needed[0]) + [null] * needed[1]
        return content_vectors, [self._rows(vectors[place], branches) for vectors in self._modulations]

    def _rows(self, vectors: Tensor, branches: list[slice]) -> Tensor:
        return torch.cat([vectors[part].expand(self.count, -1) for part in branches])

    def _prepare(self, timesteps: Sequence[int]) -> None:
        """Content vectors (S, ...) and, for each block, modulations (S, styles, ...) of S time steps."""
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
    return torch.cat([branch.repeat(tiles, 1) for branch in vectors.chunk(branches)])
