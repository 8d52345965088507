"""Brush work: a painted picture led by the gradient of an energy to a painting's own paint, from
small and coarse to large and fine.

Gradient steps on the pixels of the predicted picture: guidance by an energy (Bansal et al. 2023, Yu
et al. 2023) at the clean end of a sampling run, where the whole budget pays most. Sizes double from
step to step, since VGG16 sees forms of one size only (Gatys et al. 2017): small pictures get the
large forms, large ones the fine strokes.

Pictures are (1, 3, H, W) in [-1, 1].
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ldm.media.images import resize_short_side, without_alpha
from ldm.media.tensors import image_to_tensor
from ldm.modules.losses.energy import Energy, energy_of
from ldm.modules.losses.lpips import teacher_file, vgg16
from ldm.modules.losses.paint import Grams, Paint, mixed, paint_of
from ldm.modules.losses.paint_features import PaintFeatures
from ldm.pipeline.inputs import mask_array
from ldm.pipeline.looks import Look
from ldm.pipeline.resizing import enlarged, resized, shares_up
from ldm.pipeline.tiles import mirrored_out

BETAS = (0.5, 0.99)  # of Adam: in few steps the usual momentum of 0.9 overshoots
EPS = 1e-12  # of Adam: a pixel's gradient falls with their number, to 1e-8 in large pictures
MARGIN = 4  # pixels painted beyond each edge and cut off again: VGG16 sees zeros there, and three pixels next to them turn garish
MOST_AWAY = 2.0  # as sampling is guided at most
KEPT_PAINTS = 32  # of paintings at some size, 6 MB each
CONTENT = 3.0  # weight of the photo's layout beside the paint, both scales being equal


@dataclass(frozen=True)
class Level:
    """One size of a picture on its way: (height, width), its share of the full one, and how many
    steps are made there."""

    size: tuple[int, int]
    steps: int
    share: float = 1.0

    @property
    def work(self) -> float:
        """What its steps cost, in steps of 256 x 256 pixels."""
        return self.steps * self.size[0] * self.size[1] / 256**2


def levels(size: tuple[int, int], look: Look, only_last: bool = False) -> list[Level]:
    """From the look's smallest size to (height, width), each twice the one before up to the look's
    largest, where steps end, and twice at most from there.

    only_last: from the last at which steps are made.
    """
    ratio = max(1.0, min(size) / look.largest)
    enlarging = shares_up(ratio, 2)
    halvings = max(0, int(math.log2(min(size) / ratio / look.smallest)))
    shares = [enlarging[0] / 2**i for i in range(halvings, 0, -1)] + enlarging
    path = [_level(size, share, look) for share in shares]
    return path[halvings:] if only_last else path


def _level(size: tuple[int, int], share: float, look: Look) -> Level:
    height, width = (max(1, round(side * share)) for side in size)
    return Level((height, width), look.steps_at(min(height, width)), share)


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) with the margin round a picture of this size."""
    return size[0] + 2 * MARGIN, size[1] + 2 * MARGIN


def descend(
    energy: Energy, picture: Tensor, steps: Iterable[int], count: int, rate: float, free: Tensor | None = None
) -> None:
    """Takes the picture, in place and within [-1, 1], `count` steps of Adam down the energy, one
    for each of `steps`.

    The rate falls as the root of what is left of the way. free: (1, 1, H, W) the share of its steps
    that a pixel makes, 0 where it stays. Whatever ends `steps` early leaves the picture as it is by
    then.
    """
    # Written out: torch.optim would import the whole compiler for it, a second of the six that a
    # small picture takes.
    first, second = torch.zeros_like(picture.clamp_(-1, 1)), torch.zeros_like(picture)
    for i in steps:
        slope = energy.gradient(picture)
        first.lerp_(slope, 1 - BETAS[0])
        second.lerp_(slope.square(), 1 - BETAS[1])
        spread = (second / (1 - BETAS[1] ** (i + 1))).sqrt_().add_(EPS)
        step = rate * math.sqrt(1 - i / count) / (1 - BETAS[0] ** (i + 1)) * first / spread
        picture.sub_(step if free is None else step * free).clamp_(-1, 1)


