"""What published latent-diffusion config files name otherwise than this project: moved classes, and
options with one value here."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ldm.errors import ConfigError, did_you_mean

# Published configs name classes of the training script, and those of vector-quantised first stages
# another package's; these are ours.
MOVED = {
    "main.DataModuleFromConfig": "ldm.data.datamodule.DataModuleFromConfig",
    "main.ImageLogger": "ldm.training.image_logger.ImageLogger",
    "taming.modules.losses.vqperceptual.DummyLoss": "ldm.modules.losses.contperceptual.DummyLoss",
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "taming.modules.losses.lpips.LPIPS": "ldm.modules.losses.lpips.LPIPS",
    "taming.modules.vqvae.quantize.VectorQuantizer2": "ldm.modules.vqvae.quantize.VectorQuantizer",
}

_BERT = "BERT text models are out of scope; FrozenCLIPEmbedder takes texts"
_DATA = "the published data sets are out of scope; ldm.data.classes.ClassFolders (with labels) and ldm.data.pictures.PictureFolder read folders"
# (beginning of a target, why there is none)
OUT_OF_SCOPE = (
    ("ldm.modules.encoders.modules.BERT", _BERT),
    ("ldm.modules.encoders.modules.TransformerEmbedder", _BERT),
    (
        "pytorch_lightning.loggers.TestTube",
        "Lightning has it no more; take it out: TensorBoard's and CSV files are always written",
    ),
    ("main.", "of the training script there are main.DataModuleFromConfig and main.ImageLogger"),
    (
        "ldm.models.diffusion.plms.",
        "PLMS sampling is out of scope; ldm.models.diffusion.ddim.DDIMSampler samples",
    ),
    (
        "ldm.models.diffusion.classifier.",
        "guidance by a classifier is out of scope; train with `cond_drop` and guide against the null condition",
    ),
    *(
        (f"{package}.", _DATA)
        for package in ("ldm.data.imagenet", "ldm.data.lsun", "ldm.data.openimages", "taming.data")
    ),
    (
        "taming.",
        "of taming-transformers only the loss and the quantiser of vector-quantised first stages are here",
    ),
)

Class = TypeVar("Class", bound=type)


def our_target(target: str) -> str:
    """The name here of a published target. Raises ConfigError for what is out of scope."""
    for beginning, reason in () if target in MOVED else OUT_OF_SCOPE:
        if target.startswith(beginning):
            raise ConfigError(f"target {target!r}: {reason}{did_you_mean(target, MOVED)}")
    return MOVED.get(target, target)


def out_of_scope(target: str) -> type:
    """A class by the published name `target`, for scripts that import it beside what they use.
    Building one raises ConfigError."""

    def refuse(self: Any, *args: Any, **options: Any) -> None:
        our_target(target)

    module, _, name = target.rpartition(".")
    return type(
        name,
        (),
        {
            "__init__": refuse,
            "__module__": module,
            "__doc__": "Out of scope: building one says what to use instead.",
        },
    )


def with_published_keys(**keys: tuple[Any, str]) -> Callable[[Class], Class]:
    """Let a class's constructor take published options of which only one value exists here:
    name=(value, why no other).

    Another value raises ConfigError.
    """

    def extended(cls: Class) -> Class:
        # of this class itself, so no subclass's can be meant
        cls.__init__ = _checked(cls.__init__, keys)  # type: ignore[misc]
        return cls

    return extended


def _checked(init: Callable[..., None], keys: dict[str, tuple[Any, str]]) -> Callable[..., None]:
    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **options: Any) -> None:
        for name, (value, reason) in keys.items():
            given = options.pop(name, value)
            if given != value:
                raise ConfigError(
                    f"{type(self).__name__}: {name} can only be {value!r}, not {given!r}: {reason}"
                )
        init(self, *args, **options)

    signature = inspect.signature(init)
    own = list(signature.parameters.values())
    end = len(own) - (own[-1].kind is inspect.Parameter.VAR_KEYWORD)
    own[end:end] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, (value, _) in keys.items()
    ]
    vars(constructor)["__signature__"] = signature.replace(parameters=own)  # what the config factory reads
    return constructor
