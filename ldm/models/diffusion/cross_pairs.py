"""Fine-tuning on what the published recipe never sees: the content of one picture in the style of another.

There is no right answer to compare such a painting with, so the network's estimate of it is decoded and judged by VGG16
features, as feed-forward style transfer is trained (Johnson et al. 2016, Huang & Belongie 2017). The diffusion loss on
single pictures goes on beside it, with both conditions dropped at times: it keeps the two dials of guidance alive.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.wikiart import draw_flags
from ldm.errors import ConfigError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.models.diffusion.guidance import concatenate, guided
from ldm.models.diffusion.latent_diffusion import first_samples
from ldm.modules.losses.style_transfer import StyleTransferLoss, palette_distance, pattern_loss, share_of
from ldm.util import check_fractions


class CrossPairLDM(DualCondLDM):
    """A trained DualCondLDM, learning from batches {"photo", "painting"}, (N, H, W, 3) each, in [-1, 1].

    Photos smaller than the paintings, whole scenes at half the size, cost a quarter and teach the same strokes.

    Every photo is painted in the styles of `styles_per_content` paintings of the batch. Most results are estimates from
    pure noise; a share of `later` starts from such an estimate, noised again to a random time step as the sampler
    would have done, some of them twice or up to `hops` times, so that every step of a sampling run learns. Only a window of `window` x `window` positions of the
    latent is decoded and judged; one that is less than the whole has to have all of a painting's colours to itself.

    A share of `guided` is painted under two-way guidance at scales of its own, and judged by what they ask for: a content
    scale of 2 doubles the weight of the content loss. So the dials learn to lead from the photo to the painting, not past it.

    The judge is the bundled VGG16; `vgg_ckpt_path` names the style network's file, as in every DualCondLDM.

    What is judged has the photo's details put back (`detail`), as finished pictures have.

    Nothing in these losses says which parts of a picture get which of the painting's colours. What does is a picture in its own style,
    whose right answer is known: itself (the identity loss of Park & Lee 2019, here on latents).

    content_weight, style_weight: of the two losses of StyleTransferLoss. palette_weight: of the colours' distance from the
        painting's, as a share of the photo's. diffusion_weight: of the diffusion loss, which smooths the texture that the
        style loss asks for at all but the last steps of a run. identity_weight: of the squared error of the latents of pictures
        painted in their own styles, without guidance; 0 paints none. pattern_weight: of regular patterns that neither the photo nor
        the painting has (`pattern_loss`).
    later, hops, guided: see above. window: in latent positions.
    content_scales, style_scales: the lowest and highest guidance scales, between which they are drawn evenly by their logarithm.
    style_drop, content_drop: how often the diffusion loss goes without a condition, see HybridDraws.
    """

    def __init__(
        self,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        palette_weight: float = 0.0,
        diffusion_weight: float = 1.0,
        identity_weight: float = 0.0,
        pattern_weight: float = 0.0,
        styles_per_content: int = 2,
        window: int = 32,
        later: float = 0.5,
        hops: int = 1,
        guided: float = 1.0,
        content_scales: tuple[float, float] = (0.5, 2.0),
        style_scales: tuple[float, float] = (0.5, 3.0),
        style_drop: float = 0.1,
        content_drop: float = 0.3,
        **options: Any,
    ):
        super().__init__(**options)
        check_fractions(later=later, guided=guided)
        if hops < 1:
            raise ConfigError(f"CrossPairLDM: hops must be at least 1, got {hops}; later: 0 has none start later")
        self.later, self.hops, self.guided = later, hops, guided
        self.content_weight, self.diffusion_weight, self.identity_weight = content_weight, diffusion_weight, identity_weight
        self.style_weights = {"style": style_weight, "palette": palette_weight, "pattern": pattern_weight}
        self.styles_per_content, self.window = styles_per_content, window
        self.scale_ranges = tuple(content_scales), tuple(style_scales)
        self.style_drop, self.content_drop = style_drop, content_drop
        self.loss = StyleTransferLoss()

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        return (*super().optional_keys(state), "loss.")

    def on_fit_start(self) -> None:
        if not self._scale_is_known:
            raise ConfigError("CrossPairLDM: give the trained model to go on from as ckpt_path")
        super().on_fit_start()
        self.loss.load_weights()

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], int]:
        photos, paintings = _pictures(batch)
        n, half, prefix = len(photos), (len(photos) + 1) // 2, "train" if self.training else "val"
        # The diffusion loss keeps what is known already: the last half of the photos and the first of the paintings will do.
        shown = torch.cat([photos, F.interpolate(paintings[:half], photos.shape[2:], mode="area")])
        with torch.no_grad():
            z = self.get_first_stage_encoding(self.encode_first_stage(shown))
            style = torch.cat([self.get_style_statistics(pictures).float() for pictures in (photos[n - half :], paintings)])
            content = self.get_content_features(z)
        single = z[n - half :]
        loss, parts = self(single, self.condition_of(self._flags(len(single)), single, style[: len(single)]))
        # Every photo with `styles_per_content` different paintings.
        contents, styles = torch.arange(n).repeat(self.styles_per_content), torch.cat([torch.arange(n).roll(i) for i in range(self.styles_per_content)])
        scales = self.draw_scales(len(contents))
        painted = self.paint(self.condition(content[contents], style[half:][styles]), scales)
        losses = self.judge(painted, z[:n], photos, paintings, contents, styles)
        wanted = [scale / (sum(scales) / 2) for scale in scales]
        style_losses = sum(weight * losses[name] for name, weight in self.style_weights.items())
        loss = self.diffusion_weight * loss + self.content_weight * (wanted[0] * losses["content"]).mean() + (wanted[1] * style_losses).mean()
        values = {name: value.mean() for name, value in losses.items()}
        if self.identity_weight:
            plain = single.new_ones(len(single))
            own = self.paint(self.condition(content[n - half :], style[: len(single)]), (plain, plain))
            values["identity"] = F.mse_loss(own, single)
            loss = loss + self.identity_weight * values["identity"]
        values["loss"] = loss
        return loss, parts | {f"{prefix}/{name}": value.detach() for name, value in values.items()}, n

    def judge(
        self, painted: Tensor, z: Tensor, photos: Tensor, paintings: Tensor, contents: Tensor, styles: Tensor
    ) -> dict[str, Tensor]:
        """Losses, (N,) each, of a window of painted latents; z: the photos' latents; contents, styles: (N,) which of the photos and
        paintings each was painted of."""
        window, places = self.window_of(torch.cat([z, painted]), self.first_stage_model.encoder.factor)
        shown = photos[places]
        with torch.no_grad():
            kept, wanted = self.loss.features(shown), self.loss.features(paintings)
        pictures = self.decode_first_stage(window[len(z) :])
        if self.detail:
            with torch.no_grad():
                lost = shown - self.decode_first_stage(window[: len(z)])
            pictures = pictures + self.detail * lost[contents]
        with torch.no_grad():
            untouched = palette_distance(shown[contents], paintings[styles])
        palette = share_of(palette_distance(pictures, paintings[styles]), untouched)
        pattern = pattern_loss(pictures, shown[contents], paintings[styles])
        content, style = self.loss(pictures, kept.rows(contents), wanted.rows(styles))
        return {"content": content, "style": style, "palette": palette, "pattern": pattern}

    def _flags(self, n: int) -> dict[str, Tensor]:
        """Which conditions the diffusion loss of each sample may use."""
        style, content = zip(*(draw_flags(self.style_drop, self.content_drop) for _ in range(n)))
        return {key: torch.tensor(flags, device=self.device) for key, flags in ((self.style_flag_key, style), (self.content_flag_key, content))}

    def draw_scales(self, n: int) -> tuple[Tensor, Tensor]:
        """(n,) content scales and style scales; both are 1 where a painting goes without guidance."""
        is_guided = torch.rand(n, device=self.device) < self.guided
        drawn = (low * (high / low) ** torch.rand(n, device=self.device) for low, high in self.scale_ranges)
        return tuple(torch.where(is_guided, scale, 1.0) for scale in drawn)

    def estimate(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The guided x_0. All predictions learn: what guidance adds is the difference between them."""
        prediction = self.apply_model(x, t, condition).float()
        rows = torch.nonzero((scales[0] != 1) | (scales[1] != 1))[:, 0]
        if len(rows):
            content, style = condition["c1"][rows], condition["c2"][rows]
            nulls = concatenate([self.condition(torch.zeros_like(content), style), self.condition(content, self.null_style(len(rows)))])
            without = self.apply_model(x[rows].repeat(2, 1, 1, 1), t[rows].repeat(2), nulls).float().chunk(2)
            columns = [scale[rows, None, None, None] for scale in scales]
            prediction = prediction.index_copy(0, rows, guided(prediction[rows], without, columns))
        return self.start_from(prediction, x, t)

    def paint(self, condition: Mapping[str, Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The network's guided estimates of paintings, (N, channels, h, w) scaled latents: those from pure noise first."""
        x, last = torch.randn_like(condition["c1"]), self.num_timesteps - 1
        t = torch.full((len(x),), last, device=x.device)
        later = int(self.later * len(x))
        for hop in range(self.hops if later else 0):
            # Fewer each time, so that every number of estimates on the way occurs.
            rows = slice(len(x) - later * (self.hops - hop) // self.hops, None)
            given = {key: value[rows] for key, value in condition.items()}
            x[rows], t[rows] = self.go_on(x[rows], t[rows], given, [scale[rows] for scale in scales])
        return self.estimate(x, t, condition, scales)

    @torch.no_grad()
    def go_on(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(latents, time steps (N,)) further down the way on which the present estimates lie."""
        start = self.estimate(x, t, condition, scales)
        noise = self.predict_noise_from_start(x, t, start)
        # More of the noisy time steps, which decide what a picture looks like.
        t = (torch.rand(len(t), device=t.device).sqrt() * t).long()
        return self.q_sample(start, t, noise), t

    def window_of(self, z: Tensor, factor: int) -> tuple[Tensor, tuple[Any, ...]]:
        """(a random window of latents, what it shows of pictures `factor` times as large, as an index)."""
        side = min(self.window, *z.shape[2:])
        tops = [int(torch.randint(size - side + 1, ())) for size in z.shape[2:]]
        latent, picture = ([slice(scale * top, scale * (top + side)) for top in tops] for scale in (1, factor))
        return z[..., latent[0], latent[1]], (..., picture[0], picture[1])

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        # The same noise, time steps and windows every time, and training's random numbers stay what they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.ema_scope():
            torch.manual_seed(batch_idx)
            _, parts, n = self.shared_step(batch)
        self.log_dict(parts, batch_size=n, sync_dist=True)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], max_images: int = 4, ddim_steps: int = 20) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: photos, paintings, and each photo in its painting's style."""
        batch = first_samples(batch, max_images)
        photos, paintings = _pictures(batch)
        with self.ema_scope():
            z, _ = self.encode_batch({self.first_stage_key: batch["photo"]})
            condition = self.condition(self.get_content_features(z), self.get_style_statistics(paintings))
            samples, _ = self.sample_log(condition, len(z), ddim=True, ddim_steps=ddim_steps, ddim_discretize="trailing", x_T=torch.randn_like(z))
        painted = self.decode_first_stage(samples) + self.detail * (photos - self.decode_first_stage(z))
        return {"photos": photos, "paintings": paintings, "painted": painted}


def _pictures(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Photos and paintings, both (N, 3, H, W)."""
    return [batch[kind].permute(0, 3, 1, 2).float() for kind in ("photo", "painting")]