def weights(*scales: float) -> list[float]:
    """The squares of the scales, none negative, so that a dial has some way to go; the largest made
    1.

    To Adam nothing but the ratio matters, and so no scale is too large.
    """
    largest = max(scales)
    return [(scale / largest) ** 2 if largest else 0.0 for scale in scales]


class Stopped(KeyboardInterrupt):
    """The brush work was stopped; `picture` (1, 3, H, W) is as far as it came."""

    def __init__(self, picture: Tensor):
        super().__init__("stopped")
        self.picture = picture


@dataclass(frozen=True)
class Order:
    """What the brush is to do with one picture.

    styles: (painting, weight) pairs for each region. content: (1, 3, H, W), or None for the style
    alone. masks: (R, H, W) shares of the regions. keep: (1, 1, H, W), how far the photo stays.
    not_style: a painting to be led away from. style_size: shorter side of the paintings at the full
    size; None for the picture's own, or the
    painting's where that is smaller. strength: below 1 the photo's own paint is mixed in.
    """

    size: tuple[int, int]
    styles: Sequence[Sequence[tuple[Image.Image, float]]]
    content: Tensor | None = None
    masks: Tensor | None = None
    keep: Tensor | None = None
    content_scale: float = 1.0
    style_scale: float = 1.0
    not_style: Image.Image | None = None
    strength: float = 1.0
    detail: float = 0.0
    style_size: int | None = None
    luminance: bool = False

    def mirrored_out(self) -> "Order":
        """The order for the whole canvas."""
        return replace(
            self,
            size=canvas(self.size),
            content=None if self.content is None else mirrored_out(self.content, MARGIN),
            masks=None if self.masks is None else mirrored_out(self.masks[None], MARGIN)[0],
            keep=None if self.keep is None else mirrored_out(self.keep, MARGIN),
        )


class Brush:
    """VGG16 ready to lead pictures, and the paintings' paint that was taken with it."""

    def __init__(self, net: vgg16, device: torch.device, precision: str):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # the Grams of fp16 would overflow
        self.features = PaintFeatures(net, dtype).to(device)
        self.device = device
        self._paints: OrderedDict[tuple[object, ...], Paint] = OrderedDict()

    @torch.no_grad()
    def finish(
        self,
        start: Tensor,
        order: Order,
        look: Look,
        watch: Callable[[Level, Callable[[], Tensor]], Iterable[int]],
        only_last: bool = False,
    ) -> Tensor:
        """The picture (1, 3, H, W) of an order that begins with `start`, of any smaller size.
        `watch` counts each level's steps, and may look at the picture as it is by then.

        only_last: at the largest size that has steps alone, for a `start` whose large forms are painted
        already.
        Raises Stopped on a KeyboardInterrupt.
        """
        wide = order.mirrored_out()
        picture = start = mirrored_out(start, round(MARGIN * start.shape[2] / order.size[0]))
        for i, level in enumerate(levels(wide.size, look, only_last)):
            picture = self._at(level, picture if i else None, start, wide)
            if not level.steps:
                continue
            try:
                descend(
                    self.energy(level, wide),
                    picture,
                    watch(level, partial(_seen, picture, wide.size)),
                    level.steps,
                    look.rate,
                    self._free(level, wide),
                )
            except KeyboardInterrupt:
                raise Stopped(_seen(picture, wide.size)) from None
        return _seen(picture, wide.size)

    def _at(self, level: Level, picture: Tensor | None, start: Tensor, order: Order) -> Tensor:
        """What a level begins with: the start, or the level before, enlarged, with a share of the
        detail that the start has there, or, beyond its size, the photo."""
        if picture is None:
            picture = resized(start, level.size)
        else:
            # sizes double: this one or a smaller one, however it was rounded
            sampled = level.size[0] < 1.5 * start.shape[2]
            reference = start if sampled or order.content is None else order.content
            picture = enlarged(picture, resized(reference, level.size), order.detail)
        free = self._free(level, order)
        if free is not None and order.content is not None:
            picture = torch.lerp(resized(order.content, level.size), picture, free)
        return picture.clone()

    def _free(self, level: Level, order: Order) -> Tensor | None:
        return None if order.keep is None else (1 - resized(order.keep, level.size)).clamp(0, 1)

    def energy(self, level: Level, order: Order) -> Energy:
        """What leads a picture at a level."""
        content = None if order.content is None else resized(order.content, level.size)
        paints = [self._mixed(region, level, order) for region in order.styles]
        if order.not_style is not None:
            avoided = self._mixed([(order.not_style, 1.0)], level, order)
            paints = [led_away(paint, avoided, order.style_scale) for paint in paints]
        if order.strength < 1 and content is not None:
            own = paint_of(self.features, content, order.luminance)
            paints = [mixed([(paint, order.strength), (own, 1 - order.strength)]) for paint in paints]
        masks = None if order.masks is None else resized(order.masks[None], level.size)[0].clamp(0, 1)
        free = self._free(level, order)
        # the painting need not be met by what stays the photo, nor made up for around it
        if free is not None:
            masks = free[0] if masks is None else masks * free[0]
        of_style, of_content = weights(order.style_scale, order.content_scale)
        return energy_of(
            self.features,
            paints,
            content,
            of_style,
            CONTENT * of_content,
            masks=masks,
            luminance=order.luminance,
        )

    def _mixed(self, region: Sequence[tuple[Image.Image, float]], level: Level, order: Order) -> Paint:
        """The region's paintings' paint, by weight."""
        return mixed(
            [
                (self._paint_of(painting, self._side(painting, level, order), order.luminance), weight)
                for painting, weight in region
            ]
        )

    def _side(self, painting: Image.Image, level: Level, order: Order) -> int:
        """The shorter side at which a painting is looked at: strokes have the size in the picture
        that they have there."""
        wanted = min(min(order.size), *painting.size) if order.style_size is None else order.style_size
        return max(16, round(wanted * min(level.size) / min(order.size)))

    def _paint_of(self, painting: Image.Image, side: int, luminance: bool) -> Paint:
        key = (painting.size, hash(painting.tobytes()), side, luminance)
        if key not in self._paints:
            scaled, shares = painting_tensors(painting, side, self.device)
            self._paints[key] = paint_of(self.features, scaled, luminance, shares)
            if len(self._paints) > KEPT_PAINTS:
                self._paints.popitem(last=False)
        self._paints.move_to_end(key)
        return self._paints[key]


