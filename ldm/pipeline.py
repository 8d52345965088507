"""The one door for inference: pictures in, stylised pictures out.

    from ldm.pipeline import StyleTransferPipeline

    pipeline = StyleTransferPipeline.from_pretrained()
    picture = pipeline("photo.jpg", "painting.jpg", style_scale=2.0, seed=1)
    picture.save("result.png")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ldm.checkpoint import bake_ema, load_strict, read_state_dict
from ldm.device import autocast, choose_device, choose_precision, memory_errors
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.images import image_to_tensor, load_image, resize_short_side, tensor_to_image, to_rgb
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.models.diffusion.samplers import PerPictureNoise
from ldm.util import instantiate_from_config, load_config, to_plain

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = {"mini": ("checkpoints/mini/model.safetensors", "configs/mini.yaml")}
PUBLISHED_CONFIG = "configs/kl16_content12.yaml"
SAMPLERS = {"ddim": 50}  # name -> default number of steps
MIN_SIDE = 32
MAX_RESULT_PIXELS = 8_000_000  # more would take minutes and tens of GB, as there are no tiles yet
LATENT_FACTOR, NUM_TIMESTEPS = 16, 1000  # of the bundled and the published model

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Settings:
    """How to stylise; `check` tells whether a model can. See StyleTransferPipeline.__call__ for the meanings."""

    content_scale: float = 1.0
    style_scale: float = 1.0
    sampler: str = "ddim"
    steps: int | None = None
    eta: float = 0.0
    size: int = 256
    seed: int | Sequence[int] = 0

    def check(self, factor: int = LATENT_FACTOR, num_timesteps: int = NUM_TIMESTEPS) -> None:
        """Raises UserError for what a model of this downsampling factor and number of time steps cannot do."""
        self._check_types()
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        if self.steps is not None and not 1 <= self.steps <= num_timesteps:
            raise UserError(f"steps must be between 1 and {num_timesteps}, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be between 0 and 1, got {self.eta}")
        if self.size < MIN_SIDE or self.size % factor:
            raise UserError(f"size must be a multiple of {factor} and at least {MIN_SIDE} pixels, got {self.size}")
        if self.size**2 > MAX_RESULT_PIXELS:
            raise UserError(f"size {self.size} means more than the limit of {MAX_RESULT_PIXELS} pixels; choose a smaller one")
        bad = [seed for seed in self.seeds(1) if not -(2**63) <= seed < 2**64]  # what torch's generators take
        if bad:
            raise UserError(f"a seed must be between -2^63 and 2^64 - 1, got {bad[0]}")
        for name in ("content_scale", "style_scale"):
            if not torch.isfinite(torch.tensor(getattr(self, name))):
                raise UserError(f"{name} must be a finite number, got {getattr(self, name)}")

    def _check_types(self) -> None:
        for name, kind, what in (
            ("size", Integral, "a whole number"),
            ("steps", (Integral, type(None)), "a whole number or None"),
            ("seed", (Integral, Sequence), "a whole number, or a list of them"),
            ("content_scale", Real, "a number"),
            ("style_scale", Real, "a number"),
            ("eta", Real, "a number"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} must be {what}, got {getattr(self, name)!r}")

    def seeds(self, count: int) -> list[int]:
        """One seed for each of `count` pictures; as many as were given, if that was a list."""
        return [int(self.seed)] * count if isinstance(self.seed, Integral) else list(self.seed)


class StyleTransferPipeline:
    """A model ready to stylise. Make one with `from_pretrained`."""

    def __init__(self, model: DualCondLDM, precision: str = "fp32"):
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.factor = model.first_stage_model.encoder.factor
        self.padding = self.factor * model.model.diffusion_model.min_multiple

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = "mini",
        config: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_targets: Iterable[str] = (),
    ) -> "StyleTransferPipeline":
        """Load a model: "mini" (bundled), or the path of a `.ckpt` or `.safetensors` file.

        config: its YAML; by default that of the published model. Averaged weights are used where a checkpoint has
        them. Raises UserError for whatever is missing, broken or does not fit together.
        """
        where = choose_device(device)
        precision = choose_precision(precision, where)
        path, config_path = _resolve(checkpoint, config)
        state = bake_ema(read_state_dict(path))
        model = build_model(config_path, allow_targets)
        try:
            load_strict(model, state, model.optional_keys(state), where=str(path))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; is {config_path} its config? (--config names another)") from error
        model.load_style_network()
        return cls(model.to(where), precision)

    def __call__(
        self,
        content: Picture | Sequence[Picture],
        style: Picture | Sequence[Picture],
        *,
        content_scale: float = 1.0,
        style_scale: float = 1.0,
        sampler: str = "ddim",
        steps: int | None = None,
        eta: float = 0.0,
        seed: int | Sequence[int] = 0,
        size: int = 256,
        batch_size: int = 8,
        progress: bool = False,
    ) -> Image.Image | list[Image.Image]:
        """The content picture(s) painted in the style of the style picture(s): one picture, or a list of them.

        content, style: paths or PIL pictures; lists of the same length pair up, a single one goes with all.
        content_scale, style_scale: guidance. 1 is the plain conditional model, more exaggerates, 0 ignores.
        sampler, steps, eta: "ddim" and its number of steps (default 50); eta 0 is deterministic, 1 as noisy as DDPM.
        seed: of the noise, for all pictures or one each. size: pixels of the result's shorter side, a multiple of
        the latent factor (16); the aspect is kept, the longer side rounded to whole pixels.
        Raises UserError for unusable pictures and settings.
        """
        settings = Settings(content_scale, style_scale, sampler, steps, eta, size, seed)
        settings.check(self.factor, self.model.num_timesteps)
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        contents, styles, single = _pairs(content, style)
        for image in (*contents, *styles):
            _check_scaled(image, size)
        seeds = settings.seeds(len(contents))
        if len(seeds) != len(contents):
            raise UserError(f"{len(seeds)} seeds for {len(contents)} pictures")
        with memory_errors("choose a smaller size or batch_size"):
            results = self._stylize(contents, styles, seeds, settings, batch_size, progress)
        return results[0] if single else results

    def _stylize(
        self,
        contents: list[Image.Image],
        styles: list[Image.Image],
        seeds: list[int],
        settings: Settings,
        batch_size: int,
        progress: bool,
    ) -> list[Image.Image]:
        """Pictures of the same size go through together; the results keep the order."""
        resized = [resize_short_side(image, settings.size) for image in contents]
        style_of = {id(s): self.encode_style(s, settings.size) for s in {id(s): s for s in styles}.values()}
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(resized):
            by_size.setdefault(image.size, []).append(i)
        results: dict[int, Image.Image] = {}
        for members in by_size.values():
            for batch in (members[i : i + batch_size] for i in range(0, len(members), batch_size)):
                pictures = torch.stack([image_to_tensor(resized[i]) for i in batch]).to(self.model.device)
                style = torch.cat([style_of[id(styles[i])] for i in batch])
                painted = self.stylize_tensors(pictures, style, [seeds[i] for i in batch], settings, progress)
                results |= {i: tensor_to_image(p) for i, p in zip(batch, painted)}
        return [results[i] for i in range(len(contents))]

    @torch.no_grad()
    def encode_style(self, image: Image.Image, size: int) -> Tensor:
        """(1, style_dim) statistics of the whole picture, scaled to the shorter side `size`."""
        x = image_to_tensor(resize_short_side(image, size))[None].to(self.model.device)
        with autocast(self.model.device, self.precision):
            return self.model.get_style_statistics(x).float()

    @torch.no_grad()
    def stylize_tensors(
        self, pictures: Tensor, style: Tensor, seeds: Sequence[int], settings: Settings, progress: bool = False
    ) -> Tensor:
        """(N, 3, H, W) results from pictures (N, 3, H, W), both in [-1, 1], and style statistics (N, style_dim)."""
        height, width = pictures.shape[2:]
        padded = pad_to_multiple(pictures, self.padding)
        with autocast(self.model.device, self.precision):
            z = self.model.get_first_stage_encoding(self.model.encode_first_stage(padded))
            content = self.model.get_content_features(z.float())
            latents = self._sample(content, style, seeds, settings, progress)
            painted = self.model.decode_first_stage(latents)
        if not painted.isfinite().all():
            raise UserError("the numbers overflowed, so there is no picture; choose smaller scales or precision fp32")
        return painted.float()[:, :, :height, :width]

    def _sample(self, content: Tensor, style: Tensor, seeds: Sequence[int], settings: Settings, progress: bool) -> Tensor:
        model, n = self.model, len(content)
        noise = PerPictureNoise(list(seeds))
        return DDIMSampler(model).sample(
            settings.steps or SAMPLERS[settings.sampler],
            n,
            content.shape[1:],
            model.condition(content, style),
            eta=settings.eta,
            ddim_discretize="trailing",
            noise_source=noise,
            verbose=progress,
            unconditional_guidance_scale=settings.content_scale,
            unconditional_conditioning=model.condition(torch.zeros_like(content), style),
            unconditional_guidance_scale_2=settings.style_scale,
            unconditional_conditioning_2=model.condition(content, model.null_style(n)),
        )[0]


def build_model(config_path: str | Path, allow_targets: Iterable[str] = ()) -> DualCondLDM:
    """The style transfer model of a config file for inference: no weights yet, no averages. Raises UserError."""
    config: dict[str, Any] = to_plain(load_config(config_path))
    try:
        params = config["model"]["params"]
        first_stage = params["first_stage_config"]["params"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{config_path}: not the config of a style transfer model (no {error})") from error
    params |= {"ckpt_path": None, "use_ema": False}
    first_stage["ckpt_path"] = None
    model = instantiate_from_config(config["model"], allow_targets)
    if not isinstance(model, DualCondLDM):
        raise ConfigError(f"{config_path}: describes a {type(model).__name__}, not a style transfer model (DualCondLDM)")
    return model


def _resolve(checkpoint: str | Path, config: str | Path | None) -> tuple[Path, Path]:
    """(checkpoint file, config file); the bundled ones lie beside the package."""
    if str(checkpoint) in BUNDLED and not Path(checkpoint).is_file():
        weights, bundled_config = BUNDLED[str(checkpoint)]
        return ROOT / weights, Path(config) if config else ROOT / bundled_config
    return Path(checkpoint), Path(config) if config else ROOT / PUBLISHED_CONFIG


def _pairs(content: Any, style: Any) -> tuple[list[Image.Image], list[Image.Image], bool]:
    """(contents, styles, whether both were single), as many of each, every file read once."""
    single = not isinstance(content, (list, tuple)) and not isinstance(style, (list, tuple))
    contents, styles = (_read_all(p if isinstance(p, (list, tuple)) else [p]) for p in (content, style))
    if not contents or not styles:
        raise UserError("no pictures to work on: content or style is an empty list")
    if len(contents) != len(styles) and 1 not in (len(contents), len(styles)):
        raise UserError(f"{len(contents)} contents and {len(styles)} styles do not pair up")
    n = max(len(contents), len(styles))
    return contents * (n // len(contents)), styles * (n // len(styles)), single


def _read_all(pictures: Sequence[Picture]) -> list[Image.Image]:
    read: dict[Any, Image.Image] = {}
    keys = [id(picture) if isinstance(picture, Image.Image) else str(picture) for picture in pictures]
    for key, picture in zip(keys, pictures):
        if key not in read:
            read[key] = _read(picture)
    return [read[key] for key in keys]


def _read(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return _from_memory(picture)
    if isinstance(picture, (str, Path)):
        return load_image(picture)
    raise UserError(f"content and style are paths or PIL pictures, or lists of them; got a {type(picture).__name__}")


def _from_memory(image: Image.Image) -> Image.Image:
    """A given picture as RGB, upright; one that was only opened is read from its file now."""
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{getattr(image, 'filename', '') or image}: the picture cannot be read ({error})") from error


def _check_scaled(image: Image.Image, size: int) -> None:
    if min(image.size) < 1 or size**2 * max(image.size) > MAX_RESULT_PIXELS * min(image.size):
        raise UserError(
            f"a picture of {image.width}x{image.height} pixels cannot be scaled to a shorter side of {size}: the result "
            f"would be empty or have more than {MAX_RESULT_PIXELS} pixels"
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pictures (N, 3, H, W) with their edges repeated at right and bottom until the sides divide by `multiple`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
