"""Fine-tuning on what the published recipe never sees: the content of one picture in the style of
another.

There is no right answer to compare such a painting with, so the network's estimate of it is decoded
and judged by VGG16 features, as feed-forward style transfer is trained (Johnson et al. 2016, Huang
& Belongie 2017). The diffusion loss on single pictures goes on beside it, with both conditions
dropped at times: it keeps the two dials of guidance alive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.config.groups import flat_keys
from ldm.data.wikiart import flags_of
from ldm.device import cuda_graph
from ldm.errors import ConfigError
from ldm.models.diffusion.conditions import concatenate
from ldm.models.diffusion.ddpm import channels_first, first_samples
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.models.diffusion.encoded import Encoded, Kept, flat, halved, unflat
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.recorded_step import Capture, RecordedStep
from ldm.models.options import CrossPairBatches, Estimates, LossWeights
from ldm.modules.losses.energy import CONTENT_LAYERS
from ldm.modules.losses.paint_features import STYLE_LAYERS
from ldm.modules.losses.style_transfer import (
    PLACES,
    StyleTransferLoss,
    layout_loss,
    palette_distance,
    pattern_loss,
    share_of,
)


@dataclass(frozen=True)
class Scales:
    """Content scales and style scales of N paintings, (N,) each. The first `plain` of them go
    without guidance, at scales of 1: whoever asks the numbers themselves waits for the GPU."""

    content: Tensor
    style: Tensor
    plain: int

    @property
    def guided(self) -> tuple[Tensor, Tensor]:
        """(content scales, style scales) of those under guidance."""
        return self.content[self.plain :], self.style[self.plain :]

    def behind(self, n: int) -> "Scales":
        """These, behind n that go without guidance."""
        content, style = (torch.cat([each.new_ones(n), each]) for each in (self.content, self.style))
        return Scales(content, style, self.plain + n)

    def spread(self, count: int) -> "Scales":
        """So many, evenly from all."""
        n, rows = len(self.content), _spread(len(self.content), count, self.content.device)
        plain = sum(place < self.plain for place in _spread(n, count).tolist())
        return Scales(self.content[rows], self.style[rows], plain)


class CrossPairLDM(DualCondLDM):
    """A trained DualCondLDM, learning from batches {"photo", "painting"}, (N, H, W, 3) each, in
    [-1, 1].

    Photos smaller than the paintings, whole scenes at half the size, cost a quarter and teach the
    same strokes.

    Every photo is painted in the styles of `styles_per_content` paintings of the batch. Most
    results are estimates from pure noise; a share of `later` starts from such an estimate, noised
    again to a random time step as the sampler would have done, some of them twice or up to `hops`
    times, so that every step of a sampling run learns.

    A share of `guided` is painted under two-way guidance at scales of its own, and judged by what
    they ask for: a content scale of 2 doubles the weight of the content loss. So the dials learn to
    lead from the photo to the painting, not past it.

    The judge is the bundled VGG16, whatever file of the style network `vgg_ckpt_path` names. What
    is judged has the photo's details put back (`detail`) and its `margin` cut off, as finished
    pictures have.

    Nothing in these losses says which parts of a picture get which of the painting's colours. What
    does is a picture in its own style, whose right answer is known: itself (the identity loss of
    Park & Lee 2019, here on latents).

    Where a batch tells its pictures' rows ("photo_row", "painting_row", (N,)), what the frozen
    networks make of them is computed once and kept, 0.4 MB a photo of 128 px and 1.5 MB a painting:
    twice as many steps in the same time.

    Parameters: those of CrossPairBatches, LossWeights, Estimates and DualCondLDM.
    """

    @flat_keys
    def __init__(
        self,
        *,
        pairs: CrossPairBatches,
        weights: LossWeights,
        estimates: Estimates,
        **options: Any,
    ):
        super().__init__(**options)
        self.weights, self.estimates = weights, estimates
        self.styles_per_content = pairs.styles_per_content
        self.style_drop, self.content_drop = pairs.style_drop, pairs.content_drop
        self.loss, self.record_steps = StyleTransferLoss(), pairs.record_steps
        self._photos, self._paintings = Kept(), Kept()
        self._recorded: RecordedStep | None = None

    def on_fit_start(self) -> None:
        """Lightning's: see that what training needs is there."""
        if not self._scale_is_known:
            raise ConfigError("CrossPairLDM: give the trained model to go on from as ckpt_path")
        super().on_fit_start()
        self.loss.load_weights(
            self.device, torch.bfloat16 if self.trainer.precision.startswith("bf16") else torch.float32
        )
        # What several processes or micro-batches add up, and what a loss scaler scales, is not in
        # a record.
        alone = self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1
        if (
            self.record_steps
            and self.device.type == "cuda"
            and alone
            and self.trainer.precision != "16-mixed"
        ):
            self._recorded = self.recorded()

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of a batch; a recorded step in training, where steps are
        recorded."""
        photos, paintings = self.encoded(batch)
        if self._recorded is None or not torch.is_grad_enabled():
            return self.losses_of(photos, paintings)
        return self._recorded(flat(photos, paintings))

    def recorded(self, capture: Capture = cuda_graph) -> RecordedStep:
        """What records and replays this model's steps."""
        return RecordedStep(
            lambda inputs: self.losses_of(*unflat(inputs)), self.trained_parameters(), capture
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's: the gradients of a step, which a recorded one has computed already."""
        if self._recorded is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._recorded.backward(loss)

    def losses_of(self, photos: Encoded, paintings: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log): the diffusion loss of single pictures, and the judge's of photos
        in the styles of paintings."""
        z, style = _single_pictures(photos, paintings)
        diffusion, parts = self(z, self.condition_of(self._flags(len(z)), z, style))
        losses, scales = self.cross_losses(photos, paintings, (z, style))
        # A scale asks for its loss: it weighs what it is of both scales' mean.
        mean_scale = (scales.content + scales.style) / 2
        loss = (
            self.weights.diffusion_weight * diffusion
            + self.weights.content_weight * (scales.content / mean_scale * losses["content"]).mean()
            + (scales.style / mean_scale * self.weights.of_style(losses)).mean()
        )
        values = {name: value.mean() for name, value in losses.items()}
        if self.weights.identity_weight:
            loss = loss + self.weights.identity_weight * values["identity"]
        values["loss"] = loss
        prefix = "train" if self.training else "val"
        return loss, parts | {f"{prefix}/{name}": value.detach() for name, value in values.items()}

    def encoded(self, batch: Mapping[str, Tensor]) -> tuple[Encoded, Encoded]:
        """A batch's photos and paintings, computed or as kept."""
        photos, paintings = _pictures(batch)
        n, size = len(photos), photos.shape[2:]
        of_photos = self._photos(batch.get("photo_row"), lambda rows: self.of_photos(photos[rows]), n)
        of_paintings = self._paintings(
            batch.get("painting_row"), lambda rows: self.of_paintings(paintings[rows], size), n
        )
        if "recolored" in batch:
            of_photos["recolored"] = self.of_recolored(batch["recolored"])
        return Encoded(photos, of_photos), Encoded(paintings, of_paintings)

    def cross_losses(
        self, photos: Encoded, paintings: Encoded, own: tuple[Tensor, Tensor]
    ) -> tuple[dict[str, Tensor], Scales]:
        """(losses, scales) of every photo in the styles of `styles_per_content` different
        paintings, one after the other.

        own: (scaled latents, style statistics) of pictures to paint in their own styles, without
        guidance, beside them: their squared error is the loss "identity".
        """
        order = torch.arange(len(photos.pictures), device=self.device)
        turns = range(self.styles_per_content)
        contents, styles = order.repeat(len(turns)), torch.cat([order.roll(i) for i in turns])
        content = self.get_content_features(_contents(photos, len(turns)))
        conditions = [self.condition(content, paintings.made["style"][styles])]
        scales = self.draw_scales(len(contents))
        painted_under, plain = scales, 0
        if self.weights.identity_weight:
            z, style = own
            plain = len(z)
            conditions.insert(0, self.condition(self.get_content_features(z), style))
            painted_under = scales.behind(plain)
        # All in one go: small networks are limited by the number of calls.
        painted = self.paint(concatenate(conditions), painted_under)
        losses = self.judge(painted[plain:], photos.rows(contents), paintings.rows(styles))
        if self.weights.identity_weight:
            losses["identity"] = F.mse_loss(painted[:plain], own[0])
        return losses, scales

    @torch.no_grad()
    def of_photos(self, photos: Tensor) -> dict[str, Tensor]:
        """What the frozen networks make of photos (N, 3, H, W): the scaled `latent`, the `style`
        statistics, what is `lost` in the first stage, and what the content loss asks for."""
        z = self.get_first_stage_encoding(self.encode_first_stage(photos)).float()
        lost = (
            photos - self.decode_first_stage(z).float() if self.detail else photos.new_zeros(len(photos), 1)
        )
        large = {"lost": lost, **self.loss.content_of(self.within(photos))}
        return {"latent": z, "style": self.get_style_statistics(photos).float(), **halved(large)}

    @torch.no_grad()
    def of_recolored(self, photos: Tensor) -> Tensor:
        """(N, R, C, h, w) scaled latents of photos (N, R, H, W, 3) in the colours of the R paintings
        whose style they are to have. Raises ConfigError for another number of styles."""
        n, turns = photos.shape[:2]
        if turns != self.styles_per_content:
            raise ConfigError(
                f"CrossPairLDM: photos come in the colours of {turns} paintings (recolored of the data set) "
                f"for {self.styles_per_content} styles of each (styles_per_content)"
            )
        z = self.get_first_stage_encoding(self.encode_first_stage(channels_first(photos.flatten(0, 1))))
        return z.float().unflatten(0, (n, turns))

    @torch.no_grad()
    def of_paintings(self, paintings: Tensor, size: torch.Size) -> dict[str, Tensor]:
        """What the frozen networks make of paintings (N, 3, H, W): the scaled `latent` at the
        photos' (height, width), the `style` statistics, and what the style loss asks for."""
        small = F.interpolate(paintings, size, mode="area")
        z = self.get_first_stage_encoding(self.encode_first_stage(small)).float()
        return {
            "latent": z,
            "style": self.get_style_statistics(paintings).float(),
            **halved(self.loss.style_of(paintings)),
        }

    def judge(self, painted: Tensor, photos: Encoded, paintings: Encoded) -> dict[str, Tensor]:
        """Losses, (N,) each, of painted latents of these photos in the styles of these paintings:
        rows are `styles_per_content` turns of different photos."""
        pictures = self.decode_first_stage(painted).float()
        if self.detail:
            pictures = pictures + self.detail * photos.made["lost"]
        pictures, originals = self.within(pictures), self.within(photos.pictures)
        with torch.no_grad():
            untouched = palette_distance(originals, paintings.pictures)
        palette = share_of(palette_distance(pictures, paintings.pictures), untouched)
        wanted = [*STYLE_LAYERS, *(PLACES if self.weights.places_weight else ())]
        content, style, places = self.loss(pictures, photos.of(CONTENT_LAYERS), paintings.of(wanted))
        pattern = pattern_loss(pictures, originals, paintings.pictures)
        layout = layout_loss(pictures, originals, len(pictures) // self.styles_per_content)
        return {
            "content": content,
            "style": style,
            "palette": palette,
            "pattern": pattern,
            "places": places,
            "layout": layout,
        }

    def within(self, pictures: Tensor) -> Tensor:
        """Painted pictures, or their photos, without the margin. Raises ConfigError where nothing
        is left."""
        if min(pictures.shape[2:]) <= 2 * self.margin:
            raise ConfigError(
                f"CrossPairLDM: photos of {min(pictures.shape[2:])} pixels have nothing within a margin of {self.margin}"
            )
        rows, columns = (slice(self.margin, side - self.margin) for side in pictures.shape[2:])
        return pictures[..., rows, columns]

    def _flags(self, n: int) -> dict[str, Tensor]:
        """Which conditions the diffusion loss of each sample may use."""
        style, content = flags_of(torch.rand(n, device=self.device), self.style_drop, self.content_drop)
        return {self.style_flag_key: style, self.content_flag_key: content}

    def draw_scales(self, n: int) -> Scales:
        """The scales of n paintings, of which the last share of `guided` goes under guidance: in
        batches of a random order, any will do."""
        guided = round(self.estimates.guided * n)
        ranges = self.estimates.content_scales, self.estimates.style_scales
        drawn = (low * (high / low) ** torch.rand(guided, device=self.device) for low, high in ranges)
        return Scales(*drawn, plain=0).behind(n - guided)

    def estimate(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Scales) -> Tensor:
        """The guided x_0. All predictions learn: what guidance adds is the difference between
        them."""
        content, style = condition["c1"][scales.plain :], condition["c2"][scales.plain :]
        conditions = concatenate(
            [
                condition,
                self.condition(torch.zeros_like(content), style),
                self.condition(content, self.null_style(len(content))),
            ]
        )
        # All in one go: small networks are limited by the number of calls.
        every = (torch.cat([part, part[scales.plain :], part[scales.plain :]]) for part in (x, t))
        prediction, without = self.apply_model(*every, conditions).float().split([len(x), 2 * len(content)])
        if len(content):
            guidance = Guidance(scales.guided, needed=(True, True))
            guided = guidance.combine(torch.cat([prediction[scales.plain :], without]))
            prediction = torch.cat([prediction[: scales.plain], guided])
        return self.start_from(prediction, x, t)

    def paint(self, condition: Mapping[str, Tensor], scales: Scales) -> Tensor:
        """The network's guided estimates of paintings, (N, channels, h, w) scaled latents."""
        x, last = torch.randn_like(condition["c1"]), self.num_timesteps - 1
        t = torch.full((len(x),), last, device=x.device)
        later, hops = int(self.estimates.later * len(x)), self.estimates.hops
        rows, chosen = torch.arange(len(x), device=x.device), scales
        for hop in range(hops if later else 0):
            # Fewer each time, so that every number of estimates on the way occurs; evenly of all,
            # so that batches are always of the same sizes, as GPUs want them.
            count = later * (hops - hop) // hops
            rows, chosen = rows[_spread(len(rows), count, x.device)], chosen.spread(count)
            given = {key: value[rows] for key, value in condition.items()}
            x[rows], t[rows] = self.go_on(x[rows], t[rows], given, chosen)
        return self.estimate(x, t, condition, scales)

    @torch.no_grad()
    def go_on(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], scales: Scales
    ) -> tuple[Tensor, Tensor]:
        """(latents, time steps (N,)) further down the way on which the present estimates lie."""
        start = self.estimate(x, t, condition, scales)
        noise = self.predict_noise_from_start(x, t, start)
        # More of the noisy time steps, which decide what a picture looks like.
        t = (torch.rand(len(t), device=t.device).sqrt() * t).long()
        return self.q_sample(start, t, noise), t

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Lightning's: the losses of a batch, logged, for the same random numbers every time."""
        # The same noise and time steps every time, and training's random numbers stay what they
        # were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.ema_scope():
            torch.manual_seed(batch_idx)
            _, parts = self.shared_step(batch)
        self.log_dict(parts, batch_size=len(batch["photo"]), sync_dist=True)

    @torch.no_grad()
    def preview(
        self, batch: Mapping[str, Tensor], max_images: int = 4, ddim_steps: int = 20
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: photos, paintings, and each photo in
        its painting's style."""
        batch = first_samples(batch, max_images)
        photos, paintings = _pictures(batch)
        with self.ema_scope():
            content = batch["recolored"][:, 0] if "recolored" in batch else batch["photo"]
            z, _ = self.encode_batch({self.first_stage_key: content})
            condition = self.condition(self.get_content_features(z), self.get_style_statistics(paintings))
            samples, _ = self.sample_log(
                condition,
                len(z),
                ddim=True,
                ddim_steps=ddim_steps,
                ddim_discretize="trailing",
                x_T=torch.randn_like(z),
            )
        lost = channels_first(content) - self.decode_first_stage(z)
        painted = self.decode_first_stage(samples) + self.detail * lost
        return {"photos": photos, "paintings": paintings, "painted": painted}


def _spread(n: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) places, evenly from all of n."""
    return (2 * torch.arange(count, device=device) + 1) * n // (2 * max(count, 1))


def _contents(photos: Encoded, turns: int) -> Tensor:
    """Scaled latents of all photos for each of the turns, one after the other, (turns * N, ...): as
    they are, or each in its painting's colours."""
    if "recolored" in photos.made:
        return photos.made["recolored"].transpose(0, 1).flatten(0, 1)
    return photos.made["latent"].repeat(turns, 1, 1, 1)


def _single_pictures(photos: Encoded, paintings: Encoded) -> tuple[Tensor, Tensor]:
    """(scaled latents, style statistics) for the diffusion loss, which keeps what is known already:
    the last half of the photos and the first of the paintings will do."""
    n = len(photos.pictures)
    half = (n + 1) // 2
    names = ("latent", "style")
    return tuple(torch.cat([photos.made[name][n - half :], paintings.made[name][:half]]) for name in names)


def _pictures(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Photos and paintings, both (N, 3, H, W)."""
    return [channels_first(batch[kind]) for kind in ("photo", "painting")]
