"""Fine-tuning on what the published recipe never sees: the content of one picture in the style of another.

There is no right answer to compare such a painting with, so the network's estimate of it is decoded and judged by VGG16
features, as feed-forward style transfer is trained (Johnson et al. 2016, Huang & Belongie 2017). The diffusion loss on
single pictures goes on beside it, with both conditions dropped at times: it keeps the two dials of guidance alive.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checks import check_fractions
from ldm.data.wikiart import draw_flags
from ldm.errors import ConfigError
from ldm.models.diffusion.ddpm import first_samples
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.models.diffusion.guidance import Guidance, concatenate
from ldm.modules.losses.energy import CONTENT_LAYERS, STYLE_LAYERS
from ldm.modules.losses.style_transfer import StyleTransferLoss, palette_distance, pattern_loss, share_of


class CrossPairLDM(DualCondLDM):
    """A trained DualCondLDM, learning from batches {"photo", "painting"}, (N, H, W, 3) each, in [-1, 1].

    Photos smaller than the paintings, whole scenes at half the size, cost a quarter and teach the same strokes.

    Every photo is painted in the styles of `styles_per_content` paintings of the batch. Most results are estimates from
    pure noise; a share of `later` starts from such an estimate, noised again to a random time step as the sampler
    would have done, some of them twice or up to `hops` times, so that every step of a sampling run learns.

    A share of `guided` is painted under two-way guidance at scales of its own, and judged by what they ask for: a content
    scale of 2 doubles the weight of the content loss. So the dials learn to lead from the photo to the painting, not past it.

    The judge is the bundled VGG16, whatever file of the style network `vgg_ckpt_path` names. What is judged has the photo's details
    put back (`detail`), as finished pictures have.

    Nothing in these losses says which parts of a picture get which of the painting's colours. What does is a picture in its own style,
    whose right answer is known: itself (the identity loss of Park & Lee 2019, here on latents).

    Where a batch tells its pictures' rows ("photo_row", "painting_row", (N,)), what the frozen networks make of them is computed
    once and kept, 0.4 MB a photo of 128 px and 0.7 MB a painting: twice as many steps in the same time.

    content_weight, style_weight: of the two losses of StyleTransferLoss. palette_weight: of the colours' distance from the
        painting's, as a share of the photo's. diffusion_weight: of the diffusion loss, which smooths the texture that the
        style loss asks for at all but the last steps of a run. identity_weight: of the squared error of the latents of pictures
        painted in their own styles, without guidance; 0 paints none. pattern_weight: of regular patterns that neither the photo nor
        the painting has (`pattern_loss`).
    later, hops, guided: see above.
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
            raise ConfigError(
                f"CrossPairLDM: hops must be at least 1, got {hops}; later: 0 has none start later"
            )
        self.later, self.hops, self.guided = later, hops, guided
        self.content_weight, self.diffusion_weight, self.identity_weight = (
            content_weight,
            diffusion_weight,
            identity_weight,
        )
        self.style_weights = {"style": style_weight, "palette": palette_weight, "pattern": pattern_weight}
        self.styles_per_content = styles_per_content
        self.scale_ranges = tuple(content_scales), tuple(style_scales)
        self.style_drop, self.content_drop = style_drop, content_drop
        self.loss = StyleTransferLoss()
        self._photos, self._paintings = Kept(), Kept()

    def on_fit_start(self) -> None:
        if not self._scale_is_known:
            raise ConfigError("CrossPairLDM: give the trained model to go on from as ckpt_path")
        super().on_fit_start()
        self.loss.load_weights(
            self.device, torch.bfloat16 if self.trainer.precision.startswith("bf16") else torch.float32
        )

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        photos, paintings = _pictures(batch)
        n, half, prefix = len(photos), (len(photos) + 1) // 2, "train" if self.training else "val"
        of_photos = self._photos(batch.get("photo_row"), lambda rows: self.of_photos(photos[rows]), n)
        of_paintings = self._paintings(
            batch.get("painting_row"), lambda rows: self.of_paintings(paintings[rows], photos.shape[2:]), n
        )
        # The diffusion loss keeps what is known already: the last half of the photos and the first of the paintings will do.
        single, style = (
            torch.cat([of_photos[name][n - half :], of_paintings[name][:half]])
            for name in ("latent", "style")
        )
        loss, parts = self(single, self.condition_of(self._flags(len(single)), single, style))
        # Every photo with `styles_per_content` different paintings.
        contents, styles = (
            torch.arange(n).repeat(self.styles_per_content),
            torch.cat([torch.arange(n).roll(i) for i in range(self.styles_per_content)]),
        )
        content = self.get_content_features(of_photos["latent"])
        scales = self.draw_scales(len(contents))
        painted = self.paint(self.condition(content[contents], of_paintings["style"][styles]), scales)
        losses = self.judge(
            painted,
            photos[contents],
            paintings[styles],
            _rows(of_photos, contents),
            _rows(of_paintings, styles),
        )
        wanted = [scale / (sum(scales) / 2) for scale in scales]
        style_losses = sum(weight * losses[name] for name, weight in self.style_weights.items())
        loss = (
            self.diffusion_weight * loss
            + self.content_weight * (wanted[0] * losses["content"]).mean()
            + (wanted[1] * style_losses).mean()
        )
        values = {name: value.mean() for name, value in losses.items()}
        if self.identity_weight:
            plain = single.new_ones(len(single))
            own = self.paint(self.condition(self.get_content_features(single), style), (plain, plain))
            values["identity"] = F.mse_loss(own, single)
            loss = loss + self.identity_weight * values["identity"]
        values["loss"] = loss
        return loss, parts | {f"{prefix}/{name}": value.detach() for name, value in values.items()}

    @torch.no_grad()
    def of_photos(self, photos: Tensor) -> dict[str, Tensor]:
        """What the frozen networks make of photos (N, 3, H, W): the scaled `latent`, the `style` statistics, what is `lost` in the first
        stage, and what the content loss asks for."""
        z = self.get_first_stage_encoding(self.encode_first_stage(photos)).float()
        lost = (
            photos - self.decode_first_stage(z).float() if self.detail else photos.new_zeros(len(photos), 1)
        )
        large = {"lost": lost, **self.loss.content_of(photos)}
        return {"latent": z, "style": self.get_style_statistics(photos).float(), **_halved(large)}

    @torch.no_grad()
    def of_paintings(self, paintings: Tensor, size: torch.Size) -> dict[str, Tensor]:
        """What the frozen networks make of paintings (N, 3, H, W): the scaled `latent` at the photos' (height, width), the `style`
        statistics, and what the style loss asks for."""
        small = F.interpolate(paintings, size, mode="area")
        z = self.get_first_stage_encoding(self.encode_first_stage(small)).float()
        return {
            "latent": z,
            "style": self.get_style_statistics(paintings).float(),
            **_halved(self.loss.style_of(paintings)),
        }

    def judge(
        self,
        painted: Tensor,
        photos: Tensor,
        paintings: Tensor,
        of_photos: Mapping[str, Tensor],
        of_paintings: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Losses, (N,) each, of painted latents of these photos in the styles of these paintings."""
        pictures = self.decode_first_stage(painted).float()
        if self.detail:
            pictures = pictures + self.detail * of_photos["lost"]
        with torch.no_grad():
            untouched = palette_distance(photos, paintings)
        palette = share_of(palette_distance(pictures, paintings), untouched)
        contents, styles = (
            {name: kept[name] for name in names}
            for kept, names in ((of_photos, CONTENT_LAYERS), (of_paintings, STYLE_LAYERS))
        )
        content, style = self.loss(pictures, contents, styles)
        return {
            "content": content,
            "style": style,
            "palette": palette,
            "pattern": pattern_loss(pictures, photos, paintings),
        }

    def _flags(self, n: int) -> dict[str, Tensor]:
        """Which conditions the diffusion loss of each sample may use."""
        style, content = zip(*(draw_flags(self.style_drop, self.content_drop) for _ in range(n)))
        return {
            key: torch.tensor(flags, device=self.device)
            for key, flags in ((self.style_flag_key, style), (self.content_flag_key, content))
        }

    def draw_scales(self, n: int) -> tuple[Tensor, Tensor]:
        """(n,) content scales and style scales; both are 1 where a painting goes without guidance."""
        is_guided = torch.rand(n, device=self.device) < self.guided
        drawn = (low * (high / low) ** torch.rand(n, device=self.device) for low, high in self.scale_ranges)
        return tuple(torch.where(is_guided, scale, 1.0) for scale in drawn)

    def estimate(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Sequence[Tensor]
    ) -> Tensor:
        """The guided x_0. All predictions learn: what guidance adds is the difference between them."""
        prediction = self.apply_model(x, t, condition).float()
        rows = torch.nonzero((scales[0] != 1) | (scales[1] != 1))[:, 0]
        if len(rows):
            guidance = Guidance((scales[0][rows], scales[1][rows]), needed=(True, True))
            content, style = condition["c1"][rows], condition["c2"][rows]
            nulls = concatenate(
                [
                    self.condition(torch.zeros_like(content), style),
                    self.condition(content, self.null_style(len(rows))),
                ]
            )
            without = self.apply_model(x[rows].repeat(2, 1, 1, 1), t[rows].repeat(2), nulls).float()
            prediction = prediction.index_copy(
                0, rows, guidance.combine(torch.cat([prediction[rows], without]))
            )
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
    def go_on(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(latents, time steps (N,)) further down the way on which the present estimates lie."""
        start = self.estimate(x, t, condition, scales)
        noise = self.predict_noise_from_start(x, t, start)
        # More of the noisy time steps, which decide what a picture looks like.
        t = (torch.rand(len(t), device=t.device).sqrt() * t).long()
        return self.q_sample(start, t, noise), t

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        # The same noise and time steps every time, and training's random numbers stay what they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.ema_scope():
            torch.manual_seed(batch_idx)
            _, parts = self.shared_step(batch)
        self.log_dict(parts, batch_size=len(batch["photo"]), sync_dist=True)

    @torch.no_grad()
    def preview(
        self, batch: Mapping[str, Tensor], max_images: int = 4, ddim_steps: int = 20
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: photos, paintings, and each photo in its painting's style."""
        batch = first_samples(batch, max_images)
        photos, paintings = _pictures(batch)
        with self.ema_scope():
            z, _ = self.encode_batch({self.first_stage_key: batch["photo"]})
            condition = self.condition(self.get_content_features(z), self.get_style_statistics(paintings))
            samples, _ = self.sample_log(
                condition,
                len(z),
                ddim=True,
                ddim_steps=ddim_steps,
                ddim_discretize="trailing",
                x_T=torch.randn_like(z),
            )
        painted = self.decode_first_stage(samples) + self.detail * (photos - self.decode_first_stage(z))
        return {"photos": photos, "paintings": paintings, "painted": painted}


class Kept:
    """What was computed of each row of a data set, in memory, on its device."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Tensor]] = {}

    def __call__(
        self, rows: Tensor | None, compute: Callable[[list[int]], dict[str, Tensor]], n: int
    ) -> dict[str, Tensor]:
        """What `compute` gives for all n samples of a batch: of those places whose `rows` (n,) are new, the others as kept.
        Nothing is kept where rows are None."""
        if rows is None:
            return compute(list(range(n)))
        keys = rows.tolist()
        new = [place for place, key in enumerate(keys) if key not in self._rows]
        if new:
            computed = compute(new)
            self._rows |= {
                keys[place]: {name: value[i].clone() for name, value in computed.items()}
                for i, place in enumerate(new)
            }
        samples = [self._rows[key] for key in keys]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _halved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In bfloat16, which is exact enough for targets and takes half the memory."""
    return {name: value.bfloat16() for name, value in values.items()}


def _rows(of_pictures: Mapping[str, Tensor], which: Tensor) -> dict[str, Tensor]:
    return {name: value[which] for name, value in of_pictures.items()}


def _pictures(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Photos and paintings, both (N, 3, H, W)."""
    return [batch[kind].permute(0, 3, 1, 2).float() for kind in ("photo", "painting")]
