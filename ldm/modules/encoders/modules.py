"""Condition stages: class labels, maps, and CLIP's view of texts and pictures.

A stage that knows `null_input(n)`, what stands for "nothing in particular" n times, can be trained
with `cond_drop` and sampled under classifier-free guidance.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checks import check_choice
from ldm.errors import ConfigError, UserError
from ldm.published.configs import out_of_scope
from ldm.text import first_of

# Mean and standard deviation of CLIP's training pictures, in [0, 1] (Radford et al. 2021).
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


BERTEmbedder, TransformerEmbedder = (
    out_of_scope(f"ldm.modules.encoders.modules.{name}") for name in ("BERTEmbedder", "TransformerEmbedder")
)


class ClassEmbedder(nn.Module):
    """Labels (N,) to a learned sequence of one vector, (N, 1, embed_dim). The last of `n_classes`
    is the null class."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class"):
        super().__init__()
        self.n_classes, self.key = n_classes, key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Tensor | Mapping[str, Tensor], key: str | None = None) -> Tensor:
        """Labels by themselves or, as published, in a batch under `key`. Raises UserError for an
        unknown label."""
        labels = batch if isinstance(batch, Tensor) else batch[key or self.key]
        wrong = labels[(labels < 0) | (labels >= self.n_classes)]
        if len(wrong):
            raise UserError(f"ClassEmbedder: label {int(wrong[0])} is not one of 0 to {self.n_classes - 1}")
        return self.embedding(labels[:, None])

    def check_classes(self, names: Sequence[str], with_null: bool) -> None:
        """Raises ConfigError unless there is a class for each of these, and one more for the null
        class, which only `with_null` demands."""
        if self.n_classes != len(names) + 1 and (with_null or self.n_classes != len(names)):
            raise ConfigError(
                f"{len(names)} classes of pictures ({first_of(names)}), so cond_stage_config.params.n_classes must be {len(names) + 1} "
                f"(one more, for the null class), not {self.n_classes}"
            )

    def null_input(self, n: int) -> Tensor:
        """The null class for n samples, (n,)."""
        return torch.full((n,), self.n_classes - 1, device=self.embedding.weight.device)


class FrozenCLIPEmbedder(nn.Module):
    """Texts to the last hidden states of CLIP's text network, (N, max_length, width).

    version: a name on the Hugging Face hub or a local folder. Parameter names are those of Stable
    Diffusion 1 checkpoints.
    `device`, in published config files, has no effect: the network goes where the model goes.
    """

    # older versions of transformers saved them
    optional_keys = ("transformer.text_model.embeddings.position_ids",)

    def __init__(
        self, version: str = "openai/clip-vit-large-patch14", device: str | None = None, max_length: int = 77
    ):
        super().__init__()
        self.tokenizer = from_hub("CLIPTokenizer", version)
        network = from_hub("CLIPTextModel", version)
        # Checkpoints name the network within; recent versions of transformers do not have that
        # level.
        self.transformer = nn.ModuleDict({"text_model": getattr(network, "text_model", network)})
        self.max_length = max_length

    def forward(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, max_length, width); longer ones are cut."""
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        network = self.transformer["text_model"]
        return network(input_ids=tokens["input_ids"].to(next(network.parameters()).device)).last_hidden_state

    def null_input(self, n: int) -> list[str]:
        """The empty text for n samples."""
        return [""] * n


class FrozenCLIPImageEmbedder(nn.Module):
    """Pictures (N, 3, H, W) in [-1, 1] to CLIP's image embedding, a sequence of one vector (N, 1,
    projection width)."""

    def __init__(self, version: str = "openai/clip-vit-large-patch14"):
        super().__init__()
        self.transformer = from_hub("CLIPVisionModelWithProjection", version)
        self.size = self.transformer.config.image_size
        for name, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of any size to (N, 1, projection width)."""
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.transformer(pixel_values=((x + 1) / 2 - self.mean) / self.std).image_embeds[:, None]

    def null_input(self, n: int) -> Tensor:
        """Grey, (n, 3, 1, 1): pictures of one pixel, which go with those of any size."""
        return torch.zeros(n, 3, 1, 1, device=self.mean.device)


class SpatialRescaler(nn.Module):
    """Maps (N, in_channels, H, W), such as segmentations, rescaled by `multiplier` `n_stages`
    times.

    `method` is one of torch's interpolation. With `out_channels` a 1x1 conv follows.
    """

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        check_choice("SpatialRescaler: method", method, ("nearest", "bilinear", "bicubic", "area"))
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        if out_channels is not None:
            self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, h, w)."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return self.channel_mapper(x) if hasattr(self, "channel_mapper") else x

    def encode(self, x: Tensor) -> Tensor:
        """The same, by the name that first stages have for it."""
        return self(x)


def from_hub(class_name: str, version: str) -> Any:
    """An object of `transformers` from a local folder or the hub. Raises UserError without the
    package or the files."""
    if find_spec("transformers") is None:
        raise UserError("CLIP needs a package more: pip install 'artfusion[clip]'")
    import transformers

    try:
        return getattr(transformers, class_name).from_pretrained(version)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"CLIP {version!r}: {str(error).splitlines()[0].rstrip('.')}; give a folder with its files, or a name on the Hugging Face hub"
        ) from error
