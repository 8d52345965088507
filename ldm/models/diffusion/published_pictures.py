"""The pictures that latent-diffusion's `log_images` draws."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.published.helpers import isimage, ismap, log_txt_as_img, to_rgb


class PublishedPictures:
    """Methods of a DDPM."""

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        N: int = 8,
        n_row: int = 4,
        sample: bool = True,
        ddim_steps: int | None = 200,
        ddim_eta: float = 1.0,
        return_keys: Sequence[str] | None = None,
        quantize_denoised: bool = True,
        inpaint: bool = True,
        plot_denoise_rows: bool = False,
        plot_progressive_rows: bool = True,
        plot_diffusion_rows: bool = True,
        split: str | None = None,
    ) -> dict[str, Tensor]:
        """The published pictures of a batch's first N samples, by the averaged weights: (N, 3, H,
        W) each; rows are one grid (3, H, W).

        `inputs`, `reconstruction` and, where it can be shown, `conditioning` (maps:
        `original_conditioning`), always. `sample`: `samples` by DDIM, or by ancestral sampling with
        `ddim_steps` None; then too: `quantize_denoised`: `samples_x0_quantized`, if the first stage
        has codes; `inpaint`: `mask`, `samples_inpainting` of its inside (0), `samples_outpainting`
        of the rest; `plot_denoise_rows`: `denoise_row`.
        `plot_diffusion_rows`: `diffusion_row` of `n_row` samples. `plot_progressive_rows`:
        `progressive_row`, which takes all time steps.
        return_keys: give these only. split: has no effect. This costs minutes; while training,
        `preview` is drawn instead.
        """
        wanted = {"return_first_stage_outputs": True, "force_c_encode": True, "return_original_cond": True}
        z, c, x, reconstruction, original = self.get_input(batch, self.first_stage_key, **wanted, bs=N)
        pictures = {"inputs": x, "reconstruction": reconstruction}
        if (shown := self._condition_shown(batch, x, c, original)) is not None:
            pictures["conditioning"] = shown
        if ismap(original):
            pictures["original_conditioning"] = to_rgb(original)
        if plot_diffusion_rows:
            pictures["diffusion_row"] = self.row_of(self._diffused(z[:n_row]))
        with self.ema_scope("Plotting"):
            if sample:
                asked = {
                    "quantize": quantize_denoised and self.has_codes,
                    "inpaint": inpaint,
                    "denoise_row": plot_denoise_rows,
                }
                pictures |= self._samples(
                    z, c, {"ddim": ddim_steps is not None, "ddim_steps": ddim_steps, "eta": ddim_eta}, **asked
                )
            if plot_progressive_rows:
                _, starts = self.progressive_denoising(c, z.shape, verbose=False)
                pictures["progressive_row"] = self.row_of(starts)
        return pictures if return_keys is None else _chosen(pictures, return_keys)

    def _samples(
        self, z: Tensor, c: Any, options: dict[str, Any], quantize: bool, inpaint: bool, denoise_row: bool
    ) -> dict[str, Tensor]:
        def run(**more: Any) -> tuple[Tensor, Any]:
            latents, way = self.sample_log(
                c, len(z), x_T=torch.randn_like(z), verbose=False, **options, **more
            )
            return self.decode_first_stage(latents), way

        pictures = {}
        pictures["samples"], way = run()
        if denoise_row:
            pictures["denoise_row"] = self.row_of(way["x_inter"] if isinstance(way, dict) else way)
        if quantize:
            pictures["samples_x0_quantized"], _ = run(quantize_denoised=True)
        if inpaint:
            mask = torch.ones_like(z[:, :1])
            h, w = mask.shape[2:]
            mask[..., h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 0.0
            pictures["mask"] = mask
            pictures["samples_inpainting"], _ = run(x0=z, mask=mask)
            # differs: the published code inpaints a second time.
            pictures["samples_outpainting"], _ = run(x0=z, mask=1.0 - mask)
        return pictures

    def _diffused(self, z: Tensor) -> Iterable[Tensor]:
        """z noised to every time step whose number divides by `log_every_t`, and to the last."""
        for i in range(self.num_timesteps):
            if i % self.log_every_t == 0 or i == self.num_timesteps - 1:
                yield self.q_sample(z, torch.full((len(z),), i, device=z.device))

    def row_of(self, latents: Iterable[Tensor]) -> Tensor:
        """One picture (3, H, W): a row for each sample, in which the decoded `latents` (N,
        channels, h, w) follow each other."""
        from torchvision.utils import make_grid  # takes a second to import

        steps = torch.stack([self.decode_first_stage(z) for z in latents], dim=1)
        return make_grid(steps.flatten(0, 1), nrow=steps.shape[1])

    @torch.no_grad()
    def to_rgb(self, x: Tensor) -> Tensor:
        """Maps (N, C, h, w) as pictures (N, 3, h, w) in [-1, 1]."""
        return to_rgb(x)

    def _condition_shown(self, batch: Mapping[str, Any], x: Tensor, c: Any, original: Any) -> Tensor | None:
        """The condition as pictures: decoded, written, or as it is; None where it is none of
        these."""
        if original is None:
            return None
        if hasattr(self.cond_stage_model, "decode"):
            return self.cond_stage_model.decode(c)
        if isimage(original):
            return original
        if isinstance(original, Tensor) and original.ndim > 1:
            return None
        labels = original.tolist() if isinstance(original, Tensor) else original
        texts = batch.get("human_label", labels) if self.cond_stage_key == "class_label" else labels
        return log_txt_as_img((x.shape[3], x.shape[2]), [str(text) for text in texts[: len(x)]]).to(x)


def _chosen(pictures: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    unknown = [key for key in keys if key not in pictures]
    if unknown:
        raise ValueError(f"log_images: return_keys has {unknown[0]!r}, but drawn are {', '.join(pictures)}")
    return {key: pictures[key] for key in keys}