def led_away(paint: Paint, avoided: Paint, scale: float) -> Paint:
    """Paint whose Gram matrices are further from others, by as much as `scale` is above 1, up to
    MOST_AWAY: what guidance does with predictions."""
    by = min(scale, MOST_AWAY) - 1
    grams: Grams = {name: _further(gram, avoided.grams[name], by) for name, gram in paint.grams.items()}
    return Paint(grams, paint.places)


def _further(gram: Tensor, avoided: Tensor, by: float) -> Tensor:
    # Of the same energy, or a faint painting would be led away from all paint there is.
    avoided = avoided * (gram.trace() / avoided.trace().clamp_min(EPS))
    further = _nearest_gram(gram + by * (gram - avoided))
    return further * (gram.trace() / further.trace().clamp_min(EPS))


def _nearest_gram(matrix: Tensor) -> Tensor:
    """The nearest that a picture can have: without energies below 0."""
    # On the CPU: some devices have no float64, and it is done once for each size.
    values, vectors = torch.linalg.eigh(matrix.cpu().double())
    nearest: Tensor = vectors * values.clamp_min(0) @ vectors.mT
    return nearest.to(matrix)


def painting_tensors(painting: Image.Image, side: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(1, 3, H, W) of a style picture scaled to this shorter side, and (1, 1, H, W), in [0, 1], how
    far each pixel counts, where some of it is transparent."""
    opaque, alpha = without_alpha(resize_short_side(painting, side))
    shares = None if alpha is None else torch.from_numpy(mask_array(alpha, alpha.size))[None, None]
    return image_to_tensor(opaque)[None].to(device), None if shares is None else shares.to(device)


def _seen(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A canvas at any level as the picture without its margin, which is taken from the full
    (height, width)."""
    return resized(picture, size)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def bundled_vgg16() -> vgg16:
    """The VGG16 that comes along. Raises UserError where its file is gone."""
    net = vgg16()
    net.load_weights(teacher_file())
    return net
